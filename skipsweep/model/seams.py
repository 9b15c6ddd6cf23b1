"""The seams of the trunk: what a mechanism is given, and what it has to return.

Legend: B batch, T time, D dim.
"""

from dataclasses import dataclass

from torch import Tensor, nn

Outputs = dict[int, Tensor]
"""Layer -> its output (B, T, D), for those layers that some seam needs."""


@dataclass
class Context:
    """What every layer may look at, computed once per pass."""

    x00: Tensor
    """The normed token embedding (B, T, D): where the residual stream starts."""
    rotary: tuple[Tensor, Tensor]
    """Cosines and signed sines (T, 1, head width), see `blocks.rotate`."""


class Inject(nn.Module):
    """What is mixed into the residual stream before a block."""

    needs: frozenset[int] = frozenset()
    """Layers whose outputs it reads; the trunk keeps no others alive."""

    def forward(self, i: int, x: Tensor, ctx: Context, outputs: Outputs) -> Tensor:
        """The stream (B, T, D) that block `i` starts from."""
        raise NotImplementedError


class Gate(nn.Module):
    """How much of a block's change reaches the stream."""

    def forward(self, i: int, x: Tensor, gate_state: list[Tensor]) -> Tensor | None:
        """Factor (B, T, 1) on what block `i` adds; None: all of it, everywhere.

        `gate_state` is empty before the first block; what a gate appends to it, it finds there at later blocks.
        """
        raise NotImplementedError


class Readout(nn.Module):
    """What the head sees."""

    needs: frozenset[int] = frozenset()
    """Layers whose outputs it reads; the trunk keeps no others alive."""
    width: int
    """Channels of the result: the head's inputs."""

    def forward(self, x: Tensor, outputs: Outputs, ctx: Context) -> Tensor:
        """Features (B, T, width) from the last layer's output `x` (B, T, D) and the kept ones."""
        raise NotImplementedError
