"""One file from the hub to the disk: in pieces if need be, checked as a whole, and only then under its name.

What has arrived lies in .NAME.partial beside the file, and the next attempt goes on from its end, whichever process
makes it. A lock on it lets one process work and the others watch; where a file system has no working locks they write
the same bytes to the same places, and a mixture would be found by the check.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

from skipsweep import files
from skipsweep.data.hub import Transient
from skipsweep.errors import DataError

WAITS_S = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Pauses between attempts that bring nothing new; after the last one it is given up."""

POLL_S = 0.2
"""Between looks at what another process has got."""

T = TypeVar("T")
Source = Callable[[int], AbstractContextManager[tuple[int, Iterator[bytes]]]]
"""Byte to start at -> the byte it does start at, and pieces of content (`hub.reading`)."""
Advance = Callable[[int], None]
"""Takes the bytes that have come in since the last call; what must be fetched again counts as negative."""


def patiently(attempt: Callable[[], T], waits_s: tuple[float, ...] = WAITS_S) -> T:
    """The result of `attempt`, repeated while it raises Transient. Raises DataError with the last reason."""
    for wait in waits_s:
        try:
            return attempt()
        except Transient as e:
            time.sleep(max(wait, e.wait_s))
    try:
        return attempt()
    except Transient as e:
        raise DataError(f"{e}, {len(waits_s) + 1} times in a row; try again when the network is there") from e


def fetch(source: Source, path: Path, size: int, check: Callable[[Path], None], advance: Advance) -> None:
    """Put `path` in place, `size` bytes long and approved by `check`, which raises DataError.

    A file that is not approved is fetched once more from its beginning. Raises DataError for the second time, for a
    connection that brings nothing any more, and for a disk that takes nothing any more; what has arrived stays.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with _exclusive(partial, path, advance) as f:
            if f is not None:
                _fill_checked(f, source, partial, size, check, advance)
                os.fsync(f.fileno())
                os.replace(partial, path)
                files.fsync(path.parent)
    except OSError as e:
        raise DataError(
            f"{path}: cannot be written ({e.strerror or e}); what has arrived is kept;"
            " valid for $SKIPSWEEP_DATA or paths.data: a folder that can be written to, with space left"
        ) from e


def partial_bytes(path: Path) -> int:
    """Bytes of `path` that an interrupted download has left."""
    try:
        return path.with_name(f".{path.name}.partial").stat().st_size
    except FileNotFoundError:
        return 0


@contextmanager
def _exclusive(partial: Path, final: Path, advance: Advance) -> Iterator[BinaryIO | None]:
    """`partial` open and locked; None once another process has put the file in place."""
    seen = 0
    while True:
        if final.exists():
            advance(final.stat().st_size - seen)
            yield None
            return
        with open(os.open(partial, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as f:
            if _locked(f) and _is_still(f, partial):
                if final.exists():  # put in place since the look above: what was opened is a new, empty file
                    partial.unlink()
                    continue
                advance(-seen)
                yield f
                return
            now = os.fstat(f.fileno()).st_size
        if now != seen:
            advance(now - seen)
        seen = now
        time.sleep(POLL_S)


def _locked(f: BinaryIO) -> bool:
    try:
        files.lock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_still(f: BinaryIO, path: Path) -> bool:
    """Whether what was opened still has that name: another process may have finished and renamed it meanwhile."""
    try:
        return os.path.samestat(os.fstat(f.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _fill_checked(
    f: BinaryIO, source: Source, partial: Path, size: int, check: Callable[[Path], None], advance: Advance
) -> None:
    for last in (False, True):
        _fill(f, source, size, advance)
        try:
            return check(partial)
        except DataError as e:
            _empty(f, advance)
            if last:
                raise DataError(f"fetched twice, and both times not what the hub lists: {e}") from e


def _fill(f: BinaryIO, source: Source, size: int, advance: Advance) -> None:
    """Go on at the end of `f` until it has `size` bytes."""
    most, failures = f.seek(0, os.SEEK_END), 0
    advance(most)
    while f.tell() < size:
        try:
            _read(f, source, size, advance)
            reason = Transient("the content ends too early")
        except Transient as e:
            reason = e
        f.flush()
        failures = 0 if f.tell() > most else failures + 1  # a server without ranges begins anew each time
        most = max(most, f.tell())
        if f.tell() < size:
            _pause(failures, reason)


def _pause(failures: int, reason: Transient) -> None:
    if failures > len(WAITS_S):
        raise DataError(f"{reason}; nothing new in {failures} attempts; the same command again goes on from here")
    time.sleep(max(WAITS_S[max(failures, 1) - 1], reason.wait_s))


def _read(f: BinaryIO, source: Source, size: int, advance: Advance) -> None:
    with source(f.tell()) as (start, pieces):
        if start != f.tell():
            _empty(f, advance)
        for piece in pieces:
            f.write(piece)
            advance(len(piece))
            if f.tell() > size:
                raise Transient("more content than the hub lists")


def _empty(f: BinaryIO, advance: Advance) -> None:
    advance(-f.tell())
    f.seek(0)
    f.truncate()
