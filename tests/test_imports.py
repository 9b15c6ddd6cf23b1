"""Old logs: every variant of their lines is read exactly, and what is damaged or unknown is named, never guessed."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipsweep import cli
from skipsweep.analyze import listing, run_diff
from skipsweep.errors import UserError
from skipsweep.imports.speedrun_log import RULE, parse
from skipsweep.imports.write import import_logs
from skipsweep.rundir import Multirun
from skipsweep.sweep import launch
from skipsweep.sweep.entry import from_command_line

HEAD = f"import torch\nprint0('step:not/this')\n{RULE}\nRunning PyTorch 2.10\n| H100 |\n{RULE}\n"


def text(final: float = 2.919954, end: int = 250, head: str = HEAD, extra: str = "") -> str:
    return head + (
        f"step:0/{end} val_loss:10.825840 train_time:0ms step_avg:0.15ms\n"
        f"step:126/{end} train_time:28751ms step_avg:228.19ms\n"
        f"step:{end}/{end} val_loss:{final} train_time:1385433ms step_avg:nanms{extra}\n"
        "peak memory allocated: 56812 MiB reserved: 60528 MiB\n"
    )


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# ------------------------------------------------------------------------------------------------------------- parsing


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_log_of_the_record(ending: str) -> None:
    log = parse(text().replace("\n", ending))
    [run] = log.runs
    assert run.script == "import torch\nprint0('step:not/this')"
    assert run.hardware == ["Running PyTorch 2.10", "| H100 |"]
    assert (run.steps, run.last_step, log.damaged) == (250, 250, [])
    assert run.rows == {
        0: {"step": 0, "train_time_s": 0.0, "val/loss": 10.82584},
        250: {"step": 250, "train_time_s": 1385.433, "val/loss": 2.919954},
    }


def test_a_log_without_its_script() -> None:
    [run] = parse(text(head="")).runs
    assert run.script == ""
    assert run.rows[250]["val/loss"] == 2.919954


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        (" lx:0.828 ls:-0.292", {"lambda/x": 0.828, "lambda/skip": -0.292}),
        (
            " x-lambda: 0.779 lambdas: [0.0199, -0.303] skip-layers: [11, 10]",
            {"lambda/x": 0.779, "lambda/skip/11": 0.0199, "lambda/skip/10": -0.303},
        ),
        (
            "rolling_lambdas:[[1.0, 0.0], [0.5, -0.4]]",
            {
                "lambda/rolling_row/0/x": 1.0,
                "lambda/rolling_row/0/skip": 0.0,
                "lambda/rolling_row/1/x": 0.5,
                "lambda/rolling_row/1/skip": -0.4,
            },
        ),
    ],
)
def test_lambdas_behind_validations(extra: str, expected: dict[str, float]) -> None:
    row = parse(text(extra=extra)).runs[0].rows[250]
    assert {key: value for key, value in row.items() if key.startswith("lambda/")} == expected


@pytest.mark.parametrize(
    ("extra", "lambdas", "unread"),
    [
        (" mfu:3.06%", {}, ["mfu"]),
        (" lx:0.5 ls:-0.25 tok/s:123", {"lambda/x": 0.5, "lambda/skip": -0.25}, ["tok/s"]),
        (" lx:tensor(0.779) ls:0.1", {}, ["lx", "ls"]),
        (
            " x-lambda: nan lambdas: [0.5, nan, -inf] skip-layers: [11, 10, 9]",
            {"lambda/skip/11": 0.5},
            [],
        ),
        (" x-lambda: 0.7 lambdas: [0.01, -0.3", {}, ["x-lambda", "lambdas"]),
        ("rolling_lambdas:[[1.0, nan]]", {"lambda/rolling_row/0/x": 1.0}, []),
        (" 17", {}, ["text without a name"]),
    ],
)
def test_what_else_stands_on_a_line_costs_no_validation(
    extra: str, lambdas: dict[str, float], unread: list[str]
) -> None:
    log = parse(text(extra=extra))
    assert log.runs[0].rows[250] == {"step": 250, "train_time_s": 1385.433, "val/loss": 2.919954, **lambdas}
    assert (log.damaged, log.unread) == ([], unread)


def test_times_in_seconds_and_losses_of_training() -> None:
    log = parse(
        "step:11/3325 train_loss:6.7971 train_time:102ms step_avg:nanms\n"
        "step:125/3325 val_loss:4.84530 train_time:198.159s step_avg:1585.27ms\n"
        "step:250/3325 val_loss:4.2 best_val_loss:4.1 train_time:400.5s step_avg:1600.00ms\n"
        "step:375/3325 val_loss:4.1 train_time:28751step:376/3325\n"
        "step:500/3325 val_loss:tensor(4.0) train_time:800.5s step_avg:1600.00ms\n"
    )
    assert [(row["step"], row["val/loss"], row["train_time_s"]) for row in log.runs[0].rows.values()] == [
        (125, 4.8453, 198.159),
        (250, 4.2, 400.5),
    ]
    assert (log.damaged, log.unread) == ([4, 5], ["best_val_loss"])


def test_torn_lines_are_counted_with_their_numbers() -> None:
    log = parse("step:1/9 train_time:5ms step_avg:5.0ms\nstep:2/9 val_loss:3.\nother\nstep:3/9 val_loss:2.9 tra")
    assert log.damaged == [2, 4]
    assert log.runs[0].rows == {}


def test_a_step_that_falls_back_begins_another_run() -> None:
    again = "step:0/250 val_loss:10.825840 train_time:0ms step_avg:0.15ms\n"
    log = parse(
        again + again + "step:126/250 train_time:5ms step_avg:nanms\n" + text(2.8, head="") + text(2.7, head="")
    )
    assert [run.last_step for run in log.runs] == [0, 126, 250, 250]
    assert [run.rows.get(250, {}).get("val/loss") for run in log.runs] == [None, None, 2.8, 2.7]
    trains = [f"step:{step}/9 train_time:5ms step_avg:nanms\n" for step in (1, 2, 2, 1, 9)]
    assert [run.last_step for run in parse("".join(trains)).runs] == [2, 9]
    log = parse(text(2.9) + text(2.8, head="") + text(2.7))
    heads = ["import torch\nprint0('step:not/this')"] * 2 + [""]
    assert [run.script for run in log.runs] == heads, "a script that was started again may be another one"


@given(st.text() | st.text(alphabet="step:0123/ val_loss.nmgx[],-=\n\r").map("step:1/2 ".__add__))
def test_no_text_makes_the_parser_raise(content: str) -> None:
    parse(content)
    parse(text(extra=content))


# ------------------------------------------------------------------------------------------------------------- writing


def test_imported_runs_are_listed_with_their_arms(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    for arm, losses in {"base": (2.92, 2.93), "skip": (2.91, 2.90)}.items():
        for i, loss in enumerate(losses):
            write(logs / arm / f"{i:03d}_x.txt", text(loss))
    write(logs / "note.md", "not looked at")
    rubbish = write(logs / "skip" / "rubbish.log", bytes(range(256)) * 9)
    empty = write(logs / "skip" / "empty.txt", "")
    stray = write(logs / "stray.txt", text(5.0))
    again = write(logs / "skip" / "zz-copy.txt", text(2.90))
    multirun = Multirun(tmp_path / "multirun")

    found = import_logs(multirun, [logs], "old", r"/(?P<arm>base|skip)/", target=2.92)
    assert found.refused == [f"{p}: no line `step:S/N ... train_time:T ms`" for p in (empty, rubbish)]
    assert (found.unmatched, found.repeated) == ([str(stray)], [f"{again}: {logs / 'skip' / '001_x.txt'}"])

    status = listing.status(multirun, "old")
    assert status.counts == {"done": 4}
    base, skip = status.arms
    assert (base.name, base.done, base.is_baseline) == ("base", 2, True)
    assert base.val_loss == pytest.approx(2.925)
    assert skip.val_loss == pytest.approx(2.905)
    assert (skip.pairs, skip.parameters) == (0, None)  # no seed is known, so nothing pairs
    assert {row.train_time_s for row in listing.runs(multirun)} == {1385.433}

    a, b = (multirun.run(name) for name in found.runs[:2])
    assert run_diff.diff(a, b).losses[-1]["difference"] == pytest.approx(0.01)
    assert (a.path / "script.txt").read_text().startswith("import torch")
    for document in (a.identity, a.status, a.env, a.result):
        assert set(json.loads(document.read_text())["imported"]) == {"from", "sha256"}


def test_importing_again_changes_nothing_and_more_extends(tmp_path: Path) -> None:
    multirun = Multirun(tmp_path / "multirun")
    first = write(tmp_path / "arm" / "a.txt", text(2.9))
    before = import_logs(multirun, [first], "old").runs
    assert import_logs(multirun, [first], "old").runs == before
    import_logs(multirun, [write(tmp_path / "arm" / "b.txt", text(2.8))], "old")
    points = json.loads(multirun.sweep("old").plan.read_text())["points"]
    assert [point["key"] for point in points] == [["arm", 0, 0], ["arm", 1, 0]]


def test_every_run_of_a_log_is_imported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    multirun = Multirun(tmp_path / "multirun")
    losses = (2.9, 2.8, 2.7)
    trials = write(tmp_path / "arm" / "trials.txt", HEAD + "".join(text(loss, head="") for loss in losses))
    single = write(tmp_path / "arm" / "z.txt", text(2.6))
    cli.import_speedrun_log([trials, single], "old", multirun=str(multirun.path))
    said = capsys.readouterr()
    assert said.out == "4 run(s) from 2 file(s) in sweep old\n"
    assert said.err == f"1 with several runs: {trials}: 3\n"
    [arm] = listing.status(multirun, "old").arms
    assert (arm.done, arm.failed) == (4, 0)
    names = [point["run"] for point in json.loads(multirun.sweep("old").plan.read_text())["points"]]
    results = [json.loads(multirun.run(name).result.read_text()) for name in names]
    assert [(found["imported"]["from"], found["val_loss"]) for found in results] == [
        (str(trials), 2.9),
        (f"{trials}#2", 2.8),
        (f"{trials}#3", 2.7),
        (str(single), 2.6),
    ]


def test_another_guise_of_a_run_is_no_second_run(tmp_path: Path) -> None:
    multirun, folder = Multirun(tmp_path / "multirun"), tmp_path / "arm"
    log = write(folder / "a.txt", text(extra=" lx:0.5 ls:0.1"))
    console = write(folder / "console.log", "W1129 compiling\n" + text(head="").replace("step:126", "the step:126"))
    crlf = write(folder / "crlf.txt", text().replace("\n", "\r\n"))
    other = write(folder / "other.txt", text(2.92))
    found = import_logs(multirun, [folder], "old")
    assert found.repeated == [f"{console}: {log}", f"{crlf}: {log}"]
    assert (len(found.runs), found.files) == (2, 2)
    assert import_logs(multirun, [console, other], "old").runs == found.runs
    assert listing.status(multirun, "old").counts == {"done": 2}


def test_runs_that_ended_early_are_told_apart(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / "arm" / f"{name}.txt", text(head=f"{name}\n").split("step:126")[0])
    found = import_logs(Multirun(tmp_path / "multirun"), [tmp_path / "arm"], "old")
    assert (len(set(found.runs)), found.repeated) == (2, [])


@pytest.mark.parametrize("cut", [" val_loss:10.8", "step:126", "step:250"])
def test_a_log_that_has_grown_takes_the_place_of_what_was_imported_of_it(tmp_path: Path, cut: str) -> None:
    multirun = Multirun(tmp_path / "multirun")
    first = "step:0/250 train_time:0ms step_avg:nanms\n"
    log = write(tmp_path / "arm" / "a.txt", first + text(head="").split(cut)[0])
    write(log.with_name("b.txt"), text(2.8))
    before = import_logs(multirun, [log.parent], "old").runs
    import_logs(multirun, [log], "other")
    write(log, first + text(head=""))
    found = import_logs(multirun, [log], "old")
    assert found.grown == [str(log)]
    points = json.loads(multirun.sweep("old").plan.read_text())["points"]
    assert [(point["key"], point["run"]) for point in points] == [
        (["arm", 0, 0], found.runs[0]),
        (["arm", 1, 0], before[1]),
    ]
    assert listing.status(multirun, "old").counts == {"done": 2}
    assert set(multirun.run(before[0]).read_serves()) == {"other"}, "another sweep keeps what it has"
    assert import_logs(multirun, [log], "other").runs == found.runs
    assert not multirun.run(before[0]).path.exists()
    write(log, first + text(head="").split("step:126")[0])
    assert import_logs(multirun, [log], "old").runs == found.runs, "cut again: what was known stays"


def test_what_another_log_still_says_is_not_replaced(tmp_path: Path) -> None:
    multirun, log = Multirun(tmp_path / "multirun"), tmp_path / "arm" / "a.txt"
    cut = text(end=300).split("step:300")[0] + text(end=200, head="").splitlines(keepends=True)[2]
    import_logs(multirun, [write(log, cut)], "old")
    write(log, cut + text(head="").splitlines(keepends=True)[2])
    found = import_logs(multirun, [log, write(log.with_name("b.txt"), cut)], "old")
    assert found.grown == []
    assert listing.status(multirun, "old").counts == {"done": 2}


def test_two_runs_that_become_one_leave_no_key_twice(tmp_path: Path) -> None:
    multirun, a = Multirun(tmp_path / "multirun"), tmp_path / "arm" / "a.txt"
    write(a, text().split("step:126")[0])
    write(a.with_name("b.txt"), text())
    write(a.with_name("c.txt"), text(2.8))
    import_logs(multirun, [a.parent], "old")
    write(a, text())
    write(a.with_name("d.txt"), text(2.7))
    import_logs(multirun, [a, a.with_name("d.txt")], "old")
    points = json.loads(multirun.sweep("old").plan.read_text())["points"]
    assert [point["key"][1] for point in points] == [0, 2, 3]
    assert len({point["run"] for point in points}) == 3


def test_importing_again_under_another_arm_moves_no_run(tmp_path: Path) -> None:
    multirun = Multirun(tmp_path / "multirun")
    log = write(tmp_path / "one" / "two" / "a.txt", text(2.9))
    [name] = import_logs(multirun, [log], "old", r"(one)/").runs
    again = import_logs(multirun, [log, write(log.with_name("b.txt"), text(2.8))], "old", r"/(two)/")
    assert again.kept == [f"{log}: one"]
    assert [multirun.run(run).read_serves()["old"]["arm"] for run in again.runs] == ["one", "two"]
    assert [point["key"][0] for point in json.loads(multirun.sweep("old").plan.read_text())["points"]] == ["one", "two"]
    other = import_logs(multirun, [log], "other", r"/(two)/")
    assert (other.runs, other.kept) == ([name], [])


def test_runs_without_a_final_loss_are_failed(tmp_path: Path) -> None:
    multirun = Multirun(tmp_path / "multirun")
    nan = text().replace("2.919954", "nan")
    cut = "".join(text().splitlines(keepends=True)[:-2])
    names = import_logs(
        multirun, [write(tmp_path / "a" / "n.txt", nan), write(tmp_path / "a" / "c.txt", cut)], "s"
    ).runs
    seen = [multirun.run(name).read_status() for name in names]
    assert [one["state"] for one in seen] == ["failed", "failed"]
    assert (seen[0]["cause"], seen[1]["cause"]) == ("nan", "incomplete")
    assert "step 126 of 250" in seen[1]["message"]
    assert not multirun.run(names[0]).result.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sweep": "../x"}, "cannot name a folder"),
        ({"arm": "("}, "no regular expression"),
        ({"arm": "a"}, "has no group"),
        ({"target": float("nan")}, "--target nan is not a loss"),
        ({"target": float("-inf")}, "--target -inf is not a loss"),
        ({"baseline": "nobody"}, "is not an arm; valid: arm"),
    ],
)
def test_bad_arguments_are_refused(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    log = write(tmp_path / "arm" / "a.txt", text())
    with pytest.raises(UserError, match=message):
        import_logs(Multirun(tmp_path / "multirun"), [log], **{"sweep": "old", **arguments})
    assert not (tmp_path / "multirun").exists(), "nothing is written"


def test_nothing_to_import_is_explained(tmp_path: Path) -> None:
    multirun, logs = Multirun(tmp_path / "multirun"), tmp_path / "logs"
    logs.mkdir()
    with pytest.raises(UserError, match=r"^nothing to import: no \*.txt or \*.log there$"):
        import_logs(multirun, [logs], "old")
    for name in ("a/1.txt", "a/2.txt", "b/3.txt"):
        write(logs / name, "no log")
    (logs / "a" / "gone.txt").symlink_to("nowhere")
    with pytest.raises(UserError) as caught:
        import_logs(multirun, [logs], "old", "/(a)/")
    assert str(caught.value) == (
        f"nothing to import: 2 file(s): no line `step:S/N ... train_time:T ms` ({logs}/a/1.txt);"
        f" 1 file(s): No such file or directory ({logs}/a/gone.txt); 1 file(s): not matched by --arm ({logs}/b/3.txt)"
    )
    assert not multirun.path.exists()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_other_encodings(tmp_path: Path, encoding: str) -> None:
    multirun = Multirun(tmp_path / "multirun")
    console = text(head="").replace("\n", "\r\n")
    [name] = import_logs(multirun, [write(tmp_path / "a" / "a.txt", console.encode(encoding))], "old").runs
    assert json.loads(multirun.run(name).result.read_text())["val_curve"][0]["val/loss"] == 10.82584


def test_a_launched_sweep_is_not_mixed_with_imports(tmp_path: Path) -> None:
    multirun = Multirun(tmp_path / "multirun")
    write(multirun.sweep("mine").plan, '{"points": [], "baseline": null}')
    with pytest.raises(UserError, match="was launched"):
        import_logs(multirun, [write(tmp_path / "a" / "a.txt", text())], "mine")


def test_an_imported_run_is_not_mirrored_and_its_sweep_not_launched(tmp_path: Path) -> None:
    multirun = Multirun(tmp_path / "multirun")
    [name] = import_logs(multirun, [write(tmp_path / "a" / "a.txt", text())], "old").runs
    with pytest.raises(UserError, match="cannot be mirrored"):
        cli.sync(name, multirun=str(multirun.path))
    with pytest.raises(UserError, match="was imported and cannot be launched"):
        launch.make_plan(
            from_command_line(
                [
                    "sweep.name=old",
                    f"paths.multirun={multirun.path}",
                    f"paths.data={tmp_path / 'data'}",
                    "experiment=demo",
                    "-m",
                ]
            )
        )
