"""Planning a thousand points, and looking at a thousand finished runs.

    python benchmarks/planning.py

Prints what each takes beside its bound, and fails beyond one: 0.15 s per combination of groups plus 2 ms per point,
300 MB, and 1 s for `skipsweep list` and `skipsweep status`. Nothing here may import torch.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bounds import Bounds

from skipsweep import provenance
from skipsweep.sweep import launch
from skipsweep.sweep.entry import from_command_line
from skipsweep.sweep.freeze import freeze
from skipsweep.sweep.plan import Plan

HEADS = "add,add_renorm,concat"
METHODS = "early_to_late,random"
COMBINATIONS = 6
ARGUMENTS = [
    f"head_type={HEADS}",
    f"selection_method={METHODS}",
    "skip_layers=none,top1,top2,top3,top5,[1,2],[0,6]",
    "seed=range(0,34)",
]


def planned(folder: str, bounds: Bounds) -> Plan:
    """1,428 points over 6 combinations of groups; checks time and memory."""
    from_command_line(["plan=true"])  # Hydra's own start is not planning
    start = time.perf_counter()
    made = launch.make_plan(from_command_line([f"paths.multirun={folder}", *ARGUMENTS]))
    took = time.perf_counter() - start
    points = len(made.points)
    budget = 0.15 * COMBINATIONS + 0.002 * points
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    bounds.check(f"plan of {points} points, {len(made.configs)} runs", took, budget)
    bounds.check("its memory", memory, 300, "MB")
    return made


def finish(made: Plan) -> None:
    """Pretend that every run has finished."""
    freeze(made, "none")
    for name in made.configs:
        run = made.multirun.run(name)
        result = {"val_loss": 2.5, "steps": 600, "train_time_s": 60.0, "parameters": {"all": 1}, "lambdas": {}}
        run.result.write_text(json.dumps(result))
        run.write_status("done", attempt=1)


def command(*arguments: str) -> float:
    """Seconds that a `skipsweep` command takes, Python's start included; the best of three."""
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([Path(sys.executable).with_name("skipsweep"), *arguments], check=True, capture_output=True)
        best = min(best, time.perf_counter() - start)
    return best


def main() -> None:
    """Measure and print."""
    print(f"commit {provenance.commit()}, {provenance.cpus()} cores")
    bounds = Bounds()
    with tempfile.TemporaryDirectory() as folder:
        made = planned(folder, bounds)
        assert "torch" not in sys.modules
        assert "wandb" not in sys.modules
        start = time.perf_counter()
        finish(made)
        print(f"freezing and finishing {len(made.configs)} runs: {time.perf_counter() - start:.2f} s")
        start = time.perf_counter()
        launch.make_plan(from_command_line([f"paths.multirun={folder}", *ARGUMENTS]))
        print(f"the same plan with all finished: {time.perf_counter() - start:.2f} s")
        for arguments in (("list",), ("list", "--json"), ("status",), ("status", str(made.name))):
            bounds.check(f"skipsweep {' '.join(arguments)}", command(*arguments, "--multirun", folder), 1)
    bounds.end()


if __name__ == "__main__":
    main()
