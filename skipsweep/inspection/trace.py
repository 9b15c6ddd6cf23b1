"""One real forward pass, with what passed between the modules kept. Nothing of the trunk is computed twice.

Legend: T time, D dim, F features.
"""

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from skipsweep.model.attention import ValueSum
from skipsweep.model.gpt import GPT
from skipsweep.model.seams import Context, Outputs
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
    block_inputs: list[Tensor] = field(default_factory=list)
    """The stream that each block starts from."""
    streams: list[Tensor] = field(default_factory=list)
    """The stream after each block."""
    trunk_output: Tensor = field(default_factory=lambda: torch.empty(0))
    """What the readout took for the last layer's output."""
    outputs: Outputs = field(default_factory=dict)
    features: Tensor = field(default_factory=lambda: torch.empty(0))
    """What the head saw (1, T, F)."""
    sums: dict[tuple[str, int], Sum] = field(default_factory=dict)
    """(mechanism, layer before or in whose block it was computed) -> the sum; the readout's is (`readout`, layers)."""


def mechanisms(model: GPT) -> dict[str, Any]:
    """Name -> module, of all that may have a weighted sum."""
    return {**dict(model.inject.named_children()), "readout": model.readout}


@torch.no_grad()
def trace(model: GPT, ids: Tensor, window: int) -> Trace:
    """Run `ids` (1, T) through the model as training does, `window` blocks wide."""
    traced, layer = Trace(), [0]

    def at_layer(_: nn.Module, args: Any) -> None:
        layer[0] = args[0]

    def at_context(_: nn.Module, args: Any, result: Context) -> None:
        traced.ctx = result

    def at_values(_: nn.Module, args: Any, result: Tensor) -> None:
        v, of_layer = args
        if of_layer.value_embedding is not None and of_layer.value_embedding_lambda is not None:
            own = 1.0 if of_layer.value_lambda is None else float(of_layer.value_lambda)
            terms = [v.flatten(2), of_layer.value_embedding]
            weights = [own, float(of_layer.value_embedding_lambda)]
            traced.sums[VALUES, layer[0]] = Sum(terms, weights, result.flatten(2))

    def at_block(_: nn.Module, args: Any, result: Tensor) -> None:
        traced.block_inputs.append(args[0])
        traced.streams.append(result)

    def at_readout(_: nn.Module, args: Any) -> None:
        traced.trunk_output, traced.outputs, layer[0] = args[0], args[1], len(model.blocks)

    def at_sum_of(name: str) -> Any:
        def keep(_: nn.Module, args: Any, result: Tensor) -> None:
            terms, weights = args
            traced.sums[name, layer[0]] = Sum(list(terms), [float(weight) for weight in weights], result)

        return keep

    hooks = [
        model.context.register_forward_hook(at_context),
        model.inject.register_forward_pre_hook(at_layer),
        model.readout.register_forward_pre_hook(at_readout),
        *(block.register_forward_hook(at_block) for block in model.blocks),
        *(values.register_forward_hook(at_values) for values in _parts(model, ValueSum)),
        *(
            part.register_forward_hook(at_sum_of(name))
            for name, module in mechanisms(model).items()
            for part in _parts(module, WeightedSum)
        ),
    ]
    with ExitStack() as removed_afterwards:
        for hook in hooks:
            removed_afterwards.enter_context(hook)
        traced.features = model.features(ids, window)
    return traced


def _parts(module: nn.Module, kind: type[nn.Module]) -> list[nn.Module]:
    return [part for part in module.modules() if isinstance(part, kind)]
