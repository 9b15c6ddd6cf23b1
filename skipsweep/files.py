"""Writing files so that a reader, or the next attempt after a crash, never meets half of one."""

import contextlib
import errno
import fcntl
import json
import math
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

import yaml

_YamlLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_YamlDumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
"""What file systems without hard links (exFAT, those over object stores) answer to one."""
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}
"""What file systems without locks (Lustre mounted so) answer to one."""


@contextlib.contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` once the body has written it whole: unique temporary name, fsync,
    rename, fsync of the folder. If the body raises, the temporary file is removed.

    `durable=False` leaves out both fsyncs: for what a launcher would write again after a power cut.
    """
    tmp = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(tmp, "wb") as f:
            yield f
            if durable:
                f.flush()
                os.fsync(f.fileno())
        os.replace(tmp, path)
    except BaseException:
        tmp.unlink(missing_ok=True)
        raise
    if durable:
        fsync(path.parent)


def write_bytes(path: Path, content: bytes, durable: bool = True) -> None:
    """Replace `path` as a whole; see `replacing`."""
    with replacing(path, durable) as f:
        f.write(content)


def create_exclusively(path: Path, content: bytes) -> bool:
    """Create `path` with all its content, or return False if it exists: exactly one of several writers succeeds."""
    tmp = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        tmp.write_bytes(content)
        os.link(tmp, path)  # atomic on local and on network file systems, and never overwrites
    except FileExistsError:
        return False
    except OSError as problem:
        if problem.errno not in NO_LINKS:
            raise
        return _create_without_links(path, content)
    finally:
        tmp.unlink(missing_ok=True)
    return True


def _create_without_links(path: Path, content: bytes) -> bool:
    """The same, but that a crash amid it leaves a torn file."""
    try:
        with open(path, "xb") as f:
            f.write(content)
    except FileExistsError:
        return False
    return True


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder`'s lock: for reading a file and writing it back when two launchers might.

    On a file system without locks nothing is held: who executes a run is decided by `create_exclusively`.
    """
    with open(folder / ".lock", "w") as f:
        lock(f, fcntl.LOCK_EX)
        yield


def lock(f: IO[Any], kind: int) -> None:
    """`flock`, or nothing on a file system that has no locks. Raises BlockingIOError as `flock` does."""
    try:
        fcntl.flock(f, kind)
    except OSError as problem:
        if problem.errno not in NO_LOCKS:
            raise


def fsync(path: Path) -> None:
    """Make what was written to a file, or a rename inside a folder, survive a power cut."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_json(path: Path, value: Any, durable: bool = True) -> None:
    """Replace `path` by `value` as indented JSON. NaN and infinities are refused: a missing value is null."""
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode(), durable)


def read_json(path: Path) -> Any:
    """The content of `path`, or None where there is no such file. Raises ValueError where it is no JSON."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except RecursionError as problem:
        raise ValueError(f"{path.name} is nested too deeply") from problem


def write_yaml(path: Path, value: Any, durable: bool = True) -> None:
    """Replace `path` by `value` as YAML, keys in the order given."""
    write_bytes(path, yaml.dump(value, Dumper=_YamlDumper, sort_keys=False, allow_unicode=True).encode(), durable)


def read_yaml(path: Path) -> Any:
    """The content of a YAML file."""
    return yaml.load(path.read_bytes(), Loader=_YamlLoader)


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Add one JSON line with a single write, first ending a line that a crash left torn."""
    line = json.dumps(row, allow_nan=False).encode() + b"\n"
    with open(path, "ab+") as f:
        if f.tell() and not _ends_with_newline(f):
            line = b"\n" + line
        f.write(line)


def _ends_with_newline(f: Any) -> bool:
    f.seek(-1, os.SEEK_END)
    return f.read(1) == b"\n"


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSON-lines file; torn lines are skipped. Nothing where there is no such file."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return
    for line in content.split(b"\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            yield row


def as_number(value: Any) -> float | None:
    """A finite number from somebody's file; None for anything else, true and false among it."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer of hundreds of digits
        return None
