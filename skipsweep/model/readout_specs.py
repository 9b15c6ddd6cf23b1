"""Choices of `head_type`, worked out without torch: what each may see, what it learns, and how large that is.

Recipes are canonical here, as planning leaves them (`sweep/canonical.py`), except in `canonical`.

Legend: D dim, N sources, H hidden channels of a block's MLP.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from skipsweep.config import (
    Add,
    AddUnnormed,
    ConcatMLP,
    ConcatMLPNarrow,
    HeadType,
    Last,
    Model,
    Recipe,
)
from skipsweep.model.wiring import mlp_hidden

INPUT = "input"
"""The source x00, the normed token embedding."""
EXTRA = "extra"
"""The source that is a token embedding of the readout's own, normed and used nowhere else."""
LAST = "last"
"""The source that is the last layer's output once more."""

NAMED = (INPUT, EXTRA, LAST)
"""Sources that are no layer, in canonical order behind the layers."""

Source = int | str
"""A layer (0-based), or one of NAMED."""
Start = dict[str, float]
"""Label of a learned scalar -> where it starts."""

MULTIPLE = 8
"""Hidden channels of an MLP that is fitted to a number of parameters: matrices of 16-bit numbers are slow on GPUs
unless their rows are multiples of 16 bytes."""


Shapes = dict[str, tuple[int, int]]
"""Name of a matrix, or of a group of them -> rows and columns."""


def _no_maps(head: HeadType, dim: int) -> Shapes:
    return {}


@dataclass(frozen=True)
class ReadoutSpec:
    """What a head is, as far as planning needs to know."""

    named: tuple[str, ...] = (INPUT, EXTRA)
    """Sources besides layers that it can see."""
    lambdas: tuple[str, ...] = ()
    """Fields of `lambda_init` that it uses, in the order of its learned scalars."""
    owns_last_mlp: bool = False
    """The last block is built without its MLP, which is part of the readout."""
    maps: Callable[[Any, int], Shapes] = _no_maps
    """(head, D) -> the matrices that it has for every source: parameters `readout.NAME.SOURCE` of these shapes."""
    gains: tuple[str, ...] = ()
    """Vectors of D factors, one per channel, that it has for every source: parameters likewise, but no products."""
    sizes: tuple[str, ...] = ()
    """Fields of the head itself that have to be above 0."""


_SUM = ("x_lambda", "skip_lambda")

SPECS: dict[str, ReadoutSpec] = {
    "last": ReadoutSpec(()),
    "add": ReadoutSpec(lambdas=_SUM),
    "add_renorm": ReadoutSpec(lambdas=_SUM),
    "add_unnormed": ReadoutSpec(lambdas=_SUM),
    "add_detached": ReadoutSpec((INPUT,), _SUM),  # nothing else trains an embedding of its own
    "add_fixed_x": ReadoutSpec(lambdas=("skip_lambda",)),
    "add_relu": ReadoutSpec(lambdas=_SUM),
    "add_tanh": ReadoutSpec(lambdas=_SUM),
    "add_relu_linear": ReadoutSpec(lambdas=_SUM, maps=lambda head, dim: {"linear": (dim, dim)}),
    "concat": ReadoutSpec(NAMED),
    "concat_mlp": ReadoutSpec(NAMED, owns_last_mlp=True),
    "concat_mlp_narrow": ReadoutSpec(
        NAMED, owns_last_mlp=True, maps=lambda head, dim: {"narrow": (head.width, dim)}, sizes=("width",)
    ),
    "backout": ReadoutSpec((INPUT,), ("backout",)),  # what is taken out of the stream has to be in it
}
"""Choice of `head_type` -> what it is."""

LABELS = {"x_lambda": "x", "skip_lambda": "skip", "backout": "backout"}
"""Field of `lambda_init` -> second part of the labels of its learned scalars."""


# ------------------------------------------------------------------------------------------------- what can be, and is


def canonical(head: HeadType, chosen: Sequence[Source], model: Model) -> HeadType:
    """The one form of all heads that are the same model: `last` where there is nothing to see; `add` where nothing is
    left un-normed; and no number of hidden channels that would be found anyway."""
    if not chosen:
        return Last()
    if isinstance(head, AddUnnormed) and not any(isinstance(source, int) for source in chosen):
        return Add()
    if not isinstance(head, ConcatMLP | ConcatMLPNarrow) or weights_left(head, len(chosen), model) <= 0:
        return head
    return replace(head, hidden=0) if head.hidden == _fitted(head, len(chosen), model) else head


def sources(recipe: Recipe) -> tuple[Source, ...]:
    """What the head sees besides the last layer: layers ascending, then `input`, `extra`, `last`.

    Raises ValueError for a recipe that is not canonical, or has a source that its trunk and head do not offer.
    """
    given, head = list(recipe.skip_layers.layers), recipe.head_type.name
    layers = range(recipe.model.layers - 1) if head != "last" else ()
    offered: list[Source] = [*layers, *SPECS[head].named]
    if given != [source for source in offered if source in given]:
        raise ValueError(f"skip_layers.layers={given} is not canonical; head_type={head} offers, in order: {offered}")
    return tuple(given)


def readout_name(recipe: Recipe) -> str:
    """The choice of `head_type` in force: without sources every head is `last`."""
    return recipe.head_type.name if sources(recipe) else "last"


def readout_spec(recipe: Recipe) -> ReadoutSpec:
    """What the head in force is."""
    return SPECS[readout_name(recipe)]


# ---------------------------------------------------------------------------------------------------------- its widths


def slices(recipe: Recipe) -> list[int]:
    """Channels of what lies side by side: the last layer's, then one entry per source; sums have the first alone."""
    head, dim = recipe.head_type, recipe.model.dim
    if readout_name(recipe) not in ("concat", "concat_mlp", "concat_mlp_narrow"):
        return [dim]
    return [dim, *len(sources(recipe)) * [_beside(head, dim)]]


def head_inputs(recipe: Recipe) -> int:
    """Width of what the head sees, in channels."""
    head = recipe.head_type
    narrowed = isinstance(head, ConcatMLP | ConcatMLPNarrow) and not head.widen_head
    return recipe.model.dim if narrowed else sum(slices(recipe))


def _beside(head: HeadType, dim: int) -> int:
    """Channels of a source beside the last layer."""
    return head.width if isinstance(head, ConcatMLPNarrow) else dim


def weights_left(head: ConcatMLP | ConcatMLPNarrow, count: int, model: Model) -> int:
    """Weights that a block's MLP has, 2 D H, less those of the projections, N D width."""
    projected = count * head.width if isinstance(head, ConcatMLPNarrow) else 0
    return model.dim * (2 * mlp_hidden(model) - projected)


def _fitted(head: ConcatMLP | ConcatMLPNarrow, count: int, model: Model) -> int:
    """Hidden channels with which readout and MLP of a block have equal parameters, to the nearest multiple of 8.

    With W_in channels side by side and W_out channels that come out of the MLP (W_in where the head widens, else D)
    that is (2 D H - projections) / (W_in + W_out); the rounding is off by (W_in + W_out) * 4 parameters at most.
    """
    inputs = model.dim + count * _beside(head, model.dim)
    outputs = inputs if head.widen_head else model.dim
    wanted = weights_left(head, count, model) / (inputs + outputs)
    return max(MULTIPLE * round(wanted / MULTIPLE), MULTIPLE)


def matrices(recipe: Recipe) -> Shapes:
    """Name within the readout -> rows and columns, for every matrix that it learns; embeddings apart."""
    head, given = recipe.head_type, sources(recipe)
    shapes = readout_spec(recipe).maps(head, recipe.model.dim)
    maps = {f"{name}.{source}": shape for name, shape in shapes.items() for source in given}
    if not given or not isinstance(head, ConcatMLP | ConcatMLPNarrow):
        return maps
    hidden = head.hidden or _fitted(head, len(given), recipe.model)
    return maps | {"mlp.fc": (hidden, sum(slices(recipe))), "mlp.proj": (head_inputs(recipe), hidden)}


def gains(recipe: Recipe) -> dict[str, tuple[int]]:
    """Name within the readout -> length, for every vector that it learns; scalars apart."""
    return {
        f"{name}.{source}": (recipe.model.dim,) for name in readout_spec(recipe).gains for source in sources(recipe)
    }


def has_embedding(recipe: Recipe) -> bool:
    """Whether the readout has a token embedding of its own."""
    return EXTRA in sources(recipe)


# ---------------------------------------------------------------------------------------------------- learned scalars


def readout_lambdas(recipe: Recipe) -> Start:
    """Initial values of the readout's learned scalars, by label. Raises ValueError unless there is one per source."""
    values, given = Start(), sources(recipe)
    for key in readout_spec(recipe).lambdas:
        value, label = getattr(recipe.lambda_init, key), LABELS[key]
        if key == "x_lambda":
            values[f"lambda/{label}"] = float(value)
        else:
            each = value if isinstance(value, list | tuple) else [value] * len(given)
            values |= {f"lambda/{label}/{source}": float(v) for source, v in zip(given, each, strict=True)}
    return values


PER_SOURCE = ("skip_lambda", "backout")
"""Fields of `lambda_init` that may have one value per source."""
