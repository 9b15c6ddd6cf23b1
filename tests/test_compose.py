"""Overrides -> configurations: the fast way is Hydra's way."""

import copy

import pytest
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from skipsweep.config import Concat, Config, Cosine, Wandb, from_dict, to_dict
from skipsweep.errors import UserError
from skipsweep.sweep import grammar, hydra_schema
from skipsweep.sweep.compose import Composer
from skipsweep.sweep.entry import CONF

hydra_schema.register_schema()
hydra_schema.register_plugins()


@pytest.fixture(scope="module")
def loader():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return GlobalHydra.instance().config_loader()


@pytest.fixture(scope="module")
def composer(loader):
    return Composer(loader, "config")


def by_hydra(loader, overrides):
    """What Hydra composes, resolved, as a Config; nothing of ours but `from_dict`."""
    return finished(loader.load_configuration("config", list(overrides), RunMode.RUN))


def set_by_hydra(composed, override):
    """The same for one more override, which is no group's, without composing again."""
    composed = copy.deepcopy(composed)
    ConfigLoaderImpl._apply_overrides_to_config([grammar.parse(override)], composed)
    return finished(composed)


def finished(composed):
    HydraConfig.instance().set_config(composed)
    del composed._content["hydra"]  # holds interpolations that only a running job resolves
    values = OmegaConf.to_container(composed, resolve=True)
    assert "'???'" not in repr(values)
    return from_dict(Config, values)


def outcome(compose, *arguments):
    """The configuration with the types of its values, or that there is none."""
    try:
        return repr(to_dict(compose(*arguments)))
    except Exception:
        return "refused"


# ------------------------------------------------------------------------------------------------------- properties

groups = [
    "head_type=concat",
    "head_type=last",
    "head_type=nonesuch",
    "schedule=cosine",
    "logger=none",
    "optim=adamw",
    "data=synthetic",
    "data=text",
    "lambda_init=equal",
    "skip_layers=record",
    "selection_method=best_to_worst",
    "experiment=demo",
    "+model=small",
    "~lambda_init",
    "~data=sotu",
    "+lambda_init@sweep.published=equal",
    "lambda_init=5",
]
leaves = [
    "seed=3",
    "seed=1.0",
    "seed=1.5",
    "seed='4'",
    "seed=true",
    "seed=null",
    "seed=x",
    "seed=[1]",
    "seed=???",
    "seed.x=1",
    "~seed",
    "++seed=8",
    "replicate=1_000",
    "schedule.steps=10",
    "schedule.steps=1e3",
    "schedule.steps=${model.layers}",
    "schedule={steps: 7}",
    "schedule.cooldown=0.25",
    "schedule.cooldown=1",
    "schedule.final=nan",
    "optim.lr=3",
    "optim.lr='1e-3'",
    "optim.lr=-inf",
    "model.dtype=5",
    "model.dtype=null",
    "data.path=a b.txt",
    "data.order='x,y'",
    "logger.entity=null",
    "logger.entity=me",
    "paths.data=~/x",
    "compute.compile=yes",
    "compute.compile=1",
    "compute.compile=maybe",
    "skip_layers.layers=5",
    "skip_layers.layers=null",
    "skip_layers.layers=[5,[2],input,null]",
    "skip_layers.layers=[]",
    "skip_layers.layers={a: [1]}",
    "skip_layers.layers.0=1",
    "lambda_init.skip_lambda=[0.1,2]",
    "lambda_init.x_lambda=2",
    "selection_method.ranking=[3,1.0]",
    "selection_method.ranking=[3,x]",
    "selection_method.ranking=null",
    "sweep.may_differ=[a,5]",
    "sweep.may_differ=null",
    "sweep.seeds=[0,1]",
    "sweep.target=3",
    "sweep.published={a: {b: 1}}",
    "+sweep.published.a.b=2",
    "sweep.published.a.b=2",
    "sweep.arms=null",
    "sweep.nonesuch=1",
    "nonesuch=1",
    "paths=null",
    "plan=on",
    "seed@x=5",
    "seed@=5",
]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(groups), st.sampled_from(["head_type=last", *groups]), st.lists(st.sampled_from(leaves), max_size=4)
)
def test_the_fast_way_is_hydras_way(loader, composer, one, another, some_leaves):
    overrides = [*dict.fromkeys([one, another]), *some_leaves]
    assert outcome(composer, overrides) == outcome(by_hydra, loader, overrides)


CONTEXT = ["selection_method=best_to_worst", "data=text", "data.path=x", "logger=wandb"]


@pytest.fixture(scope="module")
def alone(loader, composer):
    """Leaf -> what we, and what Hydra makes of it, where its key exists."""
    composed = loader.load_configuration("config", CONTEXT, RunMode.RUN)
    return {leaf: (outcome(composer, [*CONTEXT, leaf]), outcome(set_by_hydra, composed, leaf)) for leaf in leaves}


@pytest.mark.parametrize("leaf", leaves)
def test_every_leaf_alone(alone, leaf):
    ours, hydras = alone[leaf]
    assert ours == hydras


def test_refusals_are_among_them_and_leave_no_trace(alone, loader, composer):
    refused = [leaf for leaf, (ours, _) in alone.items() if ours == "refused"]
    assert 15 < len(refused) < len(leaves) - 20
    assert outcome(composer, CONTEXT) == outcome(by_hydra, loader, CONTEXT)


def test_the_order_of_overrides_counts_as_it_does_for_hydra(loader, composer):
    for overrides in (
        ["++schedule.steps=5", "schedule.steps=6"],
        ["schedule.steps=6", "++schedule.steps=5"],
        ["schedule={steps: 5}", "schedule.steps=6"],
        ["schedule.steps=6", "schedule={steps: 5}"],
        ["seed=1", "seed=2"],
    ):
        assert outcome(composer, overrides) == outcome(by_hydra, loader, overrides) != "refused"


def test_what_was_composed_before_plays_no_part(loader):
    composer = Composer(loader, "config")
    composed = loader.load_configuration("config", [], RunMode.RUN)
    values = ["5", "[1]", "{a: [1]}", "null", "[[2]]", "none", "{b: 2}", "[]", "1.5"]
    overrides = [f"{key}={value}" for value in values for key in ("skip_layers.layers", "sweep.may_differ")]
    overrides += ["paths=???", "paths=null", "paths.data=x", "paths.data=null", "seed=???", "seed=1"]
    for override in overrides:
        assert outcome(composer, [override]) == outcome(set_by_hydra, composed, override), override


def test_interpolations_follow_what_they_point_to(loader, composer):
    overrides = ["schedule.steps=${model.layers}", "lambda_init.skip_lambda=[${seed},1]", "seed=5", "model.layers=12"]
    config = composer(overrides)
    assert config.schedule.steps == 12
    assert config.lambda_init.skip_lambda == [5, 1]
    assert outcome(composer, overrides) == outcome(by_hydra, loader, overrides)


def test_hydra_composes_once_per_combination_of_choices(loader, monkeypatch):
    composed = []
    load = loader.load_configuration
    monkeypatch.setattr(loader, "load_configuration", lambda *a, **k: composed.append(a) or load(*a, **k))
    composer = Composer(loader, "config")
    for head in ("add", "concat"):
        for seed in range(20):
            for layers in ("none", "5", "[2,5]"):
                composer([f"head_type={head}", f"seed={seed}", f"skip_layers={layers}", "optim.lr=0.1"])
    assert len(composed) == 2


# ------------------------------------------------------------------------------------------------- what comes out


def test_choices_become_their_classes(composer):
    config = composer(["head_type=concat", "schedule=cosine", "logger=offline"])
    assert isinstance(config.head_type, Concat)
    assert isinstance(config.schedule, Cosine)
    assert isinstance(config.logger, Wandb)
    assert config.logger.mode == "offline"


def test_configurations_share_nothing(composer):
    first, second = composer(["skip_layers=[1,2]"]), composer(["skip_layers=[1,2]"])
    first.skip_layers.layers.append(3)
    first.sweep.arms["x"] = {}
    assert second.skip_layers.layers == [1, 2]
    assert composer(["skip_layers=[1,2]"]) == second


def test_shorthands_are_understood(composer):
    assert composer(["skip_layers=top3"]).skip_layers.layers == "top3"
    assert composer(["skip_layers=record"]).skip_layers.layers == ["two_thirds"]
    assert composer(["skip_layers=[5,input]"]).skip_layers.layers == [5, "input"]


# -------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("schedule.stepz=5", "schedule.stepz=5: no key stepz in schedule=trapezoid; did you mean steps?"),
        ("head_tpye=add", "head_tpye=add: no key head_tpye; did you mean head_type?"),
        ("experimnt=demo", "did you mean experiment?"),
        ("head_type.depth=1", "head_type.depth=1: head_type=add has no keys"),
        ("head_type.width=1", "head_type=add has no key width (that belongs to head_type=concat_mlp_narrow)"),
        ("data.path=x", "data.path=x: data=sotu has no key path (that belongs to data=text)"),
        ("head_type=concatt", "head_type=concatt: no such choice; did you mean concat? valid: add, add_detached,"),
        (
            "skip_layers=recrd",
            "did you mean record? valid: none, record, or none, a layer (11), a list ([11,10])",
        ),
        ("skip_layers=[range(0,2)]", "a sweep inside a list has no meaning"),
        ("head_type=5", "head_type=5: head_type takes the name of one choice; valid: add,"),
        ("head_type=[add,last]", "head_type takes the name of one choice"),
        ("head_type=null", "head_type takes the name of one choice"),
        ("head_type.name=concat", "head_type.name=concat: a choice is made by its group; write head_type=concat"),
        ("head_type={name: concat}", "write head_type=concat"),
        ("seed=x", "seed=x: Value 'x' of type 'str' could not be converted to Integer"),
        ("seed=1,2", "seed=1,2: one value expected here"),
        ("data=text", "no value for data.path: it has no default; set it, as in data.path=..."),
        ("~head_type", "no value for head_type"),
        ("+nonesuch=1", "unknown key nonesuch; valid: compute"),
        ("=5", "=5: there is no key before the ="),
        ("a@b=c", "config group 'a' does not exist"),
        ("seed=${nope}", "seed: Interpolation key 'nope' not found"),
    ],
)
def test_refusals_say_what_and_where_and_what_would_do(composer, override, told):
    with pytest.raises(UserError) as caught:
        composer([override])
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_value_may_come_from_the_command_line(composer):
    assert composer(["data=text", "data.path=notes.txt"]).data.path == "notes.txt"
