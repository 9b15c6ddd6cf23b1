"""What blocks cost that compute their open tokens alone (`compute.skip`), against the dense trunk and an ideal.

    python benchmarks/skipping.py [--model skip_middle_tiny] [--device cpu] [--rounds 15] [model.layers=4 ...]

A forward pass of 8 x 1024 tokens at evaluation. Gates are told: in every layer the same share of each sequence's
tokens is closed, drawn at random; the model's own gates are computed too and thrown away. All shares take turns within
a round.
Time is that of the block part (from the embeddings to what the head sees). On a CPU it is the process's own on one
thread, so that whatever else the machine does matters less. On a GPU dense blocks are compiled, as in training.

Ideal: the part of the blocks' operations that is left (`count.inference_flops_per_token`): a share o of open tokens
leaves o of all products with weights, and about o squared of those of queries and keys. Printed are the medians of the
ratios within rounds, the middle half, and the saving in units of the ideal one (goals: 85 % at .5; at most 1.03 times
dense at 0).
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import shipped
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from skipsweep import provenance
from skipsweep.config import RunConfig
from skipsweep.model import count
from skipsweep.model.gate import SkipMiddle
from skipsweep.model.gpt import GPT, build
from skipsweep.model.seams import Context
from skipsweep.sweep.canonical import canonical_form

# B sequences, T tokens of a sequence

SEQUENCES, LENGTH = 8, 1024
SHARES = (0.0, 0.25, 0.5, 0.75, 0.9)
BLOCKS = ("blocks.attention", "blocks.attention.scores", "blocks.mlp")
PLAIN = {"embeddings": "plain", "residual": "none", "skip_layers": "none", "head_type": "last", "logger": "none"}


class Told(SkipMiddle):
    """Gates as they are told (B, T, 1), after the model's own were computed."""

    told: Tensor

    def forward(self, i: int, x: Tensor, gate_state: list[Tensor]) -> Tensor:
        super().forward(i, x, gate_state)
        return self.told


def run_of(model: str, gates: str, device: str, changes: dict[str, Any]) -> RunConfig:
    """A shipped model on plain wiring, whose vocabulary is as small as can be: the head is not measured."""
    compute = {"cuda": "gpu", "cpu": "cpu"}[device]
    config = shipped.composed(model=model, gate_targets=gates, compute=compute, data="sotu", **PLAIN)
    for key, value in changes.items():
        group, _, name = key.rpartition(".")
        setattr(getattr(config, group), name, value)
    return canonical_form(config, replace(config.data, vocab_size=257, seq_len=LENGTH, fingerprint="none"))


def closed_to(share: float, sequences: int, length: int) -> Tensor:
    """Gates (B, T, 1): `share` of each sequence's tokens 0, the others 1."""
    source = torch.Generator().manual_seed(1)
    order = torch.rand((sequences, length), generator=source).argsort(-1)
    return (order >= round(share * length)).float()[..., None]


def ideal(run: RunConfig, share: float, length: int = LENGTH) -> float:
    """Part of the blocks' operations that is left."""
    run = replace(run, data=replace(run.data, seq_len=length))
    layers, open_, keys = run.model.layers, 1 - share, (length + 1) / 2
    pairs = open_ * (1 + open_ * (keys - 1)) / keys  # an open token sees itself, and the open ones of the others
    left = count.inference_flops_per_token(run, count.OpenFractions([open_] * layers, [pairs] * layers))
    all_ = count.inference_flops_per_token(run)
    return sum(left[group] for group in BLOCKS) / sum(all_[group] for group in BLOCKS)


@dataclass
class Arm:
    """A model and the context of its tokens."""

    model: GPT
    ctx: Context
    gates: Tensor | None = None
    skip: bool = False

    def __call__(self) -> None:
        """The block part of a forward pass."""
        if self.gates is not None:
            gate: Any = self.model.gate
            gate.told = self.gates
        with torch.no_grad():
            self.model.features_of(self.ctx, self.skip)


def arms(model: str, device: str, changes: dict[str, Any], sequences: int, length: int) -> dict[str, Arm]:
    """`dense`, one arm per share of closed tokens, and `masked`: half of them closed, but all computed."""
    found = {}
    for name, gates in (("dense", "none"), ("skipping", "free"), ("masked", "free")):
        run = run_of(model, gates, device, changes)
        made = build(run, device).eval()
        if device == "cuda":
            made.compile_parts()
        ids = torch.randint(256, (sequences, length), generator=torch.Generator().manual_seed(1)).to(device)
        with torch.no_grad():
            ctx = made.context(ids, 0)
        if name == "dense":
            found[name] = Arm(made, ctx)
            continue
        made.gate.__class__ = Told
        skip = name == "skipping"
        for share in SHARES if skip else (0.5,):
            found[f"{name} {share:g}"] = Arm(made, ctx, closed_to(share, sequences, length).to(device), skip)
    return found


def clock(device: str) -> Callable[[], float]:
    """Seconds: of this process on a CPU, of the wall where a GPU is waited for."""
    if device == "cpu":
        return time.process_time

    def waited() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return waited


def measure(found: dict[str, Arm], rounds: int, device: str) -> list[dict[str, float]]:
    """Seconds per arm, a row per round, each in another order; a first one is thrown away."""
    now, source, rows = clock(device), random.Random(1), []
    for _ in range(rounds + 1):
        row = {}
        for name in source.sample(sorted(found), len(found)):
            start = now()
            found[name]()
            row[name] = now() - start
        rows.append(row)
    return rows[1:]


@dataclass(frozen=True)
class Line:
    """An arm against the dense one."""

    name: str
    low: float
    middle: float
    high: float
    """Quartiles of the time in units of the dense one's."""
    ideal: float | None
    """The same of an ideal implementation."""

    @property
    def saving(self) -> float | None:
        """What is saved, in units of what could be."""
        return None if self.ideal in (None, 1) else (1 - self.middle) / (1 - self.ideal)  # pyright: ignore


def lines(run: RunConfig, rows: list[dict[str, float]], length: int = LENGTH) -> list[Line]:
    """Medians of the ratios within rounds."""
    found = []
    for name in sorted(rows[0].keys() - {"dense"}, key=lambda name: (name.split()[0] == "masked", name)):
        low, middle, high = statistics.quantiles([row[name] / row["dense"] for row in rows], n=4, method="inclusive")
        kind, share = name.split()
        found.append(Line(name, low, middle, high, ideal(run, float(share), length) if kind == "skipping" else None))
    return found


def table(found: list[Line]) -> str:
    """Markdown, ready for RESULTS.md."""
    out = ["| closed | time / dense, median | middle half | ideal | saving / ideal saving |", "|---|---|---|---|---|"]
    for line in found:
        name = line.name.removeprefix("skipping ").replace("masked", "masked, not skipped,")
        best = "" if line.ideal is None else f"{line.ideal:.3f}"
        saving = "" if line.saving is None else f"{100 * line.saving:.0f} %"
        out.append(f"| {name} | {line.middle:.3f} | {line.low:.3f} to {line.high:.3f} | {best} | {saving} |")
    return "\n".join(out)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="skip_middle_tiny")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("overrides", nargs="*", help="numbers of the model, such as model.layers=4")
    args = parser.parse_args()
    torch.set_num_threads(1)
    changes: dict[str, Any] = {key: int(value) for key, _, value in (one.partition("=") for one in args.overrides)}
    if args.device == "cpu":
        changes["model.dtype"] = "float32"
    run = run_of(args.model, "none", args.device, changes)
    rows = measure(arms(args.model, args.device, changes, SEQUENCES, LENGTH), args.rounds, args.device)
    dense = 1000 * statistics.median(row["dense"] for row in rows)
    size = f"{run.model.layers} x {run.model.dim}, {run.model.dtype}"
    print(f"commit {provenance.commit()}, torch {torch.__version__}, {args.device}, {size}, {args.rounds} rounds")
    print(f"dense: {dense:.1f} ms\n\n{table(lines(run, rows))}")


if __name__ == "__main__":
    main()
