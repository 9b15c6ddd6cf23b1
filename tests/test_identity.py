"""When are two runs the same run?"""

import inspect
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from runs import LAMBDAS, configuration

from skipsweep import config as c
from skipsweep.errors import UserError
from skipsweep.sweep import compatibility, identity, select
from skipsweep.sweep.canonical import canonical_form
from skipsweep.sweep.validate import validate

TINY = c.Model(layers=6, dim=16, heads=2, mlp_ratio=2.0)


def canonical(**changes: Any) -> c.RunConfig:
    config = configuration(Path("/nowhere"), Path("/nowhere"), **{"model": TINY, **changes})
    validate(config)
    return canonical_form(config, replace(config.data, fingerprint="f" * 16, vocab_size=32))


def run_id(**changes: Any) -> str:
    return identity.run_id(c.recipe_of(canonical(**changes)))


BASE: dict[str, Any] = {"skip_layers": c.SkipLayers([3, 1])}

SAME: dict[str, dict[str, Any]] = {
    "order of layers": {"skip_layers": c.SkipLayers([1, 3])},
    "an ordering that gives the same set": {
        "skip_layers": c.SkipLayers("top2"),
        "selection_method": c.BestToWorst(ranking=[1, 3, 0]),
    },
    "another ordering that gives the same set": {
        "skip_layers": c.SkipLayers("top2"),
        "selection_method": c.WorstToBest(ranking=[0, 3, 1]),
    },
    "a method that nothing asks for": {"selection_method": c.Random(seed=7)},
    "where it runs": {"compute": c.Compute(processes=2, threads=3, micro_batch=1)},
    "what it records": {"record": c.Record(val_every=2, log_every=1)},
    "where it is mirrored": {"logger": c.Wandb(mode="offline")},
    "where it lies": {"paths": c.Paths(multirun="elsewhere")},
    "one number or one per layer": {"lambda_init": replace(LAMBDAS, skip_lambda=[0.0, 0])},
    "the question": {"sweep": c.Sweep(name="x")},
    "an integer for a number": {"lambda_init": replace(LAMBDAS, skip_lambda=0)},
}

OTHER: dict[str, dict[str, Any]] = {
    "a layer": {"skip_layers": c.SkipLayers([3])},
    "the input": {"skip_layers": c.SkipLayers([3, 1, "input"])},
    "the head": {"head_type": c.Concat()},
    "an initial lambda": {"lambda_init": replace(LAMBDAS, skip_lambda=0.5)},
    "an initial lambda of one layer": {"lambda_init": replace(LAMBDAS, skip_lambda=[0.5, 0.0])},
    "the seed": {"seed": 1},
    "a replicate": {"replicate": 1},
    "precision": {"model": replace(TINY, dtype="float64")},
    "the schedule": {"schedule": c.Cosine(steps=12, final=0.1)},
}


@pytest.mark.parametrize("case", SAME)
def test_the_same_run(case: str) -> None:
    assert run_id(**BASE | SAME[case]) == run_id(**BASE)


@pytest.mark.parametrize("case", OTHER)
def test_another_run(case: str) -> None:
    assert run_id(**BASE | OTHER[case]) != run_id(**BASE)


def test_lambdas_follow_their_layers() -> None:
    a = canonical(skip_layers=c.SkipLayers([3, 1]), lambda_init=replace(LAMBDAS, skip_lambda=[0.3, 0.1]))
    b = canonical(skip_layers=c.SkipLayers([1, 3]), lambda_init=replace(LAMBDAS, skip_lambda=[0.1, 0.3]))
    assert a.lambda_init == b.lambda_init
    assert (a.skip_layers.layers, a.lambda_init.skip_lambda) == ([1, 3], [0.1, 0.3])


@pytest.mark.parametrize("none", [None, "none", []])
@pytest.mark.parametrize("head", [c.Add(), c.Concat(), c.AddRenorm(), c.Last()])
def test_without_sources_there_is_one_baseline(head: c.HeadType, none: Any) -> None:
    init = replace(LAMBDAS, x_lambda=0.5)  # no mechanism uses it
    run = canonical(skip_layers=c.SkipLayers(none), head_type=head, lambda_init=init)
    assert identity.run_id(c.recipe_of(run)) == run_id(skip_layers=c.SkipLayers([]), head_type=c.Last())


def test_a_path_is_no_identity_but_the_text_is() -> None:
    def of(path: str, fingerprint: str) -> str:
        text = c.Text(
            tokenizer="bytes", seq_len=16, batch_tokens=128, val_tokens=256, path=path, fingerprint=fingerprint
        )
        config = configuration(Path("/nowhere"), Path("/nowhere"), model=TINY, data=text)
        return identity.run_id(c.recipe_of(canonical_form(config, text)))

    assert of("/a", "f1") == of("/b", "f1") != of("/a", "f2")


def test_results_version_separates_numerics() -> None:
    recipe = c.recipe_of(canonical())
    assert identity.run_id(recipe, 1) != identity.run_id(recipe, 2)


def test_a_mechanism_that_changed_alone_moves_its_own_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads of version 3 and their neighbours: the ids before are those of settings and results version alone."""
    before = {}
    for head in (c.Add(), c.AddTanh(), c.ConcatMLP(), c.ConcatMLPNarrow(width=4)):
        recipe = c.recipe_of(canonical(skip_layers=c.SkipLayers([1]), head_type=head))
        plain = identity.digest({"results_version": identity.RESULTS_VERSION, "settings": identity.settings(recipe)})
        before[head.name] = identity.run_id(recipe) == plain
    assert before == {"add": True, "add_tanh": False, "concat_mlp": True, "concat_mlp_narrow": False}
    said = identity.document(canonical(skip_layers=c.SkipLayers([1]), head_type=c.AddTanh()))
    assert (said["results_version"], said["mechanisms"]) == (2, {"head_type.name=add_tanh": 3})
    without_sources = canonical(skip_layers=c.SkipLayers([]), head_type=c.AddTanh())
    assert "mechanisms" not in identity.document(without_sources)
    monkeypatch.setitem(identity.MECHANISM_VERSIONS, ("head_type.name", "add_tanh"), 4)
    assert identity.document(canonical(skip_layers=c.SkipLayers([1]), head_type=c.AddTanh()))["id"] != said["id"]


def test_a_golden_id() -> None:
    """An id that moves orphans every finished run. A field lost its neutral default or changed its name?"""
    assert identity.name(c.recipe_of(canonical(**BASE))) == "6x16-synthetic-add-1_3-s0-" + GOLDEN


GOLDEN = "276d39bfaef0"


def test_a_new_field_with_a_neutral_default_keeps_all_ids() -> None:
    from dataclasses import dataclass

    @dataclass
    class Wider(c.Model):
        new_mechanism: float = 0.0

    wider = Wider(**vars(TINY))
    assert run_id(model=wider) == run_id()
    assert run_id(model=replace(wider, new_mechanism=0.5)) != run_id()


def test_a_default_that_moved_is_noticed() -> None:
    run = canonical()
    frozen = identity.document(run)
    identity.check_drift("r", frozen, run)
    frozen["recipe"]["model.softcap"] = 30.0
    with pytest.raises(UserError, match=r"run r: the default of model\.softcap has moved from 30\.0 to 0\.0"):
        identity.check_drift("r", frozen, run)


def test_plain_data_round_trip() -> None:
    run = canonical(**BASE)
    assert c.from_dict(c.RunConfig, c.to_dict(run)) == run


def test_every_recipe_field_is_in_the_identity() -> None:
    """No dead fields: changing any leaf of the recipe changes the id."""
    config = canonical(**BASE)
    recipe = c.recipe_of(config)
    base = identity.run_id(recipe)
    for path, value in c.leaves(recipe).items():
        changed = _with(recipe, path.split("."), _another(value))
        assert identity.run_id(changed) != base, path


def _another(value: Any) -> Any:
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case list():
            return [*value, 0]
    return f"{value}x"


def _with(node: Any, path: list[str], value: Any) -> Any:
    head, *rest = path
    return replace(node, **{head: _with(getattr(node, head), rest, value) if rest else value})


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "layer outside": ({"skip_layers": c.SkipLayers(9)}, r"layer 9 is outside the trunk of 6 layers; valid: 0 to 4"),
    "negative layer": ({"skip_layers": c.SkipLayers([-1])}, r"layer -1 is outside the trunk"),
    "last layer": ({"skip_layers": c.SkipLayers(5)}, r"layer 5 is the last one, which the head always sees; valid: 0 "),
    "twice": ({"skip_layers": c.SkipLayers([2, 2])}, r"skip_layers=\[2,2\] names 2 twice"),
    "twice through top": ({"skip_layers": c.SkipLayers(["top2", 4])}, r"names 4 twice"),
    "too many": ({"skip_layers": c.SkipLayers("top9")}, r"top9: the ordering late_to_early has 5 layers"),
    "none at all": ({"skip_layers": c.SkipLayers("top0")}, r"valid: top1 to top5"),
    "no ranking": (
        {"skip_layers": c.SkipLayers("top2"), "selection_method": c.BestToWorst()},
        r"best_to_worst needs a ranking",
    ),
    "short ranking": (
        {"skip_layers": c.SkipLayers("top3"), "selection_method": c.BestToWorst(ranking=[1, 2])},
        r"top3: the ordering best_to_worst has 2 layers \(\[1,2\]\)",
    ),
    "ranking outside": (
        {"skip_layers": c.SkipLayers("top1"), "selection_method": c.WorstToBest(ranking=[1, 7])},
        r"ranking: layer 7 is outside",
    ),
    "ranking twice": (
        {"skip_layers": c.SkipLayers("top1"), "selection_method": c.WorstToBest(ranking=[1, 1])},
        r"names a layer twice",
    ),
    "no source": ({"skip_layers": c.SkipLayers("layer3")}, r"layer3 is not a source; valid: none, a layer"),
    "a truth value": ({"skip_layers": c.SkipLayers([True])}, r"True is not a source"),
    "half a layer": ({"skip_layers": c.SkipLayers(1.5)}, r"1.5 is not a source"),
    "last head with sources": (
        {"skip_layers": c.SkipLayers([3]), "head_type": c.Last()},
        r"head_type=last takes no sources, but skip_layers=\[3\]",
    ),
    "last source without concat": (
        {"skip_layers": c.SkipLayers(["last"])},
        r"for head_type=concat, concat_mlp, .* only, not for add",
    ),
    "lambdas that do not fit": (
        {"skip_layers": c.SkipLayers([3]), "lambda_init": replace(LAMBDAS, skip_lambda=[0.1, 0.2])},
        r"skip_lambda has 2 values for 1 sources",
    ),
    "a lambda that is not a number": (
        {"skip_layers": c.SkipLayers([3]), "lambda_init": replace(LAMBDAS, skip_lambda="much")},
        r"much is not a number",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_impossible_sources(case: str) -> None:
    changes, message = BAD[case]
    with pytest.raises(UserError, match=message):
        canonical(**changes)


def test_random_orderings_come_from_the_seed() -> None:
    def order(seed: int, fixed: int | None = None) -> list[int]:
        return select.ordering(c.Random(seed=fixed), 16, seed)

    assert order(0) == order(0)
    assert sorted(order(0)) == list(range(15))
    assert len({tuple(order(seed)) for seed in range(20)}) == 20
    assert order(0, 5) == order(1, 5) == order(5)


def test_two_thirds_of_the_depth() -> None:
    """The published choices: 11 of 16 (record 15), 8 of 12 (small track)."""
    for layers, layer in ((16, 11), (12, 8), (8, 5), (2, 0)):
        assert select.sources("two_thirds", c.LateToEarly(), layers, 0) == [layer]


INVALID: dict[str, tuple[dict[str, Any], str]] = {
    "dim": ({"model": replace(TINY, dim=15)}, r"model\.dim=15 must be an even multiple of model\.heads=2"),
    "one layer": ({"model": replace(TINY, layers=1)}, r"at least 2 layers"),
    "dtype": ({"model": replace(TINY, dtype="float8")}, r"model\.dtype=float8 is unknown; valid: float32"),
    "missing": ({"model": replace(TINY, heads=c.MISSING)}, r"model\.heads has no value"),
    "not finite": (
        {"lambda_init": replace(LAMBDAS, x_lambda=float("nan"))},
        r"lambda_init\.x_lambda=nan is not finite",
    ),
    "no steps": ({"schedule": c.Constant(steps=0)}, r"schedule\.steps=0 must be above 0"),
    "all warm-up": ({"schedule": c.Constant(steps=5, warmup_steps=5)}, r"must be below schedule\.steps=5"),
    "cooldown": ({"schedule": c.Trapezoid(steps=5, cooldown=1.5, final=0.0)}, r"schedule\.cooldown=1\.5"),
    "uneven share": ({"compute": c.Compute(processes=3)}, r"3 processes cannot share a batch of 8 sequences"),
    "device": ({"compute": c.Compute(device="tpu")}, r"compute\.device=tpu is unknown; valid: cpu, cuda"),
    "GPUs on CPU": ({"compute": c.Compute(gpus=1)}, r"compute\.device=cpu with compute\.gpus=1"),
    "one checkpoint": ({"record": c.Record(val_every=1, keep=1)}, r"record\.keep=1: .* valid: 2 or more"),
    "seed": ({"seed": -1}, r"seed=-1 must not be negative"),
    "retry": ({"retry": "all"}, r"retry=all is unknown; valid: none, failed"),
    "validation": ({"record": c.Record(val_every=-1)}, r"record\.val_every=-1 must not be negative"),
}


@pytest.mark.parametrize("case", INVALID)
def test_impossible_values(case: str) -> None:
    changes, message = INVALID[case]
    with pytest.raises(UserError, match=message):
        validate(configuration(Path("/nowhere"), Path("/nowhere"), **{"model": TINY, **changes}))


def test_no_field_is_dead() -> None:
    """Every field of the schema is read somewhere: a setting that nothing obeys is a lie."""
    schema = Path(c.__file__).parent
    sources = "\n".join(p.read_text() for p in schema.parent.rglob("*.py") if schema not in p.parents)
    plugins = "\n".join(p.read_text() for p in schema.parents[1].glob("hydra_plugins/*.py"))
    dead = [
        f"{cls.__name__}.{f.name}"
        for cls in vars(c).values()
        if isinstance(cls, type) and is_dataclass(cls)
        for f in fields(cls)
        if f.name not in sources + plugins
    ]
    assert dead == []


def test_no_rule_is_forgotten() -> None:
    """Whatever the module says of configurations by a public name is looked at when planning."""
    own = [f for f in vars(compatibility).values() if inspect.isfunction(f) and f.__module__ == compatibility.__name__]
    public = [f for f in own if not f.__name__.startswith("_") and f is not compatibility.check]
    assert set(compatibility.RULES) == set(public)
    assert len(compatibility.RULES) == len(public)
