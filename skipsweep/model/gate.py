"""How much of a block's change reaches the residual stream."""

from torch import Tensor

from skipsweep.model.seams import Gate


class NoGate(Gate):
    """All of it, everywhere: a dense trunk."""

    def forward(self, i: int, x: Tensor, gate_state: list[Tensor]) -> Tensor | None:
        return None


GATES: dict[str, type[Gate]] = {"none": NoGate}
"""Choice of `gate_targets` -> module."""
