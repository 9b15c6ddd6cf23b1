"""What was handed to SLURM, on disk: written before sbatch is called, read by the jobs, by status and by cancel.

    <sweep or run folder>/slurm/<token>/     readable by its owner alone
      tasks.json          which runs each job of the array executes, and how: the job reads nothing else
      job.json            SLURM's id of the array, once sbatch has told it
      restarts.jsonl      every requeue: job, index, why
      unborn-K            marker of a job that started but never reached Python
      *.out *.err *.sh    the batch script and what it and srun said; what runs print lies in their own folders

The token is part of the job's name, so one squeue call finds a job whose id was never noted because the launcher died.
A run names the token that may execute it (`submission.json`); jobs of older submissions leave it alone.
"""

import contextlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from skipsweep import files
from skipsweep.rundir import RunDir

FOLDER = "slurm"
_TOKEN = re.compile(r"\.([0-9a-f]{12})$")


@dataclass(frozen=True)
class Submission:
    """One array of jobs that share their resources."""

    token: str
    tasks: list[list[str]]
    """Array index -> folders of the runs that this job executes: one, or several packed onto a node."""
    nodes: int
    tasks_per_node: int
    packed: bool
    timeout_min: int
    signal_delay_s: int
    max_num_timeout: int
    python: str
    code: str
    """Frozen sources."""
    srun_args: list[str] = field(default_factory=list)
    created: float = 0.0


@dataclass(frozen=True)
class Claim:
    """Which job may execute a run."""

    token: str
    index: int
    folder: str
    """Of the submission."""
    time: float


def create(home: Path, **settings: Any) -> tuple[Path, Submission]:
    """Write down what is about to be submitted; returns the submission's folder."""
    array = Submission(token=uuid.uuid4().hex[:12], created=time.time(), **settings)
    parent = home / FOLDER
    for folder in (parent, parent / array.token):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_private(parent)
    files.write_json(parent / array.token / "tasks.json", asdict(array))
    return parent / array.token, array


def _check_private(folder: Path) -> None:
    """What others could write to would be executed as us."""
    stat = folder.stat()
    if stat.st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user")
    if stat.st_mode & 0o077:
        folder.chmod(0o700)


def read(folder: Path) -> Submission:
    """The submission in a folder."""
    return Submission(**files.read_json(folder / "tasks.json"))


def note_job(folder: Path, job: str) -> None:
    """Remember SLURM's id."""
    files.write_json(folder / "job.json", {"job": job, "time": time.time()}, durable=False)


def claim(run: RunDir, folder: Path, array: Submission, index: int) -> None:
    """Let `array` alone execute `run`."""
    content = asdict(Claim(array.token, index, str(folder), time.time()))
    run.cancelled.unlink(missing_ok=True)
    files.write_json(run.submission, content, durable=False)
    run.write_status("submitted", durable=False, log=str(log_of(folder, index)))


@contextlib.contextmanager
def undone(runs: Iterable[RunDir], folder: Path, problem: type[Exception]) -> Iterator[None]:
    """Claim runs within; if `problem` is raised, they are as before, and the submission's folder is gone."""
    before = {path: _bytes(path) for run in runs for path in (run.submission, run.status)}
    try:
        yield
    except problem:
        for path, content in before.items():
            path.unlink(missing_ok=True) if content is None else files.write_bytes(path, content)
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def claim_of(run: RunDir) -> Claim | None:
    """Who may execute `run`; None where it was never submitted."""
    try:
        content = files.read_json(run.submission)
        return Claim(**content) if content else None
    except (ValueError, TypeError):
        return None


def log_of(folder: Path, index: int) -> Path:
    """What the batch script of an array index said."""
    return folder / f"job-{index}.err"


def unborn(folder: Path, index: int) -> Path:
    """Exists from the batch script's first line until the batch step runs; remains if the job died in between."""
    return folder / f"unborn-{index}"


def last_words(folder: Path, index: int) -> tuple[Path | None, list[str]]:
    """(What the batch script of an array index wrote its errors to, where there is something, its last lines)."""
    err = log_of(folder, index)
    for path in (err, err.with_suffix(".out")):  # one for both, if asked for
        with contextlib.suppress(OSError), open(path, "rb") as f:
            f.seek(max(0, path.stat().st_size - 4096))
            if lines := f.read().decode(errors="replace").split("\n"):
                return path, [line.strip() for line in lines if line.strip()][-3:]
    return None, []


def name(given: str, token: str) -> str:
    """Name of the jobs. What may be in a sweep's name is not all fit for every tool that lists jobs."""
    return f"{re.sub(r'[^A-Za-z0-9_-]+', '-', given)[:60].strip('-') or 'skipsweep'}.{token}"


def token_of(job_name: str) -> str | None:
    """The token in a job's name; None for jobs that are not ours."""
    match = _TOKEN.search(job_name)
    return match[1] if match else None


def note_restart(folder: Path, index: int, job: str, why: str) -> None:
    """Add a requeue to the record."""
    files.append_row(folder / "restarts.jsonl", {"index": index, "job": job, "why": why, "time": time.time()})


def restarts(folder: Path, index: int) -> Sequence[dict[str, Any]]:
    """Requeues of one job."""
    return [row for row in files.read_rows(folder / "restarts.jsonl") if row.get("index") == index]
