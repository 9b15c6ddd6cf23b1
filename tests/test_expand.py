"""Overrides and blocks -> points."""

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st

from skipsweep.config import Sweep
from skipsweep.errors import UserError
from skipsweep.sweep.expand import expand

CHOICES = {
    "head_type": ["add", "concat", "last"],
    "skip_layers": ["none", "record"],
    "schedule": ["cosine", "trapezoid"],
    "experiment": ["demo", "record"],
}


def options(group: str) -> list[str]:
    return CHOICES.get(group, [])


def points(*overrides: str, **sweep):
    return expand(overrides, Sweep(**sweep), options)


def texts(*overrides: str, **sweep) -> list[str]:
    return [" ".join(point.overrides) for point in points(*overrides, **sweep)]


# ------------------------------------------------------------------------------------------------------ command line


def test_no_overrides_are_one_point():
    (point,) = points()
    assert (point.block, point.overrides, point.axes, point.seed, point.arm) == (None, (), {}, None, "run")


def test_a_mixed_sweep_of_layers():
    found = points("skip_layers=none,2,[2,5],top3,range(0,2),record")
    assert [p.overrides for p in found] == [
        ("skip_layers.layers=none",),
        ("skip_layers.layers=2",),
        ("skip_layers.layers=[2,5]",),
        ("skip_layers.layers=top3",),
        ("skip_layers.layers=0",),
        ("skip_layers.layers=1",),
        ("skip_layers=record",),
    ]
    assert [p.axes["skip_layers"] for p in found] == ["none", "2", "[2,5]", "top3", "0", "1", "record"]


def test_seed_and_replicate_make_no_arms():
    found = points("head_type=add,concat", "seed=0,1", "replicate=0,1")
    assert len(found) == 8
    assert {p.arm for p in found} == {"head_type=add", "head_type=concat"}
    assert [p.seed for p in found] == [0, 0, 1, 1] * 2


def test_single_values_are_no_axes():
    (point,) = points("head_type=concat", "seed=3")
    assert point.axes == {}
    assert point.seed == 3


def test_glob_sweeps_over_a_group():
    assert texts("head_type=glob(*)") == ["head_type=add", "head_type=concat", "head_type=last"]
    assert texts("skip_layers=glob(r*)") == ["skip_layers=record"]


def test_repeated_values_are_repeated_points():
    assert texts("seed=1,1") == ["seed=1", "seed=1"]


@pytest.mark.parametrize(
    "text", ["data.path='a b.txt'", "+x=1", "~head_type", "~schedule.steps=5", "a@b=c", "sweep.question='1, 2'", "k="]
)
def test_overrides_without_a_sweep_stay_byte_for_byte(text):
    assert texts(text, "seed=0,1") == [f"{text} seed=0", f"{text} seed=1"]


def test_prefixes_stay_on_every_value():
    assert texts("+x=1,2") == ["+x=1", "+x=2"]
    assert texts("head_type@a.b=add,last") == ["head_type@a.b=add", "head_type@a.b=last"]


def test_settings_outside_the_identity_can_be_swept_over():
    assert texts("logger=none,wandb", "compute.threads=1,2", "sweep.target=2.9,3") == [
        f"logger={logger} compute.threads={threads} sweep.target={target}"
        for logger in ("none", "wandb")
        for threads in (1, 2)
        for target in (2.9, 3)
    ]


keys = st.sampled_from(["a", "b.c", "head_type", "+d", "seed", "e@f"])
value = st.sampled_from(
    ["1", "x", "1,2,3", "range(0,3)", "[1,2],[3]", "choice(a,b)", "'q,r',s", "null,true", "1.5", ""]
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(keys, value), max_size=4))
def test_the_points_of_a_command_line_are_those_of_hydras_own_sweeper(pairs):
    command = [f"{key}={text}" for key, text in pairs]
    hydras = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(command), None)[0]
    assert [list(p.overrides) for p in points(*command)] == hydras


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["experiment=demo,record"], "experiment=demo,record: one question per sweep"),
        (["sweep.arms={a:{}},{b:{}}"], "sweep.arms cannot be swept"),
        (["skip_layers=1,2", "skip_layers.layers=5"], r"skip_layers is set .*skip_layers=1,2.*skip_layers.layers=5"),
    ],
)
def test_sweeps_without_a_meaning_are_refused(command, told):
    with pytest.raises(UserError, match=told):
        points(*command)


def test_a_choice_may_be_followed_by_one_of_its_keys():
    assert texts("skip_layers=record", "skip_layers.layers=[5]") == ["skip_layers=record skip_layers.layers=[5]"]


# ------------------------------------------------------------------------------------------------------------ blocks


def test_blocks_are_united_and_a_comma_inside_one_makes_a_grid():
    arms = {
        "baseline": {"skip_layers": None, "schedule.steps": 5590},
        "grid": {"skip_layers": "range(0,2),[3,4]", "head_type": "add, concat"},
        "as_it_is": None,
    }
    found = points(arms=arms)
    assert [p.arm for p in found] == [
        "baseline",
        "grid/skip_layers=0,head_type=add",
        "grid/skip_layers=0,head_type=concat",
        "grid/skip_layers=1,head_type=add",
        "grid/skip_layers=1,head_type=concat",
        "grid/skip_layers=[3,4],head_type=add",
        "grid/skip_layers=[3,4],head_type=concat",
        "as_it_is",
    ]
    assert found[0].overrides == ("skip_layers.layers=none", "schedule.steps=5590")
    assert found[5].overrides == ("skip_layers.layers=[3,4]", "head_type=add")
    assert found[-1].overrides == ()


def test_values_of_blocks_are_written_safely():
    arms = {"a": {"skip_layers": [2, "input"], "compute.compile": True, "optim.lr": 1e-5, "logger": {"entity": None}}}
    assert texts(arms=arms) == [
        "skip_layers.layers=[2,input] compute.compile=true optim.lr=1e-05 logger.entity=null",
    ]


@pytest.mark.parametrize("spelling", ["3", 3, "0,1,2", "range(0,3)", [0, 1, 2], ["range(0,2)", 2]])
def test_seeds_multiply_every_arm(spelling):
    seeds = [3] if spelling in ("3", 3) else [0, 1, 2]
    found = points(arms={"a": {}, "b": {"head_type": "last"}}, seeds=spelling)
    assert [(p.arm, p.seed) for p in found] == [(arm, seed) for arm in "ab" for seed in seeds]
    assert found[-1].overrides == ("head_type=last", f"seed={seeds[-1]}")


def test_seeds_multiply_a_command_line_too():
    assert texts("a=1,2", seeds=[0, 1]) == ["a=1 seed=0", "a=1 seed=1", "a=2 seed=0", "a=2 seed=1"]


def test_seed_on_the_command_line_replaces_the_experiments_seeds():
    assert texts("seed=7,8", arms={"a": {}, "b": {}}, seeds="range(0,22)") == ["seed=7", "seed=8"] * 2


def test_seeds_on_the_command_line_replace_the_experiments():
    assert texts("sweep.seeds=range(0,2)", arms={"a": {}}, seeds=[5]) == ["seed=0", "seed=1"]
    assert texts("sweep.seeds=[4,6]", seeds=[5]) == ["seed=4", "seed=6"]


def test_a_block_may_have_its_own_seed():
    assert texts(arms={"a": {"seed": 9}, "b": {}}, seeds=[0, 1]) == ["seed=9", "seed=0", "seed=1"]


def test_the_command_line_multiplies_all_blocks():
    assert texts("experiment=demo", "schedule.steps=10,20", arms={"a": {"skip_layers": 1}, "b": {}}) == [
        "experiment=demo schedule.steps=10 skip_layers.layers=1",
        "experiment=demo schedule.steps=20 skip_layers.layers=1",
        "experiment=demo schedule.steps=10",
        "experiment=demo schedule.steps=20",
    ]


@pytest.mark.parametrize(
    ("command", "arm"),
    [
        ("head_type=add", {"head_type": "concat"}),
        ("skip_layers=4", {"skip_layers": 5}),
        ("skip_layers.layers=4", {"skip_layers": 5}),
        ("schedule={steps: 4}", {"schedule.steps": 5}),
        ("++schedule.steps=4", {"schedule": {"steps": 5}}),
        ("seed=0,1", {"seed": 2}),
    ],
)
def test_a_key_set_by_command_line_and_block_is_refused(command, arm):
    with pytest.raises(UserError, match=r"on the command line .* and in sweep\.arms\.mine .*; leave one out") as caught:
        points(command, arms={"mine": arm})
    assert command in str(caught.value)


@pytest.mark.parametrize(
    ("arms", "told"),
    [
        ({"a": "seed=5"}, r"sweep\.arms\.a: 'seed=5' is not a block"),
        ({"a": {"x": "[1"}}, r"in sweep\.arms\.a: cannot read override 'x=\[1'"),
        ({"a": {"experiment": "demo"}}, "experiment belongs to the whole sweep"),
        ({"a": {"hydra.launcher.parallel": 2}}, "hydra.launcher.parallel belongs to the whole sweep"),
        ({"a": {"sweep.seeds": 2}}, "sweep.seeds belongs to the whole sweep"),
        ({"a": {"skip_layers": 5, "skip_layers.layers": 3}}, "skip_layers is set in"),
        ({"a": {"optim.lr": "interval(0,1)"}}, r"in sweep\.arms\.a: .*an interval has no single values"),
    ],
)
def test_blocks_that_cannot_be_meant(arms, told):
    with pytest.raises(UserError, match=told):
        points(arms=arms)


@pytest.mark.parametrize("seeds", ["abc", True, 1.5, [0, None], "1.5", [], "range(2,2)", "0,x", {"a": 1}])
def test_seeds_that_are_none(seeds):
    with pytest.raises(UserError, match=r"sweep\.seeds"):
        points(seeds=seeds)
