"""What the head sees: the last layer's output, alone or with earlier ones.

Legend: B batch, T time, D dim, N sources.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from skipsweep.config import Recipe
from skipsweep.model.lambdas import Lambdas
from skipsweep.model.norm import norm
from skipsweep.model.seams import Context, Outputs, Readout
from skipsweep.model.shape import INPUT, LAST, head_inputs, readout_lambdas, readout_name, sources
from skipsweep.model.weighted import WeightedSum


class Last(Readout):
    """norm(x): the baseline."""

    def __init__(self, recipe: Recipe, dtype: torch.dtype) -> None:
        super().__init__()
        self.width = head_inputs(recipe)

    def forward(self, x: Tensor, outputs: Outputs, ctx: Context) -> Tensor:
        return norm(x)


class _Skip(Readout):
    """A readout of the last layer and N sources, each normed by itself."""

    def __init__(self, recipe: Recipe, dtype: torch.dtype) -> None:
        super().__init__()
        self.sources = sources(recipe)
        self.needs = frozenset(source for source in self.sources if isinstance(source, int))
        self.width = head_inputs(recipe)

    def normed(self, x: Tensor, outputs: Outputs, ctx: Context) -> list[Tensor]:
        """[norm(x), norm(h_1), ..., norm(h_N)], each (B, T, D). x00 is normed already."""
        last = norm(x)
        named = {INPUT: ctx.x00, LAST: last}
        return [last, *(norm(outputs[s]) if isinstance(s, int) else named[s] for s in self.sources)]


class Add(_Skip):
    """norm(x) * x_lambda + sum_k norm(h_k) * skip_lambda_k (record 15 of the medium track, seed 000)."""

    def __init__(self, recipe: Recipe, dtype: torch.dtype) -> None:
        super().__init__(recipe, dtype)
        self.lambdas = Lambdas(readout_lambdas(recipe), dtype)
        self.sum = WeightedSum()

    def forward(self, x: Tensor, outputs: Outputs, ctx: Context) -> Tensor:
        return self.sum(self.normed(x, outputs, ctx), list(ctx.scalars(self.lambdas).values()))


class AddRenorm(Add):
    """norm of `Add`'s sum (seed 000, "norm after sum"): of the lambdas, only the ratios and the common sign matter."""

    def forward(self, x: Tensor, outputs: Outputs, ctx: Context) -> Tensor:
        return norm(super().forward(x, outputs, ctx))


class Concat(_Skip):
    """[norm(x), norm(h_1), ..., norm(h_N)] side by side (seed 000): the head has (N + 1) * D inputs."""

    def forward(self, x: Tensor, outputs: Outputs, ctx: Context) -> Tensor:
        return torch.cat(self.normed(x, outputs, ctx), dim=-1)


READOUTS = {"last": Last, "add": Add, "add_renorm": AddRenorm, "concat": Concat}
"""Choice of `head_type` -> module."""


def build_readout(recipe: Recipe, dtype: torch.dtype) -> Readout:
    """The readout in force in a canonical recipe."""
    return READOUTS[readout_name(recipe)](recipe, dtype)


@dataclass(frozen=True)
class Neutral:
    """Where a mechanism is the baseline."""

    settings: dict[str, Any]
    """Dotted keys of a recipe, and the values that switch the mechanism off."""
    tolerance: float
    """Largest difference of the logits to the baseline's in float32, in units of the largest logit; 0: bit for bit."""
    why: str
    zero_columns: tuple[str, ...] = field(default=())
    """Parameters wider than the baseline's: equal to it where the added columns are 0."""


LAMBDAS_OFF = {"lambda_init.x_lambda": 1.0, "lambda_init.skip_lambda": 0.0}

NEUTRAL: dict[str, Neutral] = {
    "add": Neutral(LAMBDAS_OFF, 0.0, "times 1 and plus 0 are exact"),
    "add_renorm": Neutral(LAMBDAS_OFF, 3e-6, "norming twice differs from once by rounding and by eps / 2 = 6e-8"),
    "concat": Neutral(
        settings={},
        tolerance=3e-6,
        why="the added products are exact zeros, but a wider matrix product may sum the others in another order",
        zero_columns=("head.weight",),
    ),
}
"""Choice of `head_type` -> its neutral setting."""
