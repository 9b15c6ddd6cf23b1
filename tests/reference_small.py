"""The small track's record 45 (modded-nanogpt #159), written once more, slowly and without sharing a line: one sequence
at a time, whole masks, no shortcuts. Parameters under the record's own names (docs/speedrun.md maps ours to them).

Two things are ours: windows count whole blocks (as in the medium track), where the record's count tokens, and the loss
is a mean. FP8 is left out.

Legend: T time, D dim, H heads, K channels of a head.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

EOT = 256
BLOCK = 128
STAGES = (3, 7, 11, 13)
LONG = (4, 11)
TABLE = {1: 1, 2: 2, 9: 0, 10: 1, 11: 2}
"""Layer -> value embedding."""
LONGEST = 2048


def rms(x: Tensor) -> Tensor:
    return x / torch.sqrt((x**2).mean(-1, keepdim=True) + torch.finfo(x.dtype).eps)


def yarn(pairs: int, window: int) -> tuple[list[float], float]:
    """Speeds of a head's pairs, the second half of them still, and the attention's scale, in the stage `window`."""
    speeds = [(1 / 1024) ** (j / (pairs // 2 - 1)) for j in range(pairs // 2)]
    scale, old = 0.1, STAGES[0]
    for new in STAGES[1:]:
        if new > window:
            break
        for j, speed in enumerate(speeds):
            rotations = BLOCK * old * speed / (2 * math.pi)
            keep = min(max((rotations - 1) / (32 - 1), 0.0), 1.0)
            speeds[j] = speed * (old / new + keep * (1 - old / new))
        scale, old = scale * (0.2 * math.log(new / old) + 1), new
    return speeds + [0.0] * (pairs - pairs // 2), scale


def turned(x_THK: Tensor, speeds: list[float]) -> Tensor:
    t, half = torch.arange(len(x_THK), dtype=x_THK.dtype)[:, None], x_THK.shape[-1] // 2
    y = x_THK.clone()
    for j, speed in enumerate(speeds):
        a, b = x_THK[:, :, j], x_THK[:, :, j + half]
        y[:, :, j] = a * (t * speed).cos() + b * (t * speed).sin()
        y[:, :, j + half] = b * (t * speed).cos() - a * (t * speed).sin()
    return y


def sees(ids: Tensor, window: int) -> Tensor:
    """(T, T): causal, same piece of a document, and block distance below the window."""
    numbers, number, length = [], 0, 0
    for token in ids.tolist():
        if token == EOT or length == LONGEST:
            number, length = number + 1, 0
        length += 1
        numbers.append(number)
    document, t = torch.tensor(numbers), torch.arange(len(ids))
    near = t[:, None] // BLOCK - t[None, :] // BLOCK < window
    return (t[None, :] <= t[:, None]) & (document[:, None] == document[None, :]) & near


class Reference:
    """`p`: the record's parameter names -> tensors; `scalars` is its flat vector of 12 x 5 + 2."""

    def __init__(self, p: dict[str, Tensor], heads: int) -> None:
        self.p, self.heads = p, heads
        self.lengths: list[float] = []

    def losses(self, ids: Tensor, targets: Tensor, window: int) -> Tensor:
        """Per-token losses (T,); `lengths` then has the root mean square of the stream after layers 1 to 11."""
        p, s = self.p, self.p["scalars"]
        e = p["embed.weight"][ids]
        smeared = [e[0]]
        for t in range(1, len(ids)):
            gate = torch.sigmoid(p["smear_gate.weight"][0] @ e[t, :12])
            smeared.append(e[t] + s[60] * gate * e[t - 1])
        x = x0 = rms(torch.stack(smeared))
        masks = {True: sees(ids, window), False: sees(ids, window // 2)}
        after: dict[int, Tensor] = {}
        for i in range(1, 12):
            if i == 7:
                x = x + torch.sigmoid(s[1]) * after[4]
            x = s[12 + 2 * i] * x + s[13 + 2 * i] * x0
            if i != 7:
                x = x + self._attention(i, rms(x), ids, masks[i in LONG], window)
            fc, proj = p[f"blocks.{i}.mlp.c_fc"], p[f"blocks.{i}.mlp.c_proj"]
            x = x + F.relu(rms(x) @ fc) ** 2 @ proj.T
            after[i] = x
        self.lengths = [float((h.detach() ** 2).mean().sqrt()) for h in after.values()]
        logits = 30 * torch.sigmoid(rms(x - s[61] * after[8]) @ p["lm_head.weight"].T / 7.5)
        return torch.logsumexp(logits, -1) - logits[torch.arange(len(ids)), targets]

    def _attention(self, i: int, x: Tensor, ids: Tensor, mask: Tensor, window: int) -> Tensor:
        p, s = self.p, self.p["scalars"]
        dim = x.shape[1]
        w, shape = p[f"blocks.{i}.attn.qkvo_w"].view(4, dim, dim), (len(x), self.heads, -1)
        speeds, scale = yarn(dim // self.heads // 2, window)
        q, k = (turned(rms((x @ w[n].T).view(shape)), speeds) for n in range(2))
        v = s[36 + 2 * i] * (x @ w[2].T).view(shape)
        if i in TABLE:
            v = v + s[37 + 2 * i] * p[f"value_embeds.{TABLE[i]}.weight"][ids].view(shape)
        scores = (scale * torch.einsum("qhc,khc->hqk", q, k)).masked_fill(~mask, -math.inf)
        y = torch.einsum("hqk,khc->qhc", scores.softmax(-1), v)
        y = y * torch.sigmoid(x[:, :12] @ p[f"blocks.{i}.attn.attn_gate.weight"].T)[:, :, None]
        return y.reshape(len(x), -1) @ w[3].T
