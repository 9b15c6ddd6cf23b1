"""The whole trainer (rows, lease, progress, wandb offline) against a bare loop of the same model, loss and optimiser.

    python benchmarks/trainer.py [--pairs 12] [--steps 10]

Both take turns in one process, so that whatever else the machine does hits both; wandb's process is stopped while the
bare loop runs. Prints the median of the ratios and the spread of the middle half.
"""

import argparse
import os
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable

import torch

from skipsweep import job, lease, provenance
from skipsweep.data import prepare
from skipsweep.data.batches import Batches
from skipsweep.data.prefetch import Prefetch
from skipsweep.distributed import World
from skipsweep.mirror import Mirror
from skipsweep.model.gpt import build
from skipsweep.model.init import parameter_roles
from skipsweep.model.window import window_blocks
from skipsweep.optim.optimiser import Optimiser
from skipsweep.optim.schedule import lr_factor
from skipsweep.progress import Lines
from skipsweep.record import Recorder
from skipsweep.rundir import RunDir
from skipsweep.sweep import plan as planning
from skipsweep.sweep.entry import from_command_line
from skipsweep.sweep.freeze import freeze
from skipsweep.sweep.resolve import ComposedPoint
from skipsweep.train import Trainer


def frozen(folder: str, overrides: list[str]) -> RunDir:
    """A run as launch.py would freeze it, with as many steps as the benchmark may need."""
    request = from_command_line([f"paths.multirun={folder}", *overrides])
    config = request.composer(request.overrides)
    plan = planning.make([ComposedPoint("run", config, ())], "benchmark", single=True)
    freeze(plan, "none")
    return plan.multirun.run(next(iter(plan.configs)))


def whole(run: RunDir) -> tuple[Callable[[], None], Mirror | None]:
    """One step of the real thing: what job.py does between two boundaries."""
    config = run.read_config()
    held = lease.acquire(run)
    batches = Prefetch(Batches(config.data, prepare.data_root(config.paths)), config.schedule.steps)
    trainer = Trainer(config, batches, World())
    recorder, stop = Recorder(run, config, held, Lines()), job.StopSignal()
    mirror = Mirror.start(run, config.logger)
    boundaries = trainer.run()
    recorder.record(trainer, next(boundaries))  # the validation before the first step

    def step() -> None:
        boundary = next(boundaries)
        recorder.record(trainer, boundary)
        if job._agree(trainer, boundary, stop, recorder)[1]:
            job._save(trainer, recorder)

    return step, mirror


def bare(run: RunDir) -> Callable[[], None]:
    """One step of the same training with nothing around it."""
    config = run.read_config()
    model = build(config)
    batches = Batches(config.data, prepare.data_root(config.paths))
    optimiser = Optimiser(config.optim, dict(model.named_parameters()), parameter_roles(model), World())
    never, count = torch.zeros(()), 0

    def step() -> None:
        nonlocal count
        ids, targets = (torch.from_numpy(a) for a in batches.train(count))
        window = window_blocks(config.model, config.schedule, count)
        optimiser.backward(model(ids, targets, window=window), last=True)
        optimiser.step(count, lr_factor(config.schedule, count), never)
        count += 1

    return step


def timed(step: Callable[[], None], steps: int) -> float:
    """Seconds per step."""
    start = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - start) / steps


def family(pid: int) -> list[int]:
    """A process and all that it started."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()
    return [pid, *(descendant for child in found for descendant in family(int(child)))]


def signal_mirror(mirror: Mirror | None, number: int) -> None:
    """Stop or continue wandb's processes."""
    if mirror and mirror.process and mirror.process.poll() is None:
        for pid in family(mirror.process.pid):
            os.kill(pid, number)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("overrides", nargs="*", help="as for launch.py")
    args = parser.parse_args()
    torch.set_num_threads(provenance.cpus())
    steps = args.pairs * args.steps + 100
    with tempfile.TemporaryDirectory() as folder:
        run = frozen(folder, [f"schedule.steps={steps}", f"record.val_every={steps}", *args.overrides])
        step_whole, mirror = whole(run)
        step_bare = bare(run)
        timed(step_bare, 3), timed(step_whole, 3)
        ratios, seconds = [], []
        for _ in range(args.pairs):
            full = timed(step_whole, args.steps)
            signal_mirror(mirror, signal.SIGSTOP)
            alone = timed(step_bare, args.steps)
            signal_mirror(mirror, signal.SIGCONT)
            ratios.append(full / alone)
            seconds.append(alone)
        if mirror:
            mirror.close(60)
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"commit {provenance.commit()}, {provenance.cpus()} cores, {args.pairs} pairs of {args.steps} steps")
    print(f"bare step {1000 * statistics.median(seconds):.1f} ms; whole / bare: {middle:.3f} ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
