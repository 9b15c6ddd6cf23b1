"""Reports: what they say of synthetic sweeps, their tables, what becomes of partial and damaged folders."""

import csv
import json
import math
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import TTestPower
from sweep_folders import Made
from typer.testing import CliRunner

from skipsweep import published
from skipsweep.analyze import arms, findings, report, targets
from skipsweep.analyze.findings import Findings
from skipsweep.cli import app
from skipsweep.errors import UserError


def rows(found: Findings, file: str) -> list[dict[str, object]]:
    return next((list(sheet.rows) for sheet in found.sheets if sheet.file == file), [])


def read_csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


# ------------------------------------------------------------------------------------------------- first below target


def test_the_crossing_lies_on_the_line_between_two_validations() -> None:
    """As the multi-output article prints it: time to 4 decimals, step rounded."""
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
    made.arm("d", [None], state="failed")
    made.write()
    report.make(made.multirun, ["question"])
    table = read_csv(made.multirun.sweep("question").report / "tables" / "time_to_target.csv")
    by_arm = {row["arm"] + row["seed"]: row for row in table}
    assert list(table[0]) == ["arm", "run", "seed", "reached", "step", "time_s"]
    assert (by_arm["b0"]["step"], by_arm["b0"]["time_s"]) == ("56", "7.5")
    assert (by_arm["a1"]["reached"], by_arm["a1"]["step"], by_arm["a1"]["time_s"]) == ("never", "", "")
    assert by_arm["c0"]["reached"] == "not yet"
    assert by_arm["d0"]["reached"] == "stopped", "nobody knows whether it would have got there"


def test_no_mean_over_the_fast_runs_alone(tmp_path: Path) -> None:
    """One run of four reaches the target, sooner than the baseline's: the other three would have taken longer."""
    made = Made(tmp_path, baseline="none", target=2.0)
    made.arm("none", [1.5] * 4, curve=[(0, 0.0, 3.5), (75, 10.0, 1.5)])
    for seed, (loss, curve) in enumerate([(1.5, [(0, 0.0, 3.5), (50, 7.0, 1.5)]), *[(2.5, None)] * 3]):
        made.point("5", seed, made.run("5", seed, loss, curve=curve).name, [5])
    made.arm("6", [1.5, None], curve=[(0, 0.0, 3.5), (75, 10.0, 1.5)], sources=[6], state=None)
    none, five, six = rows(findings.find(made.read()), "time_to_target_per_arm")
    assert (none["mean_step"], none["mean_time_s"], none["says"]) == (56, 7.5, None)
    assert (five["mean_step"], five["mean_time_s"]) == (None, None)
    assert five["says"] == "1 of 4 reached it: no mean over the fast ones alone"
    assert six["mean_step"] == 56


# -------------------------------------------------------------------------------------------------------- the answer


def test_an_arm_that_differs(tmp_path: Path) -> None:
    made = Made(tmp_path, baseline="none")
    made.arm("none", [2.92, 2.93, 2.925])
    made.arm("5", [2.82, 2.83, 2.825], sources=[5])
    made.arm("6", [2.931, 2.92, 2.926], sources=[6])
    found = findings.find(made.read())
    assert found.answer.startswith(
        "1 of 2 arms differs from none, 1 with a lower loss; best is 5 at -0.10000 nats/token (n = 3"
    )
    assert [row["says"] for row in rows(found, "difference")] == ["lower loss", "not distinguishable"]
    assert found.counts == {"planned": 9, "done": 9, "failed": 0, "running": 0, "missing": 0}
    assert found.warnings == []


def test_one_arm_that_differs_is_no_best_of_many(tmp_path: Path) -> None:
    made = Made(tmp_path, baseline="none")
    made.arm("none", [2.92, 2.93, 2.925])
    made.arm("5", [2.82, 2.83, 2.825], sources=[5])
    found = findings.find(made.read())
    assert found.answer.startswith("The arm tested differs from none: 5 at -0.10000 nats/token (n = 3, 95 % interval")


def test_what_cannot_be_told_apart_is_said_with_the_seeds_that_would_tell(tmp_path: Path) -> None:
    made = Made(tmp_path, baseline="none")
    made.arm("none", [2.92, 2.93, 2.925])
    made.arm("5", [2.918, 2.928, 2.923], sources=[5])
    found = findings.find(made.read())
    needed = rows(found, "difference")[0]["seeds_to_tell"]
    assert found.answer.startswith("The arm tested is not distinguishable from none: 5 at -0.00200")
    assert f"about {needed} seeds per arm would detect a true difference of that size" in found.answer
    assert needed == 100  # statsmodels: 99.08 for an effect of 0.4


def test_single_runs_tell_nothing(tmp_path: Path) -> None:
    made = Made(tmp_path, baseline="none")
    made.arm("none", [2.92])
    made.arm("5", [2.5], sources=[5])
    found = findings.find(made.read())
    assert found.answer.startswith("Differences cannot be distinguished from noise: no arm has two finished seeds.")
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


def test_a_repeated_seed_counts_once(tmp_path: Path) -> None:
    """Three runs of each of two seeds are two pieces of evidence, in the report as in the sweep's own table."""
    made = Made(tmp_path, baseline="none", target=3.7)
    for arm, losses in (("none", (3.96, 3.99)), ("5", (3.68, 3.71))):
        for seed, loss in enumerate(losses):
            for replicate in range(3):
                run = made.run(f"{arm}-r{replicate}", seed, loss, recipe={"replicate": replicate})
                made.point(arm, seed, run.name, [] if arm == "none" else [5], replicate=replicate)
    found = findings.find(made.read())
    [row] = rows(found, "difference")
    assert row["n"] == 2
    assert row["p"] == pytest.approx(stats.ttest_ind([3.68, 3.71], [3.96, 3.99]).pvalue)
    assert [(one["planned"], one["n"], one["sd"]) for one in rows(found, "final_loss")] == [
        (2, 2, pytest.approx(0.03 / 2**0.5))
    ] * 2
    assert rows(found, "target")[1]["p"] == pytest.approx(
        stats.ttest_1samp([3.68, 3.71], 3.7, alternative="less").pvalue
    )
    none, five = arms.of_sweep(made.multirun, "question")
    assert (none.val_loss_sd, five.difference) == (pytest.approx(0.03 / 2**0.5), pytest.approx(row["difference"]))
    assert any(text.endswith("none (6 runs, 2 seeds), 5 (6 runs, 2 seeds)") for text in found.warnings)
    assert "of 4 finished seeds in 2 arms" in power("question", "--multirun", str(tmp_path))


@pytest.mark.parametrize("imported", [False, True])
def test_seeds_that_agree_to_the_last_digit_are_named(tmp_path: Path, imported: bool) -> None:
    made = Made(tmp_path, baseline="none")
    made.arm("none", [2.92, 2.93, 2.925], imported=imported)
    made.arm("5", [2.91, 2.915, 2.91], sources=[5], imported=imported)
    named = [text for text in findings.find(made.read()).warnings if "very same loss" in text]
    assert [text.split(": ")[1] for text in named] == ([] if imported else ["5"])


def test_pairs_only_where_they_were_declared(tmp_path: Path) -> None:
    losses = [2.0, 3.0, 4.0], [1.99, 2.985, 3.99]
    for paired, says in ((False, "not distinguishable"), (True, "lower loss")):
        made = Made(tmp_path / str(paired), baseline="none", plan={"paired": paired})
        made.arm("none", losses[0])
        made.arm("5", losses[1], sources=[5])
        row = rows(findings.find(made.read()), "difference")[0]
        assert (row["says"], row["test"]) == (says, "paired" if paired else "dunnett")


def test_pairs_are_counted_and_more_of_them_advised(tmp_path: Path) -> None:
    made = Made(tmp_path, baseline="none", plan={"paired": True})
    made.arm("none", [2.0, 3.0, 4.0, None, None])
    made.arm("5", [1.99, 3.02, 3.99, 5.0, 6.0], sources=[5])
    found = findings.find(made.read())
    [row], sd = rows(found, "difference"), np.std([-0.01, 0.02, -0.01], ddof=1)
    assert (row["n"], row["test"]) == (3, "paired")
    assert "(n = 3, 95 % interval" in found.answer
    made = Made(tmp_path / "fewer", baseline="none", plan={"paired": True})
    made.arm("none", [2.0, 3.0])
    made.arm("5", [1.99, 3.02], sources=[5])
    found = findings.find(made.read())
    [row], sd = rows(found, "difference"), np.std([-0.01, 0.02], ddof=1)
    effect = 0.005 / sd
    assert row["seeds_to_tell"] == math.ceil(TTestPower().solve_power(effect_size=effect, alpha=0.05, power=0.8))
    assert rows(found, "power")[0]["sd"] == pytest.approx(sd)


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
    with pytest.raises(UserError, match=r"^--baseline 7 is not an arm of question; valid: none, 5$"):
        report.make(multirun, ["question"], baseline="7")
    other = report.make(multirun, ["question"], baseline="5", out=tmp_path / "elsewhere")
    assert other.evidence.baseline == "5"
    assert other.page == tmp_path / "elsewhere" / "index.html"
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^no report can be written to .*/file \(.*; --out names another$"):
        report.make(multirun, ["question"], out=tmp_path / "file")


# --------------------------------------------------------------------------------------------------------------- power


def power(*arguments: str, status: int = 0) -> str:
    done = CliRunner().invoke(app, ["power", *arguments])
    if status:
        assert isinstance(done.exception, UserError)
        return str(done.exception)
    assert done.exit_code == 0, done.output
    return done.output


def test_power_from_a_sweep(tmp_path: Path) -> None:
    """Three runs of the baseline with an sd of 0.005, each 10 s on 8 GPUs."""
    made = Made(tmp_path, baseline="none")
    for arm, losses in (("none", [2.92, 2.93, 2.925]), ("5", [2.8]), ("6", [2.8])):
        made.arm(arm, losses, sources=[] if arm == "none" else [int(arm)], gpus=["H100"] * 8)
    made.write()
    found = json.loads(power("question", "--seeds", "3", "--json", "--multirun", str(tmp_path)))
    (row,) = found["rows"]
    assert found["spread"]["sd"] == pytest.approx(0.005)
    assert found["alpha"] == pytest.approx(0.025)
    assert found["spread"]["gpu_hours"] == pytest.approx(80 / 3600)
    assert row["gpu_hours_for_half"] == pytest.approx(3 * row["seeds_for_half"] * 80 / 3600)
    assert "of 3 finished seeds in 1 arm; sd of few runs: could be 4.4 times as large" in power(
        "question", "--multirun", str(tmp_path)
    )


def test_power_of_a_given_spread_is_its_own_inverse() -> None:
    found = json.loads(power("--sd", "0.0007", "--seeds", "8", "--json"))["rows"][0]["difference"]
    assert json.loads(power("--sd", "0.0007", "--difference", str(found * 1.001), "--json"))["rows"][0]["seeds"] == 8


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "give either a sweep that has finished runs, or --sd"),
        (("--sd", "0"), "--sd 0.0 is not a standard deviation"),
        (("--sd", "nan"), "--sd nan is not a standard deviation"),
        (("--sd", "1", "--seeds", "1"), "--seeds 1 cannot tell anything apart"),
        (("--sd", "1", "--arms", "1"), "--arms 1: at least 2"),
        (("--sd", "1", "--difference", "-1"), "--difference -1.0 must be above 0"),
        (("--sd", "1", "--difference", "0.0001"), "more than 10000 seeds"),
        (("--sd", "1", "--difference", "1", "--seeds", "3"), "answer each other; give one of them"),
    ],
    ids=str,
)
def test_power_refuses(arguments: tuple[str, ...], says: str) -> None:
    assert says in power(*arguments, status=2)


def test_power_needs_a_spread(tmp_path: Path) -> None:
    made = Made(tmp_path, baseline="none")
    made.arm("none", [2.92])
    made.write()
    assert "no arm of sweep question has two finished seeds that differ" in power(
        "question", "--multirun", str(tmp_path), status=2
    )


@pytest.mark.parametrize("paired", [False, True])
def test_power_says_what_the_report_says(tmp_path: Path, paired: bool) -> None:
    """The baseline's runs lie closer together by chance: the report's test goes by the spread of all arms."""
    made = Made(tmp_path, baseline="none", plan={"paired": paired})
    for arm, losses in (("none", [2.92, 2.921, 2.923]), ("5", [2.85, 2.88, 2.87]), ("6", [2.93, 2.95, 2.97])):
        made.arm(arm, losses, sources=[] if arm == "none" else [int(arm)])
    reported = {row["seeds_per_arm"]: row for row in rows(findings.find(made.read()), "power")}
    told = json.loads(power("question", "--json", "--multirun", str(tmp_path)))
    assert {row["seeds"]: row["difference"] for row in told["rows"]} == {
        n: pytest.approx(row["detectable_difference"]) for n, row in reported.items()
    }
    assert told["spread"]["sd"] == reported[5]["sd"]
    text = power("question", "--multirun", str(tmp_path))
    what = "6 paired differences in 2 arms; sd of few runs: could be 2.4 times as large" if paired else "9 finished"
    assert f"measured: of {what}" in " ".join(text.split())


# ----------------------------------------------------------------------------------------- partial and damaged folders

DAMAGE: tuple[bytes | None, ...] = (None, b"", b"{", b"null", b"[]", b'"text"', b'{"val_loss": "x"}', b"\xff\xfe", b"3")
"""What a file may hold after a crash, a full disk or an editor; None: nothing at all."""


@pytest.mark.parametrize("seed", range(12))
def test_no_damage_to_run_folders_is_an_error(tmp_path: Path, seed: int) -> None:
    """Files emptied, torn or gone at random: the counts still add up, and what is left is still a report."""
    draw = random.Random(seed)
    made = Made(tmp_path, baseline="none", target=2.9)
    for arm in ("none", "5", "6"):
        sources = [] if arm == "none" else [int(arm)]
        losses = [draw.choice([2.8, 2.9, 2.95, None]) for _ in range(draw.randint(1, 4))]
        made.arm(arm, losses, sources=sources, lambdas={f"lambda/skip/{s}": -0.2 for s in sources})
    for run in made.multirun.all_runs():
        for path in sorted(p for p in run.path.iterdir() if p.is_file()):
            if draw.random() < 0.3:
                content = draw.choice(DAMAGE)
                path.unlink() if content is None else path.write_bytes(content)
        if draw.random() < 0.1:
            shutil.rmtree(run.path)
    found = findings.find(made.read())
    counts = dict(found.counts)
    assert counts.pop("planned") == sum(counts.values())
    finished = [row for row in rows(found, "runs") if row["val_loss"] is not None]
    assert counts["done"] == len(finished)
    assert sum(int(str(row["n"])) for row in rows(found, "final_loss")) == len(finished)
    assert found.answer
    json.dumps(found.tables, allow_nan=False)


def test_a_report_of_damaged_folders_is_written(tmp_path: Path) -> None:
    made = Made(tmp_path, baseline="none", target=2.9)
    torn, *_ = made.arm("none", [2.8, 2.9])
    gone, *_ = made.arm("5", [2.7, 2.75], sources=[5])
    torn.metrics.write_bytes(torn.metrics.read_bytes()[:-30])
    gone.result.write_bytes(b"{")
    multirun = made.write()
    written = report.make(multirun, ["question"])
    assert written.findings.counts == {"planned": 4, "done": 3, "failed": 0, "running": 0, "missing": 1}
    assert written.findings.warnings[0].startswith("1 of 4 runs have no result")
    assert written.findings.warnings[1].endswith(f": {gone.name}/result.json")


# ------------------------------------------------------------------------------------------------------------ warnings


@pytest.mark.parametrize(
    ("about", "says"),
    [
        ({"steps": 50}, "the baseline ran 100 steps, these arms a different number: 5 (50)"),
        ({"host": "other"}, "runs were made with 2 hosts (node1, other)"),
        ({"host": "other"}, "training times come from several machines"),
        ({"torch": "2.11.0"}, "runs were made with 2 versions of torch (2.11.0, 2.13.0)"),
        ({"results_version": 1}, "runs were made with 2 versions of the numerics (1, 2)"),
        ({"commit": "other"}, "runs were made with 2 versions of the code"),
        ({"imported": True}, "2 of 4 runs were imported from logs"),
    ],
    ids=str,
)
def test_what_makes_a_comparison_less_than_it_seems(tmp_path: Path, about: dict[str, object], says: str) -> None:
    made = Made(tmp_path, baseline="none")
    made.arm("none", [2.92, 2.93])
    made.arm("5", [2.91, 2.925], sources=[5], **about)
    assert any(text.startswith(says) for text in findings.find(made.read()).warnings)


def test_arms_that_differ_in_more_and_arms_with_one_run_are_named(tmp_path: Path) -> None:
    made = Made(tmp_path, baseline="none", plan={"confounds": {"5": ["schedule.steps"]}})
    made.arm("none", [2.92, 2.93])
    made.arm("5", [2.91], sources=[5])
    made.arm("6", [2.915, 2.915], sources=[6])
    made.arm("7", [2.925, 2.935], sources=[7])
    warnings = findings.find(made.read()).warnings
    assert any("in more than the question" in text and text.endswith("5 (schedule.steps)") for text in warnings)
    assert any(text.startswith("arms with a single finished seed") and text.endswith(": 5") for text in warnings)
    assert any(text.startswith("runs of an arm ended with the very same loss") for text in warnings)
    assert any(text.startswith("the best of 3 arms looks better than it is") for text in warnings)


def test_an_arm_of_another_size_is_named(tmp_path: Path) -> None:
    """A head 100 times as large wins by its size."""
    made = Made(tmp_path, baseline="none")
    made.arm("none", [2.92, 2.93])
    made.arm("5", [2.915, 2.925], sources=[5])
    for run in made.arm("large", [2.82, 2.83], sources=[5]):
        result = json.loads(run.result.read_text())
        result["parameters"]["head"], result["flops_per_token"]["head"] = 50_000, 300_000
        run.result.write_text(json.dumps(result))
    found = findings.find(made.read())
    [told] = [text for text in found.warnings if "another size" in text]
    assert told.endswith(": large (parameters +3,300 %, training FLOPs +3,300 %)")
    assert [(row["parameters"], row["training_pflop"]) for row in rows(found, "final_loss")] == [
        (1500, pytest.approx(9000 * 204_800 / 1e15)),
        (1500, pytest.approx(9000 * 204_800 / 1e15)),
        (51_000, pytest.approx(306_000 * 204_800 / 1e15)),
    ]


def test_a_run_that_diverged_is_named_and_the_other_arms_are_still_told_apart(tmp_path: Path) -> None:
    made = Made(tmp_path, baseline="none")
    made.arm("none", [2.92, 2.921, 2.922])
    made.arm("5", [2.90, 2.901, 2.902], sources=[5])
    _, bad, _ = made.arm("6", [2.93, 7.3, 2.931], sources=[6])
    found = findings.find(made.read())
    assert [row["says"] for row in rows(found, "difference")] == ["lower loss", "not distinguishable"]
    [told] = [text for text in found.warnings if "diverged" in text]
    assert told.startswith(f"runs that lie far from their arm, possibly diverged: {bad.name} of 6 (7.3000);")
    made.arm("7", [2.91], sources=[7])
    assert "arms with a single finished seed, so that they cannot be tested: 7" in findings.find(made.read()).warnings


def test_an_arm_that_borrows_the_spread_of_larger_ones_is_named(tmp_path: Path) -> None:
    def told(folder: str, six: list[float]) -> list[str]:
        made = Made(tmp_path / folder, baseline="none")
        made.arm("none", [2.92, 2.921, 2.922, 2.924])
        made.arm("5", [2.90, 2.901, 2.903], sources=[5])
        made.arm("6", six, sources=[6])
        return [text for text in findings.find(made.read()).warnings if "half of the others" in text]

    [text] = told("alike", [2.93, 2.932])
    assert text.endswith(": 6 (2)")
    assert told("unlike", [2.93, 3.2]) == [], "Welch's test borrows nothing"


def test_pairs_are_recommended_where_seeds_make_most_of_the_spread(tmp_path: Path) -> None:
    """Recommended for a new sweep: not where they are declared, and not where they would not help."""

    def warned(folder: str, own: list[float], paired: bool) -> bool:
        made = Made(tmp_path / folder, baseline="none", plan={"paired": paired})
        made.arm("none", [2.90, 2.92, 2.94, 2.96, 2.98])
        made.arm("5", own, sources=[5])
        return any("sweep.paired=true" in text for text in findings.find(made.read()).warnings)

    assert warned("alike", [2.890, 2.911, 2.931, 2.949, 2.969], paired=False)
    assert not warned("declared", [2.890, 2.911, 2.931, 2.949, 2.969], paired=True)
    assert not warned("unlike", [2.969, 2.911, 2.931, 2.949, 2.890], paired=False)


def test_published_results_stand_beside_ours(tmp_path: Path) -> None:
    theirs = {"5": {"mean": 2.9, "sd": 0.001, "n": 3}, "none": 2.93, "9": {"mean": 2.5}}
    made = Made(tmp_path, baseline="none", plan={"published": theirs})
    made.arm("none", [2.92, 2.93])
    made.arm("5", [None], sources=[5], state="planned")
    five, base, other = rows(findings.find(made.read()), "published")
    assert (five["ours"], five["published"], five["difference"]) == (None, 2.9, None)
    assert (base["published"], base["difference"]) == (2.93, pytest.approx(-0.005))
    assert (other["arm"], other["n"]) == ("9", None)


MEDIUM = dict(published.SETTINGS) | {"lambda_init.x_lambda": 1.0, "lambda_init.skip_lambda": 0.0}


def test_shipped_figures_stand_beside_the_arms_that_repeat_them(tmp_path: Path) -> None:
    made = Made(tmp_path, baseline="none")
    made.arm("none", [2.92, 2.93], recipe=MEDIUM)
    made.arm("five", [2.921], sources=[5], recipe=MEDIUM, steps=5690)
    made.arm("wide", [2.91], sources=["input"], recipe=MEDIUM | {"head_type.name": "concat"}, steps=5690)
    tags = ["multi_layer/best_to_worst/N=2"]
    made.arm("two", [2.917], sources=[10, 11], tags=tags, recipe=MEDIUM, steps=5500)
    found = findings.find(made.read())
    five, wide, two = rows(found, "published")
    assert (five["arm"], five["published"], five["published_n"]) == ("five", 2.918836, 1)
    assert five["difference"] == pytest.approx(2.921 - 2.918836)
    assert (wide["arm"], wide["published"]) == ("wide", 2.927475)
    assert (two["published"], two["published_n"]) == (pytest.approx((2.917641 + 2.917946) / 2), 2)
    assert two["published_sd"] == pytest.approx(0.000305 / 2**0.5)
    [told] = [text for text in found.warnings if text.startswith("published runs")]
    assert "a different number of steps: two (5550)" in told
    assert "Snoo" in told


@pytest.mark.parametrize(
    "other",
    [
        {"data.name": "sotu"},
        {"model.layers": 12},
        {"model.dim": 768},
        {"residual.unet": []},
        {"residual.unet": [[6, 12], [4, 13], [2, 14]]},
        {"residual.rolling": True},
        {"embeddings.mix": False, "embeddings.extra": 0, "embeddings.value_layers": []},
        {"gate_targets.name": "proportional"},
        {"optim.name": "adamw"},
        {"lambda_init.skip_lambda": 0.5},
        {"head_type.name": ["add"]},
    ],
    ids=str,
)
def test_shipped_figures_of_another_corpus_or_trunk_stand_nowhere(tmp_path: Path, other: dict[str, object]) -> None:
    made = Made(tmp_path, baseline="none")
    made.arm("none", [2.92, 2.93])
    made.arm("five", [2.921], sources=[5], recipe=MEDIUM | other)
    found = findings.find(made.read())
    assert rows(found, "published") == []
    assert not [text for text in found.warnings if text.startswith("published runs")]


# -------------------------------------------------------------------------------------------------------------- golden


def test_a_small_sweeps_tables(tmp_path: Path) -> None:
    """Means, spreads, intervals and p-values, worked out beside."""
    made = Made(tmp_path, baseline="none")
    made.arm("none", [2.90, 2.92, 2.94])
    made.arm("5", [2.81, 2.83], sources=[5])
    made.arm("6", [2.94], sources=[6])
    found = findings.find(made.read())
    base, five, six = rows(found, "final_loss")
    interval = stats.t.interval(0.95, 2, 2.92, 0.02 / 3**0.5)
    assert base == {"arm": "none", "planned": 3, "n": 3, "min": 2.9, "max": 2.94,
                    "mean": pytest.approx(2.92), "sd": pytest.approx(0.02),
                    "low_95": pytest.approx(interval[0]), "high_95": pytest.approx(interval[1]),
                    "parameters": 1500, "training_pflop": pytest.approx(9000 * 204_800 / 1e15)}  # fmt: skip
    assert (five["mean"], five["sd"]) == (pytest.approx(2.82), pytest.approx(0.02 / 2**0.5))
    assert (six["mean"], six["sd"], six["low_95"]) == (2.94, None, None)
    better, same = rows(found, "difference")
    pooled = ((2 * 0.02**2 + 0.02**2 / 2) / 3) ** 0.5  # 3 degrees of freedom
    t = 0.1 / (pooled * (1 / 3 + 1 / 2) ** 0.5)
    assert better["difference"] == pytest.approx(-0.1)
    assert stats.t.sf(t, 3) * 2 < float(str(better["p"])) < stats.t.sf(t, 3) * 4  # between uncorrected and Bonferroni
    assert (better["says"], same["says"]) == ("lower loss", "not distinguishable")
