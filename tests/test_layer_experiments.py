"""The questions about layers, one after the other: which one, how many, and why layer 11."""

from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Done, Place, request
from sweep_folders import Made

from skipsweep import files
from skipsweep.analyze import evidence
from skipsweep.sweep import launch as launching
from skipsweep.sweep.entry import from_command_line
from skipsweep.sweep.plan import Plan

MEDIUM = ["model=medium", "data=fineweb10B", "schedule=speedrun", "compute=h100x8", "record.val_every=125"]
ORDERINGS = ("best_to_worst", "worst_to_best", "late_to_early", "early_to_late", "random")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Place:
    return Place(tmp_path_factory.mktemp("layers") / "runs", data_root)


@pytest.fixture(scope="module")
def single(place: Place) -> Done:
    """`single_layer` on a trunk of three layers, one seed."""
    return place.launch("experiment=single_layer", "sweep.seeds=0")


@pytest.fixture(scope="module")
def multi(place: Place, single: Done) -> Done:
    """`multi_layer` after it."""
    return place.launch("experiment=multi_layer", "sweep.seeds=0", "selection_method.ranking_from=single_layer")


@pytest.fixture
def plan(tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plan]:
    """What launch.py would plan of the medium model in an empty folder."""
    monkeypatch.setenv("SKIPSWEEP_DATA", str(data_root))
    return lambda name, *more: launching.make_plan(
        from_command_line([f"experiment={name}", *MEDIUM, f"paths.multirun={tmp_path}", *more])
    )


# ------------------------------------------------------------------------------------------------------ for real, tiny


def test_which_layer(single: Done) -> None:
    assert (single.status, single.err) == (0, "")
    assert list(single.table()) == ["none", "layer/skip_layers=0", "layer/skip_layers=1"]


def test_how_many_layers_runs_only_what_is_new(place: Place, single: Done, multi: Done) -> None:
    """Of 11 points on two layers, `none` and all with one layer are there already; both layers are one run."""
    assert (multi.status, multi.err) == (0, "")
    assert multi.line("11 points").startswith("11 points, 4 runs: 3 finished, 1 to run")
    assert set(place.attempts().values()) == {1}


def test_the_ranking_is_the_one_of_the_results(place: Place, single: Done, multi: Done) -> None:
    losses = {n: float(single.table()[f"layer/skip_layers={n}"]["val loss"]) for n in (0, 1)}
    document = files.read_json(place.multirun.sweep("multi_layer").plan)
    ranking = document["rankings"]["single_layer"]
    assert losses[ranking[0]] <= losses[ranking[1]]
    sources = {point["key"][0]: point["sources"] for point in document["points"]}
    assert sources["top/selection_method=best_to_worst,skip_layers=top1"] == ranking[:1]
    assert sources["top/selection_method=worst_to_best,skip_layers=top1"] == ranking[1:]


def test_the_best_layer_of_the_same_runs_is_named(place: Place, multi: Done) -> None:
    found = evidence.read(place.multirun, ["multi_layer"])
    assert found.chosen_on == {
        f"top/selection_method={method},skip_layers=top1": "single_layer"
        for method in ("best_to_worst", "worst_to_best")
    }


def test_few_layers_on_request(place: Place, multi: Done, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKIPSWEEP_DATA", str(place.data))
    few = ("experiment=multi_layer", "sweep.arms.top.skip_layers=top2..top2", "sweep.seeds=0")
    made = launching.make_plan(request(place.arguments(*few)))
    assert list(made.arms()) == ["none", *(f"top/selection_method={name},skip_layers=top2" for name in ORDERINGS)]
    assert {seen.state for seen in made.observations.values()} == {"done"}


# ------------------------------------------------------------------------------------------------------ planned, medium


def test_single_layer_at_medium_size(plan: Callable[..., Plan]) -> None:
    made = plan("single_layer")
    assert [point.sources for point in made.points if point.seed == 0] == [(), *((layer,) for layer in range(15))]
    assert (len(made.configs), made.target) == (16 * 8, 2.92)


def test_multi_layer_at_medium_size(plan: Callable[..., Plan], tmp_path: Path) -> None:
    ranked = Made(tmp_path, name="single_layer", baseline="none")
    for layer in range(15):
        ranked.arm(f"{layer}", [2.92 + layer / 1000], sources=[layer], recipe={"model.layers": 16})
    ranked.write()
    made = plan("multi_layer")
    assert len(made.points) == 3 * (1 + 5 * 15)
    everything = {point.run for point in made.points if len(point.sources) == 15}
    assert len(everything) == 3  # one per seed, whatever the ordering
    assert not made.configs.keys() & plan("single_layer").configs.keys()  # the best layer was lucky in those


def test_why_layer_11_at_medium_size(plan: Callable[..., Plan]) -> None:
    """A sweep per wiring, each with its own baseline, and the third is single_layer."""
    made = plan("why_layer_11"), plan("why_layer_11", "residual=shifted", "sweep.name=why_layer_11_shifted")
    wirings = [{tuple(map(tuple, run.residual.unet)) for run in one.configs.values()} for one in made]
    assert wirings == [{()}, {((6, 12), (4, 13), (2, 14))}]
    for one in made:
        assert (len(one.configs), one.baseline, one.confounds) == (3 * 16, "none", {})
    assert [one.name for one in made] == ["why_layer_11", "why_layer_11_shifted"]
    assert list(made[0].arms()) == list(plan("single_layer").arms())
