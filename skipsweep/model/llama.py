"""The block of the skip-middle paper, after Llama 3: norms with weights, grouped queries, SwiGLU.

Legend: B batch, T time, D dim, H query heads, G heads of keys and values, M hidden channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipsweep.config import Model
from skipsweep.model.attention import ValueSum, attend_layer
from skipsweep.model.blocks import gated
from skipsweep.model.norm import RMSNorm
from skipsweep.model.seams import LayerContext
from skipsweep.model.shape import gate_channels, kv_heads
from skipsweep.model.wiring import mlp_hidden


class LlamaBlock(nn.Module):
    """x + g * post(attention(norm(x))), then x + g * post(mlp(norm(x))).

    `post` is a norm of its own with the `sandwich` scheme (Ding et al. 2021; peri-layernorm, Kim et al. 2025), and
    nothing with `pre`. The gate comes after it: a norm would undo what a gate before it does.
    """

    def __init__(self, model: Model, layer: int, dtype: torch.dtype, has_mlp: bool = True) -> None:
        super().__init__()
        has_attention, post = layer not in model.no_attention, model.norm_scheme == "sandwich"
        self.attention = Attention(model, dtype) if has_attention else None
        self.attention_norm = RMSNorm(model, dtype) if has_attention else None
        self.attention_post_norm = RMSNorm(model, dtype) if has_attention and post else None
        self.mlp = SwiGLU(model.dim, mlp_hidden(model), dtype) if has_mlp else None
        self.mlp_norm = RMSNorm(model, dtype) if has_mlp else None
        self.mlp_post_norm = RMSNorm(model, dtype) if has_mlp and post else None

    def forward(self, x: Tensor, g: Tensor | None, layer: LayerContext) -> Tensor:
        """Residual stream (B, T, D) after the block; `g` (B, T, 1) scales what it adds, None: all of it."""
        if self.attention is not None and self.attention_norm is not None:
            x = x + gated(_after(self.attention(self.attention_norm(x), layer), self.attention_post_norm), g)
        if self.mlp is not None and self.mlp_norm is not None:
            x = x + gated(_after(self.mlp(self.mlp_norm(x)), self.mlp_post_norm), g)
        return x


def _after(delta: Tensor, post: nn.Module | None) -> Tensor:
    return delta if post is None else post(delta)


class Attention(nn.Module):
    """Causal attention with rotary positions; H / G queries share a head of keys and values (Ainslie et al. 2023)."""

    def __init__(self, model: Model, dtype: torch.dtype) -> None:
        super().__init__()
        width = model.dim // model.heads
        self.heads, self.kv_heads = model.heads, kv_heads(model)
        self.value_sum = ValueSum()
        self.scale = model.attention_scale or width**-0.5
        self.q = nn.Parameter(torch.empty(model.dim, model.dim, dtype=dtype))
        self.kv = nn.Parameter(torch.empty(2, self.kv_heads * width, model.dim, dtype=dtype))
        self.out = nn.Parameter(torch.empty(model.dim, model.dim, dtype=dtype))
        gate = torch.empty(model.heads, gate_channels(model), dtype=dtype) if model.attention_gate else None
        self.gate = None if gate is None else nn.Parameter(gate)

    def forward(self, x: Tensor, layer: LayerContext) -> Tensor:
        """What the tokens (B, T, D) gather from those before them, and from themselves."""
        q = F.linear(x, self.q).unflatten(-1, (self.heads, -1))
        k, v = F.linear(x, self.kv.flatten(0, 1)).unflatten(-1, (2, self.kv_heads, -1)).unbind(2)
        q, k = rotate_pairs(q, layer.rotary), rotate_pairs(k, layer.rotary)
        q, k, v = (x.transpose(1, 2) for x in (q, k, self.value_sum(v, layer)))
        y = attend_layer(q, k, v, layer, self.scale).transpose(1, 2)
        if self.gate is not None:
            y = y * F.linear(x[..., : self.gate.shape[1]], self.gate).sigmoid()[..., None]
        return F.linear(y.flatten(2), self.out)


class SwiGLU(nn.Module):
    """down (silu(gate x) * up x) (Shazeer 2020)."""

    def __init__(self, dim: int, hidden: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.empty(hidden, dim, dtype=dtype))
        self.up = nn.Parameter(torch.empty(hidden, dim, dtype=dtype))
        self.down = nn.Parameter(torch.empty(dim, hidden, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D), token by token."""
        return F.linear(F.silu(F.linear(x, self.gate)) * F.linear(x, self.up), self.down)


def rotate_pairs(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the pairs (2j, 2j + 1) of every head (B, T, H, K) by the angles of their position (Llama's order)."""
    cos, sin = rotary
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.addcmul(x * cos, torch.stack((-b, a), -1).flatten(-2), sin).to(x.dtype)
