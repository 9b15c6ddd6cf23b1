"""What is mixed into the residual stream before a block.

Legend: B batch, T time, D dim.
"""

import torch
from torch import Tensor

from skipsweep.config import Recipe
from skipsweep.model.lambdas import Lambdas
from skipsweep.model.seams import Context, Inject, Outputs
from skipsweep.model.shape import (
    block_lambdas,
    mixed_layers,
    rolling_lambdas,
    tail_lambdas,
    token_embeddings,
    unet_label,
    unet_lambdas,
)
from skipsweep.model.weighted import WeightedSum
from skipsweep.model.wiring import rolling_layers, tail_layers


class InjectChain(Inject):
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

    def trunk_output(self, x: Tensor, ctx: Context, outputs: Outputs) -> Tensor:
        for step in self.children():
            assert isinstance(step, Inject)
            x = step.trunk_output(x, ctx, outputs)
        return x


class ParallelTail(Inject):
    """The last k blocks all start from the output of the one before them; sum_i w_i * output of i leaves the trunk.

    Each has its own U-net skips and weighted sum. (The multi-output article asks whether the last layers could stand
    side by side.)
    """

    def __init__(self, recipe: Recipe, dtype: torch.dtype) -> None:
        super().__init__()
        self.layers = tail_layers(recipe.residual, recipe.model.layers)
        self.start = self.layers[0] - 1
        self.needs = frozenset([self.start, *self.layers])
        self.lambdas = Lambdas(tail_lambdas(recipe), dtype)
        self.sum = WeightedSum()

    def forward(self, i: int, x: Tensor, ctx: Context, outputs: Outputs) -> Tensor:
        return outputs[self.start] if i in self.layers else x

    def trunk_output(self, x: Tensor, ctx: Context, outputs: Outputs) -> Tensor:
        return self.sum([outputs[i] for i in self.layers], list(ctx.scalars(self.lambdas).values()))


class UNet(Inject):
    """x + sum_s w_s * output of layer s, over the pairs s -> i (medium track; Ronneberger et al. 2015 for images).

    w_s is learned, or the logistic function of what is learned (small track).
    """

    def __init__(self, recipe: Recipe, dtype: torch.dtype) -> None:
        super().__init__()
        self.sources: dict[int, list[int]] = {}
        for source, target in recipe.residual.unet:
            self.sources.setdefault(target, []).append(source)
        self.needs = frozenset(source for source, _ in recipe.residual.unet)
        self.labels = {(source, target): unet_label(recipe, source, target) for source, target in recipe.residual.unet}
        self.squashed = recipe.residual.unet_weight == "sigmoid"
        self.lambdas = Lambdas(unet_lambdas(recipe), dtype)
        self.sum = WeightedSum()

    def forward(self, i: int, x: Tensor, ctx: Context, outputs: Outputs) -> Tensor:
        sources = self.sources.get(i)
        if not sources:
            return x
        weights = ctx.scalars(self.lambdas)
        one = torch.ones((), dtype=self.lambdas.weight.dtype, device=x.device)
        skips = [weights[self.labels[source, i]] for source in sources]
        if self.squashed:
            skips = [skip.sigmoid() for skip in skips]
        return self.sum([x, *(outputs[source] for source in sources)], [one, *skips])


class Rolling(Inject):
    """r_x * x + r_skip * output of layer i - 2, from layer 3 on (multi-output article, "rolling skip")."""

    def __init__(self, recipe: Recipe, dtype: torch.dtype) -> None:
        super().__init__()
        self.layers = rolling_layers(recipe.residual, recipe.model.layers)
        self.needs = frozenset(layer - 2 for layer in self.layers)
        self.lambdas = Lambdas(rolling_lambdas(recipe), dtype)
        self.sum = WeightedSum()

    def forward(self, i: int, x: Tensor, ctx: Context, outputs: Outputs) -> Tensor:
        if i not in self.layers:
            return x
        weights = ctx.scalars(self.lambdas)
        return self.sum([x, outputs[i - 2]], [weights[f"lambda/rolling/{i}/{name}"] for name in ("x", "skip")])


class Mix(Inject):
    """l_x * x + l_x00 * x00 + l_x01 * x01 + ...: every block sees the token embeddings anew (medium track)."""

    def __init__(self, recipe: Recipe, dtype: torch.dtype) -> None:
        super().__init__()
        self.layers, self.names = mixed_layers(recipe), ["x", *token_embeddings(recipe)]
        self.lambdas = Lambdas(block_lambdas(recipe), dtype)
        self.sum = WeightedSum()

    def forward(self, i: int, x: Tensor, ctx: Context, outputs: Outputs) -> Tensor:
        if i not in self.layers:
            return x
        weights = ctx.scalars(self.lambdas)
        return self.sum([x, *ctx.embeddings], [weights[f"lambda/block/{i}/{name}"] for name in self.names])


def build_inject(recipe: Recipe, dtype: torch.dtype) -> InjectChain:
    """The mechanisms in force in a canonical recipe, in the medium track's order: U-net skips, then the sum."""
    steps: dict[str, Inject] = {}
    if recipe.residual.parallel_tail:
        steps["tail"] = ParallelTail(recipe, dtype)
    if recipe.residual.unet:
        steps["unet"] = UNet(recipe, dtype)
    if recipe.residual.rolling:
        steps["rolling"] = Rolling(recipe, dtype)
    if recipe.embeddings.mix:
        steps["mix"] = Mix(recipe, dtype)
    return InjectChain(**steps)
