"""Keeps reports up to date: one after the other, in a thread of its own, when somebody looks at them."""

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from skipsweep.board import index
from skipsweep.errors import UserError
from skipsweep.rundir import Multirun

REST_S = 5.0
"""Seconds between two builds of a report, at least."""
REST_FACTOR = 3.0
"""... and so many times what the last build took: a sweep of a thousand runs is not drawn without pause."""


@dataclass(frozen=True)
class Version:
    """Which report of a sweep there is."""

    number: int | None
    """When it was written, in ms since 1970; None before the first."""
    building: bool
    """Whether a newer one is on its way."""
    problem: str | None
    """Why the last build failed."""


class Builder:
    """Builds the report of every sweep that is asked for and has changed since."""

    def __init__(self, multirun: Multirun, make: Callable[[str], object], rest: float = REST_S):
        """`make`: writes the report of the sweep called so. `rest`: seconds between two builds of one report."""
        self._multirun, self._make, self._rest = multirun, make, rest
        self._built: dict[str, index.Stamp] = {}
        self._not_before: dict[str, float] = {}
        self._problems: dict[str, str] = {}
        self._wanted: queue.Queue[str] = queue.Queue()
        self._waiting: set[str] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._work, daemon=True, name="reports").start()

    def look(self, name: str) -> Version:
        """Which version there is; asks for a newer one where the sweep has changed. Raises UserError without a plan."""
        now = index.stamp(self._multirun, name)
        with self._lock:
            stale = not self._is_current(name, now) and time.monotonic() >= self._not_before.get(name, 0.0)
            if stale and name not in self._waiting:
                self._waiting.add(name)
                self._wanted.put(name)
            written = self._written(name)
            return Version(
                None if written is None else written // 10**6, name in self._waiting, self._problems.get(name)
            )

    def settle(self) -> None:
        """Wait for all that was asked for."""
        self._wanted.join()

    def _written(self, name: str) -> int | None:
        try:
            return (self._multirun.sweep(name).report / "index.html").stat().st_mtime_ns
        except OSError:
            return None

    def _is_current(self, name: str, now: index.Stamp) -> bool:
        """Of a report that an earlier process has built only the time is known."""
        if name in self._built:
            return self._built[name] == now
        page = self._written(name)
        return page is not None and all(changed < page for _, changed, _ in now)

    def _work(self) -> None:
        while True:
            name = self._wanted.get()
            began, problem, seen = time.monotonic(), None, ()
            try:
                seen = index.stamp(self._multirun, name)  # before reading, so that a change meanwhile is seen
                self._make(name)
            except UserError as error:
                problem = str(error)
            except Exception as error:  # one report that cannot be drawn leaves the others alone
                problem = f"{type(error).__name__}: {error}"
            self._note(name, seen, problem, time.monotonic() - began)
            self._wanted.task_done()

    def _note(self, name: str, seen: index.Stamp, problem: str | None, took: float) -> None:
        with self._lock:
            self._built[name] = seen
            self._not_before[name] = time.monotonic() + (max(self._rest, REST_FACTOR * took) if self._rest else 0.0)
            self._problems.pop(name, None)
            if problem is not None:
                self._problems[name] = problem
            self._waiting.discard(name)
