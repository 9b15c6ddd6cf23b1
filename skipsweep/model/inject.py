"""What is mixed into the residual stream before a block.

Legend: B batch, T time, D dim.
"""

import torch
from torch import Tensor

from skipsweep.config import Recipe
from skipsweep.model.lambdas import Lambdas
from skipsweep.model.seams import Context, Inject, Outputs
from skipsweep.model.shape import block_lambdas, token_embeddings, unet_lambdas
from skipsweep.model.weighted import WeightedSum


class Steps(Inject):
    """Several mechanisms, one after the other; without any, a block starts from the output of the one before it."""

    def __init__(self, **steps: Inject) -> None:
        super().__init__()
        for name, step in steps.items():
            self.add_module(name, step)
        self.needs = frozenset().union(*(step.needs for step in steps.values()))

    def forward(self, i: int, x: Tensor, ctx: Context, outputs: Outputs) -> Tensor:
        for step in self.children():
            x = step(i, x, ctx, outputs)
        return x


class UNet(Inject):
    """x + sum_s w_s * output of layer s, over the pairs s -> i (medium track; Ronneberger et al. 2015 for images)."""

    def __init__(self, recipe: Recipe, dtype: torch.dtype) -> None:
        super().__init__()
        self.sources: dict[int, list[int]] = {}
        for source, target in recipe.residual.unet:
            self.sources.setdefault(target, []).append(source)
        self.needs = frozenset(source for source, _ in recipe.residual.unet)
        self.lambdas = Lambdas(unet_lambdas(recipe), dtype)
        self.sum = WeightedSum()

    def forward(self, i: int, x: Tensor, ctx: Context, outputs: Outputs) -> Tensor:
        sources = self.sources.get(i)
        if not sources:
            return x
        weights = ctx.scalars(self.lambdas)
        one = torch.ones((), dtype=self.lambdas.weight.dtype, device=x.device)
        skips = [weights[f"lambda/unet/{source}-{i}"] for source in sources]
        return self.sum([x, *(outputs[source] for source in sources)], [one, *skips])


class Mix(Inject):
    """l_x * x + l_x00 * x00 + l_x01 * x01 + ...: every block sees the token embeddings anew (medium track)."""

    def __init__(self, recipe: Recipe, dtype: torch.dtype) -> None:
        super().__init__()
        self.names = ["x", *token_embeddings(recipe)]
        self.lambdas = Lambdas(block_lambdas(recipe), dtype)
        self.sum = WeightedSum()

    def forward(self, i: int, x: Tensor, ctx: Context, outputs: Outputs) -> Tensor:
        weights = ctx.scalars(self.lambdas)
        return self.sum([x, *ctx.embeddings], [weights[f"lambda/block/{i}/{name}"] for name in self.names])


def build_inject(recipe: Recipe, dtype: torch.dtype) -> Steps:
    """The mechanisms in force in a canonical recipe, in the medium track's order: U-net skips, then the sum."""
    steps: dict[str, Inject] = {}
    if recipe.residual.unet:
        steps["unet"] = UNet(recipe, dtype)
    if recipe.embeddings.mix:
        steps["mix"] = Mix(recipe, dtype)
    return Steps(**steps)
