"""The one norm of the trunk: root mean square over the last axis, without a weight."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def norm(x: Tensor) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over the last axis; eps is torch's default (1.19e-7, in float64 2.2e-16)."""
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        return _RMSNorm.apply(x)  # pyright: ignore[reportReturnType]
    return F.rms_norm(x, x.shape[-1:])


class _RMSNorm(torch.autograd.Function):
    """F.rms_norm with its backward pass in three sweeps over memory; torch's own on CPU takes about ten.

    Saves the result, which the next matrix product saves anyway, in place of the input.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
        scale = torch.rsqrt(length * length / x.shape[-1] + torch.finfo(wide).eps)
        y = (x * scale).to(x.dtype)
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (grad,) = grads
        y, scale = ctx.saved_tensors
        along = (grad * y).mean(-1, keepdim=True)
        return (torch.addcmul(grad, y, along, value=-1) * scale).to(grad.dtype)
