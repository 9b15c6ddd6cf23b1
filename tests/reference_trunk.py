"""The medium track's record 15, written once more, slowly and without sharing a line: one sequence at a time, whole
masks, no shortcuts. Parameters under the record's own names (docs/speedrun.md maps ours to them).

Legend: T time, D dim, H heads, K channels of a head.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

EOT = 256
"""Of the byte tokenizer, to keep the vocabulary small; the record's is 50256."""
BLOCK = 128


def rms(x: Tensor) -> Tensor:
    eps = torch.finfo(x.dtype).eps
    return x / torch.sqrt((x**2).mean(-1, keepdim=True) + eps)


def turned(x_THK: Tensor) -> Tensor:
    """Half-truncated rotary positions: the second half of the pairs stands still."""
    pairs, t = x_THK.shape[-1] // 2, torch.arange(len(x_THK), dtype=x_THK.dtype)[:, None]
    y = x_THK.clone()
    for j in range(pairs // 2):
        angle = t * (1 / 1024) ** (j / (pairs // 2 - 1))
        a, b = x_THK[:, :, j], x_THK[:, :, j + pairs]
        y[:, :, j] = a * angle.cos() + b * angle.sin()
        y[:, :, j + pairs] = b * angle.cos() - a * angle.sin()
    return y


def sees(ids: Tensor, window: int, block: int) -> Tensor:
    """(T, T): causal, same document, and block distance below max(window, 1)."""
    position = torch.arange(len(ids))
    document = torch.tensor([int((ids[: t + 1] == EOT).sum()) for t in position])
    q, k = position[:, None], position[None, :]
    return (k <= q) & (document[q] == document[k]) & (q // block - k // block < max(window, 1))


class Reference:
    """`p`: the record's parameter names -> tensors; `scalars` is its flat vector of 98."""

    def __init__(self, p: dict[str, Tensor], layers: int, heads: int) -> None:
        self.p, self.layers, self.heads = p, layers, heads
        self.lengths: list[float] = []

    def losses(self, ids: Tensor, targets: Tensor, window: int, skip: int | None, block: int = BLOCK) -> Tensor:
        """Per-token losses (T,); `lengths` then has the root mean square of the stream after every block."""
        p, s, layers = self.p, self.p["scalars"], self.layers
        x00, x01 = rms(p["embed1.weight"][ids]), rms(p["embed2.weight"][ids])
        tables = [p[f"value_embeds.{k}.weight"][ids] for k in range(5)]
        values = [*tables, *[None] * (layers - 10), *tables]
        masks = {True: sees(ids, window, block), False: sees(ids, window // 2, block)}
        x, after = x00, []
        for i in range(layers):
            if i in (9, 10, 11):
                source = {9: 6, 10: 4, 11: 2}[i]
                x = x + s[source] * after[source]
            a, b, c = s[layers + 3 * i], s[layers + 3 * i + 1], s[layers + 3 * i + 2]
            x = a * x + b * x00 + c * x01
            if i != 7:
                own, beside = s[4 * layers + 2 * i], s[4 * layers + 2 * i + 1]
                x = x + self._attention(i, x, values[i], own, beside, masks[i in (0, 4, 11, 15)])
            x = x + F.relu(rms(x) @ p[f"blocks.{i}.mlp.fc_w"].T) ** 2 @ p[f"blocks.{i}.mlp.proj_w"].T
            after.append(x)
        self.lengths = [float((x.detach() ** 2).mean().sqrt()) for x in after]
        seen = rms(x) if skip is None else rms(x) * s[-2] + rms(after[skip]) * s[-1]
        logits = seen @ p["lm_head.weight"].T
        logits = 15 * logits / torch.sqrt(logits**2 + 225)
        return torch.logsumexp(logits, -1) - logits[torch.arange(len(ids)), targets]

    def _attention(self, i: int, x: Tensor, ve: Tensor | None, own: Tensor, beside: Tensor, mask: Tensor) -> Tensor:
        w, shape = self.p[f"blocks.{i}.attn.qkvo_w"], (len(x), self.heads, -1)
        q, k, v = (rms((x @ w[n].T).view(shape)) for n in range(3))
        q, k = turned(q), turned(k)
        v = own * v if ve is None else own * v + beside * ve.view(shape)
        scores = 0.12 * torch.einsum("qhc,khc->hqk", q, k)
        weights = scores.masked_fill(~mask, -math.inf).softmax(-1)
        return torch.einsum("hqk,khc->qhc", weights, v).reshape(len(x), -1) @ w[3].T
