"""Norms by the root mean square over the last axis: the speedrun's without a weight, Llama's with one."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipsweep.config import Model


def norm(x: Tensor, eps: float = 0.0) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over the last axis; eps 0 is torch's default (1.19e-7, in float64 2.2e-16)."""
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        return _RMSNorm.apply(x, eps)  # pyright: ignore[reportReturnType]
    return F.rms_norm(x, x.shape[-1:], eps=eps or None)


class RMSNorm(nn.Module):
    """norm(x) * weight, the weight in float32 at least (Zhang & Sennrich 2019)."""

    def __init__(self, model: Model, dtype: torch.dtype) -> None:
        super().__init__()
        self.eps = model.norm_eps
        self.weight = nn.Parameter(torch.empty(model.dim, dtype=torch.promote_types(dtype, torch.float32)))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D) of the same precision."""
        return (norm(x, self.eps) * self.weight).to(x.dtype)


class _RMSNorm(torch.autograd.Function):
    """F.rms_norm with its backward pass in three sweeps over memory; torch's own on CPU takes about ten.

    Saves the result, which the next matrix product saves anyway, in place of the input.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
        scale = torch.rsqrt(length * length / x.shape[-1] + (eps or torch.finfo(wide).eps))
        y = (x * scale).to(x.dtype)
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        y, scale = ctx.saved_tensors
        along = (grad * y).mean(-1, keepdim=True)
        return (torch.addcmul(grad, y, along, value=-1) * scale).to(grad.dtype), None
