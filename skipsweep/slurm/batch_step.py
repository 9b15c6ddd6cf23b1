"""The batch step of a SLURM job: start the ranks with srun, see them end, tell how, requeue at most once.

python -m skipsweep.slurm.batch_step SUBMISSION_FOLDER

SLURM's warning (USR2) goes to the ranks, which agree on a step, save and exit; it does not reach this process. Only
when all of them have ended is the job requeued, once, from here: a requeue ends whatever is still running. SIGTERM
here means that SLURM ends the job itself (cancelled, requeued by somebody, out of time): then nothing is requeued.
Imports no torch.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skipsweep import lease, peers
from skipsweep.exit_status import Exit, cause_of_death, last_line
from skipsweep.rundir import RunDir
from skipsweep.slurm import environment, submission
from skipsweep.slurm.assignment import Assignment
from skipsweep.slurm.submission import Submission
from skipsweep.status import FINAL, observe

PEER_GRACE_S = 60
"""Seconds that the ranks of a run have to end when one of them has ended: rank 0 still waits for wandb."""
COARSE_S = 60
"""SLURM warns up to this much early."""
POLL_S = 0.1
REQUEUE_TRIES = 5
PATIENCE_S = 600.0
"""How long in all a job waits for a controller that does not answer: one that is restarted is away for minutes."""
LONGEST_S = 10.0
"""Between two questions to it."""

_ENDED = re.compile(r"srun: error: \S+: tasks? ([0-9,-]+): (.+)")
_SIGNALS = {
    "Killed": "SIGKILL",
    "Segmentation fault": "SIGSEGV",
    "Aborted": "SIGABRT",
    "Bus error": "SIGBUS",
    "Illegal instruction": "SIGILL",
    "Floating point exception": "SIGFPE",
    "Terminated": "SIGTERM",
    "User defined signal 2": "SIGUSR2",
    "Interrupt": "SIGINT",
}
_WARNINGS = ("SIGTERM", "SIGUSR2", "SIGINT")
"""Signals that stop a job, of which a process dies that does not handle them yet."""


@dataclass(frozen=True)
class Death:
    """How a task ended that did not end well."""

    signal: str | None = None
    code: int | None = None
    out_of_memory: bool = False


# -------------------------------------------------------------------------------------------------------------- running


class BatchStep:
    """One job: some runs, executed by one srun."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.submission = submission.read(folder)
        self.index = environment.array_index()
        self.job = environment.job_id()
        self.started = time.time()
        self.terminated = False
        self.patience_s = PATIENCE_S
        self.said: list[str] = []
        """What srun wrote to its standard error."""

    def run(self) -> int:
        """The whole job; returns its exit status."""
        signal.signal(signal.SIGTERM, self._note_termination)
        for number in (signal.SIGUSR2, signal.SIGCONT, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        submission.unborn(self.folder, self.index).unlink(missing_ok=True)
        runs = [RunDir(Path(path)) for path in self.submission.tasks[self.index]]
        todo = [run if self._is_ours(run) else None for run in runs]
        attempts = [lease.next_attempt(run) if run else 0 for run in todo]
        if any(todo):
            code = self._srun(todo, attempts)
            if (code or self.said) and self._is_running() is False:  # srun ends with 0 where a node is lost
                self.terminated = True
            deaths = parse_deaths(self.said)
            for place, (run, attempt) in enumerate(zip(todo, attempts, strict=True)):
                if run:
                    own = deaths.get(place) if self.submission.packed else _first(deaths)
                    with _reporting_full_disk(run):
                        self._conclude(run, attempt, code, own)
        return self._leave(runs, [run for run in todo if run])

    def _is_ours(self, run: RunDir) -> bool:
        """Whether this job has to execute `run`: it may be finished, cancelled, or another submission's by now."""
        claim = submission.claim_of(run)
        ours = claim is not None and claim.token == self.submission.token
        if not ours or run.cancelled.exists():
            print(f"{run.name}: {'cancelled' if ours else 'submitted anew since'}, left alone", flush=True)
            return False
        return run.read_status()["state"] not in FINAL

    def _note_termination(self, *_: object) -> None:
        self.terminated = True

    def _srun(self, runs: Sequence[RunDir | None], attempts: Sequence[int]) -> int:
        """Start the tasks and wait for them; returns srun's exit code."""
        places = [
            None if run is None else (str(run.path), attempt) for run, attempt in zip(runs, attempts, strict=True)
        ]
        assignment = Assignment(places, self.submission.packed)
        log = self._srun_log
        with open(log, "ab") as said:  # a pipe may stay open in a child of srun after its end
            before = said.tell()
            process = subprocess.Popen(
                srun_command(self.submission, self.folder, self.index),
                env={**os.environ, **assignment.to_environment()},
                stdin=subprocess.DEVNULL,
                stderr=said,
            )
        while process.poll() is None:
            if self.terminated and self._out_of_time():
                self._tell_timeout([run for run in runs if run])
            time.sleep(POLL_S)
        self.said = log.read_bytes()[before:].decode(errors="replace").splitlines()
        print(*self.said, sep="\n", file=sys.stderr, flush=True)
        return process.returncode

    # ------------------------------------------------------------------------------------------------------ the outcome

    def _conclude(self, run: RunDir, attempt: int, code: int, death: Death | None) -> None:
        """Write the status of a run whose processes have ended, if it could not do so itself."""
        seen = observe(run)
        holder = lease.newest(run)
        own = holder is not None and holder["job"] == os.environ["SLURM_JOB_ID"] and holder["attempt"] == attempt
        if holder and own:
            if self.terminated and lease.is_live(run, holder):
                return  # srun gave up before the ranks did; they report the end themselves
            lease.declare_dead(run, holder)
        elif seen.is_live or (holder and holder["attempt"] >= attempt):
            return  # another process executes it, or has; ours has left it alone
        said_itself = seen.state in (*FINAL, "preempted") and run.read_status().get("attempt") == attempt
        bereft = (death is not None and death.signal is not None) or (self.terminated and not self._is_alone)
        lost_peer = seen.cause == "exception" and bereft
        if said_itself and not lost_peer:
            return
        log, line = self._evidence(run, attempt)
        state, cause, message = verdict(death, code, self.said, self.terminated, line)
        if cause == "exception":
            cause, message = peers.noted(run, attempt) or (cause, message)
        details = {"log": str(log), "ended": time.time(), "job": self.job, "cause": cause, "message": message}
        run.write_status(state, attempt=attempt, **details)

    def _evidence(self, run: RunDir, attempt: int) -> tuple[Path, str | None]:
        """(Log, line of it) that tell most of how an attempt ended: srun's where the attempt itself said nothing."""
        log = run.log(attempt, "err")
        line = last_line(log)
        if line or not self.said:
            return log, line
        return self._srun_log, _line_with(self.said, "srun: error") or _line_with(self.said, "srun:") or self.said[-1]

    @property
    def _srun_log(self) -> Path:
        return self.folder / f"srun-{self.index}.log"

    def _leave(self, runs: Sequence[RunDir], executed: Sequence[RunDir]) -> int:
        """Requeue if a run has to go on; the exit status tells SLURM what the files tell."""
        waiting = [run for run in executed if run.read_status()["state"] == "preempted" and not run.cancelled.exists()]
        if waiting and not self.terminated and self._is_running() is not False:
            why = "timeout" if self._out_of_time() and not self._was_preempted() else "preempted"
            so_far = sum(row["why"] == "timeout" for row in submission.restarts(self.folder, self.index))
            if why == "timeout" and so_far >= self.submission.max_num_timeout:
                self._tell_timeout(waiting, f"stopped by the time limit {so_far + 1} times (max_num_timeout)")
            elif self._requeue(why):
                return Exit.PREEMPTED
        for run in executed:
            if run.cancelled.exists() and run.read_status()["state"] == "preempted":
                run.write_status(
                    "preempted", **{**_details(run), "cause": "cancelled", "message": "by skipsweep cancel"}
                )
        states = [run.read_status()["state"] for run in runs if self._was_ours(run)]
        return Exit.FAILED if "failed" in states else Exit.PREEMPTED if set(states) - {"done"} else Exit.DONE

    def _was_ours(self, run: RunDir) -> bool:
        claim = submission.claim_of(run)
        return claim is not None and claim.token == self.submission.token

    @property
    def _is_alone(self) -> bool:
        """Whether runs have no ranks beside them that could be lost."""
        return self.submission.packed or self.submission.nodes * self.submission.tasks_per_node == 1

    def _tell_timeout(self, runs: Sequence[RunDir], why: str = "did not stop in time when SLURM warned") -> None:
        for run in runs:
            status = run.read_status()
            if status["state"] in ("running", "preempted", "submitted"):
                run.write_status(
                    "failed", **{**_details(run), "cause": "timeout", "message": why, "ended": time.time()}
                )

    # -------------------------------------------------------------------------------------------------------- the queue

    def _out_of_time(self) -> bool:
        """Whether a warning now can be that of the time limit."""
        limit = self.submission.timeout_min * 60
        if self.terminated:
            return time.time() - self.started >= limit - 2
        return time.time() - self.started >= limit - self.submission.signal_delay_s - COARSE_S

    def _job_facts(self) -> str | None:
        """What SLURM tells of this job, "" where it knows none; None if it does not answer, for as long as there is
        patience."""
        delay_s = 1.0
        while (facts := _ask(os.environ["SLURM_JOB_ID"])) is None and self.patience_s > 0 and not self.terminated:
            time.sleep(delay_s)
            self.patience_s -= delay_s
            delay_s = min(LONGEST_S, 2 * delay_s)
        return facts

    def _is_running(self) -> bool | None:
        """Whether it is still this start of the job. A cancelled one would come back to life if it were requeued.
        None: SLURM does not answer, which says nothing of the job."""
        facts = self._job_facts()
        if facts is None:
            return None
        return "JobState=RUNNING" in facts and f"Restarts={environment.restarts()} " in facts

    def _was_preempted(self) -> bool:
        match = re.search(r"PreemptTime=(\S+)", self._job_facts() or "")
        return match is not None and match[1] != "None"

    def _requeue(self, why: str) -> bool:
        """Ask SLURM to start this job again; returns whether it will."""
        submission.note_restart(self.folder, self.index, self.job, why)
        for attempt in range(REQUEUE_TRIES):
            done = subprocess.run(["scontrol", "requeue", self.job], capture_output=True, text=True)
            if done.returncode == 0:
                return True
            print(f"scontrol requeue {self.job}: {done.stderr.strip()}", file=sys.stderr, flush=True)
            if self.terminated or self._is_running() is False:
                return False
            time.sleep(2**attempt)
        return False


def _ask(job: str) -> str | None:
    """What SLURM tells of a job: "" where it knows none, None where it does not answer."""
    done = subprocess.run(["scontrol", "--oneliner", "show", "job", job], capture_output=True, text=True)
    return None if done.returncode and "Invalid job id" not in done.stderr else done.stdout


@contextlib.contextmanager
def _reporting_full_disk(run: RunDir) -> Iterator[None]:
    """A disk that is full must not keep the other runs of a job from being concluded, or the job from its requeue."""
    try:
        yield
    except OSError as problem:
        print(f"{run.name}: its status could not be written: {problem}", file=sys.stderr, flush=True)


def srun_command(array: Submission, folder: Path, index: int) -> list[str]:
    """Start the tasks of one job."""
    command = ["srun", "--unbuffered", f"--nodes={array.nodes}", f"--ntasks={array.nodes * array.tasks_per_node}"]
    command += [f"--ntasks-per-node={array.tasks_per_node}", "--kill-on-bad-exit=0", "--open-mode=append"]
    command += [f"--wait={0 if array.packed else PEER_GRACE_S}", f"--output={folder}/task-{index}-%t.log"]
    if "SLURM_CPUS_PER_TASK" in os.environ:  # newer versions of srun do not take it from there
        command.append(f"--cpus-per-task={os.environ['SLURM_CPUS_PER_TASK']}")
    return [*command, *array.srun_args, array.python, "-P", "-u", "-m", "skipsweep.slurm.task"]


def verdict(
    death: Death | None, code: int, said: Sequence[str], terminated: bool, log_line: str | None
) -> tuple[str, str, str]:
    """(State, cause, message) of a run that could not tell itself. `said`: by srun; `code`: srun's."""
    text = "\n".join(said)
    if terminated:
        return "preempted", "signal", "its job was ended by SLURM"
    if re.search(r"Node failure|Unable to (?:contact|confirm)|launch failed|Communication connection failure", text):
        return "failed", "node", _line_with(said, "srun: error") or "a node failed"
    if (death and death.out_of_memory) or re.search(r"oom[-_ ]?kill|Out Of Memory", text, re.IGNORECASE):
        return "failed", "oom", "the node's memory, or the job's share of it, was used up"
    if death and death.signal in _WARNINGS:
        return "preempted", "signal", f"{death.signal} before training began"
    exit_code = death.code if code and death and death.code is not None else code
    return "failed", *cause_of_death(exit_code, death.signal if death else None, log_line)


def parse_deaths(said: Sequence[str]) -> dict[int, Death]:
    """Task -> how it ended, from what srun says."""
    deaths: dict[int, Death] = {}
    for line in said:
        match = _ENDED.search(line)
        if match:
            deaths |= dict.fromkeys(_numbers(match[1]), _death(match[2]))
    return deaths


def _death(words: str) -> Death:
    code = re.match(r"Exited with exit code (\d+)", words)
    if code:
        return Death(code=int(code[1]))
    words = words.split(" (")[0].strip()
    return Death(signal=_SIGNALS.get(words, words), out_of_memory="Out Of Memory" in words)


def _numbers(text: str) -> list[int]:
    """`0-2,5` -> 0, 1, 2, 5."""
    ends = [part.split("-") for part in text.split(",")]
    return [number for first, *last in ends for number in range(int(first), int(last[0] if last else first) + 1)]


def _first(deaths: dict[int, Death]) -> Death | None:
    """The end that came first among the ranks of one run; the others followed from it."""
    return next((death for death in deaths.values() if death.code not in (Exit.PREEMPTED, Exit.HELD)), None)


def _details(run: RunDir) -> dict[str, Any]:
    return {key: value for key, value in run.read_status().items() if key not in ("state", "time")}


def _line_with(said: Sequence[str], words: str) -> str | None:
    return next((line for line in said if words in line), None)


def main() -> int:
    return BatchStep(Path(sys.argv[1])).run()


if __name__ == "__main__":
    sys.exit(main())
