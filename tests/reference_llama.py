"""The skip-middle paper's trunk, written once more, slowly and without sharing a line: one sequence and one head at a
time, whole masks, complex rotary numbers. Parameters under names of its own.

Legend: T time, D dim, K channels of a head.
"""

import math

import torch
from torch import Tensor


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)


def turned(x_TK: Tensor, theta: float) -> Tensor:
    """Channels 2j and 2j + 1 are real and imaginary part of a number that turns by theta^(-2j / K) per position."""
    pairs = torch.complex(x_TK[:, 0::2].contiguous(), x_TK[:, 1::2].contiguous())
    for t in range(len(x_TK)):
        angles = [t / theta ** (2 * j / x_TK.shape[1]) for j in range(pairs.shape[1])]
        spins = torch.tensor([complex(math.cos(a), math.sin(a)) for a in angles], dtype=pairs.dtype)
        pairs = torch.cat((pairs[:t], (pairs[t] * spins)[None], pairs[t + 1 :]))
    return torch.view_as_real(pairs).flatten(1)


class Reference:
    """`p`: `embed`, `input_norm`, `output_norm`, `head`, and per layer I `I.q`, `I.k`, `I.v`, `I.o`, `I.gate`, `I.up`,
    `I.down`, `I.attention_in`, `I.mlp_in`, with the sandwich scheme also `I.attention_out`, `I.mlp_out`; with gates
    `mask.weight` (half of the layers, D) and `mask.bias`."""

    def __init__(self, p: dict[str, Tensor], layers: int, heads: int, kv_heads: int, eps: float, theta: float) -> None:
        self.p, self.layers, self.heads, self.kv_heads, self.eps, self.theta = p, layers, heads, kv_heads, eps, theta

    def logits(self, ids: Tensor, training: bool = True) -> Tensor:
        """(T, vocabulary) of one sequence (T,)."""
        h = rms(self.p["embed"][ids], self.p["input_norm"], self.eps)
        masked = torch.zeros(self.layers // 2, len(ids), dtype=h.dtype)
        for i in range(self.layers):
            g = torch.ones(len(ids), dtype=h.dtype)
            if "mask.weight" in self.p:
                if i < self.layers // 2:
                    mask = torch.relu(h @ self.p["mask.weight"][i] + self.p["mask.bias"][i])
                    masked = torch.cat((masked[:i], mask[None], masked[i + 1 :]))
                g = 1 - torch.clamp(masked[: min(i, self.layers - 1 - i) + 1].sum(0), 0, 1)
            keys = g.clamp(min=1e-6) if training else g
            h = h + g[:, None] * self._out(
                i, "attention", self._attention(i, rms(h, self.p[f"{i}.attention_in"], self.eps), keys)
            )
            h = h + g[:, None] * self._out(i, "mlp", self._mlp(i, rms(h, self.p[f"{i}.mlp_in"], self.eps)))
        return rms(h, self.p["output_norm"], self.eps) @ self.p["head"].T

    def _out(self, i: int, part: str, delta: Tensor) -> Tensor:
        name = f"{i}.{part}_out"
        return rms(delta, self.p[name], self.eps) if name in self.p else delta

    def _mlp(self, i: int, x: Tensor) -> Tensor:
        z = x @ self.p[f"{i}.gate"].T
        return (z / (1 + torch.exp(-z)) * (x @ self.p[f"{i}.up"].T)) @ self.p[f"{i}.down"].T

    def _attention(self, i: int, x: Tensor, gates: Tensor) -> Tensor:
        """Every key counts as its gate (T,) says; who sees closed ones only, and is closed itself, gathers nothing."""
        width, found = x.shape[1] // self.heads, []
        for head in range(self.heads):
            shared = head * self.kv_heads // self.heads
            own, theirs = slice(head * width, (head + 1) * width), slice(shared * width, (shared + 1) * width)
            q = turned(x @ self.p[f"{i}.q"][own].T, self.theta)
            k = turned(x @ self.p[f"{i}.k"][theirs].T, self.theta)
            v = x @ self.p[f"{i}.v"][theirs].T
            rows = []
            for t in range(len(x)):
                weights = gates[: t + 1] * torch.exp(q[t] @ k[: t + 1].T / math.sqrt(width))
                rows.append(weights @ v[: t + 1] / weights.sum() if weights.any() else 0 * v[0])
            found.append(torch.stack(rows))
        return torch.cat(found, 1) @ self.p[f"{i}.o"].T
