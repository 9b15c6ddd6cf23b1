"""Waiting for runs that SLURM executes: files at every look, the queue now and then."""

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from skipsweep.errors import UserError
from skipsweep.rundir import RunDir
from skipsweep.slurm import squeue
from skipsweep.slurm.squeue import Queue, Unreachable
from skipsweep.status import FINAL, Observation, observe
from skipsweep.sweep import show

FIRST_LOOK_S, SELDOM_S = 2.0, 30.0
"""Seconds between two looks at the queue: at first, and after a while."""


class Looker:
    """Observes runs for as long as somebody waits: files at every look, the queue now and then."""

    def __init__(self) -> None:
        self._queue: Queue | None = None
        self._next, self._every = 0.0, FIRST_LOOK_S

    def refresh(self) -> None:
        """Ask the queue, if it is time to. An answer that fails to come says nothing."""
        if time.monotonic() < self._next:
            return
        self._every = min(SELDOM_S, self._every * 1.3)
        try:
            self._queue = squeue.read()
        except Unreachable as problem:
            print(f"{problem}; asking again", file=sys.stderr, flush=True)
        self._next = time.monotonic() + self._every

    def forget(self) -> None:
        """Something was submitted: what the queue said is no answer any more."""
        self._queue, self._next = None, 0.0

    def __call__(self, run: RunDir) -> Observation:
        seen = observe(run)
        return seen if self._queue is None else squeue.refined(seen, run, self._queue)

    def is_settled(self, run: RunDir) -> bool:
        """Whether nothing more is to come: it has ended, or no job will go on with it."""
        seen = self(run)
        if seen.state in FINAL:
            return True
        return self._queue is not None and not seen.is_live and seen.job is None


def wait(
    runs: Sequence[RunDir],
    known: Mapping[str, Observation],
    elsewhere: Iterable[RunDir] = (),
    take_over: Callable[[Sequence[RunDir]], object] = lambda _: None,
) -> None:
    """Show how runs go until all of them are settled.

    `elsewhere`: those that no job executes but a launcher on some machine; given to `take_over`, once, if that ends
    before they do.
    """
    look, held = Looker(), list(elsewhere)
    with show.Watch(runs, known, look) as watch:
        while True:
            settled = _all_settled(runs, look)  # first: one that ends now is not to be passed over
            if orphans := [run for run in held if _is_orphan(run)]:
                held = [run for run in held if run not in orphans]
                try:
                    take_over(orphans)
                except UserError as problem:  # others are still waited for
                    print(problem, file=sys.stderr, flush=True)
                look.forget()
            elif settled:
                return
            watch.tick()
            time.sleep(0.2 + len(runs) / 1000)


def _is_orphan(run: RunDir) -> bool:
    seen = observe(run)
    return seen.state not in FINAL and not seen.is_live and not run.cancelled.exists()


def _all_settled(runs: Sequence[RunDir], look: Looker) -> bool:
    """Files alone tell of runs that have ended; of others only a queue that was read after them."""
    look.refresh()
    open_ = [run for run in runs if not look.is_settled(run)]
    if open_:
        return False
    vanished = [run for run in runs if observe(run).state not in FINAL]
    if not vanished:
        return True
    look._next = 0.0  # a job may have told its end between two looks; so look once more, at both
    look.refresh()
    return all(look.is_settled(run) for run in vanished)
