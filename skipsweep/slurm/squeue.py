"""What SLURM's queue adds to a run's files: whether somebody will still execute it, and what it waits for.

One call of squeue for all runs. No accounting is needed: a job that has left the queue has either said in the run's
folder how it ended, or is gone.
"""

import getpass
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from skipsweep import lease
from skipsweep.rundir import RunDir
from skipsweep.slurm import submission
from skipsweep.slurm.submission import Claim
from skipsweep.status import FINAL, Observation

TIMEOUT_S = 30.0
PENDING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD")
NEVER = ("DependencyNeverSatisfied", "BadConstraints", "InvalidAccount", "InvalidQOS", "PartitionDown")
"""Reasons for which a job waits until somebody does something."""


_ENDED_BY_SLURM = re.compile(r"slurmstepd\S*: error: \*\*\* JOB ")


class Unreachable(Exception):
    """squeue is missing or does not answer."""


@dataclass(frozen=True)
class Job:
    """A job in the queue."""

    id: str
    state: str
    reason: str

    @property
    def is_pending(self) -> bool:
        return self.state in PENDING

    @property
    def is_ending(self) -> bool:
        """Whether its processes are being ended: by scancel, or since it is over. What is to come back after a
        requeue looks the same for that moment; a new job in its place does no harm, as it executes nothing then."""
        return self.state == "COMPLETING"

    @property
    def stuck(self) -> str | None:
        """Why it will not start by itself, and what helps; None where it will."""
        if "held" in self.reason.lower() or "HOLD" in self.state or self.state == "SPECIAL_EXIT":
            return f"job {self.id} is held ({self.reason}); scontrol release {self.id}"
        if self.reason in NEVER:
            return f"job {self.id} cannot start ({self.reason}); scancel {self.id} and submit anew"
        return None


@dataclass(frozen=True)
class Queue:
    """Our jobs that are waiting or running."""

    jobs: dict[tuple[str, int], Job] = field(default_factory=dict)
    """(token, array index) -> job."""

    def find(self, run: RunDir) -> Job | None:
        """The job that may execute `run`."""
        return self.of(submission.claim_of(run))

    def of(self, claim: Claim | None) -> Job | None:
        """The job of a claim."""
        return self.jobs.get((claim.token, claim.index)) if claim else None


def read() -> Queue:
    """Ask SLURM, once.

    Raises Unreachable.
    """
    if shutil.which("squeue") is None:
        raise Unreachable("there is no squeue on this machine")
    layout = "--format=%F|%K|%T|%r|%j"
    command = ["squeue", "--noheader", "--array", f"--user={getpass.getuser()}", layout]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise Unreachable(f"squeue: {problem}") from problem
    if done.returncode:
        raise Unreachable(f"squeue: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    return Queue(dict(filter(None, map(_parse, done.stdout.splitlines()))))


def _parse(row: str) -> tuple[tuple[str, int], Job] | None:
    job, index, state, reason, name = row.split("|", 4)
    token = submission.token_of(name)
    if token is None:
        return None
    is_element = index.isdigit()
    return (token, int(index) if is_element else 0), Job(f"{job}_{index}" if is_element else job, state, reason)


def refined(seen: Observation, run: RunDir, queue: Queue) -> Observation:
    """`seen`, as the queue shows it: a run is only waited for where there is a job that will execute it."""
    claim = None if seen.state in (*FINAL, "new", "planned") else submission.claim_of(run)
    if claim is None:
        return seen
    job = queue.of(claim)
    if seen.is_live:
        return replace(seen, job=job.id if job else None)
    if job is None:
        return _gone(seen, run, claim)
    seen = replace(seen, job=job.id, stuck=job.stuck)
    if job.is_pending:
        return _waiting(seen, job)
    return _starting(seen, run, job)


def _gone(seen: Observation, run: RunDir, claim: Claim) -> Observation:
    if run.cancelled.exists():
        if seen.state == "preempted":
            return seen
        return replace(seen, state="preempted", cause="cancelled", message="before it began")
    folder = Path(claim.folder)
    log, words = submission.last_words(folder, claim.index)
    if submission.unborn(folder, claim.index).exists() and not any(map(_ENDED_BY_SLURM.match, words)):
        message = words[-1] if words else "the job ended before the run began: a line of setup, or the interpreter"
        return replace(seen, state="failed", cause="exception", message=message, log=str(log) if log else None)
    if seen.state == "preempted":
        return seen
    if holder := _another(run, claim):
        return replace(seen, message=f"{lease.describe(holder)} ended without reporting a result")
    message = "its job left the queue without reporting a result (cancelled, killed or never started)"
    message += f"; {log}: {words[-1]}" if words else ""
    return replace(seen, state="interrupted", cause="killed", message=message)


def _another(run: RunDir, claim: Claim) -> dict[str, Any] | None:
    """Who executed the run since, where that was no job: a launcher on some machine."""
    holder = lease.newest(run)
    return holder if holder and not holder.get("job") and holder.get("started", 0) > claim.time else None


def _waiting(seen: Observation, job: Job) -> Observation:
    """In the queue, for the first time or again."""
    state = "preempted" if seen.state in ("interrupted", "running", "preempted") else seen.state
    return replace(seen, state=state, message=seen.stuck or f"job {job.id} waits: {job.reason}")


def _starting(seen: Observation, run: RunDir, job: Job) -> Observation:
    """SLURM says that it runs; its files do not yet, or no longer."""
    if seen.state == "submitted":
        return replace(seen, message=f"job {job.id} is starting")
    silent = time.time() - ((lease.newest(run) or {}).get("beat") or 0.0)
    if seen.state == "interrupted" and silent > lease.EXPIRY_S:
        message = f"job {job.id} is running, but has shown no heartbeat for {silent:.0f} s"
        return replace(seen, state="running", stuck=message, message=message)
    return replace(seen, message=f"job {job.id} is running")


def all_refined(seen: Sequence[Observation], runs: Sequence[RunDir], queue: Queue | None = None) -> list[Observation]:
    """`refined` for many; asks SLURM only where something was submitted that has not ended."""
    if all(one.state in (*FINAL, "new", "planned") for one in seen):
        return list(seen)
    if queue is None:
        try:
            queue = read()
        except Unreachable:
            return list(seen)
    return [refined(one, run, queue) for one, run in zip(seen, runs, strict=True)]
