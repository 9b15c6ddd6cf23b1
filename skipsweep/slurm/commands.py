"""`skipsweep cancel`, `skipsweep logs`, and the watching part of `skipsweep status`."""

import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from skipsweep.analyze.listing import Status
from skipsweep.rundir import Multirun
from skipsweep.slurm import cancel as cancelling
from skipsweep.slurm import squeue
from skipsweep.slurm.logs import logs_of, tail
from skipsweep.status import FINAL

WATCH_S = 5.0
"""Seconds between two looks: each asks SLURM's controller once."""
FOLLOW_S = 0.5


def cancel(multirun: Multirun, sweep: str) -> dict[str, Any]:
    """Cancel, and say what became of the runs."""
    return asdict(cancelling.cancel(multirun, sweep))


def show_cancelled(found: dict[str, Any]) -> None:
    """What a person wants to know of it."""
    print(f"{found['sweep']}: {len(found['runs'])} runs cancelled, {len(found['jobs'])} jobs ended")
    for run, others in found["wanted"].items():
        print(f"{run}: left alone, wanted by {', '.join(others)}")
    for run in found["local"]:
        print(f"{run}: a launcher on its machine executes it; stop that with Ctrl-C")


def logs(multirun: Multirun, text: str, lines: int, follow: bool) -> None:
    """Print the end of a run's logs, and what is added to them until it has ended."""
    from skipsweep.analyze.compare import find
    from skipsweep.status import observe

    run = find(multirun, text)
    shown: dict[str, int] = {}
    for path in logs_of(run):
        print(f"==> {path} <==")
        print(tail(path, lines), flush=True)
        shown[str(path)] = path.stat().st_size
    while follow and observe(run).state not in FINAL:
        time.sleep(FOLLOW_S)
        for path in logs_of(run):
            with open(path, errors="replace") as f:
                f.seek(shown.get(str(path), 0))
                print(f.read(), end="", flush=True)
                shown[str(path)] = f.tell()


def with_queue(found: Status, multirun: Multirun) -> Status:
    """A status as the queue shows it: one call of squeue, and none where nothing is open."""
    seen = squeue.all_refined(found.runs, [multirun.run(one.run) for one in found.runs])
    return replace(found, runs=seen, counts=dict(Counter(one.state for one in seen)))


def watch(look: Callable[[], Status], show: Callable[[Status], None]) -> None:
    """Show again and again until all runs have ended, or the user has seen enough."""
    try:
        while True:
            found = look()
            if sys.stdout.isatty():
                print("\x1b[2J\x1b[H", end="")
            show(found)
            if all(one.state in FINAL for one in found.runs):
                return
            time.sleep(WATCH_S)
    except KeyboardInterrupt:
        return
