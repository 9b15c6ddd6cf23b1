"""The speedrun's block: attention and a squared-ReLU MLP on the residual stream, without biases and norm weights.

Legend: B batch, T time, D dim, H heads, K channels of a head, M hidden channels of the MLP.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipsweep.config import Model
from skipsweep.model.attention import ValueSum, attend_layer
from skipsweep.model.norm import norm
from skipsweep.model.seams import LayerContext
from skipsweep.model.shape import gate_channels
from skipsweep.model.wiring import mlp_hidden


class Block(nn.Module):
    """x + g * attention(x), then x + g * mlp(norm(x)) (medium track, reference record 15).

    The attention's input is normed only where values are not normed by themselves: then nothing that leaves it depends
    on the stream's length.
    """

    def __init__(self, model: Model, layer: int, dtype: torch.dtype, has_mlp: bool = True) -> None:
        super().__init__()
        self.attention = None if layer in model.no_attention else Attention(model, dtype)
        self.mlp = MLP(model.dim, mlp_hidden(model), dtype) if has_mlp else None
        self.norm_input, self.eps = not model.value_norm, model.norm_eps

    def forward(self, x: Tensor, g: Tensor | None, layer: LayerContext) -> Tensor:
        """Residual stream (B, T, D) after the block; `g` (B, T, 1) scales what it adds, None: all of it."""
        if self.attention is not None:
            x = x + gated(self.attention(norm(x, self.eps) if self.norm_input else x, layer), g)
        return x if self.mlp is None else x + gated(self.mlp(norm(x, self.eps)), g)


class Attention(nn.Module):
    """Causal attention with rotary positions; queries and keys, on demand values, are normed per head.

    (Henry et al. 2020 for the norm of queries and keys.)
    """

    def __init__(self, model: Model, dtype: torch.dtype) -> None:
        super().__init__()
        self.heads, self.value_norm, self.eps = model.heads, model.value_norm, model.norm_eps
        self.value_sum = ValueSum()
        self.scale = model.attention_scale or (model.dim // model.heads) ** -0.5
        self.qkv = nn.Parameter(torch.empty(3, model.dim, model.dim, dtype=dtype))
        self.out = nn.Parameter(torch.empty(model.dim, model.dim, dtype=dtype))
        gate = torch.empty(model.heads, gate_channels(model), dtype=dtype) if model.attention_gate else None
        self.gate = None if gate is None else nn.Parameter(gate)

    def forward(self, x: Tensor, layer: LayerContext) -> Tensor:
        """What the tokens (B, T, D) gather from those before them, and from themselves."""
        qkv = F.linear(x, self.qkv.flatten(0, 1)).unflatten(-1, (3 * self.heads, -1))
        if self.value_norm:
            qk, v = norm(qkv, self.eps).split((2 * self.heads, self.heads), dim=2)
        else:
            qk, v = qkv.split((2 * self.heads, self.heads), dim=2)
            qk = norm(qk, self.eps)
        q, k = rotate(qk, layer.rotary).transpose(1, 2).chunk(2, dim=1)
        y = attend_layer(q, k, self.value_sum(v, layer).transpose(1, 2), layer, self.scale).transpose(1, 2)
        if self.gate is not None:
            y = y * F.linear(x[..., : self.gate.shape[1]], self.gate).sigmoid()[..., None]
        return F.linear(y.flatten(2), self.out)


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
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        return _ReluSquared.apply(x)  # pyright: ignore[reportReturnType]
    return F.relu(x).square()


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
    return delta if g is None else delta * g.to(delta.dtype)
