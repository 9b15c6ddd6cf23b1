"""`skipsweep cancel`: stop what a sweep, or whoever launched a run by itself, alone waits for."""

import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from skipsweep import files, sweep_file
from skipsweep.errors import UserError
from skipsweep.rundir import SINGLE, Multirun, RunDir
from skipsweep.slurm import squeue, submission
from skipsweep.slurm.squeue import Queue, Unreachable
from skipsweep.status import FINAL, observe


@dataclass(frozen=True)
class Cancelled:
    """What became of a sweep's runs, or of a single one."""

    sweep: str
    """Its name, or the run's."""
    ended: bool = False
    """Whether all of its runs have ended, so that nothing was left to cancel."""
    runs: list[str] = field(default_factory=list)
    """Runs that will not be continued."""
    wanted: dict[str, list[str]] = field(default_factory=dict)
    """Run -> other sweeps that wait for it: these runs are left alone."""
    local: list[str] = field(default_factory=list)
    """Runs that a launcher on some machine executes, which has to be stopped itself."""
    jobs: list[str] = field(default_factory=list)
    """Jobs that were taken out of SLURM's queue, or told to end."""


def cancel(multirun: Multirun, asked: str) -> Cancelled:
    """Stop what a sweep alone waits for; or a run, where no sweep waits for it. Runs that train save first; the same
    command again continues them. `asked`: the sweep's name; or the run's, its id, or a beginning.

    Raises UserError for what does not exist, or if SLURM does not answer.
    """
    sweep, runs = _meant(multirun, asked)
    with files.locked(multirun.path):  # no launcher submits meanwhile
        states = {run: observe(run).state for run in runs}
        cancelled = Cancelled(sweep or runs[0].name, ended=set(states.values()) <= {*FINAL})
        open_ = [run for run, state in states.items() if state not in (*FINAL, "new", "planned")]
        _sort(open_, multirun, sweep, cancelled)
        if cancelled.runs or cancelled.wanted:
            _wait_no_more(multirun, sweep, runs)
        _end_jobs([run for run in open_ if run.name in cancelled.runs], cancelled)
    return cancelled


def _meant(multirun: Multirun, asked: str) -> tuple[str | None, list[RunDir]]:
    """A sweep and its runs, or none and a run."""
    try:
        names = sweep_file.runs(sweep_file.read_points(multirun, asked))
    except UserError as no_sweep:
        try:
            return None, [multirun.find_run(asked)]
        except UserError:
            raise no_sweep from None
    return asked, [multirun.run(name) for name in names]


def _sort(runs: Iterable[RunDir], multirun: Multirun, sweep: str | None, cancelled: Cancelled) -> None:
    """Enter each run in `cancelled`, and mark those that are ours to cancel."""
    for run in runs:
        others = [name for name in run.read_serves() if name != (sweep or SINGLE) and _waits(multirun, name)]
        if others:
            cancelled.wanted[run.name] = others
        elif submission.claim_of(run) is None:
            cancelled.local.extend([run.name] if observe(run).is_live else [])
        else:
            run.cancelled.touch()
            cancelled.runs.append(run.name)


def _wait_no_more(multirun: Multirun, sweep: str | None, runs: Sequence[RunDir]) -> None:
    """Note it for other sweeps that share runs."""
    if sweep:
        multirun.sweep(sweep).cancelled.touch()
    else:
        runs[0].forget_serves(SINGLE)


def _waits(multirun: Multirun, name: str) -> bool:
    """A run that was launched by itself (`single`) has no folder: it waits until the run is cancelled as such."""
    folder = multirun.sweep(name)
    return not folder.cancelled.exists()


def _end_jobs(runs: Sequence[RunDir], cancelled: Cancelled) -> None:
    """End the jobs of which no run is wanted any more; others see the mark in their run's folder."""
    if not runs:
        return
    try:
        queue = squeue.read()
    except Unreachable as problem:
        raise UserError(f"{problem}; runs are marked as cancelled, their jobs end when they see it") from problem
    for run in runs:
        job = queue.find(run)
        if job and job.id not in cancelled.jobs and all(map(_is_over, _beside(run))):
            cancelled.jobs.append(job.id)
    if cancelled.jobs:
        done = subprocess.run(["scancel", *cancelled.jobs], capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"scancel: {done.stderr.strip()}; the runs are marked, their jobs end when they see it")
    for run in runs:
        _tell_before_it_began(run, queue)


def _beside(run: RunDir) -> list[RunDir]:
    """The runs of its job that are still its job's: itself, and others where they are packed."""
    claim = submission.claim_of(run)
    assert claim is not None
    members = [RunDir(Path(path)) for path in submission.read(Path(claim.folder)).tasks[claim.index]]
    return [member for member in members if (other := submission.claim_of(member)) and other.token == claim.token]


def _is_over(run: RunDir) -> bool:
    return run.cancelled.exists() or observe(run).state in FINAL


def _tell_before_it_began(run: RunDir, queue: Queue) -> None:
    """A run that waits has nobody else to write its status."""
    job = queue.find(run)
    if observe(run).state in ("submitted", "interrupted") and (job is None or job.is_pending):
        run.write_status("preempted", cause="cancelled", message="by skipsweep cancel", ended=time.time())
