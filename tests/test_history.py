"""What is decided after results exist is written down when planning, and the report says so."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import Place, request
from sweep_folders import Made

from skipsweep import files
from skipsweep.analyze import evidence, findings, report
from skipsweep.errors import UserError
from skipsweep.sweep import launch as launching
from skipsweep.sweep.freeze import freeze
from skipsweep.sweep.plan import Plan

Launcher = Callable[..., dict[str, Any]]
ARMS = ("skip_layers=none", "skip_layers=0")


@pytest.fixture
def plan(tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plan]:
    """What launch.py would plan of two arms, unless others are named."""
    monkeypatch.setenv("SKIPSWEEP_DATA", str(data_root))
    place = Place(tmp_path, data_root)

    def planned(name: str, *arguments: str) -> Plan:
        arms = () if any(one.startswith("skip_layers=") for one in arguments) else ("skip_layers=none,0",)
        return launching.make_plan(request(place.arguments("-m", *arms, f"sweep.name={name}", *arguments)))

    return planned


@pytest.fixture
def launched(plan: Callable[..., Plan]) -> Launcher:
    """plan.json after a launch whose runs have all finished."""

    def launch(name: str, *arguments: str) -> dict[str, Any]:
        made = plan(name, *arguments)
        freeze(made, "none")
        for run in map(made.multirun.run, made.configs):
            files.write_json(run.result, {"val_loss": 2.5})
        return files.read_json(made.multirun.sweep(name).plan)

    return launch


# --------------------------------------------------------------------------------------------------------------- seeds


def test_seeds_that_follow_results_are_written_down(launched: Launcher) -> None:
    """Not those of an arm that is new, and not the same command again."""
    assert launched("mine", "seed=0,1")["seeds_added"] == {}
    assert launched("mine", "seed=0,1")["seeds_added"] == {}
    assert launched("mine", "seed=0,1", "skip_layers=1,[0,1]")["seeds_added"] == {}
    assert launched("mine", "seed=1,2,3")["seeds_added"] == {arm: [2, 3] for arm in ARMS}
    assert launched("mine", "seed=4", "skip_layers=0,input")["seeds_added"] == {ARMS[0]: [2, 3], ARMS[1]: [2, 3, 4]}


def test_seeds_that_follow_what_could_not_be_tested_are_no_second_look(launched: Launcher, plan: Any) -> None:
    assert launched("one", "seed=0")["seeds_added"] == {}
    assert launched("one", "seed=range(0,5)")["seeds_added"] == {}
    freeze(plan("waiting", "seed=range(5,8)"), "none")
    assert launched("waiting", "seed=range(5,9)")["seeds_added"] == {}


def test_a_repetition_is_no_further_seed(launched: Launcher) -> None:
    assert launched("repeated", "seed=0", "replicate=0,1")["seeds_added"] == {}
    assert launched("repeated", "seed=1", "replicate=0,1")["seeds_added"] == {}  # nothing could be tested of one seed
    assert launched("repeated", "seed=0,1", "replicate=0,1,2")["seeds_added"] == {}
    assert set(launched("repeated", "seed=2")["seeds_added"]) == set(ARMS)


# --------------------------------------------------------------------------------------------------------- declarations


def test_pairs_that_are_declared_over_finished_runs_are_written_down(launched: Launcher) -> None:
    assert launched("first", "seed=0,1", "sweep.paired=true")["declared_late"] == []
    assert launched("again", "seed=0,1", "sweep.paired=true")["declared_late"] == []  # as they were
    assert launched("unpaired", "seed=0,1")["declared_late"] == []
    assert launched("looked", "seed=0,1", "sweep.paired=true")["declared_late"] == ["pairing"]
    assert launched("looked", "seed=2", "sweep.paired=true")["declared_late"] == ["pairing"]
    assert launched("new", "seed=7,8", "sweep.paired=true")["declared_late"] == []


def test_a_baseline_that_is_chosen_over_finished_runs_is_written_down(launched: Launcher) -> None:
    other = f"sweep.baseline='{ARMS[1]}'"
    assert launched("first", "seed=0,1")["declared_late"] == []
    assert launched("same", "seed=0,1")["declared_late"] == []
    assert launched("looked", "seed=0,1", other)["declared_late"] == ["baseline"]
    assert launched("first", "seed=0,1", other)["declared_late"] == ["baseline"]
    assert launched("new", "seed=7,8", other)["declared_late"] == []


def test_pairs_that_united_sweeps_are_not_compared_in_are_no_decision(tmp_path: Path) -> None:
    plain, late = Made(tmp_path, "plain", baseline="none"), Made(tmp_path, "late", baseline="none")
    late.plan |= {"declared_late": ["pairing", "baseline"], "paired": True}
    for made in (plain, late):
        made.arm("none", [2.5, 2.6])
        made.write()
    assert evidence.read(plain.multirun, ["plain", "late"]).declared_late == ()
    assert evidence.read(plain.multirun, ["late", "plain"]).declared_late == ("baseline",)
    assert evidence.read(plain.multirun, ["late"]).declared_late == ("pairing", "baseline")


def test_the_report_says_what_was_decided_late(tmp_path: Path) -> None:
    made = Made(tmp_path, baseline="none")
    made.arm("none", [2.5, 2.6])
    made.arm("5", [2.3, 2.4], sources=[5])
    late = ("seeds were added after results existed: 5; ", "declared after results: pairing; ")

    def told(baseline: str | None = None) -> list[str]:
        found = report.make(made.write(), [made.name], baseline, tmp_path / "out").findings.warnings
        return [text for text in found if "after results" in text]

    assert told("none") == []
    made.plan |= {"seeds_added": {"5": [1]}, "declared_late": ["pairing"], "paired": True}
    assert [text.startswith(start) for text, start in zip(told(), late, strict=True)] == [True, True]
    assert told("5")[1].startswith("declared after results: pairing and baseline; ")


def test_more_seeds_are_advised_as_a_new_sweep(tmp_path: Path) -> None:
    made = Made(tmp_path, baseline="none")
    made.arm("none", [2.92, 2.93, 2.925], first_seed=4)
    made.arm("5", [2.918, 2.928, 2.923], sources=[5], first_seed=4)
    assert findings.find(made.read()).answer.endswith(
        "of that size: a new sweep with others (sweep.name=... 'sweep.seeds=range(7,107)')."
    )


# ---------------------------------------------------------------------------------------------------- what else changes


def test_what_a_launch_leaves_behind_or_changes_is_said(launched: Launcher, plan: Any) -> None:
    launched("mine", "sweep.question=Why?")
    assert plan("mine").notes == []
    assert plan("mine", "sweep.question=How?").notes == ["sweep mine: its question was 'Why?'"]
    assert plan("mine", "skip_layers=1,none").notes == [
        "sweep mine also has arm skip_layers=0 from earlier launches (another sweep.name leaves it out)"
    ]
    assert plan("other", "skip_layers=1,none", "sweep.question=How?").notes == []


def test_a_point_that_would_be_another_run_is_refused_with_what_differs(launched: Launcher, plan: Any) -> None:
    launched("mine")
    with pytest.raises(
        UserError, match=r"now it would be \S+: optim\.lr 0\.01 -> 0\.02, schedule\.steps 12 -> 9; choose"
    ):
        plan("mine", "optim.lr=0.02", "schedule.steps=9")
