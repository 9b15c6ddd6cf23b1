"""A run's progress: a bar for who watches a terminal, a line now and then for who reads a log."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sized
from typing import Any, Protocol

LINE_EVERY_S = 10.0
"""Seconds between lines where there is no terminal."""


class Progress(Protocol):
    """Shows `step` of `steps` with loss, validation loss, tokens/s and the time left."""

    def update(self, now: dict[str, Any]) -> None:
        """Keys: step, steps, loss, val_loss, tokens_per_s, left_s; values may be None."""
        ...

    def close(self) -> None: ...


def duration(seconds: float | None) -> str:
    """`1:02:03`, `2:03`; `?` for None."""
    if seconds is None:
        return "?"
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{s:02d}" if hours else f"{minutes}:{s:02d}"


def number(value: float | None, digits: int = 4) -> str:
    """A figure, or `-` where there is none: a missing value is never shown as 0."""
    return "-" if value is None else f"{value:.{digits}f}"


def counted(things: Sized, what: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{len(things)} {what}" + ("" if len(things) == 1 else "s")


def rate(tokens_per_s: float | None) -> str:
    """`61.2k tok/s`."""
    if tokens_per_s is None:
        return "- tok/s"
    return f"{tokens_per_s / 1000:.1f}k tok/s" if tokens_per_s < 1e6 else f"{tokens_per_s / 1e6:.2f}M tok/s"


def describe(now: dict[str, Any]) -> str:
    """Loss, validation loss, speed and time left, in one line."""
    return (
        f"loss {number(now.get('loss'))} | val {number(now.get('val_loss'))} | "
        f"{rate(now.get('tokens_per_s'))} | {duration(now.get('left_s'))} left"
    )


class Lines:
    """For logs: the first and the last state, and one every `LINE_EVERY_S` seconds between."""

    def __init__(self) -> None:
        self._last = 0.0

    def update(self, now: dict[str, Any]) -> None:
        if time.monotonic() - self._last >= LINE_EVERY_S or now["step"] == now["steps"]:
            self._last = time.monotonic()
            print(f"step {now['step']}/{now['steps']} | {describe(now)}", flush=True)

    def close(self) -> None:
        pass


class Bar:
    """For terminals."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), transient=True)
        self._bar.start()
        self._task = self._bar.add_task("", total=None)

    def update(self, now: dict[str, Any]) -> None:
        self._bar.update(self._task, completed=now["step"], total=now["steps"], description=describe(now))

    def close(self) -> None:
        self._bar.stop()


class UntilNobodyListens:
    """Another progress, as long as it can be shown: a closed pipe or a full disk behind it ends no training."""

    def __init__(self, shown: Progress) -> None:
        self._shown: Progress | None = shown

    def update(self, now: dict[str, Any]) -> None:
        self._try(lambda shown: shown.update(now))

    def close(self) -> None:
        self._try(lambda shown: shown.close())

    def _try(self, what: Callable[[Progress], None]) -> None:
        if self._shown is None:
            return
        try:
            what(self._shown)
        except (OSError, ValueError):  # ValueError: a closed file, or a character that the encoding has not got
            self._shown = None


def for_stdout() -> Progress:
    """A progress bar on a terminal, log lines elsewhere."""
    return UntilNobodyListens(Bar() if sys.stdout.isatty() else Lines())


def gigabytes(size: float) -> str:
    """`1.25`, of bytes."""
    return f"{size / 1e9:.2f}"


@contextlib.contextmanager
def transferring(what: str) -> Iterator[Callable[[int, int], None]]:
    """Shows the progress of bytes on standard error, with speed and time left: a bar on a terminal, else lines.

    The body calls what it gets with (done, of). Nothing is shown unless it does.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield TransferLines(what).update
        return
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as RichProgress

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with RichProgress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(what, total=None, visible=False)
        yield lambda done, of: bar.update(task, completed=done, total=of, visible=True)


class TransferLines:
    """For logs: the first and the last state of a transfer, and one every `LINE_EVERY_S` seconds between."""

    def __init__(self, what: str) -> None:
        self.what = what
        self._begun: tuple[float, int] | None = None
        self._last = 0.0
        self._ended = False

    def update(self, done: int, of: int) -> None:
        """`done` of `of` bytes are there."""
        now = time.monotonic()
        if self._begun is None:
            self._begun = now, done
        elif now - self._last < LINE_EVERY_S and (done < of or self._ended):
            return
        self._ended = done >= of
        self._last = now
        since, before = self._begun
        speed = (done - before) / (now - since) if now > since else 0.0
        left = duration((of - done) / speed if speed > 0 else None)
        print(
            f"{self.what}: {gigabytes(done)} of {gigabytes(of)} GB, {speed / 1e6:.1f} MB/s, {left} left",
            file=sys.stderr,
            flush=True,
        )


@contextlib.contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """Shows the progress of something countable on standard error, where that is a terminal.

    The body calls what it gets with (done, of).
    """
    from rich.console import Console
    from rich.progress import Progress as RichProgress

    console = Console(stderr=True)
    with RichProgress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)
