"""Files and folders to the runs that can be imported from them; what cannot be is named. Writes nothing."""

import codecs
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from skipsweep.errors import UserError
from skipsweep.imports import speedrun_log
from skipsweep.rundir import Multirun, RunDir


@dataclass
class Imported:
    """What an import did."""

    runs: list[str] = field(default_factory=list)
    """Runs of the sweep that these files are, in order of arm and file."""
    files: int = 0
    """Of so many files, copies not counted."""
    several: list[str] = field(default_factory=list)
    """`file: number` of files that hold several runs; the second is called `file#2`."""
    refused: list[str] = field(default_factory=list)
    """No speedrun log, or not readable."""
    unmatched: list[str] = field(default_factory=list)
    """Files whose path the arm's expression does not match."""
    repeated: list[str] = field(default_factory=list)
    """`file: earlier file` of which it is a copy and left out: the same steps, losses and times."""
    grown: list[str] = field(default_factory=list)
    """Files that have grown since: their runs stand in the place of the earlier ones."""
    damaged: list[str] = field(default_factory=list)
    """`file:line` of lines that begin like a step and cannot be read."""
    unread: list[str] = field(default_factory=list)
    """`name: file` of what else stands on validation lines and is left out; every name once."""
    kept: list[str] = field(default_factory=list)
    """`file: arm` of files that the sweep has already in another arm than now asked for, and keeps there."""


@dataclass(frozen=True)
class LogRun:
    """A run that can be imported."""

    name: str
    """Its file; `file#2` is the second run of one."""
    arm: str
    run: RunDir
    trace: speedrun_log.Trace
    source: dict[str, str]
    """Where it is from: the absolute name, and the hash of the file."""
    replaces: tuple[str, ...] = ()
    """Runs of the sweep that this one goes on with: the same file, imported before it had grown."""


def read(multirun: Multirun, paths: Sequence[Path], arm: str | None, found: Imported) -> list[LogRun]:
    """The runs in these files, in order of arm and file; `found` takes what there is to say about them.

    Raises UserError for a bad `arm` (see `write.import_logs`), a path that does not exist, or when no file is a log.
    """
    pattern = _compile(arm)
    runs: list[LogRun] = []
    seen: dict[str, str] = {}
    for path in _walk(paths):
        label = _arm_of(path, pattern)
        if label is None:
            found.unmatched.append(str(path))
        else:
            own = list(_read(multirun, path, label, found, seen))
            found.files += bool(own)
            runs += own
    if not runs:
        raise UserError(f"nothing to import: {_why_nothing(found)}")
    return runs


def _why_nothing(found: Imported) -> str:
    reasons: dict[str, list[str]] = {}
    for one in found.refused:
        path, _, reason = one.rpartition(": ")
        reasons.setdefault(reason, []).append(path)
    if found.unmatched:
        reasons["not matched by --arm"] = found.unmatched
    said = [f"{len(paths)} file(s): {reason} ({paths[0]})" for reason, paths in reasons.items()]
    return "; ".join(said) or "no *.txt or *.log there"


def _compile(arm: str | None) -> re.Pattern[str] | None:
    try:
        pattern = re.compile(arm) if arm is not None else None
    except re.error as problem:
        raise UserError(f"--arm {arm!r} is no regular expression: {problem}") from problem
    if pattern is not None and not pattern.groups:
        raise UserError(f"--arm {arm!r} has no group; put the part that names the arm in parentheses")
    return pattern


def _walk(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if not path.exists():
            raise UserError(f"no file or folder {path}")
        if not path.is_dir():
            yield path
            continue
        for folder, below, names in os.walk(path):
            below.sort()
            yield from (Path(folder, n) for n in sorted(names) if n.endswith((".txt", ".log")))


def _arm_of(path: Path, pattern: re.Pattern[str] | None) -> str | None:
    if pattern is None:
        return path.absolute().parent.name or None
    hit = pattern.search(str(path))
    return (hit["arm"] if "arm" in pattern.groupindex else hit[1]) or None if hit else None


def _read(multirun: Multirun, path: Path, arm: str, found: Imported, seen: dict[str, str]) -> Iterator[LogRun]:
    try:
        content = path.read_bytes()
    except OSError as problem:
        found.refused.append(f"{path}: {problem.strerror}")
        return
    log = speedrun_log.parse(_decode(content))
    if not log.runs:
        found.refused.append(f"{path}: no line `step:S/N ... train_time:T ms`")
        return
    found.damaged += [f"{path}:{line}" for line in log.damaged]
    named = [one.split(": ")[0] for one in found.unread]
    found.unread += [f"{name}: {path}" for name in log.unread if name not in named]
    if len(log.runs) > 1:
        found.several.append(f"{path}: {len(log.runs)}")
    digest = hashlib.sha256(content).hexdigest()
    for number, trace in enumerate(log.runs, 1):
        mark = f"#{number}" if number > 1 else ""
        name, identity = f"{path}{mark}", _identity(trace, digest + mark)
        if identity in seen:
            found.repeated.append(f"{name}: {seen[identity]}")
            continue
        seen[identity] = name
        run = multirun.run(f"speedrun-log-{identity[:16]}")
        yield LogRun(name, arm, run, trace, {"from": f"{path.absolute()}{mark}", "sha256": digest})


def _decode(content: bytes) -> str:
    """UTF-8, or what the mark at the start says: `>` of a PowerShell writes UTF-16."""
    utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if utf16 else "utf-8-sig", errors="replace")


def _identity(trace: speedrun_log.Trace, place: str) -> str:
    """Hash of the validations: what a console printed, or a copy with other line ends, is the same run.

    Every run begins alike, so below two validations its `place` tells it from others.
    """
    rows = trace.readings
    return hashlib.sha256(json.dumps(rows if len(rows) > 1 else place).encode()).hexdigest()
