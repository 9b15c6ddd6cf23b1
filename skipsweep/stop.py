"""The request to stop: a flag that signals set and the training loop reads. Imports no torch, so that a process can
begin with it: a signal that arrives while torch is still being imported is remembered as well.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any


class StopSignal:
    """Set by a signal (or the launcher's death), read at step boundaries: the handler itself does nothing else.

    Children that inherit the handler (data loading) ignore it: the scheduler signals every process of a job.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._pid = os.getpid()
        self._parent = int(os.environ.get("SKIPSWEEP_PARENT", "0"))
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        """Take over SIGTERM, SIGINT and SIGUSR2. Only the main thread of a process may."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: Any) -> None:
        if os.getpid() == self._pid:
            self.reason = signal.Signals(number).name

    def watch_parent(self) -> None:
        """Stop, too, if the launcher has died: nobody would see this run's end."""
        if self._parent and os.getppid() != self._parent:
            self.reason = "the launcher died"


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Have SIGINT raise KeyboardInterrupt, also where a shell that started us in the background had it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
