"""Layers ranked by a sweep's single-layer arms: what is read, what is refused, what is frozen."""

from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Place, request
from sweep_folders import Made

from skipsweep import files
from skipsweep.errors import UserError
from skipsweep.sweep import launch as launching
from skipsweep.sweep import ranking
from skipsweep.sweep.freeze import freeze
from skipsweep.sweep.plan import Plan

DEPTH = {"model.layers": 3}
BEST = ("selection_method=best_to_worst", "selection_method.ranking_from=single")
Planner = Callable[..., Plan]


def single(folder: Path, losses: dict[int, list[float | None]], layers: int = 3) -> Made:
    """A sweep with one arm per layer."""
    made = Made(folder, name="single", baseline="none", plan={"commands": ["python launch.py -m first"]})
    made.arm("none", [3.0], recipe={"model.layers": layers})
    for layer, of_layer in losses.items():
        made.arm(f"skip_layers={layer}", of_layer, sources=[layer], recipe={"model.layers": layers})
    made.write()
    return made


@pytest.fixture
def plan(tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch) -> Planner:
    """What launch.py would plan for a trunk of three layers, beside the sweep `single`."""
    place = Place(tmp_path, data_root)
    monkeypatch.setenv("SKIPSWEEP_DATA", str(data_root))
    return lambda *arguments: launching.make_plan(request(place.arguments("-m", *arguments)))


# -------------------------------------------------------------------------------------------- what is read


def test_layers_are_ranked_by_their_mean_and_then_by_number(tmp_path: Path) -> None:
    made = single(tmp_path, {3: [2.0, 4.0], 1: [2.5, 2.5], 0: [3.0, 3.0], 2: [2.9, 2.9]}, layers=5)
    made.arm("pair", [1.0], sources=[0, 1], recipe={"model.layers": 5})
    made.arm("input", [1.0], sources=["input"], recipe={"model.layers": 5})
    made.write()
    assert ranking.read(made.multirun, "single", 5).layers == [1, 2, 0, 3]


def test_a_repeated_seed_counts_once(tmp_path: Path) -> None:
    made = single(tmp_path, {0: [2.5, 2.5], 1: [2.0, 3.2]})
    for replicate in (1, 2):
        again = {"model.layers": 3, "replicate": replicate}
        run = made.run(f"skip_layers=1 again {replicate}", 0, 2.0, sources=[1], recipe=again)
        made.point("skip_layers=1", 0, run.name, [1], replicate=replicate)
    made.write()
    assert ranking.read(made.multirun, "single", 3).layers == [0, 1]


@pytest.mark.parametrize(("method", "layer"), [("best_to_worst", 1), ("worst_to_best", 0)])
def test_the_identity_knows_the_ranking_only(method: str, layer: int, tmp_path: Path, plan: Planner) -> None:
    single(tmp_path, {0: [2.9], 1: [2.8]})
    (point,) = plan("skip_layers=top1", f"selection_method={method}", "selection_method.ranking_from=single").points
    (given,) = plan("skip_layers=top1", f"selection_method={method}", "selection_method.ranking=[1,0]").points
    (direct,) = plan(f"skip_layers={layer}").points
    assert (point.sources, point.run) == ((layer,), given.run) == ((layer,), direct.run)
    (repeated,) = plan(*point.overrides[-4:]).points
    assert repeated.run == point.run
    assert point.overrides[-1] == "selection_method.ranking=[1,0]"


def test_a_ranking_that_is_given_comes_first(tmp_path: Path, plan: Planner) -> None:
    single(tmp_path, {0: [2.9], 1: [2.8]})
    (point,) = plan("skip_layers=top1", *BEST, "selection_method.ranking=[0,1]").points
    assert point.sources == (0,)


def test_nothing_is_read_that_is_not_needed(plan: Planner) -> None:
    made = plan("skip_layers=none,1,top2", "selection_method=late_to_early", "selection_method.ranking_from=nowhere")
    assert made.rankings == {}
    assert plan("skip_layers=none,1", *BEST).rankings == {}


# -------------------------------------------------------------------------------------------- what is refused


def test_a_sweep_that_is_not_there(tmp_path: Path, plan: Planner) -> None:
    with pytest.raises(UserError, match=r"ranking_from=single: no sweep of that name .*; there are: none yet$"):
        plan("skip_layers=top1", *BEST)
    with pytest.raises(UserError, match="no sweep of that name"):
        plan("skip_layers=top1", "selection_method=best_to_worst", "selection_method.ranking_from='../single'")


def test_layers_without_an_arm_or_without_a_result_are_named_with_the_command(tmp_path: Path) -> None:
    made = single(tmp_path, {0: [2.9], 2: [2.8, None], 4: [None]}, layers=6)
    with pytest.raises(
        UserError, match=r"no arm has layer\(s\) 1,3 as its only source; .*\(python launch.py -m first\)"
    ):
        ranking.read(made.multirun, "single", 6)
    made.arm("1", [2.9], sources=[1], recipe={"model.layers": 6})
    made.arm("3", [2.9], sources=[3], recipe={"model.layers": 6})
    made.write()
    with pytest.raises(UserError, match=r"layer\(s\) 2,4 have runs without a result; .*: python launch.py -m first$"):
        ranking.read(made.multirun, "single", 6)


def test_two_arms_of_one_layer_are_ambiguous_unless_they_are_the_same_runs(tmp_path: Path) -> None:
    made = single(tmp_path, {0: [2.9]})
    (run,) = made.arm("1", [2.8], sources=[1], recipe=DEPTH)
    made.arm("top1", [2.8], sources=[1], same_runs_as=[run])
    made.write()
    assert ranking.read(made.multirun, "single", 3).layers == [1, 0]
    made.arm("concat/1", [2.7], sources=[1], recipe=DEPTH)
    made.write()
    with pytest.raises(UserError, match="two arms have layer 1 as their only source, 1 and concat/1"):
        ranking.read(made.multirun, "single", 3)


def test_another_depth_has_another_ranking(tmp_path: Path, plan: Planner) -> None:
    single(tmp_path, {0: [2.9], 1: [2.8], 2: [2.7]}, layers=4)
    with pytest.raises(UserError, match=r"ranks a trunk of 4 layers \(run .*\), not one of 3"):
        plan("skip_layers=top1", *BEST)


def test_of_several_arms_of_a_layer_the_one_with_the_points_own_settings_counts(tmp_path: Path, plan: Planner) -> None:
    """A sweep over layer and head ranks the layers once for every head."""
    made = single(tmp_path, {0: [2.9], 1: [2.8]})
    for layer, loss in ((0, 2.7), (1, 2.8)):
        made.arm(f"concat/{layer}", [loss], sources=[layer], recipe={**DEPTH, "head_type.name": "concat"})
    made.write()
    for head, best in (("add", 1), ("concat", 0)):
        (point,) = plan("skip_layers=top1", f"head_type={head}", *BEST).points
        assert point.sources == (best,)
    with pytest.raises(UserError, match=r"a sweep has one ranking: launch two, or give .* in the arm"):
        plan("skip_layers=top1", "head_type=add,concat", *BEST)
    with pytest.raises(UserError, match=r"settings to be ranked for \(head_type.name\); give .* in the arm"):
        plan("skip_layers=top1", "head_type=add_renorm", *BEST)


# -------------------------------------------------------------------------------------------- what is frozen


def test_a_sweep_keeps_the_ranking_it_was_begun_with(tmp_path: Path, plan: Planner) -> None:
    single(tmp_path, {0: [2.9], 1: [2.8]})
    asked = ("skip_layers=none,top1", *BEST, "sweep.name=multi")
    begun = plan(*asked)
    freeze(begun, "none")
    assert files.read_json(begun.multirun.sweep("multi").plan)["rankings"] == {"single": [1, 0]}
    assert [len(by) for by in files.read_json(begun.multirun.sweep("multi").plan)["ranked_by"].values()] == [2]
    single(tmp_path, {0: [2.7], 1: [2.8]})
    again = plan(*asked, "seed=0,1")
    assert [point.sources for point in again.points] == [(), (), (1,), (1,)]
    assert again.notes == [
        "ranking of single: kept as frozen, 1,0; its results now say 0,1 (choose another sweep.name to use that)"
    ]
    assert [point.sources for point in plan(*asked[:-1], "sweep.name=other").points] == [(), (0,)]
    (tmp_path / "sweeps" / "single" / "plan.json").unlink()
    assert plan(*asked).rankings == {"single": [1, 0]}


def test_a_frozen_ranking_of_another_depth_is_refused(tmp_path: Path, plan: Planner) -> None:
    single(tmp_path, {0: [2.9], 1: [2.8]})
    freeze(plan("skip_layers=top1", *BEST, "sweep.name=multi"), "none")
    with pytest.raises(UserError, match="ranking_from=single ranks a trunk of 3 layers, not one of 4"):
        plan("skip_layers=top1", *BEST, "sweep.name=multi", "model.layers=4")
