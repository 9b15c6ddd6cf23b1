"""`skipsweep sync SWEEP`: every finished run reaches the server once, whatever fails on the way."""

from collections.abc import Callable
from pathlib import Path

import pytest
from fake_wandb import alone, append, frozen, put_before_wandb
from typer.testing import CliRunner, Result

from skipsweep import config as c
from skipsweep import files, mirror, upload
from skipsweep.cli import app
from skipsweep.rundir import Multirun, RunDir

NAMES = ("a-000000000001", "b-000000000002", "c-000000000003", "d-000000000004")


@pytest.fixture
def multirun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Multirun:
    """A sweep of four finished runs with two steps each, and the fake wandb."""
    alone(tmp_path, monkeypatch)
    put_before_wandb(tmp_path, monkeypatch)
    multirun = Multirun(tmp_path / "multirun")
    for name in NAMES:
        run = multirun.run(name)
        run.freeze(frozen(c.Wandb(mode="offline")), {})
        append(run, 0, 1)
        run.note_serves({"mine": {"arm": name[0], "tags": []}})
        run.write_status("done", attempt=1)
    points = [{"key": [name[0], 0, 0], "run": name} for name in NAMES]
    multirun.sweep("mine").path.mkdir(parents=True)
    files.write_json(multirun.sweep("mine").plan, {"points": points})
    return multirun


@pytest.fixture
def sync(multirun: Multirun) -> Callable[[], Result]:
    return lambda: CliRunner().invoke(app, ["sync", "mine", "--multirun", str(multirun.path)])


def uploaded(run: RunDir) -> list[list[int]]:
    """The steps of every upload."""
    folders = sorted(run.mirror.glob("run-*"))
    return [[row["step"] for row in files.read_rows(folder / "rows.jsonl")] for folder in folders]


def test_finished_runs_are_uploaded_once_each(multirun: Multirun, sync: Callable[[], Result]) -> None:
    a, b, c_, d = map(multirun.run, NAMES)
    b.write_status("failed", attempt=1, cause="nan")
    c_.write_status("preempted", attempt=1)
    d.config.unlink()
    done = sync()
    assert done.output.splitlines() == [
        f"{a.name}: uploaded",
        f"{b.name}: uploaded",
        f"{c_.name}: not finished (preempted)",
        f"{d.name}: imported (such runs are not mirrored)",
        "4 runs: 2 uploaded, 1 not finished, 1 imported",
    ]
    assert done.exit_code == 0
    assert [uploaded(run) for run in (a, b, c_)] == [[[0, 1]], [[0, 1]], []]

    a.note_serves({"another": {"arm": "x", "tags": []}})  # the server does not know that yet
    assert sync().output.splitlines()[:2] == [f"{a.name}: uploaded", f"{b.name}: already uploaded"]


def test_an_upload_that_fails_is_told_and_goes_on_where_the_server_stands(
    multirun: Multirun, sync: Callable[[], Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    b = multirun.run(NAMES[1])
    append(b, 2)
    monkeypatch.setenv("FAKE_WANDB", "raise in log")  # of step 2, which b alone has
    first = sync()
    assert first.exit_code == 1
    assert first.output.splitlines()[1] == f"{b.name}: failed (RuntimeError: no log today)"
    assert first.output.splitlines()[-1] == "4 runs: 3 uploaded, 1 failed"
    monkeypatch.delenv("FAKE_WANDB")
    monkeypatch.setenv("FAKE_WANDB_STEP", "2")
    second = sync()
    assert second.exit_code == 0
    assert second.output.splitlines()[-1] == "4 runs: 3 already uploaded, 1 uploaded"
    assert uploaded(b) == [[0, 1], [2]]


def test_without_a_server_not_every_run_is_tried(
    multirun: Multirun, sync: Callable[[], Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "sync", lambda run, logger: "UsageError: no login")
    done = sync()
    assert done.exit_code == 1
    assert done.output.splitlines()[-2:] == [
        f"{NAMES[3]}: not tried (3 failed alike)",
        "4 runs: 3 failed, 1 not tried",
    ]


def test_failures_that_are_not_in_a_row_are_no_sign_of_a_server_that_is_gone(
    multirun: Multirun, sync: Callable[[], Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "MOST_ALIKE", 2)
    monkeypatch.setattr(mirror, "sync", lambda run, logger: None if run.name == NAMES[1] else "TimeoutError")
    assert sync().output.splitlines()[-1] == "4 runs: 3 failed, 1 uploaded"


def test_a_sweep_that_is_not_there_is_looked_for_among_the_runs(multirun: Multirun) -> None:
    done = CliRunner().invoke(app, ["sync", "nobody", "--multirun", str(multirun.path)])
    assert "no run nobody" in str(done.exception)
