"""What `scaled` means at every depth, and which wirings are refused."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from runs import configuration

from skipsweep import config as c
from skipsweep.errors import UserError
from skipsweep.model import wiring
from skipsweep.sweep import identity, validate
from skipsweep.sweep.canonical import canonical_form

DEPTHS = range(2, 49)
TINY = c.Model(layers=8, dim=16, heads=2, mlp_ratio=2.0)


def test_the_table_of_the_module_is_what_its_functions_say():
    first, second = (wiring.__doc__ or "").split("Other words")
    rows = re.findall(r"^\| (\d+) +\| (.*?) +\| (\d+) +\| (.*?) +\| (.*?) +\|$", first, re.MULTILINE)
    assert [int(row[0]) for row in rows] == [16, 12, 8]
    for depth, unet, no_attention, long_window, values in rows:
        layers = int(depth)
        assert skips(unet) == wiring.unet("scaled", layers)
        assert [int(no_attention)] == wiring.no_attention("scaled", layers)
        assert [int(layer) for layer in long_window.split(", ")] == wiring.long_window("scaled", layers)
        shown = {int(k): v for k, v in re.findall(r"(\d+): (\d+, \d+)", values)}
        found = wiring.value_layers("scaled", layers)
        assert {k: ", ".join(map(str, found[k])) for k in shown} == shown
        assert max(shown) == len(found) - 1
        assert "..." in values or len(shown) == len(found)
    words = re.search(r"^\| layers \| (.*) \|$", second, re.MULTILINE)
    assert words is not None
    names = [word.strip() for word in words[1].split("|")]
    assert {"scaled", *names} == set(wiring.UNETS)
    for layers, *cells in re.findall(r"^\| (\d+) +\| (.*?) +\| (.*?) +\| (.*?) +\|$", second, re.MULTILINE):
        for word, cell in zip(names, cells, strict=True):
            assert skips(cell) == wiring.unet(word, int(layers)), (word, layers)


def skips(text: str) -> list[list[int]]:
    return [[int(end) for end in pair.split("->")] for pair in text.split(", ")]


def test_the_medium_tracks_wiring():
    """Reference record 15."""
    assert wiring.unet("scaled", 16) == [[6, 9], [4, 10], [2, 11]]
    assert wiring.no_attention("scaled", 16) == [7]
    assert wiring.long_window("scaled", 16) == [0, 4, 11, 15]
    assert wiring.value_layers("scaled", 16) == [[0, 11], [1, 12], [2, 13], [3, 14], [4, 15]]


@pytest.mark.parametrize("layers", DEPTHS)
def test_scaled_wiring_is_valid_at_every_depth(layers):
    pairs = wiring.unet("scaled", layers)
    assert all(0 <= source < target < layers for source, target in pairs)
    assert len({source for source, _ in pairs}) == len({target for _, target in pairs}) == len(pairs)
    assert wiring.unet(pairs, layers) == pairs, "written out it is the same choice"
    bare, long, tables = (f("scaled", layers) for f in (wiring.no_attention, wiring.long_window, wiring.value_layers))
    assert set(bare) | set(long) <= set(range(layers))
    assert {0, layers - 1} <= set(long)
    flat = [layer for table in tables for layer in table]
    assert len(flat) == len(set(flat)) == 2 * len(tables)
    assert len(set(range(layers)) - set(bare)) >= layers - 1
    canonical(
        model=replace(TINY, layers=layers, no_attention=bare, long_window=long),
        embeddings=c.Embeddings(mix=True, extra=1, value_layers=tables),
    )
    assert wiring.no_attention(bare, layers) == bare
    assert wiring.long_window(long, layers) == long
    assert wiring.value_layers(tables, layers) == wiring.value_layers(len(tables), layers) == tables


def test_the_small_tracks_wiring():
    """Reference records 44 and 45 (modded-nanogpt #159), 12 layers."""
    assert wiring.unet("short", 12) == [[5, 6], [4, 7], [3, 8], [2, 9], [1, 10]]
    assert wiring.unet("single", 12) == [[4, 7]]


@pytest.mark.parametrize("layers", DEPTHS)
@pytest.mark.parametrize("word", wiring.UNETS)
def test_every_word_is_valid_at_every_depth(word, layers):
    if word == "shifted" and layers in (3, 4):
        with pytest.raises(UserError, match="no room"):
            wiring.unet(word, layers)
        return
    pairs = wiring.unet(word, layers)
    assert wiring.unet(pairs, layers) == pairs, "written out it is the same choice"
    assert len({source for source, _ in pairs}) == len({target for _, target in pairs}) == len(pairs)


@pytest.mark.parametrize("layers", range(5, 49))
def test_shifted_skips_have_the_sources_of_the_usual_ones_and_other_targets(layers):
    usual, shifted = dict(wiring.unet("scaled", layers)), dict(wiring.unet("shifted", layers))
    assert shifted.keys() == usual.keys()
    assert len({shifted[source] - usual[source] for source in usual}) <= 1
    assert all(shifted[source] > usual[source] for source in usual)
    if layers in (12, 16):
        assert not set(shifted.values()) & set(usual.values())


@pytest.mark.parametrize("layers", DEPTHS)
def test_deeper_trunks_are_wired_no_less(layers):
    """From 8 layers on, where there is room for all of it."""
    if layers >= 8:
        assert wiring.unet("scaled", layers)
        assert wiring.no_attention("scaled", layers)
        assert len(wiring.value_layers("scaled", layers)) >= 2
        assert len(wiring.long_window("scaled", layers)) == 4


@pytest.mark.parametrize("f", [wiring.unet, wiring.no_attention, wiring.long_window, wiring.value_layers])
def test_none_is_nothing(f):
    assert f([], 8) == f(None, 8) == f("none", 8) == []


def test_lists_are_sorted():
    assert wiring.no_attention([5, 1], 8) == wiring.long_window((5, 1), 8) == [1, 5]
    assert wiring.unet([[0, 6], [2, 5], [1, 5]], 8) == [[1, 5], [2, 5], [0, 6]]
    assert wiring.value_layers([[6, 2], [1]], 8) == [[2, 6], [1]]


REFUSED: list[tuple[Any, Any, str]] = [
    (wiring.unet, [[3, 3]], r"residual\.unet: \[3, 3\].*0 <= source < target <= 7"),
    (wiring.unet, [[5, 3]], r"residual\.unet: \[5, 3\]"),
    (wiring.unet, [[-1, 3]], r"residual\.unet: \[-1, 3\]"),
    (wiring.unet, [[3, 8]], r"residual\.unet: \[3, 8\]"),
    (wiring.unet, [[1, 2, 3]], r"residual\.unet: \[1, 2, 3\]"),
    (wiring.unet, [[1, 3], [1, 3]], r"residual\.unet.*twice"),
    (wiring.unet, [3, 5], r"residual\.unet=\[3, 5\]; valid: `scaled`"),
    (wiring.unet, [["a", "b"]], r"residual\.unet=.*valid: `scaled`"),
    (wiring.unet, "dense", r"residual\.unet=dense; valid: `scaled`, `shifted`, `short`, `single`, or lists"),
    (wiring.unet, 3, r"residual\.unet=3; valid: `scaled`"),
    (wiring.no_attention, [8], r"model\.no_attention: layer 8.*valid: 0 to 7"),
    (wiring.no_attention, [-1], r"model\.no_attention: layer -1"),
    (wiring.no_attention, [1, 1], r"model\.no_attention=\[1, 1\].*twice"),
    (wiring.no_attention, 3, r"model\.no_attention=3; valid: `scaled`"),
    (wiring.no_attention, [True], r"model\.no_attention=\[True\]; valid"),
    (wiring.long_window, "wide", r"model\.long_window=wide; valid: `scaled`"),
    (wiring.long_window, [1.5], r"model\.long_window=\[1\.5\]; valid"),
    (wiring.value_layers, 5, r"embeddings\.value_layers=5: 8 layers have room for 0 to 4"),
    (wiring.value_layers, -1, r"embeddings\.value_layers=-1"),
    (wiring.value_layers, True, r"embeddings\.value_layers=True; valid"),
    (wiring.value_layers, [[0, 1], [1, 2]], r"no layer has two tables"),
    (wiring.value_layers, [[0], []], r"every table needs a layer"),
    (wiring.value_layers, [[8]], r"embeddings\.value_layers: layer 8"),
    (wiring.value_layers, [0, 1], r"embeddings\.value_layers=\[0, 1\]; valid"),
]


@pytest.mark.parametrize(("f", "value", "says"), REFUSED)
def test_impossible_wiring_is_refused_in_one_line(f, value, says):
    with pytest.raises(UserError, match=says) as raised:
        f(value, 8)
    assert "\n" not in str(raised.value)


IMPOSSIBLE = [
    (c.Residual(unet_weight="tanh"), 8, r"residual\.unet_weight=tanh is unknown; valid: raw, sigmoid"),
    (c.Residual(rolling=True), 3, r"residual\.rolling=true starts at layer 3.*valid: 4 or more"),
    (c.Residual(parallel_tail=1), 8, r"residual\.parallel_tail=1; valid: 0, or 2 to 7 of 8 layers"),
    (c.Residual(parallel_tail=8), 8, r"residual\.parallel_tail=8; valid"),
    (c.Residual(parallel_tail=-1), 8, r"residual\.parallel_tail=-1; valid"),
    (c.Residual(parallel_tail=2, rolling=True), 8, r"residual\.rolling=true.*parallel_tail=2"),
    (c.Residual([[6, 7]], parallel_tail=2), 8, r"residual\.unet: 6->7 .*valid sources: below 6"),
]


@pytest.mark.parametrize(("residual", "layers", "says"), IMPOSSIBLE)
def test_impossible_skips_are_refused_when_planning(residual, layers, says):
    with pytest.raises(UserError, match=says) as raised:
        canonical(residual=residual, model=replace(TINY, layers=layers))
    assert "\n" not in str(raised.value)


def test_scaled_value_embeddings_leave_out_layers_without_attention():
    """The small track's pattern: layer 0 is left out, 1, 2 and 9, 10, 11 have one."""
    assert wiring.value_layers("scaled", 12, [0, 7]) == [[9], [1, 10], [2, 11]]
    assert wiring.value_layers(3, 12, [0, 7]) == [[0, 9], [1, 10], [2, 11]], "asked for in so many words: refused later"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"window_growth": "stages"}, r"model\.window_stages=\[\] must be rising"),
        ({"window_growth": "stages", "window_stages": [3, 2]}, r"model\.window_stages=\[3, 2\] must be rising"),
        ({"window_growth": "stages", "window_stages": [0, 2]}, r"must be rising"),
        ({"window_growth": "stages", "window_stages": [2, 4]}, r"model\.window=64 comes after the stages"),
        ({"yarn": True}, r"model\.yarn=true goes by stages.*valid: stages"),
        ({"softcap_curve": "sine"}, r"model\.softcap_curve=sine is unknown; valid: root, tanh"),
        ({"max_document": -1}, r"model\.max_document=-1 must not be negative"),
        ({"last_window": -1}, r"model\.last_window=-1 must not be negative"),
    ],
)
def test_impossible_windows_are_refused(changes, says):
    config = configuration(Path("/nowhere"), Path("/nowhere"), **NOTHING | {"model": replace(WINDOWED, **changes)})
    with pytest.raises(UserError, match=says) as raised:
        validate.validate(config)
    assert "\n" not in str(raised.value)


def test_a_head_cannot_take_an_mlp_that_is_not_there():
    with pytest.raises(UserError, match=r"head_type=concat_mlp takes the last MLP, but model\.no_mlp has layer 7"):
        canonical(model=replace(TINY, no_mlp=[7]), head_type=c.ConcatMLP(), skip_layers=c.SkipLayers([1]))


def test_value_embeddings_need_attention():
    with pytest.raises(UserError, match="layer 3 has no attention"):
        canonical(model=replace(TINY, no_attention=[3]), embeddings=c.Embeddings(value_layers=[[0, 3]]))


def test_further_embeddings_need_the_sum_they_come_into():
    with pytest.raises(UserError, match=r"embeddings\.extra=1 needs embeddings\.mix=true"):
        canonical(embeddings=c.Embeddings(extra=1))


# ------------------------------------------------------------------------------------------------------ canonical form


NOTHING: dict[str, Any] = {
    "model": TINY,
    "embeddings": c.Embeddings(),
    "residual": c.Residual(),
    "skip_layers": c.SkipLayers(),
    "lambda_init": c.LambdaInit(),
}


def canonical(**changes: Any) -> c.RunConfig:
    config = configuration(Path("/nowhere"), Path("/nowhere"), **NOTHING | changes)
    validate.validate(config)
    return canonical_form(config, replace(config.data, fingerprint="f" * 16, vocab_size=32))


def run_id(**changes: Any) -> str:
    return identity.run_id(c.recipe_of(canonical(**changes)))


MIXED = c.Embeddings(mix=True, extra=1)
WINDOWED = replace(TINY, window=64, window_block=16)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"residual": c.Residual("scaled")}, {"residual": c.Residual([[1, 6], [3, 5]])}),
        ({"residual": c.Residual("single")}, {"residual": c.Residual([[2, 4]])}),
        ({"residual": c.Residual([], unet_weight="sigmoid")}, {"residual": c.Residual("none")}),
        ({"embeddings": c.Embeddings(value_layers="scaled")}, {"embeddings": c.Embeddings(value_layers=2)}),
        ({"embeddings": c.Embeddings(value_layers=2)}, {"embeddings": c.Embeddings(value_layers=[[6, 0], [1, 7]])}),
        ({"model": replace(TINY, no_attention="scaled")}, {"model": replace(TINY, no_attention=[3])}),
        ({"model": replace(WINDOWED, long_window="scaled")}, {"model": replace(WINDOWED, long_window=[7, 5, 2, 0])}),
        ({"model": replace(TINY, long_window="scaled")}, {"model": TINY}),
        ({"model": replace(TINY, max_document=7)}, {"model": TINY}),
        ({"model": replace(TINY, softcap_curve="tanh")}, {"model": TINY}),
        ({"model": replace(TINY, window_growth="stages", window_stages=[1, 2], yarn=True)}, {"model": TINY}),
        ({"model": replace(WINDOWED, window_stages=[1, 2])}, {"model": WINDOWED}),
        ({"model": replace(TINY, last_window=64)}, {"model": TINY}),
    ],
)
def test_words_and_what_they_mean_are_one_run(one, other):
    assert run_id(**one) == run_id(**other)


def test_where_there_are_windows_the_layers_that_have_the_long_one_matter():
    assert run_id(model=replace(WINDOWED, long_window="scaled")) != run_id(model=WINDOWED)


USED_BY: dict[str, dict[str, Any]] = {
    "x_lambda": {"skip_layers": c.SkipLayers([3])},
    "skip_lambda": {"skip_layers": c.SkipLayers([3])},
    "backout": {"skip_layers": c.SkipLayers([3]), "head_type": c.Backout()},
    "block_x": {"embeddings": c.Embeddings(mix=True)},
    "block_x00": {"embeddings": c.Embeddings(mix=True)},
    "block_extra": {"embeddings": MIXED},
    "unet": {"residual": c.Residual("scaled")},
    "rolling_x": {"residual": c.Residual(rolling=True)},
    "rolling": {"residual": c.Residual(rolling=True)},
    "tail": {"residual": c.Residual(parallel_tail=2)},
    "value": {"model": replace(TINY, value_lambda=True)},
    "value_embedding": {"embeddings": c.Embeddings(value_layers=1)},
    "smear": {"model": replace(TINY, smeared=True)},
}


@pytest.mark.parametrize("name", USED_BY)
def test_a_start_value_is_part_of_a_run_iff_something_starts_there(name):
    moved = {"lambda_init": c.LambdaInit(**{name: 0.37})}
    assert canonical(**moved).lambda_init == c.LambdaInit()
    assert run_id(**moved) == run_id()
    assert getattr(canonical(**USED_BY[name], **moved).lambda_init, name) == 0.37
    assert run_id(**USED_BY[name], **moved) != run_id(**USED_BY[name])


def test_the_sum_alone_has_no_weight_for_further_embeddings():
    mixed = {"embeddings": c.Embeddings(mix=True)}
    assert run_id(**mixed, lambda_init=c.LambdaInit(block_extra=0.37)) == run_id(**mixed)


PLACES = {"block_x": 8, "block_x00": 8, "block_extra": 8, "unet": 2, "rolling_x": 5, "rolling": 5, "tail": 2,
          "value": 7, "value_embedding": 2}  # fmt: skip


@pytest.mark.parametrize("name", PLACES)
def test_a_list_has_one_start_value_per_place(name):
    with_mechanism = USED_BY[name]
    if name == "value":
        with_mechanism = {"model": replace(TINY, value_lambda=True, no_attention=[3])}
    values = [k / 16 for k in range(PLACES[name])]
    kept = canonical(**with_mechanism, lambda_init=c.LambdaInit(**{name: values})).lambda_init
    assert getattr(kept, name) == values
    same = c.LambdaInit(**{name: [1] * PLACES[name]})
    one = c.LambdaInit(**{name: 1.0})
    assert run_id(**with_mechanism, lambda_init=same) == run_id(**with_mechanism, lambda_init=one)
    for wrong, says in (
        ([*values, 1.0], rf"lambda_init\.{name} has {PLACES[name] + 1} values for {PLACES[name]} places; valid"),
        (["a", *values[1:]], rf"lambda_init\.{name}: a is not a number"),
        (True, rf"lambda_init\.{name}: True is not a number"),
    ):
        with pytest.raises(UserError, match=says) as raised:
            canonical(**with_mechanism, lambda_init=c.LambdaInit(**{name: wrong}))
        assert "\n" not in str(raised.value)


def test_every_start_value_is_used_by_something():
    assert set(USED_BY) == set(c.LambdaInit.__dataclass_fields__)
