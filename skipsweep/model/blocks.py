"""The plain block: pre-norm attention and pre-norm squared-ReLU MLP, without biases and norm weights.

Legend: B batch, T time, D dim, H heads, K channels of a head, M hidden channels of the MLP.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipsweep.model.norm import norm
from skipsweep.model.seams import Context


class Block(nn.Module):
    """x + g * attention(norm(x)), then x + g * mlp(norm(x))."""

    def __init__(self, dim: int, heads: int, mlp_hidden: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.attention = Attention(dim, heads, dtype)
        self.mlp = MLP(dim, mlp_hidden, dtype)

    def forward(self, x: Tensor, g: Tensor | None, ctx: Context) -> Tensor:
        """Residual stream (B, T, D) after the block; `g` (B, T, 1) scales what it adds, None: all of it."""
        x = x + gated(self.attention(norm(x), ctx), g)
        return x + gated(self.mlp(norm(x)), g)


class Attention(nn.Module):
    """Causal attention with rotary positions; queries and keys are normed per head (Henry et al. 2020)."""

    def __init__(self, dim: int, heads: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Parameter(torch.empty(3 * dim, dim, dtype=dtype))
        self.out = nn.Parameter(torch.empty(dim, dim, dtype=dtype))

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """What the tokens (B, T, D) gather from those before them, and from themselves."""
        qkv = F.linear(x, self.qkv).unflatten(-1, (3 * self.heads, -1))
        qk, v = qkv.split((2 * self.heads, self.heads), dim=2)
        q, k = rotate(norm(qk), ctx.rotary).transpose(1, 2).chunk(2, dim=1)
        y = F.scaled_dot_product_attention(q, k, v.transpose(1, 2), is_causal=True)
        return F.linear(y.transpose(1, 2).flatten(2), self.out)


class MLP(nn.Module):
    """proj relu(fc x)^2 (So et al. 2021)."""

    def __init__(self, dim: int, hidden: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.fc = nn.Parameter(torch.empty(hidden, dim, dtype=dtype))
        self.proj = nn.Parameter(torch.empty(dim, hidden, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D), token by token."""
        return F.linear(relu_squared(F.linear(x, self.fc)), self.proj)


def relu_squared(x: Tensor) -> Tensor:
    """max(x, 0)^2."""
    return _ReluSquared.apply(x) if x.device.type == "cpu" else F.relu(x).square()  # pyright: ignore[reportReturnType]


class _ReluSquared(torch.autograd.Function):
    """The slope 2 relu(x) in one product; chained, relu and square sweep over the widest tensor four more times."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        positive = F.relu(x)
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        return torch.mul(grads[0], positive).mul_(2)


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the pairs (j, j + K/2) of every head (B, T, H, K) by the angles of their position."""
    cos, sin = rotary
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin).to(x.dtype)


def gated(delta: Tensor, g: Tensor | None) -> Tensor:
    """What a block adds, scaled; a closed gate (0) removes it and nothing else."""
    return delta if g is None else delta * g
