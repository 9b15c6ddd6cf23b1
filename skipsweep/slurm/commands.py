"""`skipsweep cancel`, `skipsweep logs`, and the watching part of `skipsweep status`."""

import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from skipsweep.analyze.listing import Status
from skipsweep.progress import counted
from skipsweep.rundir import Multirun, RunDir
from skipsweep.slurm import squeue
from skipsweep.slurm.cancel import Cancelled
from skipsweep.slurm.logs import logs_of, tail
from skipsweep.status import FINAL

WATCH_S = 5.0
"""Seconds between two looks: each asks SLURM's controller once."""
FOLLOW_S = 0.5


def show_cancelled(cancelled: Cancelled) -> None:
    """What a person wants to know of it."""
    if cancelled.ended:
        print(f"{cancelled.sweep}: all runs have ended, nothing is left to cancel")
        return
    print(f"{cancelled.sweep}: {counted(cancelled.runs, 'run')} cancelled, {counted(cancelled.jobs, 'job')} ended")
    for run, others in cancelled.wanted.items():
        print(f"{run}: left alone, wanted by {', '.join(others)}")
    for run in cancelled.local:
        print(f"{run}: a launcher on its machine executes it; stop that with Ctrl-C")


def logs(multirun: Multirun, text: str, lines: int, follow: bool) -> None:
    """Print the end of a run's logs, and what is added to them until it has ended."""
    from skipsweep.status import observe

    run = multirun.find_run(text)
    shown: dict[Path, int] = {}
    for path in logs_of(run):
        end, last = tail(path, lines)
        print(f"==> {path} <==\n{last}", flush=True)
        shown[path] = end
    ended = not follow
    while not ended:
        ended = observe(run).state in FINAL  # before the last look at the logs, which then are whole
        _print_new(run, shown)
        if not ended:
            time.sleep(FOLLOW_S)


def _print_new(run: RunDir, shown: dict[Path, int]) -> None:
    """What was added since. `shown`: bytes of every log that have been printed; of a new attempt's none."""
    for path in logs_of(run):
        if path not in shown:
            print(f"==> {path} <==", flush=True)
        with open(path, "rb") as f:
            f.seek(shown.get(path, 0))
            print(f.read().decode(errors="replace"), end="", flush=True)
            shown[path] = f.tell()


def with_queue(status: Status, multirun: Multirun) -> Status:
    """A status as the queue shows it: one call of squeue, and none where nothing is open."""
    seen = squeue.all_refined(status.runs, [multirun.run(one.run) for one in status.runs])
    return replace(status, runs=seen, counts=dict(Counter(one.state for one in seen)))


def watch(look: Callable[[], Status], show: Callable[[Status], None]) -> None:
    """Show again and again until all runs have ended, or the user has seen enough."""
    try:
        while True:
            status = look()
            if sys.stdout.isatty():
                print("\x1b[2J\x1b[H", end="")
            show(status)
            if all(one.state in FINAL for one in status.runs):
                return
            time.sleep(WATCH_S)
    except KeyboardInterrupt:
        return
