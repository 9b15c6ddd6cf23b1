"""What a step of every head and of every choice of skips costs, against the baseline `last`.

    python benchmarks/mechanisms.py [--rounds 12] [--groups head_type residual] [overrides]

Time is that of forward and backward of the tiny trunk on its own text; all choices take turns within a round, so that
whatever else the machine does hits all; printed are the median of the ratios within rounds and the middle half. The
optimiser's step is left out: it is nearly the same for all, and would hide differences. Parameters and operations are
those that planning counts (`skipsweep.model.count`). With `compute=gpu` it measures a GPU.
"""

import argparse
import statistics
import time
from dataclasses import dataclass

import torch

from skipsweep.config import HeadType as Heads
from skipsweep.config import RunConfig, choices, recipe_of
from skipsweep.data import prepare
from skipsweep.data.batches import Batches
from skipsweep.model import count
from skipsweep.model.gpt import GPT, build
from skipsweep.provenance import CHECKOUT
from skipsweep.sweep.canonical import canonical_form
from skipsweep.sweep.entry import from_command_line

SKIPS = "skip_layers=[2,5]"
BASE = ("skip_layers=none",)


@dataclass
class Step:
    """One model with a batch of its own device."""

    model: GPT
    batch: tuple[torch.Tensor, torch.Tensor]
    run: RunConfig

    def seconds(self) -> float:
        """Of one pass forward and backward."""
        started = time.perf_counter()
        self.model(*self.batch).backward()
        self.model.zero_grad()
        if self.batch[0].is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - started

    def parameters(self) -> int:
        """Of the whole model."""
        return count.total(count.parameters(recipe_of(self.run)))

    def flops(self) -> int:
        """Operations of a training pass per token."""
        return count.total(count.flops_per_token(recipe_of(self.run)))


def arms(group: str) -> dict[str, tuple[str, ...]]:
    """Choice -> overrides, for all that are shipped."""
    if group == "head_type":
        return {name: (f"head_type={name}", SKIPS) for name in choices(Heads) if name != "last"}
    return {path.stem: (f"{group}={path.stem}", *BASE) for path in sorted((CHECKOUT / "conf" / group).glob("*.yaml"))}


def made(overrides: list[str]) -> Step:
    """The model that such a run trains, and its first micro-batch."""
    request = from_command_line(overrides)
    config = request.composer(request.overrides)
    root = prepare.data_root(config.paths)
    prepare.prepare(config.data, root)
    run = canonical_form(config, prepare.resolve(config.data, root))
    ids, targets = (torch.from_numpy(a).to(run.compute.device) for a in Batches(run.data, root).train(0))
    return Step(build(run).to(run.compute.device), (ids, targets), run)


def measure(steps: dict[str, Step], rounds: int) -> list[dict[str, float]]:
    """Seconds per choice, a row per round; a first one is thrown away."""
    for step in steps.values():
        step.seconds()
    return [{name: step.seconds() for name, step in steps.items()} for _ in range(rounds)]


def report(group: str, steps: dict[str, Step], rounds: list[dict[str, float]]) -> None:
    """A Markdown table, ready for RESULTS.md."""
    base = steps["last"]
    print(f"`last`: {1000 * statistics.median(r['last'] for r in rounds):.1f} ms, {base.parameters():,} parameters\n")
    print(f"| {group} | step / last | middle half | parameters / last | FLOPs / last |\n|---|---|---|---|---|")
    for name, step in steps.items():
        if name == "last":
            continue
        low, middle, high = statistics.quantiles([r[name] / r["last"] for r in rounds], n=4)
        sizes = f"{step.parameters() / base.parameters():.4f} | {step.flops() / base.flops():.4f}"
        print(f"| `{name}` | {middle:.3f} | {low:.3f} to {high:.3f} | {sizes} |", flush=True)
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--groups", nargs="+", default=["head_type", "residual"])
    arguments, overrides = parser.parse_known_args()
    for group in arguments.groups:
        steps = {"last": made([*BASE, *overrides])}
        steps |= {name: made([*own, *overrides]) for name, own in arms(group).items()}
        report(group, steps, measure(steps, arguments.rounds))


if __name__ == "__main__":
    main()
