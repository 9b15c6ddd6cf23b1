"""One run on one or on two processes: the same tokens, the same numbers to rounding, one decision for all."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forked import Forked, fork_jobs
from runs import Quiet, configuration, frozen, result, rows

import skipsweep
from skipsweep import checkpoint, files, job
from skipsweep.config import (
    Compute,
    Config,
    Listed,
    Proportional,
    Record,
    SkipLayers,
    SparsityVariance,
    SparsityVarianceL2,
)
from skipsweep.data.batches import Batches
from skipsweep.exit_status import Exit
from skipsweep.rundir import RunDir
from skipsweep.sweep import local
from skipsweep.train import Trainer

COLUMNS = ("dense", "estimated", "measured")
"""Of operations of inference."""


def double(folder: Path, data_root: Path, processes: int = 1, micro_batch: int = 0, **changes: Any) -> Config:
    """A run in float64, where nothing but rounding differs: it stays a billion times below the numbers themselves."""
    base = configuration(folder, data_root, record=Record(val_every=4))
    compute = Compute(processes=processes, threads=1, micro_batch=micro_batch)
    return replace(base, model=replace(base.model, dtype="float64"), compute=compute, **changes)


def large(folder: Path, data_root: Path, processes: int = 1, micro_batch: int = 0) -> Config:
    """256 sequences a step: in micro-batches of one it lasts long enough to be interrupted, in one piece not."""
    base = double(folder, data_root, processes, micro_batch)
    return replace(base, data=replace(base.data, batch_tokens=256 * 16, epochs=100))


def finish(execution: local.Execution, tick: Callable[[], None] = lambda: None, seconds: float = 400) -> int:
    """Wait for a run's processes, as a pool does; returns the exit code."""
    deadline = time.monotonic() + seconds
    try:
        while (code := execution.poll()) is None:
            assert time.monotonic() < deadline, "the processes do not end"
            tick()
            time.sleep(0.02)
    except BaseException:
        execution.kill()
        raise
    local.conclude(execution, code)
    return code


def together(run: RunDir, tick: Callable[[], None] = lambda: None, code: Path | None = None) -> int:
    """Execute a run in the processes that its configuration asks for."""
    return finish(local.start(run, code, threads=1, show=False), tick)


def log(run: RunDir) -> str:
    return "".join(path.read_text() for path in sorted((run.path / "log").iterdir()))


def assert_same_numbers(a: RunDir, b: RunDir) -> None:
    """Equal to rounding, and in float64 so much closer than any difference in tokens, order or weights would be."""
    left, right = rows(a), rows(b)
    assert [row["step"] for row in left] == [row["step"] for row in right] == list(range(13))
    for x, y in zip(left, right, strict=True):
        assert x.keys() == y.keys()
        assert x == pytest.approx(y, rel=1e-6), "grad_norm is summed up in float32"
        for key in ("train/loss", "val/loss"):
            if key in x:
                assert x[key] == pytest.approx(y[key], rel=1e-7 if x["step"] else 1e-13)


# --------------------------------------------------------------------------------------------------------------- tokens


@pytest.mark.parametrize("size", [2, 4, 8])
def test_the_ranks_together_read_what_one_process_reads(size: int, tmp_path: Path, data_root: Path) -> None:
    data = frozen(double(tmp_path, data_root)).read_config().data
    alone, ranks = Batches(data, data_root), [Batches(data, data_root, rank, size) for rank in range(size)]
    for step in range(40):  # into the second pass
        parts = zip(*(rank.train(step) for rank in ranks), strict=True)
        for whole, shares in zip(alone.train(step), parts, strict=True):
            assert np.array_equal(whole, np.concatenate(shares))
    everything = alone.val(0, alone.val_sequences)[0]
    shared = np.concatenate([rank.val(0, rank.val_sequences)[0] for rank in ranks])
    assert sorted(map(tuple, everything)) == sorted(map(tuple, shared))


# -------------------------------------------------------------------------------------------------------------- numbers


def test_two_processes_train_what_one_does(tmp_path: Path, data_root: Path) -> None:
    one = frozen(double(tmp_path / "one", data_root))
    two = frozen(double(tmp_path / "two", data_root, processes=2))
    assert one.name == two.name
    assert job.execute(one, Quiet()) == Exit.DONE
    assert together(two) == Exit.DONE, log(two)
    assert files.read_json(two.env)["1"]["world_size"] == 2
    assert_same_numbers(one, two)


CONTROLS = {
    "proportional": Proportional(gamma=1.0, delta=0.01, sequences=2),
    "sparsity_variance": SparsityVariance(alpha=0.3, beta=-0.3, sequences=2),
    "sparsity_variance_l2": SparsityVarianceL2(alpha=0.3, beta=0.3, sequences=2),
}


@pytest.mark.parametrize("control", CONTROLS)
def test_two_processes_control_gates_as_one_does(control: str, tmp_path: Path, data_root: Path) -> None:
    """The same statistics and coefficients in every row, whoever computed which micro-batch, and how large ones: 8
    sequences at once, or 4 in each of two processes. One process alone: test_control.py."""
    gates = Listed(init="normal", attention="keys", floor=1e-6, means=[0.9, 0.4])
    changes = {"gate_targets": gates, "control": CONTROLS[control]}
    one, two = (double(tmp_path / str(n), data_root, processes=n, **changes) for n in (1, 2))
    runs = [frozen(replace(config, model=replace(config.model, layers=4))) for config in (one, two)]
    assert runs[0].name == runs[1].name
    assert job.execute(runs[0], Quiet()) == Exit.DONE
    assert together(runs[1]) == Exit.DONE, log(runs[1])
    assert_same_numbers(*runs)
    last = rows(runs[1])[-1]
    assert min(abs(last[f"gate/{name}/{layer}"]) for name in ("alpha", "beta") for layer in (0, 1)) > 0.01
    assert abs(last["train/control_loss"]) > 1e-3
    exact = pytest.approx(last["train/control_loss"], rel=1e-10)
    assert rows(runs[0])[-1]["train/control_loss"] == exact
    said = result(runs[1])
    assert said["gates"].items() <= last.items()
    if control == "proportional":
        dense, estimated, measured = (sum(said["inference_flops_per_token"][name].values()) for name in COLUMNS)
        assert measured < estimated < dense


def test_a_run_moves_between_two_processes_and_one(
    tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2 -> 1 -> 2, the first time because rank 1 alone was told to stop."""
    straight = frozen(large(tmp_path / "straight", data_root))
    assert job.execute(straight, Quiet()) == Exit.DONE

    moving = frozen(large(tmp_path / "moving", data_root, processes=2, micro_batch=1))
    execution = local.start(moving, None, threads=1, show=False)
    told: list[int] = []

    def tell() -> None:
        if not told and len(moving.read_metrics()) > 2:
            execution.processes[1].send_signal(signal.SIGTERM)
            told.append(1)

    assert finish(execution, tell) == Exit.PREEMPTED, log(moving)
    first = newest_step(moving)
    assert first < 7

    frozen(large(tmp_path / "moving", data_root))
    with monkeypatch.context() as patch:
        update = Trainer._update

        def signalled(self: Trainer) -> Any:
            if self.step == 8:
                signal.raise_signal(signal.SIGUSR2)
            return update(self)

        patch.setattr(Trainer, "_update", signalled)
        assert job.execute(moving, Quiet()) == Exit.PREEMPTED
    assert newest_step(moving) == 9

    frozen(large(tmp_path / "moving", data_root, processes=2))
    assert together(moving) == Exit.DONE, log(moving)
    assert {row["attempt"]: row["step"] for row in moving.read_metrics()} == {1: first, 2: 9, 3: 12}
    assert_same_numbers(straight, moving)


def newest_step(run: RunDir) -> int:
    state = checkpoint.load_newest(run.checkpoints, run.id, lambda line: pytest.fail(line))
    assert state is not None
    assert run.read_status()["state"] == "preempted"
    assert run.read_metrics()[-1]["step"] == state["step"], "not the boundary at which it stopped"
    return state["step"]


# --------------------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize("changes", [{"skip_layers": SkipLayers([1])}, {"seed": 1}], ids=["layers", "seed"])
def test_ranks_with_different_settings_refuse(
    changes: dict[str, Any], tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else their average would be no model that anybody asked for."""
    run = frozen(double(tmp_path / "run", data_root, processes=2))
    other = frozen(double(tmp_path / "other", data_root, processes=2, **changes))

    def misled(before: Callable[[], None], command: list[str], env: dict[str, str], **how: Any) -> Forked:
        folder = other if env["RANK"] == "1" else run
        own = {key: value for key, value in env.items() if key != "SKIPSWEEP_CONFIG"}  # else each would refuse alone
        return Forked(before, [*command[:-1], str(folder.path)], own, **how)

    fork_jobs(monkeypatch, popen=misled)
    assert together(run) == Exit.FAILED
    status = run.read_status()
    assert (status["state"], status["cause"]) == ("failed", "config")
    assert status["message"] == f"{run.config} reads differently on rank(s) [1] than on rank 0"
    assert not run.metrics.exists()
    assert other.read_status()["state"] == "planned"


def test_another_launch_may_ask_for_other_processes(
    tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the launcher has read that one is asked for, and before its job has."""
    run = frozen(double(tmp_path, data_root))
    environment = local._environment

    def changed(*args: Any) -> dict[str, str]:
        frozen(double(tmp_path, data_root, processes=2))
        return environment(*args)

    monkeypatch.setattr(local, "_environment", changed)
    local.Pool([run], 1, None).execute(lambda: None)
    assert run.read_status()["state"] == "done", (run.read_status(), log(run))
    assert files.read_json(run.env)["1"]["world_size"] == 2
    assert "was rewritten by another launch" in log(run)


def test_a_killed_rank_ends_the_run(tmp_path: Path, data_root: Path) -> None:
    run = frozen(large(tmp_path, data_root, processes=2, micro_batch=1))
    execution = local.start(run, None, threads=1, show=False)

    def kill() -> None:
        if len(run.read_metrics()) > 1 and execution.processes[1].poll() is None:
            execution.processes[1].kill()

    assert finish(execution, kill) == -signal.SIGKILL
    status = run.read_status()
    assert (status["state"], status["cause"]) == ("failed", "killed")
    assert [process.poll() is None for process in execution.processes] == [False, False]


SPOILT_ON_RANK_1 = """
import os, runpy, torch
from skipsweep.optim.optimiser import Optimiser

backward, steps = Optimiser.backward, 0

def spoilt(self, loss, last):
    global steps
    steps += last
    warm_up = 1
    backward(self, loss * torch.inf if steps == warm_up + 8 and os.environ["RANK"] == "1" else loss, last)

Optimiser.backward = spoilt
runpy.run_path({job!r}, run_name="__main__")
"""


FULL_ON_RANK_1 = """
import errno, os, runpy
from skipsweep.train import Trainer

update = Trainer._update

def failing(self):
    if self.step == 8 and os.environ["RANK"] == "1":
        raise {problem}
    return update(self)

Trainer._update = failing
runpy.run_path({job!r}, run_name="__main__")
"""


@pytest.mark.parametrize(
    ("problem", "cause"), [("MemoryError('no memory left')", "oom"), ("OSError(errno.ENOSPC, 'full')", "disk")]
)
def test_the_cause_is_that_of_the_rank_which_failed(problem: str, cause: str, tmp_path: Path, data_root: Path) -> None:
    """Rank 0 only loses the connection to it."""
    run = frozen(double(tmp_path / "run", data_root, processes=2))
    code = job_of(tmp_path, FULL_ON_RANK_1.format(job=str(Path(job.__file__)), problem=problem))
    assert together(run, code=code) == Exit.FAILED
    status = run.read_status()
    assert (status["state"], status["cause"]) == ("failed", cause), log(run)


def job_of(tmp_path: Path, source: str) -> Path:
    """Sources in which `skipsweep.job` is this, and all else the real thing."""
    package = tmp_path / "code" / "skipsweep"
    package.mkdir(parents=True)
    shutil.copy(Path(skipsweep.__file__), package / "__init__.py")
    with open(package / "__init__.py", "a") as f:
        f.write(f"\n__path__.append({os.path.dirname(skipsweep.__file__)!r})\n")
    (package / "job.py").write_text(source)
    return package.parent


def test_a_bad_gradient_on_one_rank_stops_all(tmp_path: Path, data_root: Path) -> None:
    run = frozen(double(tmp_path / "run", data_root, processes=2))
    code = job_of(tmp_path, SPOILT_ON_RANK_1.format(job=str(Path(job.__file__))))
    execution = local.start(run, code, threads=1, show=False)
    assert finish(execution) == Exit.FAILED
    assert [process.returncode for process in execution.processes] == [Exit.FAILED, Exit.FAILED], log(run)
    status = run.read_status()
    assert status["message"] == "training loss or gradient is not finite at step 8"
    assert status["cause"] == "nan"
    assert run.read_metrics()[-1]["step"] == 7
    assert log(run).count("NonFinite: training loss or gradient is not finite at step 8") == 2
