"""What can go wrong in a job and around it: the cause is told, nothing earlier is lost, and the next attempt continues.

A job runs in this process where that shows the fault; else in a process of its own; where those are many, a stand-in
without torch plays the job's part.
"""

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import STEPS, Quiet, configuration, frozen, result, rows

import skipsweep
from skipsweep import checkpoint, files, job, lease, metadata, peers, train
from skipsweep.config import Compute, Record, world_size
from skipsweep.errors import DataError, UserError
from skipsweep.exit_status import Exit
from skipsweep.model.gpt import GPT
from skipsweep.optim.gradients import Gradients
from skipsweep.record import Recorder
from skipsweep.rundir import RunDir
from skipsweep.status import Observation, observe
from skipsweep.sweep import local
from skipsweep.sweep.local import Pool
from skipsweep.train import Trainer

EVERY = 3
BAD = 7
"""The update (the first is 0) in which things go wrong: after the checkpoint of step 6, before that of step 9."""


def execute(run: RunDir) -> int:
    return job.execute(run, Quiet())


def newest(run: RunDir) -> dict[str, Any]:
    state = checkpoint.load_newest(run.checkpoints, run.id, lambda line: pytest.fail(line))
    assert state is not None
    return state


def equal(a: Any, b: Any) -> bool:
    """Whether two trees of tensors are equal in every bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return torch.equal(a, b) and a.dtype == b.dtype


@pytest.fixture
def straight(tmp_path: Path, data_root: Path) -> RunDir:
    """A run that nothing happened to."""
    run = frozen(configuration(tmp_path / "straight", data_root))
    assert execute(run) == Exit.DONE
    return run


@pytest.fixture
def run(tmp_path: Path, data_root: Path) -> RunDir:
    return frozen(configuration(tmp_path / "run", data_root))


@pytest.fixture
def trainers(monkeypatch: pytest.MonkeyPatch) -> list[Trainer]:
    """The trainers of this test's jobs."""
    made: list[Trainer] = []
    init = Trainer.__init__

    def keeping(self: Trainer, *args: Any) -> None:
        init(self, *args)
        made.append(self)

    monkeypatch.setattr(Trainer, "__init__", keeping)
    return made


def assert_continues_as(straight: RunDir, run: RunDir) -> None:
    """With the fault gone, the run ends in every bit as one that nothing happened to."""
    assert execute(run) == Exit.DONE
    assert rows(run) == rows(straight)
    assert equal(weights(run), weights(straight))


def weights(run: RunDir) -> dict[str, torch.Tensor]:
    """The final parameters of a finished run."""
    assert run.read_status()["state"] == "done"
    (path,) = checkpoint.steps(run.checkpoints)
    return checkpoint.load(path, run.id, ("model",))["model"]


# ------------------------------------------------------------------------------------------------ numbers that are none


def nan_loss(patch: pytest.MonkeyPatch, step: int) -> None:
    """The loss of one micro-batch is NaN in the update from `step`."""
    forward, backward = GPT.forward, Trainer._backward
    now = [-1]

    def watched(self: Trainer, *batch: Any) -> Any:
        now[0] = self.step
        return backward(self, *batch)

    def spoilt(self: GPT, *args: Any, **kwargs: Any) -> Any:
        loss = forward(self, *args, **kwargs)
        return loss * torch.nan if now[0] == step and torch.is_grad_enabled() else loss

    patch.setattr(Trainer, "_backward", watched)
    patch.setattr(GPT, "forward", spoilt)


def bad_gradient(value: float, which: int) -> Callable[[pytest.MonkeyPatch, int], None]:
    """One element of one parameter's gradient is `value` in the update from `step`."""

    def spoil(patch: pytest.MonkeyPatch, step: int) -> None:
        norm, now = Gradients.norm, [-2]  # the warm-up is the first of all

        def spoilt(self: Gradients) -> torch.Tensor:
            now[0] += 1
            if now[0] == step:
                list(self.own().values())[which].view(-1)[-1] = value
            return norm(self)

        patch.setattr(Gradients, "norm", spoilt)

    return spoil


SPOILERS: dict[str, Callable[[pytest.MonkeyPatch, int], None]] = {
    "loss": nan_loss,
    "infinite gradient": bad_gradient(torch.inf, 0),
    "gradient of the last parameter": bad_gradient(torch.nan, -1),
}


@pytest.fixture
def states(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, int], Any]:
    """(run folder, step) -> model and optimiser at that boundary."""
    kept: dict[tuple[str, int], Any] = {}
    record = Recorder.record

    def keeping(self: Recorder, trainer: Trainer, boundary: train.Boundary) -> None:
        kept[str(self.run.path), boundary.step] = snapshot(trainer)
        record(self, trainer, boundary)

    monkeypatch.setattr(Recorder, "record", keeping)
    return kept


def snapshot(trainer: Trainer) -> dict[str, Any]:
    model = {name: p.detach().clone() for name, p in trainer._parameters.items()}
    return {"model": model, "optim": {name: value.clone() for name, value in trainer.optimiser.state().items()}}


@pytest.mark.parametrize("look_every", [1, 5])
@pytest.mark.parametrize("spoiler", SPOILERS)
def test_no_update_with_a_number_that_is_none(
    spoiler: str,
    look_every: int,
    run: RunDir,
    states: dict[tuple[str, int], Any],
    straight: RunDir,
    trainers: list[Trainer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where the host looks only now and then, as on a GPU: checkpoints and rows are due in between."""
    trainers.clear()
    with monkeypatch.context() as patch:
        patch.setitem(train.LOOK_EVERY, "cpu", look_every)
        SPOILERS[spoiler](patch, BAD)
        assert execute(run) == Exit.FAILED
    status = run.read_status()
    assert (status["state"], status["cause"]) == ("failed", "nan")
    assert status["message"] == f"training loss or gradient is not finite at step {BAD + 1}"
    assert equal(snapshot(trainers[0]), states[str(straight.path), BAD])
    assert rows(run) == rows(straight)[: BAD + 1]
    state = newest(run)
    assert state["step"] == 6
    assert equal({part: state[part] for part in ("model", "optim")}, states[str(straight.path), 6])
    assert_continues_as(straight, run)


def test_a_validation_loss_that_is_none(run: RunDir, straight: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    validate = Trainer.validate

    def spoilt(self: Trainer) -> float:
        with pytest.MonkeyPatch.context() as patch:
            forward = GPT.forward
            if self.step == 8:
                patch.setattr(GPT, "forward", lambda *a, **k: forward(*a, **k) * torch.nan)
            return validate(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "validate", spoilt)
        assert execute(run) == Exit.FAILED
    status = run.read_status()
    assert (status["cause"], status["message"]) == ("nan", "validation loss is not finite at step 8")
    assert [row["step"] for row in rows(run)] == list(range(8))
    assert newest(run)["step"] == 6
    assert_continues_as(straight, run)


# ---------------------------------------------------------------------------------------------------- causes of failure

CAUSES: dict[str, tuple[BaseException, str, str]] = {
    "memory": (MemoryError(), "oom", "MemoryError"),
    "gpu memory": (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore"), "oom", "2 GiB"),
    "cpu memory": (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"), "oom", "9 bytes"),
    "disk": (OSError(errno.ENOSPC, "No space left on device"), "disk", "No space left"),
    "quota": (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk", "quota"),
    "rights": (PermissionError(errno.EACCES, "Permission denied"), "exception", "Permission denied"),
    "data": (DataError("val-0.bin: token 70000 at byte 1024"), "data", "byte 1024"),
    "config": (UserError("model.layers=0; valid: 1 or more"), "config", "valid: 1 or more"),
    "any": (KeyError("blocks.7"), "exception", "KeyError: 'blocks.7'"),
    "without a word": (AssertionError(), "exception", "AssertionError"),
    "exit": (SystemExit(3), "exception", "SystemExit: 3"),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_a_failure_is_told_and_leaves_what_was_there(cause: str, run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, expected, words = CAUSES[cause]
    fail_in(monkeypatch, Trainer, "_update", problem, lambda trainer: trainer.step == BAD)
    assert execute(run) == Exit.FAILED
    status = run.read_status()
    assert (status["state"], status["cause"]) == ("failed", expected)
    assert words in status["message"]
    assert "\n" not in status["message"]
    log = Path(status["log"]).read_text()  # whole, also where errors go to a terminal
    assert log.startswith("Traceback")
    assert words in log
    assert status["attempt"] == 1
    assert newest(run)["step"] == 6
    assert [row["step"] for row in rows(run)] == list(range(BAD + 1))
    assert not lease.is_live(run, lease.newest(run))
    assert not run.reserve.exists()


def fail_in(
    patch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    problem: BaseException,
    when: Callable[[Any], bool] = lambda _: True,
) -> None:
    """Raise `problem` in every call of `owner.name` whose first argument fulfils `when`."""
    original = getattr(owner, name)

    def failing(first: Any, *args: Any, **kwargs: Any) -> Any:
        if when(first):
            raise problem
        return original(first, *args, **kwargs)

    patch.setattr(owner, name, failing)


FULL = OSError(errno.ENOSPC, "No space left on device")

DISK: dict[str, tuple[Any, str, Callable[[Any], bool]]] = {
    "metrics": (
        files,
        "append_row",
        lambda path: len(path.read_bytes().splitlines()) == BAD if path.exists() else False,
    ),
    "checkpoint": (checkpoint, "_write", lambda path: "step-00000006" in str(path)),
    "last weights": (checkpoint, "_write", lambda path: "step-00000012" in str(path)),
    "result": (files, "write_json", lambda path: path.name == "result.json"),
}


@pytest.mark.parametrize("place", DISK)
def test_a_full_disk_is_told_and_costs_no_more_than_the_interval(
    place: str, run: RunDir, straight: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        fail_in(patch, DISK[place][0], DISK[place][1], FULL, DISK[place][2])
        assert execute(run) == Exit.FAILED
    assert run.read_status()["cause"] == "disk"
    reached = run.read_metrics()[-1]["step"]
    said: list[str] = []
    state = checkpoint.load_newest(run.checkpoints, run.id, said.append)
    assert state is not None
    assert reached - state["step"] <= EVERY
    assert_continues_as(straight, run)


def test_the_kernels_refusal_is_told_as_a_full_disk(
    run: RunDir, straight: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit on the length of files stops the checkpoint of step 9, as a quota would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    update = Trainer._update

    def limited(self: Trainer) -> Any:
        if self.step == BAD:
            resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, before[1]))
        return update(self)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "_update", limited)
            assert execute(run) == Exit.FAILED
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    status = run.read_status()
    assert (status["cause"], status["message"]) == ("disk", "OSError: [Errno 27] File too large")
    assert newest(run)["step"] == 6
    assert_continues_as(straight, run)


def test_a_full_disk_can_be_told_on_the_full_disk(
    run: RunDir, straight: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A running run holds some space back for its last words."""
    with monkeypatch.context() as patch:
        fail_in(patch, files, "append_row", FULL, lambda path: run.reserve.exists())
        fail_in(patch, files, "write_bytes", FULL, lambda path: run.reserve.exists())
        assert execute(run) == Exit.FAILED
    assert run.read_status()["cause"] == "disk"
    assert_continues_as(straight, run)


# ----------------------------------------------------------------------------------------------- between end and status


class Killed(BaseException):
    """Stands for SIGKILL."""


ENDS: dict[str, tuple[Any, str, Callable[[Any], bool]]] = {
    "before the result": (files, "write_json", lambda path: path.name == "result.json"),
    "before the other checkpoints are deleted": (
        checkpoint,
        "prune",
        lambda folder: (folder.parent / "result.json").exists(),
    ),
    "before the status": (metadata, "remember_speed", lambda config: True),
}


@pytest.mark.parametrize("place", ENDS)
def test_a_kill_at_the_very_end_does_not_cost_the_run(
    place: str, run: RunDir, straight: RunDir, trainers: list[Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No step before the last checkpoint is trained again."""
    owner, name, there = ENDS[place]
    dead = [False]

    def dies(first: Any) -> bool:
        dead[0] = dead[0] or there(first)
        return dead[0]

    with monkeypatch.context() as patch:
        fail_in(patch, owner, name, Killed(), dies)
        patch.setattr(job, "_publish", lambda *_: Exit.FAILED)
        execute(run)
    assert dead == [True]
    assert run.read_status()["state"] == "running"
    trainers.clear()
    release(run)
    assert execute(run) == Exit.DONE
    assert [trainer.step for trainer in trainers] == ([STEPS] if place == "before the result" else [])
    first = [row["step"] for row in files.read_rows(run.metrics) if row["attempt"] == 2]
    assert not first or min(first) > STEPS - 1 - EVERY
    assert rows(run) == rows(straight)
    assert equal(weights(run), weights(straight))
    assert result(run)["val_loss"] == result(straight)["val_loss"]


def release(run: RunDir) -> None:
    """What the end of a process does to its lease."""
    held = lease.newest(run)
    assert held is not None
    files.write_json(run.leases / f"{held['attempt']}.json", {**held, "released": True})


def test_a_torn_status_is_no_obstacle(run: RunDir, straight: RunDir) -> None:
    """A power cut may leave an empty file; what a finished run is, its result says."""
    for content in (b"", b'{"state": "runn', bytes(40)):
        run.status.write_bytes(content)
        assert observe(run).state == "planned"
    assert_continues_as(straight, run)
    run.status.write_bytes(b"")
    before = run.result.stat().st_mtime_ns
    assert execute(run) == Exit.DONE
    assert run.read_status()["state"] == "done"
    assert run.result.stat().st_mtime_ns == before


# --------------------------------------------------------------------------------------------- a run is somebody else's


def test_a_run_that_another_executes_is_left_alone(run: RunDir) -> None:
    held = lease.acquire(run)
    before = {str(p): p.read_bytes() for p in run.path.rglob("*") if p.is_file() and p.parent != run.leases}
    assert execute(run) == Exit.HELD
    after = {str(p): p.read_bytes() for p in run.path.rglob("*") if p.is_file() and p.parent != run.leases}
    assert after == before
    held.release()


def test_what_cannot_be_started_does_not_spoil_what_is_there(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong number of processes fails a planned run, but neither one that another executes nor a finished one."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    held = lease.acquire(run)
    assert execute(run) == Exit.FAILED
    assert run.read_status()["state"] == "planned"
    held.release()
    assert execute(run) == Exit.FAILED
    status = run.read_status()
    assert (status["state"], status["cause"]) == ("failed", "config")
    assert status["message"].startswith("2 process(es) were started")
    monkeypatch.delenv("WORLD_SIZE")
    assert execute(run) == Exit.DONE
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert execute(run) == Exit.FAILED
    assert run.read_status()["state"] == "done"


def test_signals_are_given_back(run: RunDir) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)}
    assert execute(run) == Exit.DONE
    assert {number: signal.getsignal(number) for number in before} == before


def test_a_forked_child_ignores_the_signal() -> None:
    """Schedulers signal every process of a job, data loaders' workers as well."""
    with job.StopSignal() as stop:
        stop._pid = os.getpid() + 1
        signal.raise_signal(signal.SIGTERM)
        assert stop.reason is None
        stop._pid = os.getpid()
        signal.raise_signal(signal.SIGTERM)
        assert stop.reason == "SIGTERM"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_checkpoints_by_step_are_written_at_their_step(
    device: str, tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However seldom the processes look at each other's signals."""
    monkeypatch.setitem(train.LOOK_EVERY, "cpu", train.LOOK_EVERY[device])
    record = Record(val_every=4, checkpoint_every=5)
    run = frozen(configuration(tmp_path, data_root, record=record))
    saved = []
    save = Recorder.save
    monkeypatch.setattr(Recorder, "save", lambda self, state: (saved.append(state["step"]), save(self, state)))
    assert execute(run) == Exit.DONE
    assert saved == [5, 10]


# ----------------------------------------------------------------------------------- the local pool, with stand-in jobs

STAND_IN = """
import os, signal, sys, time
from pathlib import Path
from skipsweep import lease, peers
from skipsweep.rundir import RunDir

run, rank = RunDir(Path(sys.argv[1])), int(os.environ["RANK"])

def hold():
    try:
        return lease.acquire(run)
    except lease.Held:
        sys.exit(76)

def work(state="done", seconds=0.3, **details):
    held = hold()
    run.write_status("running")
    with open(run.path / "executed", "a") as f:
        f.write("once\\n")
    time.sleep(seconds)
    run.write_status(state, **details)
    held.release()

exec((run.path / f"play-{rank}").read_text())
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """Sources in which `skipsweep.job` is the stand-in and all else the real thing."""
    package = tmp_path / "code" / "skipsweep"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f"__path__.append({str(Path(skipsweep.__file__).parent)!r})")
    (package / "job.py").write_text(STAND_IN)
    return package.parent


@pytest.fixture
def playing(tmp_path: Path, data_root: Path) -> Callable[..., RunDir]:
    """Makes a run whose ranks play what they are given, one line of Python each."""
    seeds = iter(range(100))

    def make(*plays: str) -> RunDir:
        compute = Compute(micro_batch=4, threads=1, processes=len(plays))
        run = frozen(configuration(tmp_path / "multirun", data_root, seed=next(seeds), compute=compute))
        assert world_size(run.read_config().compute) == len(plays)
        for rank, play in enumerate(plays):
            (run.path / f"play-{rank}").write_text(play)
        return run

    return make


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "POLL_S", 0.01)


class Deadline:
    """A tick that does something once, as soon as it can, and lets nothing last for ever."""

    def __init__(
        self, when: Callable[[], bool] = lambda: False, then: Callable[[], object] = lambda: None, seconds: float = 300
    ):
        self.when, self.then, self.did = when, then, False
        self.end = time.monotonic() + seconds

    def __call__(self) -> None:
        assert time.monotonic() < self.end, "the pool does not return"
        if not self.did and self.when():
            self.did = True
            self.then()


def told(run: RunDir) -> tuple[str, str | None, str | None]:
    status = run.read_status()
    return status["state"], status.get("cause"), status.get("message")


def test_every_way_to_end_is_told_and_harms_no_other(stand_in: Path, playing: Callable[..., RunDir]) -> None:
    good = [playing("work()"), playing("work(seconds=0)")]
    bad = {
        "killed": playing("hold(); os.kill(os.getpid(), signal.SIGKILL)"),
        "bus error": playing("hold(); os.kill(os.getpid(), signal.SIGBUS)"),
        "segfault": playing("hold(); os.kill(os.getpid(), signal.SIGSEGV)"),
        "exit code": playing(
            "print('first', file=sys.stderr); print('ImportError: no torch', file=sys.stderr); sys.exit(3)"
        ),
        "exit code alone": playing("os._exit(9)"),
        "no result": playing("sys.exit(0)"),
        "said so itself": playing("work('failed', 0, cause='nan', message='at step 3'); sys.exit(1)"),
    }
    broken = playing("work()")
    broken.config.write_text("model: [")
    runs = [broken, *bad.values(), *good]
    Pool(runs, 4, stand_in).execute(Deadline())
    assert [told(run)[0] for run in good] == ["done", "done"]
    assert told(bad["killed"]) == ("failed", "killed", "SIGKILL (kill -9, or the system had no memory left)")
    assert told(bad["bus error"])[:2] == ("failed", "data")
    assert "skipsweep data verify" in str(told(bad["bus error"])[2])
    assert told(bad["segfault"]) == ("failed", "killed", "SIGSEGV")
    assert told(bad["exit code"]) == ("failed", "exception", "ImportError: no torch")
    assert told(bad["exit code alone"]) == ("failed", "exception", "exit code 9")
    assert told(bad["no result"]) == ("failed", "exception", "the process ended without a result")
    assert told(bad["said so itself"]) == ("failed", "nan", "at step 3")
    assert told(broken)[:2] == ("failed", "exception")


def test_a_disk_too_full_for_a_status_ends_one_run_alone(
    stand_in: Path, playing: Callable[..., RunDir], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    bad, good = playing("os._exit(9)"), playing("work()")
    fail_in(monkeypatch, RunDir, "write_status", FULL, lambda run: run == bad)
    Pool([bad, good], 2, stand_in).execute(Deadline())
    assert told(good)[0] == "done"
    assert f"{bad.name}: failed, but its status could not be written: [Errno 28] No space" in capfd.readouterr().err


def test_a_failed_run_that_is_tried_again_fails_anew(stand_in: Path, playing: Callable[..., RunDir]) -> None:
    """The status of the attempt before is not taken for this one's."""
    run = playing("os._exit(9)")
    run.write_status("failed", cause="nan", message="the last time")
    Pool([run], 1, stand_in).execute(Deadline())
    assert told(run) == ("failed", "exception", "exit code 9")


def test_a_clock_that_is_set_back_undoes_nothing(stand_in: Path, playing: Callable[..., RunDir]) -> None:
    back = "time.time = lambda now=time.time: now() - 3600\n"
    good = playing(f"{back}work()")
    bad = playing(f"{back}work('failed', 0, cause='nan', message='at step 3'); sys.exit(1)")
    Pool([good, bad], 2, stand_in).execute(Deadline())
    assert told(good)[0] == "done"
    assert told(bad) == ("failed", "nan", "at step 3")


def test_a_clock_that_is_set_forward_stops_nothing(
    stand_in: Path, playing: Callable[..., RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = playing("work(seconds=1)")
    now = time.time

    def set_clock() -> None:
        monkeypatch.setattr(time, "time", lambda: now() + 7200)

    Pool([run], 1, stand_in, timeout_s=3600).execute(Deadline(lambda: (run.path / "executed").exists(), set_clock))
    assert told(run)[0] == "done"


def test_rank_0_has_time_to_say_why(stand_in: Path, playing: Callable[..., RunDir]) -> None:
    """Though another rank, which fails for the same reason, ends before."""
    run = playing("work('failed', 0.5, cause='nan', message='at step 3'); sys.exit(1)", "sys.exit(1)")
    Pool([run], 1, stand_in).execute(Deadline())
    assert told(run) == ("failed", "nan", "at step 3")


def test_rank_0_may_save_when_the_others_are_gone(
    stand_in: Path, playing: Callable[..., RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For as long as that takes: they were told to stop as well, and are not missed."""
    monkeypatch.setattr(local, "PEER_GRACE_S", 0.1)
    run = playing("work('preempted', 0.5, cause='signal'); sys.exit(75)", "sys.exit(75)")
    Pool([run], 1, stand_in).execute(Deadline())
    assert told(run)[:2] == ("preempted", "signal")


def test_who_waits_for_a_killed_peer_is_ended(
    stand_in: Path, playing: Callable[..., RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the peer's end is the cause that is told, whatever rank 0 made of it."""
    monkeypatch.setattr(local, "PEER_GRACE_S", 0.5)
    waits = playing("hold(); time.sleep(600)", "os.kill(os.getpid(), signal.SIGKILL)")
    complains = playing(
        "work('failed', 0.3, cause='exception', message='connection closed'); sys.exit(1)",
        "os.kill(os.getpid(), signal.SIGKILL)",
    )
    Pool([waits, complains], 2, stand_in).execute(Deadline())
    assert told(waits)[:2] == ("failed", "killed")
    assert told(complains)[:2] == ("failed", "killed")


def test_why_a_rank_failed_is_told_by_itself(
    stand_in: Path, playing: Callable[..., RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where rank 0 waits for it in vain, and the others only complain of it."""
    monkeypatch.setattr(local, "PEER_GRACE_S", 0.5)
    note = "peers.note(run, 1, rank, {!r}, {!r}); sys.exit(1)"
    after = "while not run.failure(1, 2).exists(): time.sleep(0.01)\n"
    lost = after + note.format("exception", "RuntimeError: Connection closed by peer")
    run = playing("hold(); time.sleep(600)", lost, note.format("oom", "MemoryError: none left"), lost)
    Pool([run], 1, stand_in).execute(Deadline())
    assert told(run) == ("failed", "oom", "MemoryError: none left")


def test_rank_0_is_believed_where_it_failed_itself(run: RunDir) -> None:
    peers.note(run, 1, 1, "oom", "MemoryError: none left")
    (run.failure(1, 2)).write_text("torn")
    lost, own = ("exception", "RuntimeError: Connection reset by peer"), ("exception", "ValueError: no such thing")
    assert peers.blamed(run, 1, *lost) == ("oom", "MemoryError: none left")
    assert peers.blamed(run, 2, *lost) == lost
    assert peers.blamed(run, 1, *own) == own
    assert peers.blamed(run, 1, "nan", "at step 3") == ("nan", "at step 3")


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def interrupt_twice() -> None:
    interrupt()
    interrupt()


def test_one_that_is_stopped_before_it_began_has_not_failed(stand_in: Path, playing: Callable[..., RunDir]) -> None:
    """Python and torch take seconds to start, and die of a signal meanwhile."""
    run, later = playing("time.sleep(600)"), playing("work()")
    pool = Pool([run, later], 1, stand_in)
    pool.execute(Deadline(lambda: True, interrupt))
    assert pool.stopping
    assert told(run) == ("preempted", "signal", "SIGTERM")
    assert told(later)[0] == "planned"
    assert Path(run.path / "executed").exists() is False


IGNORES = "signal.signal(signal.SIGTERM, signal.SIG_IGN); held = hold(); run.write_status('running'); time.sleep(600)"


def test_one_that_does_not_stop_is_killed(
    stand_in: Path, playing: Callable[..., RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "GRACE_S", 0.5)
    run = playing(IGNORES)
    Pool([run], 1, stand_in).execute(Deadline(lambda: observe(run).is_live, interrupt))
    assert told(run) == ("preempted", "signal", "SIGKILL")


def test_a_second_signal_does_not_wait(stand_in: Path, playing: Callable[..., RunDir]) -> None:
    run = playing(IGNORES)
    Pool([run], 1, stand_in).execute(Deadline(lambda: observe(run).is_live, interrupt_twice))
    assert told(run) == ("preempted", "signal", "SIGKILL")


def test_a_signal_while_a_run_is_started_reaches_it(
    stand_in: Path, playing: Callable[..., RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = playing("time.sleep(600)")
    start = local.start

    def signalled(*args: Any) -> local.Execution:
        execution = start(*args)
        signal.raise_signal(signal.SIGTERM)
        return execution

    monkeypatch.setattr(local, "start", signalled)
    Pool([run], 1, stand_in).execute(Deadline())
    assert told(run)[0] == "preempted"


SAVES = """
held = hold()
def save(*_):
    run.write_status("preempted", cause="signal", message="SIGTERM")
    held.release()
    os._exit(75)
signal.signal(signal.SIGTERM, save)
run.write_status("running")
time.sleep(600)
"""


@pytest.mark.parametrize(("play", "grace_s", "by"), [(SAVES, 60.0, "SIGTERM"), (IGNORES, 0.5, "SIGKILL")])
def test_a_launcher_that_fails_has_its_runs_save(
    play: str,
    grace_s: float,
    by: str,
    stand_in: Path,
    playing: Callable[..., RunDir],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And kills those alone that do not end in time."""
    monkeypatch.setattr(local, "GRACE_S", grace_s)
    both = [playing(play), playing(play)]

    def fail() -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        Pool(both, 2, stand_in).execute(Deadline(lambda: all(told(run)[0] == "running" for run in both), fail))
    assert [told(run) for run in both] == [("preempted", "signal", by)] * 2
    assert not any(observe(run).is_live for run in both)


def test_a_file_server_that_does_not_answer_is_asked_again(
    stand_in: Path, playing: Callable[..., RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = playing("work()"), playing("os._exit(9)")
    asked: dict[RunDir, int] = {}

    def stale(run: RunDir) -> Observation:
        asked[run] = asked.get(run, 0) + 1
        if asked[run] % 2:
            raise OSError(errno.ESTALE, "Stale file handle")
        return observe(run)

    monkeypatch.setattr(local, "observe", stale)
    Pool([good, bad], 1, stand_in).execute(Deadline())
    assert told(good)[0] == "done"
    assert told(bad) == ("failed", "exception", "exit code 9")
    assert asked == {good: 4, bad: 4}


LAUNCHER = """
import os, sys
from pathlib import Path
from skipsweep.rundir import RunDir
from skipsweep.sweep import local
local.POLL_S = 0.01
code, parallel, *runs = sys.argv[1:]
pool = local.Pool([RunDir(Path(run)) for run in runs], int(parallel), Path(code) if code else None)
print("ready", flush=True)
pool.execute(lambda: Path(runs[0]).parent.joinpath(f"begun-{os.getpid()}").touch())
"""


def launcher(code: Path | None, parallel: int, runs: list[RunDir]) -> subprocess.Popen[bytes]:
    """A pool in a process of its own."""
    paths = [str(run.path) for run in runs]
    return subprocess.Popen([sys.executable, "-c", LAUNCHER, str(code or ""), str(parallel), *paths])


def test_two_pools_share_their_runs(stand_in: Path, playing: Callable[..., RunDir]) -> None:
    """Each is executed once, also one that fails while the other pool waits for it; both return."""
    # A pool that begins after the failure was asked to try again.
    both = "while len(list(run.path.parent.glob('begun-*'))) < 2: time.sleep(0.01)"
    fails = f"{both}\nwork('failed', 0.2, cause='nan')\nsys.exit(1)"
    runs = [playing("work()"), playing(fails), playing("work(seconds=0.6)")]
    pools = [launcher(stand_in, 2, order) for order in (runs, runs[::-1])]
    assert [pool.wait(300) for pool in pools] == [0, 0]
    assert [told(run)[0] for run in runs] == ["done", "failed", "done"]
    assert [(run.path / "executed").read_text() for run in runs] == ["once\n"] * 3
    assert [lease.next_attempt(run) for run in runs] == [2, 2, 2]


def test_a_pool_takes_over_from_one_that_died(stand_in: Path, playing: Callable[..., RunDir]) -> None:
    run = playing("work() if (run.path / 'executed').exists() else work(seconds=600)")
    first = launcher(stand_in, 1, [run])
    try:
        wait_until(lambda: (run.path / "executed").exists())
        holder = lease.newest(run)
        assert holder is not None
        first.kill()
    finally:
        first.kill()
        first.wait(300)
    second = launcher(stand_in, 1, [run])
    os.kill(holder["pid"], signal.SIGKILL)
    assert second.wait(300) == 0
    assert told(run)[0] == "done"
    assert (run.path / "executed").read_text() == "once\nonce\n"


def wait_until(condition: Callable[[], bool], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


# --------------------------------------------------------------------------------------- the local pool, with real jobs


@pytest.fixture
def slow(tmp_path: Path, data_root: Path) -> RunDir:
    """40 steps of 256 micro-batches each, so that something can happen while it runs."""
    return frozen(slow_configuration(tmp_path, data_root, micro_batch=1))


def slow_configuration(folder: Path, data_root: Path, micro_batch: int) -> Any:
    base = configuration(folder / "slow", data_root)
    return replace(
        base,
        data=replace(base.data, batch_tokens=256 * 16, epochs=100),
        schedule=replace(base.schedule, steps=40),
        compute=Compute(micro_batch=micro_batch, threads=1),
        record=Record(val_every=40),
    )


def finishes(run: RunDir, tmp_path: Path, data_root: Path) -> None:
    """Another attempt, without accumulation and so a hundred times as fast, does what is left."""
    reached = newest(run)["step"]
    assert reached == run.read_metrics()[-1]["step"], "the checkpoint is not of the boundary at which it stopped"
    assert frozen(slow_configuration(tmp_path, data_root, micro_batch=0)).path == run.path
    assert execute(run) == Exit.DONE
    assert min(row["step"] for row in files.read_rows(run.metrics) if row["attempt"] == 2) == reached + 1
    assert [row["step"] for row in rows(run)] == list(range(41))


def test_a_killed_job_has_failed_and_the_others_finish(slow: RunDir, tmp_path: Path, data_root: Path) -> None:
    good = [frozen(configuration(tmp_path / "good", data_root, seed=seed)) for seed in (1, 2)]

    def kill() -> None:
        holder = lease.newest(slow)
        assert holder is not None
        os.kill(holder["pid"], signal.SIGKILL)

    Pool([good[0], slow, good[1]], 2, None).execute(Deadline(lambda: len(slow.read_metrics()) > 1, kill))
    assert [told(run)[0] for run in good] == ["done", "done"]
    assert told(slow)[:2] == ("failed", "killed")


def test_a_pool_that_is_told_to_stop_saves_at_the_boundary(slow: RunDir, tmp_path: Path, data_root: Path) -> None:
    Pool([slow], 1, None).execute(Deadline(lambda: len(slow.read_metrics()) > 1, interrupt))
    assert told(slow) == ("preempted", "signal", "SIGTERM")
    finishes(slow, tmp_path, data_root)


def test_a_job_whose_launcher_was_killed_saves_and_stops(slow: RunDir, tmp_path: Path, data_root: Path) -> None:
    """It notices within a heartbeat: nobody would see its end."""
    pool = launcher(None, 1, [slow])
    try:
        wait_until(lambda: len(slow.read_metrics()) > 1)
    finally:
        pool.kill()
        pool.wait(300)
    wait_until(lambda: told(slow)[0] != "running")
    assert told(slow) == ("preempted", "signal", "the launcher died")
    wait_until(lambda: not observe(slow).is_live)
    finishes(slow, tmp_path, data_root)
