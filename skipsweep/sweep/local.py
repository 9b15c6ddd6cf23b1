"""Executing runs on this machine: each in processes of its own, some at a time, none harmed by another's end."""

import contextlib
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from skipsweep import lease, peers, provenance
from skipsweep.config import world_size
from skipsweep.exit_status import Exit, cause_of_death, last_line
from skipsweep.rundir import RunDir
from skipsweep.status import FINAL, observe

POLL_S = 0.2
GRACE_S = 60.0
"""Seconds that a run told to stop has for its checkpoint."""
PEER_GRACE_S = 10.0
"""Seconds that the processes of a run have to end by themselves, and to say why, when one of them has ended badly."""


@dataclass
class Execution:
    """The processes of one attempt of one run."""

    run: RunDir
    attempt: int
    processes: list[subprocess.Popen[bytes]]
    log: Path | None
    status_before: dict[str, Any]
    """What status.json said when it was started."""
    rendezvous: tempfile.TemporaryDirectory[str]
    started: float = field(default_factory=time.monotonic)
    told: bool = False
    """Whether we told it to stop."""
    timeout_s: float = 0.0
    """Seconds after which it is stopped; 0: never."""
    overdue: bool = False
    """Whether it was stopped for that."""
    failed_rank: int | None = None
    """The first process that ended with another code than 0; the others may only have missed it."""
    unanswered_since: float | None = None
    """When its end could first not be read from its files."""
    _kill_at: float | None = None

    def poll(self) -> int | None:
        """None while it runs; else 0 or the exit code of the process that failed first."""
        codes = [process.poll() for process in self.processes]
        if self.failed_rank is None and any(codes):
            self.failed_rank = next(rank for rank, code in enumerate(codes) if code)
            # Some collectives wait for ever for a peer that will not come; one that was told to stop is not missed.
            stopped = codes[self.failed_rank] == Exit.PREEMPTED
            self._kill_in(GRACE_S if stopped else PEER_GRACE_S)
        if None not in codes:
            return 0 if self.failed_rank is None else codes[self.failed_rank]
        if self.timeout_s and not self.told and time.monotonic() - self.started > self.timeout_s:
            self.overdue = True
            self.stop()
        if self._kill_at is not None and time.monotonic() > self._kill_at:
            self._signal(signal.SIGKILL)
        return None

    def stop(self) -> None:
        """Tell it to save and stop at its next step; if it does not, it is killed."""
        self.told = True
        self._signal(signal.SIGTERM)
        self._kill_in(GRACE_S)

    def kill(self) -> None:
        """End it now."""
        self.told = True
        self._signal(signal.SIGKILL)

    def _kill_in(self, seconds: float) -> None:
        self._kill_at = min(self._kill_at or math.inf, time.monotonic() + seconds)

    def _signal(self, number: int) -> None:
        """Send a signal to all processes that are still there."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)

    def close(self) -> None:
        """Remove what the attempt needed outside of its folder."""
        self.rendezvous.cleanup()


def start(run: RunDir, code: Path | None, threads: int, show: bool) -> Execution:
    """Start the processes of a run. `code`: frozen sources; `show`: its output goes to ours, else to its log."""
    digest = run.config_digest()
    config = run.read_config()
    attempt, before = lease.next_attempt(run), run.read_status()
    size = world_size(config.compute)
    rendezvous = tempfile.TemporaryDirectory(prefix="skipsweep-")
    env = _environment(code, threads) | {
        "WORLD_SIZE": str(size),
        "SKIPSWEEP_CONFIG": digest,
        "SKIPSWEEP_RENDEZVOUS": f"file://{rendezvous.name}/store",
    }
    out, err = run.log(attempt, "out"), run.log(attempt, "err")
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(out, "ab") as o, open(err, "ab") as e:
        processes = [
            subprocess.Popen(
                [sys.executable, "-P", "-m", "skipsweep.job", str(run.path)],
                env=env | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                cwd=run.path,
                stdin=subprocess.DEVNULL,
                stdout=None if show and rank == 0 else o,
                stderr=None if show and rank == 0 else e,
                start_new_session=True,  # the terminal's Ctrl-C reaches us alone; we pass it on once
            )
            for rank in range(size)
        ]
    return Execution(run, attempt, processes, None if show else err, before, rendezvous)


def _environment(code: Path | None, threads: int) -> dict[str, str]:
    env = dict(os.environ)
    env["SKIPSWEEP_PARENT"] = str(os.getpid())
    env["SKIPSWEEP_THREADS"] = env["OMP_NUM_THREADS"] = str(threads)
    # Without frozen sources those that we run ourselves: another checkout may be the one installed.
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(code or provenance.CHECKOUT), env.get("PYTHONPATH")]))
    return env


def conclude(execution: Execution, exit_code: int) -> None:
    """Write the status of a run whose processes have ended, if they could not do so (killed, or died at import)."""
    run = execution.run
    execution.close()
    if execution.overdue and exit_code != Exit.HELD:
        _publish_timeout(execution)
        return
    seen = observe(run)
    if exit_code in (Exit.PREEMPTED, Exit.HELD) or seen.is_live or lease.next_attempt(run) > execution.attempt + 1:
        return  # it said so itself, or is another's by now
    lost_peer = exit_code < 0 and execution.failed_rank and seen.cause == "exception"
    # The status may still be that of a failure which is tried again. Its time would not tell: clocks are set.
    is_new = run.read_status() != execution.status_before
    if seen.state == "done" or (seen.state in ("failed", "preempted") and is_new and not lost_peer):
        return
    log = str(execution.log) if execution.log else None
    details = {"attempt": execution.attempt, "log": log, "ended": time.time()}
    signal_name = signal.Signals(-exit_code).name if exit_code < 0 else None
    if execution.told and signal_name in ("SIGTERM", "SIGKILL"):  # while it was starting, or too slow
        _publish(run, "preempted", cause="signal", message=signal_name, **details)
        return
    cause, message = cause_of_death(exit_code, signal_name, execution.log and last_line(execution.log))
    if cause == "exception":
        cause, message = peers.noted(run, execution.attempt) or (cause, message)
    _publish(run, "failed", cause=cause, message=message, **details)


def _publish_timeout(execution: Execution) -> None:
    """It was stopped for taking too long; unless it was done at that very moment."""
    if execution.run.read_status()["state"] != "done":
        message = f"stopped after {execution.timeout_s / 60:g} min (hydra.launcher.timeout_min)"
        details = {"attempt": execution.attempt, "log": str(execution.log) if execution.log else None}
        _publish(execution.run, "failed", cause="timeout", message=message, ended=time.time(), **details)


def _publish(run: RunDir, state: str, **details: Any) -> None:
    """Write a run's status. A disk that is full must not end the launcher, and with it all other runs."""
    try:
        run.write_status(state, **details)
    except OSError as problem:
        _say(f"{run.name}: {state}, but its status could not be written: {problem}", sys.stderr)


def _say(line: str, to: TextIO) -> None:
    """A terminal that is gone, or a closed pipe, must not end the launcher either."""
    with contextlib.suppress(OSError, UnicodeError):
        print(line, file=to, flush=True)


@dataclass
class Pool:
    """Executes runs, `parallel` at a time, and waits for those that somebody else executes."""

    runs: Sequence[RunDir]
    parallel: int
    code: Path | None
    show: bool = False
    timeout_s: float = 0.0
    stopping: bool = False
    _waiting: list[RunDir] = field(default_factory=list)
    _active: list[Execution] = field(default_factory=list)
    _attempts: dict[RunDir, int] = field(default_factory=dict)
    _elsewhere: set[RunDir] = field(default_factory=set)

    def execute(self, tick: Callable[[], None]) -> None:
        """Return when every run is done, failed or preempted. `tick` is called a few times a second.

        SIGINT and SIGTERM stop the runs at their next step, with a checkpoint; a second one kills them.
        """
        self._waiting = list(self.runs)
        self._attempts = {run: lease.next_attempt(run) for run in self.runs}
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            while self._active or (self._waiting and not self.stopping):
                if not self.stopping:
                    self._start_next()
                self._reap()
                tick()
                time.sleep(POLL_S)
        finally:
            self._end_all()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _end_all(self) -> None:
        """Something has failed here: the runs that are left save, as they do at a signal."""
        for execution in self._active:
            execution.stop()
        while None in [execution.poll() for execution in self._active]:
            time.sleep(POLL_S)
        for execution in self._active:
            with contextlib.suppress(Exception):  # what failed first is told
                conclude(execution, execution.poll() or 0)

    def _start_next(self) -> None:
        for run in list(self._waiting):
            if len(self._active) >= self.parallel:
                return
            with contextlib.suppress(OSError):  # the file server does not answer: asked again
                self._look_at(run)

    def _look_at(self, run: RunDir) -> None:
        """Begin a run, unless another launcher executes it, or it has ended elsewhere."""
        seen = observe(run)
        if seen.is_live:
            self._wait_for(run, seen.holder)
            return
        tried_elsewhere = lease.next_attempt(run) > self._attempts[run]
        self._waiting.remove(run)
        if seen.state != "done" and not (seen.state in FINAL and tried_elsewhere):
            self._begin(run)

    def _wait_for(self, run: RunDir, holder: str | None) -> None:
        """Another launcher executes it: wait, and take over only if that dies."""
        if run not in self._elsewhere:
            self._elsewhere.add(run)
            _say(f"{run.name} is being executed by {holder}: waiting for it", sys.stdout)

    def _begin(self, run: RunDir) -> None:
        try:
            execution = start(run, self.code, self._threads(run), self.show)
            execution.timeout_s = self.timeout_s
            self._active.append(execution)
            if self.stopping:  # told between the two lines above
                execution.stop()
        except Exception as problem:  # a damaged config.yaml, no process or file left: the others go on
            _publish(run, "failed", cause="exception", message=f"{type(problem).__name__}: {problem}")

    def _threads(self, run: RunDir) -> int:
        beside = min(self.parallel, len(self.runs))
        return max(1, provenance.cpus() // (beside * run.read_config().compute.processes))

    def _reap(self) -> None:
        for execution in list(self._active):
            code = execution.poll()
            if code is None:
                continue
            if not self._conclude(execution, code):
                continue
            self._active.remove(execution)
            if code == Exit.HELD:
                self._waiting.append(execution.run)

    def _conclude(self, execution: Execution, code: int) -> bool:
        """Whether it could be concluded: a file server that does not answer is asked again, for a while."""
        try:
            conclude(execution, code)
        except OSError as problem:
            execution.unanswered_since = execution.unanswered_since or time.monotonic()
            if time.monotonic() - execution.unanswered_since < GRACE_S:
                return False
            _say(f"{execution.run.name}: ended, but its files cannot be read: {problem}", sys.stderr)
        return True

    def _stop(self, _number: int, _frame: object) -> None:
        for execution in self._active:
            if self.stopping:
                execution.kill()
            else:
                execution.stop()
        self.stopping = True
