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

VALUES = "value"
"""Name of the sums of values and value embeddings, inside attention."""


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
    """(mechanism, layer before or in whose block it was computed) -> the sum; the readout's is (`readout`, layers)."""


class _ToldValues(Layer):
    """A layer that tells the sum of its own values and a value embedding."""

    keep: Any

    def weigh_values(self, v: Tensor) -> Tensor:
        result = super().weigh_values(v)
        if self.value_embedding is not None and self.value_embedding_lambda is not None:
            own = 1.0 if self.value_lambda is None else float(self.value_lambda)
            terms = [v.flatten(2), self.value_embedding]
            self.keep(VALUES, Sum(terms, [own, float(self.value_embedding_lambda)], result.flatten(2)))
        return result


def mechanisms(model: GPT) -> dict[str, Any]:
    """Name -> module, of all that may have a weighted sum."""
    return {**dict(model.inject.named_children()), "readout": model.readout}


@torch.no_grad()
def trace(model: GPT, ids: Tensor, window: int) -> Trace:
    """Run `ids` (1, T) through the model as training does, `window` blocks wide."""
    found, layer = Trace(), [0]

    def at_layer(_: nn.Module, args: Any) -> None:
        layer[0] = args[0]

    def at_context(_: nn.Module, args: Any, result: Context) -> None:
        found.ctx = result

    def before_block(_: nn.Module, args: Any) -> Any:
        x, g, layer = args
        told = _ToldValues(*layer)
        told.keep = keep
        return x, g, told

    def at_block(_: nn.Module, args: Any, result: Tensor) -> None:
        found.given.append(args[0])
        found.streams.append(result)

    def at_readout(_: nn.Module, args: Any) -> None:
        found.left, found.outputs, layer[0] = args[0], args[1], len(model.blocks)

    def keep(name: str, made: Sum) -> None:
        found.sums[name, layer[0]] = made

    hooks = [
        model.context.register_forward_hook(at_context),
        model.inject.register_forward_pre_hook(at_layer),
        model.readout.register_forward_pre_hook(at_readout),
        *(block.register_forward_pre_hook(before_block) for block in model.blocks),
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
