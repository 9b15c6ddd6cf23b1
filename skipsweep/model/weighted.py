"""A sum of tensors with learned scalar weights: what most mechanisms come down to.

Legend: S shape of the tensors.
"""

from typing import Any

import torch
from torch import Tensor, nn


class WeightedSum(nn.Module):
    """sum_k weights[k] * tensors[k]. In one sweep over memory once `compile_kernel` was called."""

    def __init__(self) -> None:
        super().__init__()
        self._kernel: Any = weighted_sum

    def forward(self, tensors: list[Tensor], weights: list[Tensor]) -> Tensor:
        """Tensors of one shape S and 0-dimensional weights; the result has the tensors' precision."""
        return self._kernel(tensors, weights)

    def compile_kernel(self) -> None:
        """Use a compiled kernel; all mechanisms and layers with as many terms share it."""
        self._kernel = torch.compile(_plain, dynamic=False)


def weighted_sum(tensors: list[Tensor], weights: list[Tensor]) -> Tensor:
    """See `WeightedSum`."""
    if tensors[0].device.type == "cpu":
        return _WeightedSum.apply(len(tensors), *tensors, *weights)  # pyright: ignore[reportReturnType]
    return _plain(tensors, weights)


def _plain(tensors: list[Tensor], weights: list[Tensor]) -> Tensor:
    total = tensors[0] * weights[0]
    for x, weight in zip(tensors[1:], weights[1:], strict=True):
        total = total + x * weight
    return total


class _WeightedSum(torch.autograd.Function):
    """`_plain` in half the sweeps over memory that its operations take one by one."""

    @staticmethod
    def forward(ctx: Any, count: int, *operands: Tensor) -> Tensor:
        tensors, weights = operands[:count], [w.item() for w in operands[count:]]
        total = tensors[0] * weights[0]
        for x, weight in zip(tensors[1:], weights[1:], strict=True):
            total.add_(x, alpha=weight)
        ctx.save_for_backward(*operands)
        ctx.count = count
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), count = grads, ctx.count
        tensors, weights = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        needed = ctx.needs_input_grad[1:]
        of_tensors = [grad * w if need else None for w, need in zip(weights, needed[:count], strict=True)]
        of_weights = [
            torch.dot(grad.flatten().to(w.dtype), x.flatten().to(w.dtype)) if need else None
            for x, w, need in zip(tensors, weights, needed[count:], strict=True)
        ]
        return None, *of_tensors, *of_weights
