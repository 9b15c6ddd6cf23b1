"""`each` and `topA..topB`: one arm per value, as many as the composed trunk is deep."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Place, request

from skipsweep.errors import UserError
from skipsweep.sweep import launch as launching
from skipsweep.sweep import select, shorthand
from skipsweep.sweep.plan import Plan

WORDS: dict[str, list[int] | list[str] | None] = {
    "each": [0, 1, 2, 3, 4],
    "top2..top4": ["top2", "top3", "top4"],
    "top4..topN": ["top4", "top5"],
    "top5..top5": ["top5"],
    "top3": None,
    "none": None,
}


@pytest.fixture
def plan(tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plan]:
    """What launch.py would plan for a trunk of three layers."""
    monkeypatch.setenv("SKIPSWEEP_DATA", str(data_root))
    return lambda *arguments: launching.make_plan(request(Place(tmp_path, data_root).arguments(*arguments)))


@pytest.mark.parametrize("word", WORDS)
def test_words_and_the_values_they_stand_for(word: str) -> None:
    assert select.spread(word, 6) == WORDS[word]
    assert shorthand.rewrite(f"skip_layers={word}") == f"skip_layers.layers={word}"


def test_two_layers_have_one_source() -> None:
    assert (select.spread("each", 2), select.spread("top1..topN", 2), select.spread("each", 1)) == ([0], ["top1"], None)


@pytest.mark.parametrize("word", ["top0..top2", "top3..top2", "top2..top6", "top6..topN"])
def test_ranges_that_the_trunk_does_not_have(word: str) -> None:
    with pytest.raises(UserError, match=rf"skip_layers={re.escape(word)}: a trunk of 6 layers has top1 to top5"):
        select.spread(word, 6)


@pytest.mark.parametrize("flag", [(), ("-m",)])
def test_each_is_an_arm_per_layer(flag: tuple[str, ...], plan: Callable[..., Plan]) -> None:
    made = plan(*flag, "skip_layers=each", "model.layers=4")
    assert [(point.arm, point.sources) for point in made.points] == [(f"skip_layers={n}", (n,)) for n in range(3)]
    assert [point.overrides.count(f"skip_layers.layers={n}") for n, point in enumerate(made.points)] == [1, 1, 1]
    assert not any(text.endswith("=each") for point in made.points for text in point.overrides)
    assert made.name is not None


def test_words_beside_values_and_other_axes(plan: Callable[..., Plan]) -> None:
    made = plan("-m", "skip_layers=none,each,top2..topN", "seed=0,1", "head_type=add,concat")
    assert set(made.arms()) == {
        f"skip_layers={layers},head_type={head}" for layers in ("none", 0, 1, "top2") for head in ("add", "concat")
    }
    assert len(made.points) == 16


def test_the_depth_is_that_of_the_point(plan: Callable[..., Plan]) -> None:
    made = plan("-m", "model.layers=2,4", "skip_layers=each")
    assert list(made.arms()) == [
        "model.layers=2,skip_layers=0",
        *[f"model.layers=4,skip_layers={layer}" for layer in (0, 1, 2)],
    ]


def test_words_in_a_block(plan: Callable[..., Plan]) -> None:
    made = plan("+sweep.arms={plain:{skip_layers:none},layer:{skip_layers:each},top:{skip_layers:top2..topN}}")
    assert list(made.arms()) == ["plain", "layer/skip_layers=0", "layer/skip_layers=1", "top/skip_layers=top2"]
    assert made.baseline == "plain"


def test_one_value_of_a_word_is_a_single_run(plan: Callable[..., Plan]) -> None:
    assert plan("skip_layers=each", "model.layers=2").name is None


def test_a_word_inside_a_list_has_no_meaning(plan: Callable[..., Plan]) -> None:
    with pytest.raises(UserError, match="each is not a source"):
        plan("-m", "skip_layers=[each,1]")
