"""One real forward pass, with what passed between the modules kept. Nothing of the trunk is computed twice.

Legend: T time, D dim, F features.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from skipsweep.model.gpt import GPT
from skipsweep.model.seams import Context, Layer, Outputs
from skipsweep.model.weighted import WeightedSum

VALUES = "values"
"""Name of the sum that attention looks at, where there is a value embedding."""


@dataclass(frozen=True)
class Sum:
    """A weighted sum as it was computed."""

    terms: list[Tensor]
    weights: list[float]
    result: Tensor


@dataclass
class Trace:
    """What one sequence left behind on its way; all tensors (1, T, D)."""

    ctx: Context = field(default_factory=lambda: Context((), []))
    given: list[Tensor] = field(default_factory=list)
    """The stream that each block starts from."""
    streams: list[Tensor] = field(default_factory=list)
    """The stream after each block."""
    left: Tensor = field(default_factory=lambda: torch.empty(0))
    """What the readout took for the last layer's output."""
    outputs: Outputs = field(default_factory=dict)
    features: Tensor = field(default_factory=lambda: torch.empty(0))
    """What the head saw (1, T, F)."""
    sums: dict[tuple[str, int], Sum] = field(default_factory=dict)
    """(mechanism, layer before whose block it was computed) -> the sum; the readout's is (`readout`, layers). `values`
    is that of a layer's own values and its value embedding, inside the block."""


def mechanisms(model: GPT) -> dict[str, Any]:
    """Name -> module, of all that may have a weighted sum."""
    return {**dict(model.inject.named_children()), "readout": model.readout}


@torch.no_grad()
def trace(model: GPT, ids: Tensor, window: int) -> Trace:
    """Run `ids` (1, T) through the model as it is set (evaluation, after loading), `window` blocks wide."""
    found, layer = Trace(), [0]

    def at_layer(_: nn.Module, args: Any) -> None:
        layer[0] = args[0]

    def at_context(_: nn.Module, args: Any, result: Context) -> None:
        found.ctx = result
        result.layers = [_telling(layer, i, keep_at) for i, layer in enumerate(result.layers)]

    def at_block(_: nn.Module, args: Any, result: Tensor) -> None:
        found.given.append(args[0])
        found.streams.append(result)

    def at_readout(_: nn.Module, args: Any) -> None:
        found.left, found.outputs, layer[0] = args[0], args[1], len(model.blocks)

    def keep(name: str, made: Sum) -> None:
        keep_at(name, layer[0], made)

    def keep_at(name: str, i: int, made: Sum) -> None:
        found.sums[name, i] = made

    hooks = [
        model.context.register_forward_hook(at_context),
        model.inject.register_forward_pre_hook(at_layer),
        model.readout.register_forward_pre_hook(at_readout),
        *(block.register_forward_hook(at_block) for block in model.blocks),
    ]
    try:
        with ExitStack() as watched:
            for name, module in mechanisms(model).items():
                watched.enter_context(_watched(name, module, keep))
            found.features = model.features(ids, window)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _telling(layer: Layer, i: int, keep: Any) -> Layer:
    """The same layer, which tells `keep` of its values where a value embedding is added to them."""
    ve, of_ve = layer.value_embedding, layer.value_embedding_lambda
    if ve is None or of_ve is None:
        return layer
    own = 1.0 if layer.value_lambda is None else float(layer.value_lambda)

    class Telling(Layer):
        def weigh_values(self, v: Tensor) -> Tensor:
            result = Layer.weigh_values(self, v)
            keep(VALUES, i, Sum([v, ve.view_as(v)], [own, float(of_ve)], result))
            return result

    return Telling(*layer)


@contextmanager
def _watched(name: str, module: Any, keep: Any) -> Iterator[None]:
    """Have every weighted sum of a mechanism told to `keep`."""
    inner = getattr(module, "sum", None)
    if not isinstance(inner, WeightedSum):
        yield
        return

    def watching(terms: list[Tensor], weights: list[Tensor]) -> Tensor:
        result = inner(terms, weights)
        keep(name, Sum(list(terms), [float(weight) for weight in weights], result))
        return result

    module.sum = watching
    try:
        yield
    finally:
        module.sum = inner
