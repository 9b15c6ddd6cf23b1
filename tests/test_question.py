"""What a sweep says of itself and its report rests on: the loss to reach, whether runs are compared in pairs, and the
differences that follow."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import Place, request, result
from sweep_folders import Made

from skipsweep import files
from skipsweep.analyze import arms, evidence, findings
from skipsweep.errors import UserError
from skipsweep.sweep import launch as launching
from skipsweep.sweep import show
from skipsweep.sweep.freeze import freeze
from skipsweep.sweep.plan import Plan

TARGETS = "+sweep.targets={fineweb10B:2.92,synthetic:1.5}"


@pytest.fixture
def plan(tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plan]:
    """What launch.py would plan on a synthetic corpus, below `mine`."""
    monkeypatch.setenv("SKIPSWEEP_DATA", str(data_root))
    place = Place(tmp_path, data_root)
    return lambda *arguments: launching.make_plan(
        request(place.arguments("-m", "skip_layers=none,0", "sweep.name=mine", *arguments))
    )


def test_a_target_belongs_to_a_corpus(plan: Callable[..., Plan]) -> None:
    assert plan(TARGETS).target == 1.5
    assert plan("+sweep.targets={fineweb10B:2.92}").target is None
    assert plan("+sweep.targets={fineweb10B:2.92}", "sweep.target=3.0").target == 3.0
    assert plan("+sweep.targets={fineweb10B:2.92,sotu:3.0}").target is None
    with pytest.raises(
        UserError, match=r"sweep\.targets: fineweb is no choice of data; valid: fineweb100B, fineweb10B"
    ):
        plan("+sweep.targets={fineweb:2.92}")


def test_the_target_is_written_down_and_stays(plan: Callable[..., Plan]) -> None:
    begun = plan(TARGETS)
    freeze(begun, "none")
    assert evidence.read(begun.multirun, ["mine"]).target == 1.5
    assert plan("seed=1").target == 1.5


def test_pairs_are_declared_before_the_first_run(plan: Callable[..., Plan]) -> None:
    begun = plan("sweep.paired=true")
    freeze(begun, "none")
    assert evidence.read(begun.multirun, ["mine"]).paired is True
    freeze(plan("seed=1"), "none")
    assert evidence.read(begun.multirun, ["mine"]).paired is True
    other = plan("sweep.name=other")
    freeze(other, "none")
    assert evidence.read(other.multirun, ["other"]).paired is False
    with pytest.raises(UserError, match=r"sweep other was first launched with sweep\.paired=false"):
        plan("sweep.name=other", "sweep.paired=true")


# --------------------------------------------------------------------------------------------------------- differences

DIFFERENCES: dict[
    str, tuple[list[float | None], dict[str, Any], tuple[float | None, int], tuple[float | None, int]]
] = {
    "balanced": ([2.48, 2.57, 2.91], {}, (-0.04 / 3, 3), (-0.04 / 3, 3)),
    "unfinished": ([2.48, 2.57, None], {}, (2.525 - 8 / 3, 2), (-0.025, 2)),
    "more seeds than the baseline": ([2.48, 2.57, 2.91, 2.4], {}, (2.59 - 8 / 3, 3), (-0.04 / 3, 3)),
    "other seeds": ([2.4, 2.5], {"first_seed": 7}, (2.45 - 8 / 3, 0), (None, 0)),
    "imported": ([2.48, 2.57], {"imported": True}, (2.525 - 8 / 3, 0), (None, 0)),
    "nothing finished": ([None], {}, (None, 0), (None, 0)),
}
"""Losses of an arm beside a baseline of 2.5, 2.6, 2.9 -> difference and seeds in common; the same in a paired sweep."""


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("case", DIFFERENCES)
def test_table_and_report_say_the_same_difference(tmp_path: Path, case: str, paired: bool) -> None:
    """That by which the arm is tested, as the sweep declared before it ran."""
    losses, about, *expected = DIFFERENCES[case]
    made = Made(tmp_path, baseline="plain", plan={"paired": paired})
    made.arm("plain", [2.5, 2.6, 2.9])
    made.arm("arm", losses, **about)
    assert_agree(made, *expected[paired])


@pytest.mark.parametrize("paired", [False, True])
def test_repetitions_of_a_seed_are_averaged_first(tmp_path: Path, paired: bool) -> None:
    made = Made(tmp_path, baseline="plain", plan={"paired": paired})
    made.arm("plain", [2.0, 3.0])
    for replicate, seed, loss in ((1, 0, 2.5), (2, 0, 2.7), (1, 1, 3.1)):
        made.point("arm", seed, made.run(f"arm-{replicate}", seed, loss).name, replicate=replicate)
    assert_agree(made, 0.35, 2)


def assert_agree(made: Made, value: float | None, pairs: int) -> None:
    _, row = arms.of_sweep(made.write(), made.name)
    found = {sheet.file: sheet.rows for sheet in findings.find(made.read()).sheets}
    assert (row.difference, row.pairs) == (None if value is None else pytest.approx(value), pairs)
    assert found["difference"][0]["difference"] == row.difference


def test_seeds_that_are_the_same_only_in_part_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Part of a difference of means may then be theirs: the report adds what the shared ones say."""
    made = Made(tmp_path, baseline="plain")
    made.arm("plain", [2.5, 2.6, 2.9])
    made.arm("part", [2.48, 2.57, None])
    made.arm("other", [2.4, 2.5], first_seed=7)
    made.arm("whole", [2.48, 2.57, 2.91])
    show.arms(arms.of_sweep(made.write(), made.name))
    head, *rows, note = capsys.readouterr().out.splitlines()
    assert "vs baseline  same seeds" in head
    assert [row.split()[-6:-4] for row in rows[1:]] == [["-0.1417", "2"], ["-0.2167", "0"], ["-0.0133", "all"]]
    assert note == "where only some seeds are the same as the baseline's, part of a difference may be due to the seeds"
    [told] = [text for text in findings.find(made.read()).warnings if "same seeds" in text]
    assert told.endswith(": part (-0.02500 over the 2 they share)")


def test_pairs_are_counted_where_they_were_declared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = Made(tmp_path, baseline="plain", plan={"paired": True})
    made.arm("plain", [2.5, 2.6, 2.9])
    made.arm("part", [2.48, 2.57, None])
    show.arms(arms.of_sweep(made.write(), made.name))
    head, _, row = capsys.readouterr().out.splitlines()
    assert "vs baseline  pairs" in head
    assert row.split()[-6:-4] == ["-0.0250", "2"]


def test_without_its_baseline_a_sweep_has_no_differences(tmp_path: Path) -> None:
    made = Made(tmp_path, baseline="gone")
    made.arm("one", [2.5])
    made.arm("other", [2.6])
    assert [row.difference for row in arms.of_sweep(made.write(), made.name)] == [None, None]


def test_what_gates_leave_is_shown_also_where_they_leave_everything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing skipped is another answer than nothing known."""
    made = Made(tmp_path, name="gated", baseline="dense")
    made.arm("dense", [2.0])
    show.arms(arms.of_sweep(made.write(), "gated"))
    assert "estimated" not in capsys.readouterr().out
    (run,) = made.arm("free", [2.0])
    whole = {column: {"head": 3_000_000} for column in ("dense", "estimated", "measured")}
    files.write_json(run.result, {**result(run), "inference_flops_per_token": whole})
    show.arms(arms.of_sweep(made.write(), "gated"))
    assert "inference, estimated  measured" in capsys.readouterr().out


def test_operations_of_inference_are_means_over_seeds_and_those_of_the_whole_model_without_gates() -> None:
    gated = [{"inference_flops_per_token": {"dense": {"a": 9}, "estimated": {"a": n, "b": 1}}} for n in (3, 5)]
    assert arms.inference_flops(gated, "estimated") == 5.0
    assert arms.inference_flops([{"inference_flops_per_token": {"dense": {"a": 9}}}], "estimated") == 9.0
    assert arms.inference_flops([{"val_loss": 2.9}], "measured") is None
