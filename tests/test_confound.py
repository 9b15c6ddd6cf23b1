"""A second difference between arms, or between the seeds of one, is refused, or marked where that is asked for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import Place, request

from skipsweep.analyze import arms, evidence
from skipsweep.errors import UserError
from skipsweep.sweep import confound, show
from skipsweep.sweep import launch as launching
from skipsweep.sweep.confound import Key, Points
from skipsweep.sweep.freeze import freeze
from skipsweep.sweep.plan import Plan

MAY_DIFFER = "sweep.may_differ=[skip_layers,head_type]"
WARM = "schedule.warmup_steps"


@pytest.fixture
def plan(tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plan]:
    monkeypatch.setenv("SKIPSWEEP_DATA", str(data_root))
    return lambda *arguments: launching.make_plan(request(Place(tmp_path, data_root).arguments("-m", *arguments)))


def points(runs: dict[Key, dict[str, Any]], before: tuple[Key, ...] = (), drawn: tuple[str, ...] = ()) -> Points:
    """Points whose runs are named by their keys. `before`: those that an earlier launch planned."""
    names = {key: str(key) for key in runs}
    settings = {names[key]: value for key, value in runs.items()}
    earlier, now = ({k: n for k, n in names.items() if (k in before) is old} for old in (True, False))
    return Points(now, earlier, drawn, settings.__getitem__)


def told(found: Any) -> list[tuple[str, str]]:
    return [(one.arm, one.key) for one in found]


# --------------------------------------------------------------------------------------------------------- what counts


def test_every_point_is_compared_with_the_baselines_of_its_seed() -> None:
    """Steps that go with the seed are no difference between arms; one point that has others is."""
    runs: dict[Key, dict[str, Any]] = {
        ("base", seed, 0): {"seed": seed, "schedule.steps": 10 + seed, "skip_layers.layers": []} for seed in (0, 1)
    }
    runs |= {("arm", seed, 0): {**runs["base", seed, 0], "skip_layers.layers": [5]} for seed in (0, 1)}
    assert told(confound.against_baseline(points(runs), "base", ["skip_layers"])) == []
    assert told(confound.against_baseline(points(runs), "base", [])) == [("arm", "skip_layers.layers")] * 2
    runs["arm", 1, 0]["schedule.steps"] = 10
    assert told(confound.against_baseline(points(runs), "base", ["skip_layers"])) == [("arm", "schedule.steps")]
    assert told(confound.against_baseline(points(runs, before=(("base", 0, 0), ("base", 1, 0))), "base", [])) == [
        ("arm", "skip_layers.layers"),
        ("arm", "schedule.steps"),
        ("arm", "skip_layers.layers"),
    ]


def test_a_seed_or_replicate_that_the_baseline_has_not_is_compared_with_the_first() -> None:
    base = {"seed": 0, "replicate": 0, "a.b": 1, "data.epochs": 1}
    other = {"seed": 7, "replicate": 1, "a.b": 2, "data.epochs": 2}
    found = points({("base", 0, 0): base, ("arm", 7, 1): other})
    assert told(confound.against_baseline(found, "base", [])) == [("arm", "a.b")]
    assert told(confound.against_baseline(found, "base", ["a"])) == []
    assert told(confound.against_baseline(found, "base", ["a.bc"])) == [("arm", "a.b")]


def test_seeds_of_an_arm_differ_in_the_seed_alone() -> None:
    runs: dict[Key, dict[str, Any]] = {("arm", seed, 0): {"seed": seed, "optim.lr": 0.1} for seed in (0, 1)}
    assert told(confound.within_arms(points(runs))) == []
    runs["arm", 1, 0]["optim.lr"] = 0.2
    assert told(confound.within_arms(points(runs))) == [("arm", "optim.lr")]
    assert told(confound.within_arms(points(runs, before=(("arm", 1, 0),)))) == [("arm", "optim.lr")]


def test_layers_that_a_seed_draws_may_differ() -> None:
    runs: dict[Key, dict[str, Any]] = {
        ("arm", seed, 0): {"seed": seed, "skip_layers.layers": [seed], "optim.lr": 0.1} for seed in (0, 1)
    }
    assert told(confound.within_arms(points(runs))) == [("arm", "skip_layers.layers")]
    assert told(confound.within_arms(points(runs, drawn=("arm",)))) == []
    runs["arm", 1, 0]["optim.lr"] = 0.2
    assert told(confound.within_arms(points(runs, drawn=("arm",)))) == [("arm", "optim.lr")]


# ------------------------------------------------------------------------------------------------------------- planning


def test_random_layers_are_drawn_by_the_seed_and_planned(plan: Callable[..., Plan]) -> None:
    made = plan("skip_layers=top2", "selection_method=random", "seed=range(0,4)", "model.layers=8", MAY_DIFFER)
    assert len({tuple(point.sources) for point in made.points}) > 1
    assert made.confounds == {}


def test_an_extension_with_other_settings_is_refused(plan: Callable[..., Plan]) -> None:
    freeze(plan("skip_layers=0,1", "sweep.name=mine"), "none")
    with pytest.raises(UserError, match=r"skip_layers=0: seed 1 differs from seed 0 in optim\.lr \(0\.01 -> 0\.02\)"):
        plan("skip_layers=0,1", "sweep.name=mine", "seed=1", "optim.lr=0.02")
    assert len(plan("skip_layers=0,1", "sweep.name=mine", "seed=1").points) == 2


def test_a_confound_that_is_allowed_is_marked_everywhere(
    plan: Callable[..., Plan], capsys: pytest.CaptureFixture[str]
) -> None:
    three = f"+sweep.arms={{plain:{{skip_layers:none}},warm:{{skip_layers:0,{WARM}:2}},one:{{skip_layers:1}}}}"
    with pytest.raises(UserError, match=rf"arm warm differs from the baseline plain in {WARM} \(0 -> 2\)"):
        plan(three, MAY_DIFFER, "sweep.name=marked")
    made = plan(three, MAY_DIFFER, "sweep.name=marked", "sweep.allow_confound=true")
    assert made.confounds == {"warm": [WARM]}
    show.plan(made, [], None)
    shown = capsys.readouterr().out
    assert "confounded by" in shown
    assert shown.count("confounded by") == 1
    freeze(made, "none")
    show.arms(arms.of_sweep(made.multirun, "marked"))
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines() if "confounded by" in line] == ["warm"]
    assert evidence.read(made.multirun, ["marked"]).confounds == {"warm": [WARM]}
    assert plan("skip_layers=input", MAY_DIFFER, "sweep.name=marked").confounds == {"warm": [WARM]}  # as it was
