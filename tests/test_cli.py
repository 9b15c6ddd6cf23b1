"""The `skipsweep` command: tables for people, JSON with the same facts, one line for mistakes."""

import errno
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from commands import CHECKOUT, Done, Place, request
from sweep_folders import Made

from skipsweep import cli, files, lease, mirror
from skipsweep.config import Wandb
from skipsweep.rundir import Multirun, RunDir
from skipsweep.slurm import commands
from skipsweep.sweep import launch as launching
from skipsweep.sweep.freeze import freeze

NONE, SKIP = "skip_layers=none", "skip_layers=[0,input]"
LOSSES = {(NONE, 0): 2.50, (NONE, 1): 2.60, (SKIP, 0): 2.40, (SKIP, 1): None}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Place:
    """A sweep of four runs, three of them finished and one failed, and a run that is only planned."""
    place = Place(tmp_path_factory.mktemp("cli") / "runs", data_root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKIPSWEEP_DATA", str(data_root))
        asked = ["-m", f"skip_layers=none,{SKIP.split('=')[1]}", "seed=0,1", "sweep.name=which", "sweep.question=Why?"]
        for arguments in (asked, ["seed=5"]):
            freeze(launching.make_plan(request(place.arguments(*arguments))), "none")
    for (arm, seed), loss in LOSSES.items():
        end(place.run_of("which", arm, seed), loss)
    return place


def end(run: RunDir, loss: float | None) -> None:
    """Leave what a finished (or, without a loss, a failed) run leaves."""
    if loss is None:
        run.write_status("failed", cause="nan", message="training loss is not finite [/at] step 3", attempt=1)
        return
    curve = [
        {"step": step, "tokens": 128 * step, "train_time_s": 1.0, "val/loss": loss + 12 - step} for step in (0, 12)
    ]
    for row in curve:
        files.append_row(run.metrics, {"attempt": 1, **row, "lambda/x": 1 + loss})
    result = {"id": run.id, "val_loss": loss, "steps": 12, "tokens": 1536, "train_time_s": 61.0, "val_curve": curve}
    more = {"parameters": {"head": 7000, "blocks": 168}, "lambdas": {"lambda/x": 1 + loss}, "unigram_entropy": 3.3}
    files.write_json(run.result, {**result, **more})
    run.write_status("done", attempt=1)


@pytest.fixture
def skipsweep(place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """`skipsweep ARGUMENTS` in this process."""
    monkeypatch.setenv("SKIPSWEEP_DATA", str(place.data))

    def run(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["skipsweep", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = capsys.readouterr()
        return Done(int(ended.value.code or 0), told.out, told.err)

    return run


@pytest.fixture
def here(place: Place, skipsweep: Callable[..., Done]) -> Callable[..., Done]:
    """The same, on the fabricated runs."""
    return lambda *arguments: skipsweep(*arguments, "--multirun", str(place.runs))


def as_json(done: Done) -> Any:
    assert (done.status, done.err) == (0, "")
    return json.loads(done.out)


def refused(done: Done, told: str) -> None:
    assert (done.status, done.out, done.err.count("\n")) == (2, "", 1)
    assert done.err.startswith("error: ")
    assert told in done.err


def row_of(done: Done, name: str) -> list[str]:
    return done.line(name).split()


# ------------------------------------------------------------------------------------------------------ list, status


def test_list(place: Place, here: Callable[..., Done]) -> None:
    done, rows = here("list"), as_json(here("list", "--json"))
    assert [row["run"] for row in rows] == [run.name for run in place.multirun.all_runs()]
    assert len(rows) == 5
    for row in rows:
        name, state, *figures = row_of(done, row["run"])
        assert (name, state) == (row["run"], row["state"])
        if row["state"] == "done":
            assert figures == [f"{row['val_loss']:.4f}", str(row["steps"]), "1:01", "which"]
    assert {row["state"]: (row["val_loss"], row["cause"], row["sweeps"]) for row in rows if row["state"] != "done"} == {
        "failed": (None, "nan", ["which"]),
        "planned": (None, None, ["single"]),
    }
    failed = next(row for row in rows if row["state"] == "failed")
    assert row_of(done, failed["run"])[1:] == ["failed", "(nan)", "-", "-", "-", "which"]


def test_list_takes_sweeps_from_their_plans(place: Place, skipsweep: Callable[..., Done], tmp_path: Path) -> None:
    """Not from what runs noted: a sweep may have been renamed or deleted since, a run trained anew for another."""
    multirun = Multirun(shutil.copytree(place.runs, tmp_path / "runs"))
    multirun.sweep("which").path.rename(multirun.sweep("renamed").path)
    first = next(multirun.all_runs())
    first.serves.unlink()

    def listed() -> dict[str, list[str]]:
        rows = as_json(skipsweep("list", "--json", "--multirun", str(multirun.path)))
        return {row["run"]: row["sweeps"] for row in rows}

    planned = {point["run"] for point in files.read_json(multirun.sweep("renamed").plan)["points"]}
    assert first.name in planned
    assert listed() == {run.name: ["renamed"] if run.name in planned else ["single"] for run in multirun.all_runs()}
    for content in ("{", "[]", "{}", '{"points": 3}', '{"points": [3, {}, {"run": []}]}'):
        multirun.sweep("renamed").plan.write_text(content)
        assert [sweeps for sweeps in listed().values() if sweeps] == [["single"]]
    shutil.rmtree(multirun.sweeps)
    assert [sweeps for sweeps in listed().values() if sweeps] == [["single"]]


def test_status_of_everything(here: Callable[..., Done]) -> None:
    done, found = here("status"), as_json(here("status", "--json"))
    assert found["counts"] == {"done": 3, "failed": 1, "planned": 1}
    assert done.out.splitlines()[0] == ", ".join(f"{n} {state}" for state, n in found["counts"].items())
    assert done.line("sweeps: ") == "sweeps: which"
    assert found["sweeps"] == ["which"]
    failed = next(run for run in found["runs"] if run["state"] == "failed")
    assert failed["message"] == "training loss is not finite [/at] step 3"
    assert f"nan: {failed['message']}" in done.line(failed["run"])
    assert not any(run["run"] in done.out for run in found["runs"] if run["state"] == "done")


DAMAGE = ("", "{", "3", "[1, 2]", "{}", "null", '{"val_loss": "x", "state": 3}', "[" * 100_000)


@pytest.mark.parametrize("content", DAMAGE, ids=lambda content: content[:20])
@pytest.mark.parametrize("name", ["result.json", "status.json", "serves.json", "lease/1.json"])
def test_damaged_files_break_no_command(
    tmp_path: Path, skipsweep: Callable[..., Done], name: str, content: str
) -> None:
    made = Made(tmp_path, baseline="none")
    made.arm("5", [2.5, 2.6], sources=[5])
    one, other = made.arm("none", [2.5, None], state="running")
    multirun = made.write()
    one.write_status("done")
    for run in (one, other):
        (run.path / name).write_text(content)
    for command in (["list"], ["status"], ["status", made.name], ["compare", one.name, other.name]):
        for more in ([], ["--json"]):
            done = skipsweep(*command, *more, "--multirun", str(multirun.path))
            assert (done.status, done.err) == (0, ""), done
    if name == "result.json":
        assert row_of(skipsweep("list", "--multirun", str(tmp_path)), one.name)[1:4] == [
            "done",
            "(result.json",
            "damaged)",
        ]


def test_status_of_a_sweep(here: Callable[..., Done]) -> None:
    done, found = here("status", "which"), as_json(here("status", "which", "--json"))
    assert done.out.startswith("sweep which: Why?\n")
    assert (found["sweep"], found["question"], found["counts"]) == ("which", "Why?", {"done": 3, "failed": 1})
    base, skip = found["arms"]
    assert (base["name"], base["val_loss"], base["is_baseline"], base["done"]) == (NONE, pytest.approx(2.55), True, 2)
    assert (skip["name"], skip["val_loss"], skip["failed"], skip["pairs"]) == (SKIP, 2.4, 1, 1)
    assert skip["difference"] == pytest.approx(-0.15)  # of the means: the sweep has not declared pairs
    assert skip["val_loss_sd"] is None
    assert row_of(done, SKIP) == [
        SKIP,
        "1/2,",
        "1",
        "failed",
        "2.4000",
        "-",
        "-0.1500",
        "1",
        "12",
        "1:01",
        "7,168",
        "-",
    ]
    assert row_of(done, NONE)[1:5] == ["2/2", "2.5500", "0.0707", "baseline"]


def test_status_of_no_sweep(here: Callable[..., Done]) -> None:
    for name in ("other", "../runs", "/", ""):
        refused(here("status", name), f"no sweep {name} below ")
    refused(here("status", "other"), "there are: which")


@pytest.fixture
def open_run(place: Place, tmp_path: Path) -> Iterator[RunDir]:
    """A run of its own copy of the sweep, executed by this process; `place` stays as it is."""
    shutil.copytree(place.runs, tmp_path / "runs")
    run = Multirun(tmp_path / "runs").run(place.run_of("which", SKIP, 0).name)
    run.result.unlink()
    held = lease.acquire(run)
    run.write_status("running", attempt=held.attempt)
    yield run
    held.release()


def test_watching_ends_with_the_runs(
    open_run: RunDir, skipsweep: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            end(open_run, 2.4)

    monkeypatch.setattr(commands, "time", SimpleNamespace(sleep=wait))
    done = skipsweep("status", "which", "--watch", "--multirun", str(open_run.path.parents[1]))
    assert (done.status, done.err) == (0, "")
    assert waits == [commands.WATCH_S] * 2
    assert [done.out.count(told) for told in ("1 running", "3 done")] == [2, 1]


@pytest.mark.parametrize("asked", ["sweep", "run"])
def test_what_a_launcher_executes_is_left_to_it(
    asked: str, open_run: RunDir, skipsweep: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine without SLURM: said, and nothing marked."""
    monkeypatch.setenv("PATH", "")
    multirun = Multirun(open_run.path.parents[1])
    name, served = {"sweep": "which", "run": open_run.name}[asked], open_run.read_serves()
    if asked == "run":
        served = {"single": served["which"]}
        files.write_json(open_run.serves, served)
    done = skipsweep("cancel", name, "--multirun", str(multirun.path))
    assert (done.status, done.err) == (0, "")
    assert f"{open_run.name}: a launcher on its machine executes it; stop that with Ctrl-C" in done.out
    found = as_json(skipsweep("cancel", name, "--json", "--multirun", str(multirun.path)))
    assert (found["runs"], found["local"], found["ended"]) == ([], [open_run.name], False)
    assert not multirun.sweep("which").cancelled.exists()
    assert not open_run.cancelled.exists()
    assert open_run.read_serves() == served


def test_what_has_ended_is_not_cancelled(
    place: Place, here: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    assert here("cancel", "which").out == "which: all runs have ended, nothing is left to cancel\n"
    assert as_json(here("cancel", "which", "--json"))["ended"] is True
    assert not place.multirun.sweep("which").cancelled.exists()


def test_who_has_seen_enough_stops_watching(
    open_run: RunDir, skipsweep: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "time", SimpleNamespace(sleep=interrupt))
    done = skipsweep("status", "which", "--watch", "--multirun", str(open_run.path.parents[1]))
    assert (done.status, done.err) == (0, "")
    assert done.out.count("1 running") == 1


def test_logs_are_followed_to_the_last_word(
    open_run: RunDir, skipsweep: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what is written by a later attempt, and after the last look, just before the run ends."""
    first, second = open_run.log(1, "err"), open_run.log(2, "err")
    first.parent.mkdir(parents=True, exist_ok=True)
    first.write_text("".join(f"line {number}\n" for number in range(9)))
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 1:
            append(first, "one more\n")
        elif len(waits) == 2:
            (open_run.leases / "00002.json").write_text("{}")
            append(second, "went on\n")

    print_new = commands._print_new

    def then_end(*args: Any) -> None:
        print_new(*args)
        if len(waits) == 2:
            append(second, "last words\n")
            end(open_run, 2.4)

    monkeypatch.setattr(commands, "_print_new", then_end)
    monkeypatch.setattr(commands, "time", SimpleNamespace(sleep=wait))
    done = skipsweep("logs", open_run.name, "-n", "2", "--follow", "--multirun", str(open_run.path.parents[1]))
    assert (done.status, done.err) == (0, "")
    told = [f"==> {first} <==", "line 7", "line 8", "one more", f"==> {second} <==", "went on", "last words"]
    assert done.out.splitlines() == told


def append(path: Path, text: str) -> None:
    with open(path, "a") as f:
        f.write(text)


def test_an_empty_folder(skipsweep: Callable[..., Done], tmp_path: Path) -> None:
    folder = ("--multirun", str(tmp_path))
    assert as_json(skipsweep("list", "--json", *folder)) == []
    assert as_json(skipsweep("status", "--json", *folder))["runs"] == []
    assert skipsweep("list", *folder).out == f"no runs yet below {tmp_path}\n"
    assert skipsweep("status", *folder).out == f"no runs yet below {tmp_path}\n"
    refused(skipsweep("status", "x", *folder), "there are: none yet")
    refused(skipsweep("compare", "a", "b", *folder), "no run a below")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [["list"], ["status"], ["status", "x"], ["board", "--port", "0"], ["report", "x"]])
def test_a_folder_that_is_not_there(command: list[str], skipsweep: Callable[..., Done], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name in ("none", "file"):
        refused(skipsweep(*command, "--multirun", f"{tmp_path}/{name}"), f"no folder {tmp_path}/{name}; a relative one")
    refused(skipsweep(*command, "--multirun", "elsewhere"), f"--multirun elsewhere: no folder {CHECKOUT}/elsewhere; ")


def test_a_fresh_checkout_has_no_runs_yet(
    skipsweep: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli.provenance, "CHECKOUT", tmp_path)
    assert skipsweep("list").out == f"no runs yet below {tmp_path}/multirun\n"


def test_what_a_power_cut_and_a_file_manager_leave(skipsweep: Callable[..., Done], tmp_path: Path) -> None:
    torn = RunDir(tmp_path / "runs" / "3x16-torn-aaaa")
    torn.path.mkdir(parents=True)
    torn.status.write_bytes(b"")
    torn.serves.write_bytes(b'{"a": ')
    (tmp_path / "runs" / "notes.txt").write_text("")
    (row,) = as_json(skipsweep("list", "--json", "--multirun", str(tmp_path)))
    assert (row["state"], row["sweeps"], row["val_loss"]) == ("planned", [], None)
    assert as_json(skipsweep("status", "--json", "--multirun", str(tmp_path)))["counts"] == {"planned": 1}


# ----------------------------------------------------------------------------------------------------------- compare


def test_compare(place: Place, here: Callable[..., Done]) -> None:
    a, b = place.run_of("which", NONE), place.run_of("which", SKIP)
    done, found = here("compare", a.name, b.id), as_json(here("compare", a.name, b.id, "--json"))
    assert found["runs"] == [a.name, b.name]
    assert found["settings"] == {"skip_layers.layers": [[], [0, "input"]], "head_type.name": ["last", "add"]}
    assert done.line("skip_layers.layers").split(maxsplit=2)[1:] == ["[]", "[0, 'input']"]
    assert [row["step"] for row in found["losses"]] == [0, 12]
    assert found["losses"][1] == {"step": 12, "a": 2.5, "b": pytest.approx(2.4), "difference": pytest.approx(-0.1)}
    assert done.line("  12").split() == ["12", "2.5000", "2.4000", "-0.1000"]
    assert found["lambdas"] == {"lambda/x": [3.5, 3.4]}
    assert row_of(done, "lambda/x") == ["lambda/x", "3.5000", "3.4000"]
    assert found["result"]["val_loss"] == [2.5, 2.4]
    assert row_of(done, "val_loss") == ["val_loss", "2.5000", "2.4000"]


def test_compare_with_an_unfinished_run(place: Place, here: Callable[..., Done]) -> None:
    a, b = place.run_of("which", NONE), place.run_of("which", SKIP, 1)
    done, found = here("compare", a.name, b.name), as_json(here("compare", a.name, b.name, "--json"))
    assert found["losses"] == []
    assert found["result"]["val_loss"] == [2.5, None]
    assert found["settings"]["seed"] == [0, 1]
    assert row_of(done, "val_loss") == ["val_loss", "2.5000", "-"]
    assert "no validation at equal steps" in done.out


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("data: {", "while parsing a flow node"),
        ("", "it holds no settings"),
        ("seed: 3", "it does not say model.layers"),
        ("sead: 3", "unknown key sead"),
    ],
)
def test_a_damaged_configuration_is_one_line(place: Place, here: Callable[..., Done], content: str, why: str) -> None:
    run = place.run_of("which", NONE)
    run.config.write_text(content)
    done = here("compare", run.name, place.run_of("which", SKIP).name)
    refused(done, f"{run.config} cannot be read ({why}")
    assert done.err.endswith("restore it, or remove the run's folder and launch it again\n")


def test_names_are_found_by_their_beginnings(place: Place, here: Callable[..., Done]) -> None:
    run = place.run_of("which", SKIP)
    others = [one for one in place.multirun.all_runs() if one != run]
    start = next(run.id[:n] for n in range(1, 13) if not any(one.id.startswith(run.id[:n]) for one in others))
    for text in (run.name, run.id, start, run.name[:-6]):
        assert as_json(here("compare", text, run.name, "--json"))["runs"] == [run.name, run.name]
    refused(here("compare", "3x16", run.name), "3x16 is the beginning of 5 runs, e.g. ")
    refused(here("compare", run.name, "4x16"), f"no run 4x16 below {place.multirun.runs}; `skipsweep list` shows them")


def test_paths_that_launches_print_stand_for_their_names(
    place: Place, here: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, sweep = place.run_of("which", SKIP), place.multirun.sweep("which")
    monkeypatch.chdir(place.runs.parent)
    for path in (str(run.path), f"{run.path}/", f"{place.runs.name}/runs/{run.name}/"):
        assert as_json(here("compare", path, run.name, "--json"))["runs"] == [run.name, run.name]
    assert as_json(here("status", f"{sweep.path}/", "--json"))["sweep"] == "which"
    refused(here("compare", run.name, str(run.checkpoints)), f"no run {run.checkpoints} below")


def test_a_folder_that_cannot_be_written_is_one_line(
    place: Place, here: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(files, "locked", deny)
    assert here("cancel", "which").err == f"error: {place.multirun.path}: Permission denied\n"


# -------------------------------------------------------------------------------------------------------------- plan


def test_what_a_later_override_undoes_is_noted(place: Place, skipsweep: Callable[..., Done]) -> None:
    twice = ("head_type=add", "seed=0,1", "head_type=concat", "seed=2,3", "seed=2,3")
    found = as_json(skipsweep("plan", "--json", *place.arguments(*twice)))
    assert found["notes"] == [
        "seed=0,1 has no effect: seed=2,3 comes after it",
        "head_type=add has no effect: head_type=concat comes after it",
    ]
    assert {point["seed"] for point in found["points"]} == {2, 3}


def test_arms_that_are_the_same_runs_are_named(place: Place, skipsweep: Callable[..., Done]) -> None:
    found = as_json(skipsweep("plan", "--json", *place.arguments("skip_layers=1,[1],none", "seed=0,1")))
    assert found["notes"] == ["skip_layers=[1] is skip_layers=1: the same runs"]


def test_plan(place: Place, skipsweep: Callable[..., Done]) -> None:
    before = place.stamps()
    asked = ("plan", *place.arguments("skip_layers=none,1", "seed=0,1"))
    done, found = skipsweep(*asked), as_json(skipsweep(*asked, "--json"))
    assert (done.status, done.err) == (0, "")
    assert done.line("4 points") == "4 points, 4 runs: 2 finished, 2 to run; time unknown until measured"
    assert (found["runs"], len(found["to_run"]), found["seconds"]) == (4, 2, None)
    assert [point["state"] for point in found["points"]] == ["done", "done", "new", "new"]
    assert [point["run"] for point in found["points"][2:]] == found["to_run"]
    assert (found["sweep"], found["baseline"]) == (done.sweep, NONE)
    for point in found["points"]:
        assert done.out.count(point["run"]) == 1
    assert place.stamps() == before


def test_plan_takes_the_flag_of_launch(place: Place, skipsweep: Callable[..., Done]) -> None:
    plain = as_json(skipsweep("plan", "--json", *place.arguments("skip_layers=none,1")))
    flagged = as_json(skipsweep("plan", "--json", *place.arguments("-m", "skip_layers=none,1")))
    assert plain == flagged


@pytest.mark.parametrize("flag", [("-cd", "."), ("--config-dir", "."), ("--config-dir=.",)])
def test_plan_and_data_prepare_take_a_folder_of_ones_own(
    place: Place, skipsweep: Callable[..., Done], flag: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nsweep: {arms: {a: {skip_layers: 0}}}\n")
    monkeypatch.chdir(tmp_path)
    found = as_json(skipsweep("plan", "--json", *flag, *place.arguments("experiment=mine")))
    same = as_json(skipsweep("plan", "--json", *place.arguments("skip_layers=0")))
    assert [point["run"] for point in found["points"]] == [point["run"] for point in same["points"]]
    assert as_json(skipsweep("data", "prepare", "--json", *place.arguments("experiment=mine"), *flag))
    refused(skipsweep("plan", *place.arguments("experiment=mine")), "-cd FOLDER adds FOLDER/experiment/NAME.yaml")


def test_a_folder_of_ones_own_that_is_not_there(skipsweep: Callable[..., Done], tmp_path: Path) -> None:
    done = skipsweep("plan", "-cd", f"{tmp_path}/none")
    refused(done, f"Additional config directory '{tmp_path}/none' not found")  # launch.py's words


def test_plan_of_nonsense(place: Place, skipsweep: Callable[..., Done]) -> None:
    refused(skipsweep("plan", *place.arguments("skip_layers=7")), "layer 7 is outside the trunk of 3 layers")
    refused(skipsweep("plan", "colour=red"), "no key colour")


# -------------------------------------------------------------------------------------------------------------- data

CHAIN = ("data=synthetic", "data.train_tokens=5000", "data.val_tokens=512", "data.states=16")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, skipsweep: Callable[..., Done]) -> Path:
    """A data root with one prepared corpus."""
    monkeypatch.setenv("SKIPSWEEP_DATA", str(tmp_path))
    skipsweep("data", "prepare", *CHAIN)
    return tmp_path


def test_data_prepare(root: Path, skipsweep: Callable[..., Done]) -> None:
    (folder,) = (path for path in root.iterdir() if path.name.startswith("synthetic-"))
    stamps = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    done, found = skipsweep("data", "prepare", *CHAIN), as_json(skipsweep("data", "prepare", *CHAIN, "--json"))
    assert done.status == 0
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == stamps
    assert (found["folder"], found["vocab_size"], found["train"]["tokens"]) == (str(folder), 16, 5001)
    cells = row_of(done, folder.name)
    assert cells[2:4] == ["16", "5,001"]
    refused(skipsweep("data", "prepare", "data=text"), "data.path")
    refused(skipsweep("data", "prepare", "data=text", "data.path=/nowhere"), "/nowhere")


def test_data_prepare_says_which_files_it_reads(root: Path, skipsweep: Callable[..., Done], tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    for name in ("a.txt", "b.txt", "c.md"):
        (notes / name).write_text("word " * (10 if name == "a.txt" else 1000))
    said = f"data.path={notes}: 2 files read, 1 ignored (.md); validation is the end of a.txt, b.txt: 5.0% of the text"
    for _ in range(2):  # tokenised now, or there already
        done = skipsweep("data", "prepare", "data=text", f"data.path={notes}", "--json")
        assert (done.status, done.err) == (0, f"{said}\n")
        assert json.loads(done.out)["name"] == "text"
    asked = "data=text", f"data.path={notes}", f"data.fingerprint={json.loads(done.out)['fingerprint']}"
    shutil.rmtree(notes)
    assert skipsweep("data", "prepare", *asked).err == ""  # the corpus outlives its text


def test_data_info(root: Path, skipsweep: Callable[..., Done], tmp_path: Path) -> None:
    (found,) = as_json(skipsweep("data", "info", "--json"))
    assert found["name"] == "synthetic"
    assert row_of(skipsweep("data", "info"), "synthetic-")[3] == "5,001"
    elsewhere = str(tmp_path / "none")
    assert as_json(skipsweep("data", "info", "--json", "--root", elsewhere)) == []
    assert skipsweep("data", "info", "--root", elsewhere).out == "no corpora yet\n"
    (Path(found["folder"]) / "meta.json").write_text("{")
    (damaged,) = as_json(skipsweep("data", "info", "--json"))
    assert "meta.json: missing, damaged or unreadable" in damaged["problem"]
    assert "meta.json: missing, damaged" in skipsweep("data", "info").out


def test_data_verify(root: Path, skipsweep: Callable[..., Done]) -> None:
    done, rows = skipsweep("data", "verify"), as_json(skipsweep("data", "verify", "--json"))
    assert done.status == 0
    assert {row["shard"]: row["problem"] for row in rows} == {"train_000001.bin": None, "val_000000.bin": None}
    assert [line.split()[1:] for line in done.out.splitlines()[1:]] == [
        ["train_000001.bin", "5,001", "ok"],
        ["val_000000.bin", f"{rows[1]['tokens']:,}", "ok"],
    ]
    (shard,) = root.glob("*/train_000001.bin")
    shard.write_bytes(shard.read_bytes()[:-2])
    broken = skipsweep("data", "verify")
    assert (broken.status, broken.err) == (1, "")
    assert "the file ends after 5000 of the 5001 tokens" in broken.out
    listed = skipsweep("data", "verify", "--json")
    assert listed.status == 1
    assert [row["problem"] is None for row in json.loads(listed.out)] == [False, True]


# -------------------------------------------------------------------------------------------------------------- sync


def test_sync(place: Place, here: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the command; tests/test_mirror.py lets wandb itself take part."""
    synced: list[RunDir] = []
    monkeypatch.setattr(mirror, "sync", lambda run: synced.append(run))
    run = place.run_of("which", NONE)
    done = here("sync", run.id)
    assert (done.status, synced) == (0, [run])
    assert done.out == f"mirrored into {run.mirror}\n"
    monkeypatch.setattr(mirror, "sync", lambda run: "no route to host")
    failed = here("sync", run.id)
    assert (failed.status, failed.err) == (1, "error: wandb: no route to host\n")
    refused(here("sync", "nothing"), "no run nothing below")
    assert asdict(Wandb())["mode"] == "online"


# ------------------------------------------------------------------------------------------------------------- usage


@pytest.mark.parametrize("arguments", [["frobnicate"], ["list", "--jsn"], ["compare", "a"], ["data", "frob"]])
def test_misuse_is_told(arguments: list[str], skipsweep: Callable[..., Done]) -> None:
    done = skipsweep(*arguments)
    assert done.status == 2
    assert "Traceback" not in done.err
    assert "Usage: " in done.err


def test_every_command_says_what_it_does(skipsweep: Callable[..., Done]) -> None:
    told = skipsweep("--help").out
    for name in ("list", "status", "compare", "plan", "sync", "data"):
        assert name in told
    assert "Read every shard" in skipsweep("data", "--help").out


def parameters(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Every argument and option of a command and its subcommands, with the command's name."""
    yield from ((name, parameter) for parameter in command.params if "completion" not in str(parameter.name))
    for inner in getattr(command, "commands", {}).values():
        yield from parameters(inner, f"{name} {inner.name}")


def test_every_argument_and_option_says_what_it_is() -> None:
    found = list(parameters(typer.main.get_command(cli.app), "skipsweep"))
    assert len(found) > 50
    assert [f"{name} {one.name}" for name, one in found if not (one.help or "").endswith((".", "..."))] == []
