"""Plays a rank of a run without torch: the same signals, assignment, lease, status and exit codes, and no training."""

import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from skipsweep import files, lease
from skipsweep.rundir import RunDir
from skipsweep.slurm import task
from skipsweep.slurm.assignment import Assignment
from skipsweep.stop import StopSignal

assignment = Assignment.of_environment()
mine = assignment.slot(int(os.environ["SLURM_PROCID"]))
if mine is None:
    sys.exit(0)
run, attempt = RunDir(Path(mine[0])), mine[1]
go = run.path / "go"
"""Ends the work of a run, once it is there."""
rank = 0 if assignment.packed else int(os.environ["SLURM_PROCID"])


def note(text: str) -> None:
    with open(run.path / "played", "a") as f:
        f.write(f"{text}\n")


def hold() -> lease.Lease:
    """Begin, as rank 0 does."""
    task._wait_for_predecessor(str(run.path))
    try:
        held = lease.acquire(run)
    except lease.Held:
        note("held by another")
        sys.exit(76)
    run.write_status("running", attempt=held.attempt, log=str(run.log(held.attempt, "err")))
    note("began")
    return held


def work(seconds: float = 0.0, state: str = "done", every: float = 0.02, **details: Any) -> NoReturn:
    """Last `seconds`, unless told to stop; then end like this."""
    if rank:
        sys.exit(0)
    held, end = hold(), time.monotonic() + seconds
    while time.monotonic() < end and stop.reason is None and not run.cancelled.exists() and not go.exists():
        time.sleep(every)
    if time.monotonic() < end and not go.exists():
        state, details = "preempted", {"cause": "signal", "message": stop.reason or "cancelled"}
    if state == "done":
        files.write_json(run.result, RESULT | {"id": run.id, "attempt": held.attempt})
    run.write_status(state, attempt=held.attempt, log=str(run.log(held.attempt, "err")), **details)
    held.release()
    note(state)
    sys.exit({"done": 0, "failed": 1, "preempted": 75}[state])


def kill(number: int) -> NoReturn:
    """Die of a signal, after having begun."""
    hold()
    os.kill(os.getpid(), number)
    time.sleep(60)
    sys.exit(3)


def segfault() -> None:
    hold()
    ctypes.string_at(0)


CURVE = [{"step": step, "tokens": step, "train_time_s": 1.0, "val/loss": 2.0} for step in (0, 12)]
RESULT: dict[str, Any] = {"val_loss": 2.0, "steps": 12, "tokens": 1536, "train_time_s": 1.0, "val_curve": CURVE}
RESULT |= {"parameters": {"blocks": 1}, "lambdas": {}, "unigram_entropy": 3.0, "flops_per_token": {"blocks": 1}}

with StopSignal() as stop:
    os.chdir(run.path)
    task._log_to(run.log(attempt, "out"), run.log(attempt, "err"))
    plays = json.loads(Path(os.environ["SKIPSWEEP_PLAYS"]).read_text())
    play = plays.get(str(run.read_config().seed), plays["default"])
    exec(play, {**globals(), "signal": signal})
