"""The published losses: as many as were published, and the means that follow from them."""

from pathlib import Path
from statistics import fmean

import pytest

from skipsweep import published
from skipsweep.config import leaves, recipe_of
from skipsweep.errors import UserError
from skipsweep.sweep import launch
from skipsweep.sweep.entry import from_command_line


def test_counts_and_known_values() -> None:
    single, concat, multi = (published.load(name).arms for name in ("single_add", "concat_head", "multi_add"))
    assert [sum(map(len, arms.values())) for arms in (single, concat, multi)] == [15, 18, 62]
    assert min(single, key=lambda arm: single[arm]) == "layer=11"
    assert single["layer=11"] == [2.917314]
    assert concat["layer12"] == [2.908049]
    assert concat["input_emb"] == [2.927475]
    assert multi["best_to_worst/N=2"] == [2.917641, 2.917946]
    assert "late_to_early/N=6" not in multi


@pytest.mark.parametrize(
    ("method", "n", "mean"),
    [
        ("best_to_worst", 13, 2.918690),
        ("late_to_early", 11, 2.918831),
        ("worst_to_best", 12, 2.919472),
        ("early_to_late", 12, 2.919551),
    ],
)
def test_means_of_the_orderings(method: str, n: int, mean: float) -> None:
    arms = published.load("multi_add").arms
    losses = [loss for arm, own in arms.items() if arm.startswith(f"{method}/") for loss in own]
    assert len(losses) == n
    assert fmean(losses) == pytest.approx(mean, abs=6e-7)


@pytest.mark.parametrize("name", published.NAMES)
def test_every_set_says_where_it_is_from(name: str) -> None:
    found = published.load(name)
    assert "6536c19" in found.source
    assert found.caveat


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(UserError, match=r"valid: single_add, concat_head, multi_add"):
        published.load("nothing")


@pytest.mark.parametrize("head", ["add", "concat"])
def test_the_settings_are_those_of_the_medium_preset(
    head: str, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A single layer there is what was published; identity.json holds the settings in that form."""
    monkeypatch.setenv("SKIPSWEEP_DATA", str(data_root))
    arguments = ["scale=medium", f"head_type={head}", "skip_layers=5", f"paths.multirun={tmp_path}"]
    [config] = launch.make_plan(from_command_line(arguments)).configs.values()
    recipe = leaves(recipe_of(config))
    wanted = published.SETTINGS | published.OF_HEAD.get(head, {})
    assert {key: recipe[key] for key in wanted} == wanted
