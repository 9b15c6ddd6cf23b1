"""What the head sees: the last layer's output, alone or with earlier ones.

Legend: B batch, T time, V vocabulary, D dim, N sources, F features: the head's inputs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipsweep.config import ConcatMLP, ConcatMLPNarrow, Recipe
from skipsweep.model.blocks import relu_squared
from skipsweep.model.lambdas import Lambdas
from skipsweep.model.norm import norm
from skipsweep.model.readout_specs import (
    EXTRA,
    INPUT,
    LAST,
    gains,
    has_embedding,
    head_inputs,
    matrices,
    readout_lambdas,
    readout_name,
    readout_spec,
    slices,
    sources,
)
from skipsweep.model.seams import Context, Outputs, Readout
from skipsweep.model.weighted import WeightedSum


class Last(Readout):
    """norm(x): the baseline."""

    def __init__(self, recipe: Recipe, dtype: torch.dtype) -> None:
        super().__init__()
        self.width, self.eps = head_inputs(recipe), recipe.model.norm_eps

    def forward(self, x: Tensor, outputs: Outputs, ctx: Context) -> Tensor:
        return norm(x, self.eps)


class _Skip(Readout):
    """A readout of the last layer and N sources: layers, x00, a token embedding `extra` (V, D) of its own, or x."""

    def __init__(self, recipe: Recipe, dtype: torch.dtype) -> None:
        super().__init__()
        self.sources = sources(recipe)
        self.needs = frozenset(source for source in self.sources if isinstance(source, int))
        self.width, self.eps = head_inputs(recipe), recipe.model.norm_eps
        self.owns_last_mlp = readout_spec(recipe).owns_last_mlp
        table = (recipe.data.vocab_size, recipe.model.dim)
        tables = {EXTRA: nn.Parameter(torch.empty(table, dtype=dtype))} if has_embedding(recipe) else {}
        self.embed = nn.ParameterDict(tables)

    def plain(self, x: Tensor, outputs: Outputs, ctx: Context) -> list[Tensor]:
        """[h_1, ..., h_N], each (B, T, D): layers and x as they are, embeddings normed."""
        return [outputs[s] if isinstance(s, int) else self._named(s, x, ctx) for s in self.sources]

    def normed(self, x: Tensor, outputs: Outputs, ctx: Context) -> list[Tensor]:
        """[norm(x), norm(h_1), ..., norm(h_N)], each (B, T, D). Embeddings are normed already."""
        last = norm(x, self.eps)
        return [last, *(self._normed_source(source, last, outputs, ctx) for source in self.sources)]

    def _normed_source(self, source: int | str, last: Tensor, outputs: Outputs, ctx: Context) -> Tensor:
        return norm(outputs[source], self.eps) if isinstance(source, int) else self._named(source, last, ctx)

    def _named(self, source: str, last: Tensor, ctx: Context) -> Tensor:
        if source == EXTRA:
            assert ctx.ids is not None
            return norm(F.embedding(ctx.ids, self.embed[EXTRA]), self.eps)
        return {INPUT: ctx.x00, LAST: last}[source]


# ---------------------------------------------------------------------------------------------------------------- sums


class Add(_Skip):
    """norm(x) * x_lambda + sum_k norm(h_k) * skip_lambda_k (record 15 of the medium track, multi-output article)."""

    def __init__(self, recipe: Recipe, dtype: torch.dtype) -> None:
        super().__init__(recipe, dtype)
        self.lambdas = Lambdas(readout_lambdas(recipe), dtype)
        self.sum = WeightedSum()

    def forward(self, x: Tensor, outputs: Outputs, ctx: Context) -> Tensor:
        return self.sum(self.terms(x, outputs, ctx), list(ctx.scalars(self.lambdas).values()))

    def terms(self, x: Tensor, outputs: Outputs, ctx: Context) -> list[Tensor]:
        """What is summed, in the order of the learned scalars."""
        return self.normed(x, outputs, ctx)


class AddRenorm(Add):
    """norm of `Add`'s sum (multi-output article, "norm after sum"): of the lambdas, only the ratios and the common sign
    matter."""

    def forward(self, x: Tensor, outputs: Outputs, ctx: Context) -> Tensor:
        return norm(super().forward(x, outputs, ctx), self.eps)


class AddUnnormed(Add):
    """norm(x) * x_lambda + sum_k h_k * skip_lambda_k (multi-output article): a long h_k, as of late layers, counts for
    more."""

    def terms(self, x: Tensor, outputs: Outputs, ctx: Context) -> list[Tensor]:
        return [norm(x, self.eps), *self.plain(x, outputs, ctx)]


class AddDetached(Add):
    """`Add`, but layers learn through x alone (multi-output article, "detached")."""

    def terms(self, x: Tensor, outputs: Outputs, ctx: Context) -> list[Tensor]:
        last, *skips = super().terms(x, outputs, ctx)
        return [last, *(h.detach() for h in skips)]


class AddFixedX(Add):
    """norm(x) + sum_k norm(h_k) * skip_lambda_k (multi-output article, "x_lambda fixed at 1")."""

    def forward(self, x: Tensor, outputs: Outputs, ctx: Context) -> Tensor:
        one = torch.ones((), dtype=self.lambdas.weight.dtype, device=x.device)
        return self.sum(self.terms(x, outputs, ctx), [one, *ctx.scalars(self.lambdas).values()])


class _AddChanged(Add):
    """norm(x) * x_lambda + sum_k norm(f(h_k)) * skip_lambda_k."""

    def terms(self, x: Tensor, outputs: Outputs, ctx: Context) -> list[Tensor]:
        each = zip(self.sources, self.plain(x, outputs, ctx), strict=True)
        return [norm(x, self.eps), *(norm(self.changed(source, h), self.eps) for source, h in each)]

    def changed(self, source: int | str, h: Tensor) -> Tensor:
        """f of a source (B, T, D): a layer as it is, or a normed embedding."""
        raise NotImplementedError


class AddRelu(_AddChanged):
    """norm(x) * x_lambda + sum_k norm(relu(h_k)) * skip_lambda_k (multi-output article)."""

    def changed(self, source: int | str, h: Tensor) -> Tensor:
        return F.relu(h)


class AddTanh(_AddChanged):
    """norm(x) * x_lambda + sum_k norm(tanh(h_k)) * skip_lambda_k (multi-output article): of a long h_k, little more
    than signs are left."""

    def changed(self, source: int | str, h: Tensor) -> Tensor:
        return h.tanh()


class AddReluLinear(_AddChanged):
    """norm(x) * x_lambda + sum_k norm(W_k relu(h_k)) * skip_lambda_k (multi-output article).

    The sign of a scalar says nothing here: it and W_k can both turn round.
    """

    def __init__(self, recipe: Recipe, dtype: torch.dtype) -> None:
        super().__init__(recipe, dtype)
        self.linear = _parameters("linear", recipe, dtype)

    def changed(self, source: int | str, h: Tensor) -> Tensor:
        return F.linear(F.relu(h), self.linear[str(source)])


class Backout(Add):
    """norm(x - sum_k h_k * backout_k): the small track's record 40; the stream is as long as it is."""

    def forward(self, x: Tensor, outputs: Outputs, ctx: Context) -> Tensor:
        weights = ctx.scalars(self.lambdas).values()
        one = torch.ones((), dtype=self.lambdas.weight.dtype, device=x.device)
        subtracted = self.sum([x, *self.plain(x, outputs, ctx)], [one, *(-weight for weight in weights)])
        return norm(subtracted, self.eps)


# -------------------------------------------------------------------------------------------------------- side by side


class Concat(_Skip):
    """[norm(x), norm(h_1), ..., norm(h_N)] side by side (multi-output article): the head has (N + 1) * D inputs."""

    def forward(self, x: Tensor, outputs: Outputs, ctx: Context) -> Tensor:
        return torch.cat(self.normed(x, outputs, ctx), dim=-1)


class ConcatLastMLP(_Skip):
    """The last MLP sees [x, h_1, ..., h_N], or [x, P_1 h_1, ..., P_N h_N] (multi-output article).

    x is the stream after the last attention; sources are as they are, embeddings normed.
    """

    def __init__(self, recipe: Recipe, dtype: torch.dtype) -> None:
        super().__init__(recipe, dtype)
        self.narrow = _parameters("narrow", recipe, dtype)
        self.mlp = LastMLP(recipe, dtype)

    def forward(self, x: Tensor, outputs: Outputs, ctx: Context) -> Tensor:
        beside = self.plain(x, outputs, ctx)
        if self.narrow:
            beside = [F.linear(h, self.narrow[str(s)]) for s, h in zip(self.sources, beside, strict=True)]
        return self.mlp(x, beside)

    def parts_to_compile(self) -> list[nn.Module]:
        return [self.mlp]


class LastMLP(nn.Module):
    """norm(z + mlp(norm(z))) of z = [x, h_1, ..., h_N] where the head widens, norm(x + mlp(norm(z))) where not.

    With `norm_each` the norm is taken of x and of every h_k by itself. Else the long ones outweigh: of an embedding
    (length 1) beside the stream (length 100 in the medium track) as good as nothing is left.
    """

    def __init__(self, recipe: Recipe, dtype: torch.dtype) -> None:
        super().__init__()
        head, shapes = recipe.head_type, matrices(recipe)
        assert isinstance(head, ConcatMLP | ConcatMLPNarrow)
        self.widens, self.norms_each = head.widen_head, head.norm_each
        self.slices, self.eps = slices(recipe), recipe.model.norm_eps
        self.fc = nn.Parameter(torch.empty(shapes["mlp.fc"], dtype=dtype))
        self.proj = nn.Parameter(torch.empty(shapes["mlp.proj"], dtype=dtype))

    def forward(self, x: Tensor, beside: list[Tensor]) -> Tensor:
        """Features (B, T, F) from x (B, T, D) and what lies beside it."""
        z = torch.cat([x, *beside], -1)
        y = F.linear(relu_squared(F.linear(self._normed(z), self.fc)), self.proj)
        return self._normed(z + y) if self.widens else norm(x + y, self.eps)

    def _normed(self, z: Tensor) -> Tensor:
        if not self.norms_each:
            return norm(z, self.eps)
        return torch.cat([norm(part, self.eps) for part in z.split(self.slices, -1)], -1)


def _parameters(group: str, recipe: Recipe, dtype: torch.dtype) -> nn.ParameterDict:
    """Source -> matrix, or vector in float32 at least, for the parameters `GROUP.SOURCE` of the recipe's readout."""
    wide = torch.promote_types(dtype, torch.float32)
    found = {}
    for name, shape in (matrices(recipe) | gains(recipe)).items():
        if name.startswith(f"{group}."):
            found[name.split(".")[1]] = nn.Parameter(torch.empty(shape, dtype=dtype if len(shape) == 2 else wide))
    return nn.ParameterDict(found)


READOUTS = {
    "last": Last,
    "add": Add,
    "add_renorm": AddRenorm,
    "add_unnormed": AddUnnormed,
    "add_detached": AddDetached,
    "add_fixed_x": AddFixedX,
    "add_relu": AddRelu,
    "add_tanh": AddTanh,
    "add_relu_linear": AddReluLinear,
    "concat": Concat,
    "concat_mlp": ConcatLastMLP,
    "concat_mlp_narrow": ConcatLastMLP,
    "backout": Backout,
}
"""Choice of `head_type` -> module."""


def build_readout(recipe: Recipe, dtype: torch.dtype) -> Readout:
    """The readout in force in a canonical recipe."""
    return READOUTS[readout_name(recipe)](recipe, dtype)
