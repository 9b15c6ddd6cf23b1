"""Override texts: read, taken apart, written from plain values, and skip_layers shorthands."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skipsweep.errors import UserError
from skipsweep.sweep import grammar, shorthand

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8"))
names = st.sampled_from(["a", "layers", "skip_lambda", "x-1"])
plain = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(names, inner), max_leaves=5)


def no_options(group: str) -> list[str]:
    return []


def values_of(text: str) -> list[str]:
    return grammar.values(grammar.parse(text), no_options)


@settings(max_examples=100, deadline=None)
@given(plain)
def test_text_of_a_value_reads_back_as_that_value(value):
    read = grammar.parse(f"key={grammar.to_text(value)}").value()
    assert read == value
    assert repr(read) == repr(value)  # 1 is not True, and 1.0 is not 1


@pytest.mark.parametrize("word", ["true", "null", "nan", "5", "1e3", "", " a", "a,b", "it's", "a\\", "top3", "${x}"])
def test_texts_that_could_be_taken_for_something_else(word):
    assert grammar.parse(f"key={grammar.to_text(word)}").value() == word


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=1", ["1"]),
        ("a=1,2", ["1", "2"]),
        ("a=range(0,3)", ["0", "1", "2"]),
        ("a=none,range(0,2),[2,5],top3", ["none", "0", "1", "[2,5]", "top3"]),
        ("a=choice(1,[2]),3", ["1", "[2]", "3"]),
        ("a=1,1", ["1", "1"]),
        ("a='x,y'", ["'x,y'"]),
        ("a='x,y',z", ["'x,y'", "z"]),
        ("a=x\\,y,z", ["x\\,y", "z"]),
        ("a=sort(3,1,2)", ["1", "2", "3"]),
    ],
)
def test_values_of_an_override(text, expected):
    assert values_of(text) == expected


def test_shuffle_keeps_the_values():
    assert sorted(values_of("a=shuffle(range(0,9))")) == [str(i) for i in range(9)]


def test_glob_takes_the_matching_choices():
    parsed = grammar.parse("head_type=glob([a*,l*],exclude=add)")
    assert grammar.values(parsed, lambda group: ["add", "add_renorm", "concat", "last"]) == ["add_renorm", "last"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("seed=glob(*)", "seed is none"),
        ("lr=interval(0,1)", r"range\(a,b,step\)"),
        ("a=range(3,3)", "no value at all"),
        ("a=[range(0,2)]", "inside a list"),
        ("a=1,[range(0,2)]", "inside a list"),
    ],
)
def test_what_has_no_values_is_refused(text, told):
    with pytest.raises(UserError, match=told):
        values_of(text)


@pytest.mark.parametrize(("text", "told"), [("seed", "KEY=VALUE"), ("a=[1", "quote"), ("a=b=c", "quote")])
def test_unreadable_overrides_say_how_to_write_them(text, told):
    with pytest.raises(UserError, match=told) as caught:
        grammar.parse(text)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------ shorthands


@pytest.mark.parametrize(
    ("typed", "composed"),
    [
        ("skip_layers=5", "skip_layers.layers=5"),
        ("skip_layers=[5,2]", "skip_layers.layers=[5,2]"),
        ("skip_layers=[ 5, input ]", "skip_layers.layers=[ 5, input ]"),
        ("skip_layers=[]", "skip_layers.layers=[]"),
        ("skip_layers=top3", "skip_layers.layers=top3"),
        ("skip_layers='top3'", "skip_layers.layers=top3"),
        ("skip_layers='5'", "skip_layers.layers=5"),
        ("skip_layers=none", "skip_layers.layers=none"),
        ("skip_layers=null", "skip_layers.layers=none"),
        ("skip_layers=input", "skip_layers.layers=input"),
        ("skip_layers=two_thirds", "skip_layers.layers=two_thirds"),
        ("skip_layers=-1", "skip_layers.layers=-1"),  # for planning to refuse, by name
        ("skip_layers=2.5", "skip_layers.layers=2.5"),
    ],
)
def test_shorthands_become_the_leaf(typed, composed):
    assert shorthand.rewrite(typed) == composed


@pytest.mark.parametrize(
    "text",
    [
        "skip_layers=record",  # a choice of the group
        "skip_layers='my choice'",
        "skip_layers=topmost",
        "skip_layers=two_thirds_of_it",
        "skip_layers=",
        "skip_layers={layers: 5}",
        "skip_layers=[5",  # for Hydra to complain of
        "skip_layers=1,2",  # sweeps are taken apart later
        "skip_layers=range(0,7)",
        "skip_layers=none,record,range(0,3)",
        "skip_layers.layers=5",
        "skip_layers@other=5",
        "+skip_layers=5",
        "~skip_layers",
        "sweep.question='skip_layers=5'",
        "data.path=a\\,b",
        "-m",
    ],
)
def test_everything_else_stays_byte_for_byte(text):
    assert shorthand.rewrite(text) == text


@settings(max_examples=100, deadline=None)
@given(st.text().filter(lambda text: not text.startswith(("skip_layers=", "gate_targets="))))
def test_no_other_argument_is_touched(text):
    assert shorthand.rewrite_arguments([text, text]) == [text, text]


@pytest.mark.parametrize(
    ("typed", "composed"),
    [
        ("gate_targets=[1,.5]", ["gate_targets=list", "gate_targets.means=[1,.5]"]),
        ("gate_targets=free", ["gate_targets=free"]),
        ("gate_targets=[1,.5],[1,.2]", ["gate_targets=[1,.5],[1,.2]"]),  # sweeps are taken apart later
        ("gate_targets=[1", ["gate_targets=[1"]),
        ("skip_layers=5", ["skip_layers.layers=5"]),
    ],
)
def test_a_list_of_means_is_a_choice_and_its_value(typed, composed):
    assert shorthand.written_out(typed) == composed
    assert shorthand.rewrite_arguments(["-m", typed]) == ["-m", *composed]


def test_the_last_of_several_counts():
    typed = ["skip_layers=3", "-m", "skip_layers=record", "seed=1", "seed=2"]
    assert shorthand.rewrite_arguments(typed) == ["-m", "skip_layers=record", "seed=1", "seed=2"]


@pytest.mark.parametrize(
    ("line", "rewritten"),
    [
        ("python launch.py skip_layers=5 head_", "python launch.py skip_layers.layers=5 head_"),
        ("python launch.py  skip_layers='[5,2]' ", "python launch.py  skip_layers.layers=[5,2] "),
        ("python launch.py gate_targets=[1] head_", "python launch.py gate_targets=list gate_targets.means=[1] head_"),
        ("python launch.py skip_layers=5", "python launch.py skip_layers=5"),  # still being typed
        ("python launch.py 'skip_layers=5 x", "python launch.py 'skip_layers=5 x"),
    ],
)
def test_line_under_completion(line, rewritten):
    assert shorthand.rewrite_line(line) == rewritten
