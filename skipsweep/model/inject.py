"""What is mixed into the residual stream before a block."""

from torch import Tensor

from skipsweep.model.seams import Context, Inject, Outputs


class Plain(Inject):
    """Nothing: a block starts from the output of the one before it."""

    def forward(self, i: int, x: Tensor, ctx: Context, outputs: Outputs) -> Tensor:
        return x
