"""One task of a SLURM job: become the rank that SLURM's environment says, then execute the run.

srun python -m skipsweep.slurm.task        (started by the batch step, which says what to execute: `Assignment`)
"""

import os
import sys
import time
from pathlib import Path

from skipsweep.stop import StopSignal

WAIT_S = 180.0
"""Longest wait for the lease of the job before: its node has died, or it was cancelled and still saves."""


def main() -> int:
    """Execute this task's part; returns an exit code of a job."""
    with StopSignal() as stop:  # before anything slow: SLURM may warn at any time
        from skipsweep.rundir import RunDir
        from skipsweep.slurm import environment
        from skipsweep.slurm.assignment import Assignment

        assignment = Assignment.of_environment()
        mine = assignment.slot(int(os.environ["SLURM_PROCID"]))
        if mine is None:
            return 0
        path, attempt = mine
        run = RunDir(Path(path))
        os.environ.update(environment.rank_environment(os.environ, assignment.packed))
        _log_to(run.log(attempt, "out"), run.log(attempt, "err"))
        if os.environ["RANK"] == "0":
            _wait_for_predecessor(path)
        from skipsweep import job  # torch

        return job.execute(run, stop=stop)


def _log_to(out: Path, err: Path) -> None:
    """Send what this process prints to the attempt's log."""
    out.parent.mkdir(parents=True, exist_ok=True)
    for stream, path in ((1, out), (2, err)):
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        os.dup2(fd, stream)
        os.close(fd)


def _wait_for_predecessor(path: str) -> None:
    """Wait until the lease of a job has been released or has run out: this very job's before its requeue, as from here
    a node that died cannot be told from one that is slow, or that of a cancelled one which still saves."""
    from skipsweep import lease
    from skipsweep.rundir import RunDir

    run, deadline = RunDir(Path(path)), time.monotonic() + WAIT_S
    said = False
    while time.monotonic() < deadline:
        holder = lease.newest(run)
        if not lease.is_live(run, holder) or not (holder or {}).get("job"):
            return
        if not said:
            print(f"waiting for the lease of {lease.describe(holder or {})}", flush=True)
            said = True
        time.sleep(1.0)


if __name__ == "__main__":
    sys.exit(main())
