"""Reports: what they say of synthetic sweeps, their tables, what becomes of partial and damaged folders."""

import csv
import json
from pathlib import Path

import pytest
from sweep_folders import Made
from typer.testing import CliRunner

from skipsweep.analyze import findings, report, targets
from skipsweep.analyze.findings import Findings
from skipsweep.cli import app
from skipsweep.errors import UserError


def rows(found: Findings, file: str) -> list[dict[str, object]]:
    return next((list(sheet.rows) for sheet in found.sheets if sheet.file == file), [])


def read_csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


# ------------------------------------------------------------------------------------------------- first below target


def test_the_crossing_lies_on_the_line_between_two_validations() -> None:
    """As seed 000 prints it: time to 4 decimals, step rounded."""
    curve = [(5375, 1357.0, 2.93), (5500, 1389.0, 2.921), (5550, 1401.5, 2.918)]
    hit = targets.crossing(curve, 2.92)
    assert hit is not None
    assert hit.step == pytest.approx(5500 + 50 / 3)
    assert hit.time_s == pytest.approx(1389.0 + 12.5 / 3)


def test_the_first_crossing_counts_and_touching_is_not_below() -> None:
    curve = [(0, 0.0, 4.0), (10, 1.0, 2.0), (20, 2.0, 1.0), (30, 3.0, 3.0), (40, 4.0, 1.0)]
    assert targets.crossing(curve, 2.0) == targets.Crossing(10.0, 1.0)
    assert targets.crossing(curve, 1.0) is None
    assert targets.crossing(curve, 5.0) == targets.Crossing(0, 0.0)
    assert targets.crossing([], 1.0) is None
    assert targets.crossing([(0, None, 3.0), (4, 8.0, 1.0)], 2.0) == targets.Crossing(2.0, None)


def test_the_table_of_crossings(tmp_path: Path) -> None:
    made = Made(tmp_path, target=2.0)
    made.arm("a", [1.0, 2.5], curve=None)
    made.arm("b", [1.5], curve=[(0, 0.0, 3.5), (75, 10.0, 1.5)])
    made.arm("c", [None], state="running")
    made.write()
    report.make(made.multirun, ["question"])
    table = read_csv(made.multirun.sweep("question").report / "tables" / "time_to_target.csv")
    by_arm = {row["arm"] + row["seed"]: row for row in table}
    assert list(table[0]) == ["arm", "run", "seed", "reached", "step", "time_s"]
    assert (by_arm["b0"]["step"], by_arm["b0"]["time_s"]) == ("56", "7.5")
    assert (by_arm["a1"]["reached"], by_arm["a1"]["step"], by_arm["a1"]["time_s"]) == ("never", "", "")
    assert by_arm["c0"]["reached"] == "not yet"


# -------------------------------------------------------------------------------------------------------- the answer


def test_an_arm_that_differs(tmp_path: Path) -> None:
    made = Made(tmp_path, baseline="none")
    made.arm("none", [2.92, 2.93, 2.925])
    made.arm("5", [2.82, 2.83, 2.825], sources=[5])
    made.arm("6", [2.92, 2.931, 2.926], sources=[6])
    found = findings.find(made.read())
    assert found.answer.startswith(
        "1 of 2 arms differ from none, 1 with a lower loss; best is 5 at -0.10000 nats/token (n = 3"
    )
    assert [row["says"] for row in rows(found, "difference")] == ["lower loss", "not distinguishable"]
    assert found.counts == {"planned": 9, "done": 9, "failed": 0, "running": 0, "missing": 0}
    assert found.warnings == []


def test_what_cannot_be_told_apart_is_said_with_the_seeds_that_would_tell(tmp_path: Path) -> None:
    made = Made(tmp_path, baseline="none")
    made.arm("none", [2.92, 2.93, 2.925])
    made.arm("5", [2.918, 2.928, 2.923], sources=[5])
    found = findings.find(made.read())
    needed = rows(found, "difference")[0]["seeds_to_tell"]
    assert found.answer.startswith("The arm is not distinguishable from none: the largest difference is 5 at -0.00200")
    assert f"about {needed} seeds per arm would tell" in found.answer
    assert needed == 100  # statsmodels: 99.08 for an effect of 0.4


def test_single_runs_tell_nothing(tmp_path: Path) -> None:
    made = Made(tmp_path, baseline="none")
    made.arm("none", [2.92])
    made.arm("5", [2.5], sources=[5])
    found = findings.find(made.read())
    assert found.answer.startswith("Differences cannot be told from noise: no arm has two finished runs.")
    assert rows(found, "difference")[0]["p"] is None


def test_nothing_has_finished(tmp_path: Path) -> None:
    made = Made(tmp_path)
    made.arm("none", [None, None], state="planned")
    found = findings.find(made.read())
    assert found.answer == "No run has finished yet, so there is no answer."
    assert found.counts["missing"] == 2


def test_an_arm_that_shares_runs_with_the_baseline_is_not_tested(tmp_path: Path) -> None:
    made = Made(tmp_path, baseline="none")
    runs = made.arm("none", [2.92, 2.93])
    made.arm("same", [2.92, 2.93], same_runs_as=runs)
    made.arm("5", [2.81, 2.82], sources=[5])
    found = findings.find(made.read())
    same, other = rows(found, "difference")
    assert (same["p"], same["says"]) == (None, "not tested: shares runs with none")
    assert other["p"] is not None
    assert any("share runs" in text and "same (with none)" in text for text in found.warnings)


def test_pairs_only_where_they_were_declared(tmp_path: Path) -> None:
    losses = [2.0, 3.0, 4.0], [1.99, 2.985, 3.99]
    for paired, says in ((False, "not distinguishable"), (True, "lower loss")):
        made = Made(tmp_path / str(paired), baseline="none", plan={"paired": paired})
        made.arm("none", losses[0])
        made.arm("5", losses[1], sources=[5])
        row = rows(findings.find(made.read()), "difference")[0]
        assert (row["says"], row["test"]) == (says, "paired" if paired else "dunnett")


# ---------------------------------------------------------------------------------------------------------- the files


def test_the_folder_of_a_report(tmp_path: Path) -> None:
    made = Made(tmp_path, baseline="none", target=2.9)
    made.arm("none", [2.92, 2.93])
    made.arm("5", [2.81, None], sources=[5], lambdas={"lambda/skip/5": -0.25})
    multirun = made.write()
    done = CliRunner().invoke(app, ["report", "question", "--multirun", str(tmp_path)])
    assert done.exit_code == 0, done.output
    folder = multirun.sweep("question").report
    assert "4 planned, 3 done, 1 failed" in done.output
    assert f"report: {folder / 'index.html'}" in done.output
    assert (folder / "figures" / "loss-per-arm.svg").stat().st_size > 0
    assert read_csv(folder / "tables" / "lambdas.csv")[0]["mean"] == "-0.25"
    first, second = read_csv(folder / "tables" / "final_loss.csv")
    assert (first["arm"], first["n"], float(first["mean"])) == ("none", "2", pytest.approx(2.925))
    assert (second["arm"], second["n"], second["planned"], second["sd"]) == ("5", "1", "2", "")


def test_several_sweeps_have_a_folder_of_their_own_and_json_goes_to_programs(tmp_path: Path) -> None:
    for name, arm in (("one", "none"), ("two", "5")):
        made = Made(tmp_path, name=name)
        made.arm(arm, [2.92, 2.93], sources=[5] if arm == "5" else [])
        made.write()
    done = CliRunner().invoke(app, ["report", "one", "two", "--json", "--multirun", str(tmp_path)])
    found = json.loads(done.output)
    assert found["page"] == str(tmp_path / "reports" / "one+two" / "index.html")
    assert Path(found["page"]).exists()
    assert found["counts"]["planned"] == 4
    assert not (tmp_path / "sweeps" / "one" / "report").exists()


def test_what_is_not_there_is_one_line_with_what_is(tmp_path: Path) -> None:
    made = Made(tmp_path, baseline="none")
    made.arm("none", [2.92])
    made.arm("5", [2.92], sources=[5])
    multirun = made.write()
    with pytest.raises(UserError, match=r"^no sweep nosuch .*; there are: question$"):
        report.make(multirun, ["nosuch"])
    with pytest.raises(UserError, match=r"^--baseline 7 is no arm of question; valid: none, 5$"):
        report.make(multirun, ["question"], baseline="7")
    other = report.make(multirun, ["question"], baseline="5", out=tmp_path / "elsewhere")
    assert other.evidence.baseline == "5"
    assert other.page == tmp_path / "elsewhere" / "index.html"
