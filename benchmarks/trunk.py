"""The tiny trunk, forward and backward, against the same arithmetic written plainly: what the seams cost.

    python benchmarks/trunk.py [--pairs 40] [--documents]

`model=tiny`, batch 8 x 256, float32, on 1 thread and on 2. First both must give the same loss and gradients; then they
take turns. Prints the median of the ratios and their middle half (budget 1.15). On one thread it is the process's CPU
time that counts, so that whatever else the machine does matters less.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import shipped
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from skipsweep import provenance
from skipsweep.config import RunConfig
from skipsweep.model.gpt import GPT, build
from skipsweep.model.lambdas import Lambdas

# B batch, T time, D dim, H heads, K channels of a head

BUDGET = 1.15
BATCH, LENGTH, WINDOW = 8, 256, 12
"""Sequences, tokens of each, blocks of the long window: of tiny's 16, so that all masks are in play."""


def norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:])


def _vector(model: GPT, name: str) -> Lambdas:
    found = model.get_submodule(name)
    assert isinstance(found, Lambdas)
    return found


class Plain:
    """The trunk in straight PyTorch, on the parameters of one of ours."""

    def __init__(self, config: RunConfig, model: GPT, length: int) -> None:
        self.config, self.p = config, dict(model.named_parameters())
        self.heads, self.layers = config.model.heads, config.model.layers
        self.at = {
            name: {label: k for k, label in enumerate(_vector(model, name).start)}
            for name in ("context.lambdas", "inject.unet.lambdas", "inject.mix.lambdas")
        }
        channels = config.model.dim // self.heads
        speeds = config.model.rotary_base ** -torch.linspace(0, 1, channels // 4, dtype=torch.float64)
        speeds = torch.cat((speeds, torch.zeros(channels // 4, dtype=torch.float64)))
        angles = torch.outer(torch.arange(length, dtype=torch.float64), speeds)
        self.cos, self.sin = angles.cos().float()[:, None], angles.sin().float()[:, None]

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of targets (B, T)."""
        p, config = self.p, self.config
        x00, x01 = (norm(F.embedding(ids, p[f"context.embed.{name}"])) for name in ("x00", "x01"))
        tables = [F.embedding(ids, p[f"context.embed.ve{k}"]) for k in range(len(config.embeddings.value_layers))]
        of_layer = {layer: tables[k] for k, served in enumerate(config.embeddings.value_layers) for layer in served}
        docs = (ids == config.data.vocab_size - 1).cumsum(-1)
        long, short = self.mask(docs, WINDOW), self.mask(docs, WINDOW // 2)
        mix, unet = p["inject.mix.lambdas.weight"].view(self.layers, 3).unbind(), p["inject.unet.lambdas.weight"]
        x, outputs = x00, []
        for i in range(self.layers):
            for source, target in config.residual.unet:
                if target == i:
                    x = x + unet[self.at["inject.unet.lambdas"][f"lambda/unet/{source}-{target}"]] * outputs[source]
            a, b, c = mix[i].unbind()
            x = a * x + b * x00 + c * x01
            if i not in config.model.no_attention:
                mask = long if i in config.model.long_window else short
                x = x + self.attention(i, x, of_layer.get(i), mask)
            hidden = F.relu(norm(x) @ p[f"blocks.{i}.mlp.fc"].T)
            x = x + (hidden * hidden) @ p[f"blocks.{i}.mlp.proj"].T
            outputs.append(x)
        logits = norm(x) @ p["head.weight"].T
        cap = config.model.softcap
        logits = cap * logits * torch.rsqrt(logits.square() + cap**2)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def mask(self, docs: Tensor, window: int) -> Tensor:
        """0 where a query sees a key, else -inf (B, 1, T, T)."""
        t, block = torch.arange(docs.shape[1]), self.config.model.window_block
        sees = (t[:, None] >= t) & (t[:, None] // block - t // block < window)
        sees = sees & (docs[:, None, :, None] == docs[:, None, None, :])
        return torch.zeros(sees.shape).masked_fill_(~sees, float("-inf"))

    def attention(self, i: int, x: Tensor, ve: Tensor | None, mask: Tensor) -> Tensor:
        """What layer `i` adds (B, T, D)."""
        weights, at = self.p["context.lambdas.weight"], self.at["context.lambdas"]
        qkv = (x @ self.p[f"blocks.{i}.attention.qkv"].flatten(0, 1).T).view(*x.shape[:2], 3 * self.heads, -1)
        q, k, v = norm(qkv).chunk(3, dim=2)
        v = v * weights[at[f"lambda/value/{i}/v"]]
        if ve is not None:
            v = v + ve.view_as(v) * weights[at[f"lambda/value/{i}/ve"]]
        q, k, v = self.turned(q).transpose(1, 2), self.turned(k).transpose(1, 2), v.transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.config.model.attention_scale)
        return y.transpose(1, 2).flatten(2) @ self.p[f"blocks.{i}.attention.out"].T

    def turned(self, x: Tensor) -> Tensor:
        """Rotary positions (B, T, H, K)."""
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * self.cos + b * self.sin, b * self.cos - a * self.sin), dim=-1)


def compared(documents: bool, batch: int = BATCH, length: int = LENGTH) -> tuple[Callable[[], Tensor], ...]:
    """Forward and backward of ours and of the plain one, on the same parameters and tokens; both return the loss."""
    config = shipped.run("tiny", "last", "cpu", {"data.tokenizer": "bytes", "data.seq_len": length})
    model = build(config)
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():  # zeros would hide what they multiply
            parameter.add_(torch.randn(parameter.shape, generator=source) * 0.05)
    ids = torch.randint(0, 256, (batch, length + 1), generator=source)
    if documents:
        ids[:, length // 3] = 256
    ids, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    plain = Plain(config, model, length)

    def ours() -> Tensor:
        model.zero_grad()
        loss = model(ids, targets, window=WINDOW)
        loss.backward()
        return loss.detach()

    def theirs() -> Tensor:
        model.zero_grad()
        loss = plain.loss(ids, targets)
        loss.backward()
        return loss.detach()

    ours.model = model  # type: ignore[attr-defined]
    return ours, theirs


def difference(ours: Callable[[], Tensor], plain: Callable[[], Tensor]) -> float:
    """Largest relative difference of the loss and of any parameter's gradient."""
    found = []
    for step in (ours, plain):
        loss = step()
        gradients = {n: p.grad.clone() for n, p in ours.model.named_parameters()}  # type: ignore[attr-defined]
        found.append({**gradients, "loss": loss})
    return max(float((found[0][name] - found[1][name]).norm() / found[1][name].norm()) for name in found[0])


def seconds(step: Callable[[], Tensor], clock: Callable[[], float]) -> float:
    start = clock()
    step()
    return clock() - start


def ratios(ours: Callable[[], Tensor], plain: Callable[[], Tensor], pairs: int, clock: Callable[[], float]) -> None:
    """Measure in turns, and print."""
    found, base = [], []
    for number in range(pairs):
        first, second = (ours, plain) if number % 2 else (plain, ours)
        times = {first: seconds(first, clock), second: seconds(second, clock)}
        found.append(times[ours] / times[plain])
        base.append(times[plain])
    low, middle, high = statistics.quantiles(found, n=4)
    kind = "CPU time" if clock is time.process_time else "wall time"
    print(
        f"{torch.get_num_threads()} thread(s), {kind}: plain {1000 * statistics.median(base):.1f} ms, "
        f"ours / plain {middle:.3f} ({low:.3f} to {high:.3f}), budget {BUDGET}",
        flush=True,
    )


def main() -> None:
    """Check, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--documents", action="store_true", help="two documents in every sequence")
    args = parser.parse_args()
    print(f"commit {provenance.commit()}, {provenance.cpus()} cores, torch {torch.__version__}, {args.pairs} pairs")
    ours, plain = compared(args.documents)
    off = difference(ours, plain)
    print(f"largest relative difference of loss and gradients: {off:.1e}")
    assert off < 1e-4, "the two do not compute the same"
    for threads, clock in ((1, time.process_time), (2, time.perf_counter)):
        torch.set_num_threads(threads)
        for step in (ours, plain):
            seconds(step, clock)
        ratios(ours, plain, args.pairs, clock)


if __name__ == "__main__":
    main()
