"""A step of every choice of `residual` against one of `unet`: forward and backward of the tiny trunk.

    python benchmarks/residual.py [--rounds 12] [overrides]

All take turns within a round, so that whatever else the machine does hits all; prints the median of the ratios within
rounds and the spread of the middle half. The optimiser's step is left out: it is the same, and would hide differences.
"""

import argparse
import statistics
import time

import torch

from skipsweep.data import prepare
from skipsweep.data.batches import Batches
from skipsweep.model.gpt import GPT, build
from skipsweep.sweep import identity
from skipsweep.sweep.entry import from_command_line

CHOICES = ("unet", "unet_short", "single", "shifted", "none", "rolling", "parallel_tail")


def made(choice: str, overrides: list[str]) -> tuple[GPT, torch.Tensor, torch.Tensor]:
    """The model, and a batch."""
    request = from_command_line([f"residual={choice}", *overrides])
    config = request.composer(request.overrides)
    root = prepare.data_root(config.paths)
    run = identity.canonical(config, prepare.resolve(config.data, root))
    ids, targets = (torch.from_numpy(a) for a in Batches(run.data, root).train(0))
    return build(run), ids, targets


def seconds(model: GPT, ids: torch.Tensor, targets: torch.Tensor) -> float:
    """Of one pass forward and backward."""
    started = time.perf_counter()
    model(ids, targets).backward()
    model.zero_grad()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    arguments, overrides = parser.parse_known_args()
    steps = {choice: made(choice, overrides) for choice in CHOICES}
    for step in steps.values():
        seconds(*step)
    rounds = [{choice: seconds(*step) for choice, step in steps.items()} for _ in range(arguments.rounds)]
    base = CHOICES[0]
    print(f"{base}: {1000 * statistics.median(r[base] for r in rounds):.1f} ms")
    for choice in CHOICES[1:]:
        ratios = [r[choice] / r[base] for r in rounds]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"{choice:14} {middle:.3f} times {base} (middle half {low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
