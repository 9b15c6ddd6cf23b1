"""Skips between blocks: formulas, neutral settings, where gradients go, and that nothing looks ahead.

Legend: B batch, T time, D dim.
"""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from model_recipes import RESIDUAL, TRUNK, randomised, recipe, tokens
from neutral_settings import BETWEEN_BLOCKS
from torch import Tensor

from skipsweep.config import Embeddings, LambdaInit, Recipe, Residual
from skipsweep.model.count import flops_per_token, parameters
from skipsweep.model.gpt import build
from skipsweep.model.seams import Context
from skipsweep.model.shape import scalars, weights

DEEP: dict[str, Any] = {"layers": 6, "no_attention": [1]}
UNET = [[0, 2], [0, 3], [1, 3]]
ROLLING = Residual(unet=UNET, rolling=True)
TAIL = Residual(unet=[*UNET, [1, 4], [2, 5]], parallel_tail=3)
SIGMOID = Residual(unet=UNET, unet_weight="sigmoid")
AWAY = {"rolling_x": 0.8, "rolling": -0.3, "tail": [0.5, 1.2, -0.8]}
MECHANISMS = {
    "raw": (Residual(unet=UNET), {}),
    "sigmoid": (SIGMOID, {}),
    "rolling": (ROLLING, {key: AWAY[key] for key in ("rolling_x", "rolling")}),
    "parallel_tail": (TAIL, {"tail": AWAY["tail"]}),
}


def deep(name: str, **changes: Any) -> Recipe:
    """A trunk of 6 layers with this mechanism, away from its neutral setting."""
    residual, init = MECHANISMS[name]
    return recipe(residual=residual, **{**DEEP, **init, **changes})


def inside(*shape: int) -> list[Tensor]:
    source = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, 16, generator=source, dtype=torch.float64) for _ in range(shape[0])]


# ------------------------------------------------------------------------------------------------------------ formulas


def test_a_sigmoid_weight_is_the_logistic_function_of_what_is_learned():
    cfg = recipe(residual=SIGMOID, unet=[-1.5, 0.0, 2.0], embeddings=Embeddings(), dtype="float64", **DEEP)
    inject = build(cfg).inject
    x, h0, h1 = inside(3)
    ctx, outputs = Context((x,), []), {0: h0, 1: h1}
    logistic = [1 / (1 + math.exp(-w)) for w in (-1.5, 0.0, 2.0)]
    torch.testing.assert_close(inject(2, x, ctx, outputs), x + logistic[0] * h0)
    torch.testing.assert_close(inject(3, x, ctx, outputs), x + logistic[1] * h0 + logistic[2] * h1)


def test_what_is_logged_is_what_is_learned_and_says_so():
    lambdas = build(recipe(residual=SIGMOID, unet=-1.5, dtype="float64", **DEEP)).lambdas()
    assert [label for label in lambdas if "unet" in label] == [
        f"lambda/unet_logit/{pair}" for pair in ("0-2", "0-3", "1-3")
    ]
    found = weights(lambdas)
    assert found["lambda/unet/0-3"] == pytest.approx(1 / (1 + math.exp(1.5)))
    others = {label: value for label, value in lambdas.items() if "unet" not in label}
    assert {label: found[label] for label in others} == others
    raw = build(recipe(residual=Residual(unet=UNET), **DEEP)).lambdas()
    assert weights(raw) == raw


def test_rolling_follows_the_unet_and_precedes_the_sum():
    """From layer 3 on: what two layers before came out of the block, not what went into it."""
    inject = build(deep("rolling", rolling=[0.1, 0.2, -0.3], dtype="float64")).inject
    x, x00, x01, *h = inside(8)
    ctx, outputs = Context((x00, x01), []), dict(enumerate(h))
    base = {2: x + 0.5 * h[0], 3: x + 0.5 * h[0] + 0.5 * h[1]}
    for i in range(6):
        rolled = base.get(i, x)
        if i >= 3:
            rolled = 0.8 * rolled + [0.1, 0.2, -0.3][i - 3] * h[i - 2]
        torch.testing.assert_close(inject(i, x, ctx, outputs), 0.9 * rolled + 0.2 * x00 + 0.1 * x01)
    assert inject.needs == {0, 1, 2, 3}


def test_the_last_layers_stand_side_by_side():
    """By hand: each from the output of layer 2, with U-net skips and weighted sum of its own."""
    cfg = deep("parallel_tail", dtype="float64")
    model, (ids, _) = randomised(cfg), tokens(cfg)
    ctx = model.context(ids, 0)
    out: dict[int, Tensor] = {}
    x = ctx.x00
    for i in range(6):
        start = out[2] if i >= 3 else x
        mixed = start + sum(0.5 * out[s] for s, t in TAIL.unet if t == i)
        x = model.blocks[i](0.9 * mixed + 0.2 * ctx.embeddings[0] + 0.1 * ctx.embeddings[1], None, ctx.layers[i])
        out[i] = x
    total = (0.5 * out[3] + 1.2 * out[4] - 0.8 * out[5]) / 3
    torch.testing.assert_close(model.logits(ids), model.head(model.readout(total, {}, ctx)))


def test_blocks_side_by_side_do_not_see_each_other():
    cfg = deep("parallel_tail")
    model, (ids, _) = randomised(cfg), tokens(cfg)
    seen: list[Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _m, _a, x: seen.append(x))
    model.logits(ids)
    with torch.no_grad():
        for p in model.blocks[3].parameters():
            p.mul_(2)
    before, seen[:] = list(seen), []
    model.logits(ids)
    assert [torch.equal(*pair) for pair in zip(before, seen, strict=True)] == [True, True, True, False, True, True]


def test_heads_see_the_tails_outputs_too():
    cfg = recipe("add", (2, 4), residual=TAIL, skip_lambda=[0.3, 0.4], **DEEP)
    model, (ids, _) = randomised(cfg), tokens(cfg)
    assert model.kept_layers == {0, 1, 2, 3, 4, 5}
    assert model.logits(ids).isfinite().all()


# ------------------------------------------------------------------------------------------------------------- neutral


def test_every_mechanism_has_its_neutral_setting_said():
    """`None`: there is none."""
    assert BETWEEN_BLOCKS.keys() == {"unet", "unet, sigmoid", "rolling", "parallel_tail", "mix"}
    assert {name for name, neutral in BETWEEN_BLOCKS.items() if neutral is None} == {"unet, sigmoid", "parallel_tail"}


OWN = {"unet": (Residual(unet=UNET), Residual()), "rolling": (ROLLING, Residual(unet=UNET))}


@pytest.mark.parametrize("name", OWN)
def test_at_its_neutral_setting_a_mechanism_is_the_baseline_bit_for_bit(name):
    neutral = BETWEEN_BLOCKS[name]
    assert neutral is not None
    assert neutral.tolerance == 0
    init = {key.removeprefix("lambda_init."): value for key, value in neutral.settings.items()}
    arm, base = (recipe(residual=residual, **DEEP, **init) for residual in OWN[name])
    ids, targets = tokens(arm)
    losses = []
    models = [randomised(cfg) for cfg in (arm, base)]
    for model in models:
        losses.append(model(ids, targets, reduction="none"))
        losses[-1].sum().backward()
    assert torch.equal(*losses)
    own = dict(models[0].named_parameters())
    for key, parameter in models[1].named_parameters():
        torch.testing.assert_close(own[key].grad, parameter.grad, rtol=1e-4, atol=1e-6)


def test_mix_is_nothing_at_its_neutral_setting():
    neutral = BETWEEN_BLOCKS["mix"]
    assert neutral is not None
    init = {key.removeprefix("lambda_init."): value for key, value in neutral.settings.items()}
    ids, targets = tokens(recipe())
    with_sum, without = (randomised(recipe(embeddings=e, **init)) for e in (Embeddings(True, 4), Embeddings()))
    assert torch.equal(*(model(ids, targets, reduction="none") for model in (with_sum, without)))


def test_where_blocks_add_nothing_a_tail_that_starts_as_the_mean_is_the_baseline():
    """As at the start of a run: outputs are zero, so side by side or one after the other makes no difference."""
    models = []
    for residual in (Residual(parallel_tail=3), Residual()):
        model = build(replace(recipe(residual=residual, embeddings=Embeddings(), **DEEP), lambda_init=LambdaInit()))
        models.append(model)
    ids, _ = tokens(recipe())
    torch.testing.assert_close(*(model.features(ids) for model in models))


@pytest.mark.parametrize("name", MECHANISMS)
def test_away_from_it_the_losses_differ(name):
    ids, targets = tokens(recipe())
    without = MECHANISMS["raw"][0] if name in ("rolling", "sigmoid") else Residual(unet=MECHANISMS[name][0].unet)
    arm = randomised(deep(name))
    base = randomised(recipe(residual=Residual() if name == "raw" else without, **DEEP))
    assert (arm(ids, targets) - base(ids, targets)).abs() > 1e-3


# ---------------------------------------------------------------------------------------- counts, gradients, causality


@pytest.mark.parametrize(("name", "added"), [("raw", 0), ("sigmoid", 0), ("rolling", 6), ("parallel_tail", 3 + 2)])
def test_only_scalars_are_added_and_no_products(name, added):
    cfg, base = deep(name), deep("raw")
    model = build(cfg)
    assert sum(p.numel() for p in model.parameters()) == sum(parameters(cfg).values())
    assert parameters(cfg) == parameters(base) | {"scalars": parameters(base)["scalars"] + added}
    assert flops_per_token(cfg) == flops_per_token(base)
    assert list(model.lambdas()) == list(scalars(cfg))
    assert model.lambdas() == pytest.approx(scalars(cfg))


def test_a_tail_starts_in_units_of_the_mean():
    lambdas = build(deep("parallel_tail", dtype="float64")).lambdas()
    assert [lambdas[f"lambda/tail/{i}"] for i in (3, 4, 5)] == pytest.approx([0.5 / 3, 1.2 / 3, -0.8 / 3])


@pytest.mark.parametrize("name", MECHANISMS)
def test_every_scalar_has_the_slope_that_differences_give(name):
    cfg = deep(name, dtype="float64")
    model, batch = randomised(cfg), tokens(cfg)
    model(*batch).backward()
    for key, vector in (("unet", "inject.unet"), ("rolling", "inject.rolling"), ("tail", "inject.tail")):
        if f"{vector}.lambdas.weight" not in dict(model.named_parameters()):
            assert key != name
            continue
        weight = model.get_parameter(f"{vector}.lambdas.weight")
        assert weight.grad is not None
        for place in range(weight.numel()):
            losses = []
            for step in (1e-5, -2e-5, 1e-5):
                with torch.no_grad():
                    weight[place] += step
                losses.append(model(*batch).item())
            slope = weight.grad[place].item()
            assert abs(slope) > 1e-7
            assert slope == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=1e-3)


@pytest.mark.parametrize("name", MECHANISMS)
def test_every_parameter_gets_a_gradient(name):
    model = randomised(deep(name))
    model(*tokens(deep(name))).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.any(), parameter_name


def test_through_a_skip_the_gradient_reaches_its_source_and_nothing_between():
    """With the stream cut after layer 3, rolling skips alone lead from it to the loss: into 4 and 5, from 2 and 3."""
    cfg = recipe(residual=Residual(rolling=True), rolling_x=0.0, rolling=1.0, embeddings=Embeddings(), **DEEP)
    model = randomised(cfg)
    kept: list[Tensor] = []

    def keep(module, args, x):
        x.retain_grad()
        kept.append(x)

    for block in model.blocks:
        block.register_forward_hook(keep)
    model(*tokens(cfg)).backward()
    reached = [i for i, x in enumerate(kept) if x.grad is not None and x.grad.any()]
    assert reached == [0, 1, 3, 5], "5 starts from 3, and 3 from 1; 2 and 4 lead nowhere"


@pytest.mark.parametrize("name", MECHANISMS)
def test_no_loss_depends_on_a_later_token(name):
    cfg = deep(name, seq_len=7)
    model = randomised(cfg)
    ids = torch.arange(7)[None]
    whole = model.logits(ids)
    for t in range(7):
        other = ids.clone()
        other[0, t:] += 10
        changed = (model.logits(other) != whole).any(-1)[0]
        assert changed.tolist() == [False] * t + [True] * (7 - t)


@pytest.mark.parametrize("name", MECHANISMS)
def test_in_bfloat16_too(name):
    exact, rough = (randomised(deep(name, dtype=dtype)) for dtype in ("float32", "bfloat16"))
    losses = [model(*tokens(recipe())) for model in (exact, rough)]
    losses[1].backward()
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=0.01)
    for key, parameter in rough.named_parameters():
        if key.endswith("lambdas.weight"):
            assert parameter.dtype == torch.float32
            assert parameter.grad is not None


def test_arms_share_every_draw():
    base = build(recipe(residual=Residual(), **DEEP))
    for name in MECHANISMS:
        own = dict(build(deep(name)).named_parameters())
        assert all(torch.equal(own[key], p) for key, p in base.named_parameters() if "lambdas" not in key)


# ---------------------------------------------------------------------------------------------------------- embeddings


@pytest.mark.parametrize("extra", range(5))
def test_up_to_four_further_embeddings(extra):
    """x00 to x04 in every block's sum; the stream starts as x00 (x00-x04 article)."""
    cfg = recipe(
        embeddings=Embeddings(mix=True, extra=extra), residual=Residual(), block_extra=[0.1, 0.2, 0.3, 0.4],
        dtype="float64",
    )  # fmt: skip
    model, (ids, targets) = randomised(cfg), tokens(cfg)
    names = [f"x{k:02d}" for k in range(1 + extra)]
    tables = [model.context.embed[name] for name in names]
    assert sum(p.numel() for p in tables) == parameters(cfg)["embed.tokens"] == (1 + extra) * 32 * 16
    ctx = model.context(ids, 0)
    for table, given in zip(tables, ctx.embeddings, strict=True):
        own = table[ids]
        torch.testing.assert_close(given, own / own.square().mean(-1, keepdim=True).sqrt())
    assert torch.equal(ctx.x00, ctx.embeddings[0])
    x = inside(1)[0][:, :1].expand(2, cfg.data.seq_len, 16)
    for i in range(4):
        beside = 0.2 * ctx.embeddings[0] + sum(0.1 * (i + 1) * e for e in ctx.embeddings[1:])
        torch.testing.assert_close(model.inject(i, x, ctx, {}), 0.9 * x + beside)
    assert [label for label in model.lambdas() if label.startswith("lambda/block/2/")] == [
        f"lambda/block/2/{name}" for name in ("x", *names)
    ]
    model(ids, targets).backward()
    assert all(table.grad is not None and table.grad.any() for table in tables)


@pytest.mark.parametrize("tables", [[], [[0]], [[3]], [[0, 3]], [[0, 2], [3]], [[2], [0], [3]]])
def test_layers_get_the_value_embedding_that_is_theirs(tables):
    cfg = recipe(embeddings=Embeddings(value_layers=tables), residual=Residual(), seq_len=3)
    model, (ids, _) = randomised(cfg), tokens(cfg)
    given = {i: layer.value_embedding for i, layer in enumerate(model.context(ids, 0).layers)}
    expected = {layer: k for k, layers in enumerate(tables) for layer in layers}
    for i, value in given.items():
        assert (value is None) == (i not in expected)
        if value is not None:
            assert torch.equal(value, model.context.embed[f"ve{expected[i]}"][ids])
    assert parameters(cfg)["embed.values"] == len(tables) * 32 * 16
    assert sum(label.endswith("/ve") for label in scalars(cfg)) == len(expected)


# --------------------------------------------------------------------------------------------------------- lambda_init


LISTS: dict[str, tuple[list[str], list[float]]] = {
    "block_x": ([f"lambda/block/{i}/x" for i in range(4)], [1.1, 1.2, 1.3, 1.4]),
    "block_x00": ([f"lambda/block/{i}/x00" for i in range(4)], [0.1, 0.2, 0.3, 0.4]),
    "block_extra": ([f"lambda/block/{i}/x01" for i in range(4)], [0.1, 0.2, 0.3, 0.4]),
    "unet": ([f"lambda/unet/{s}-{t}" for s, t in RESIDUAL.unet], [0.1, 0.2, 0.3]),
    "value": ([f"lambda/value/{i}/v" for i in (0, 2, 3)], [0.1, 0.2, 0.3]),
    "value_embedding": ([f"lambda/value/{i}/ve" for i in (0, 3)], [0.1, 0.2]),
}


@pytest.mark.parametrize("key", LISTS)
def test_one_start_value_per_place(key):
    labels, values = LISTS[key]
    start = build(recipe(dtype="float64", **{key: values})).lambdas()
    assert [start[label] for label in labels] == values
    others = {label: value for label, value in start.items() if label not in labels}
    usual = build(recipe(dtype="float64")).lambdas()
    assert others == {label: usual[label] for label in others}
    with pytest.raises(ValueError, match="start values for"):
        build(recipe(**{key: values[1:]}))


def test_tables_of_value_embeddings_may_stand_in_any_order():
    """Start values go by layer, whichever table serves it."""
    cfg = recipe(embeddings=Embeddings(value_layers=[[3], [0]]), value_embedding=[0.1, 0.2], dtype="float64")
    assert build(cfg).lambdas()["lambda/value/0/ve"] == 0.1
    assert TRUNK["layers"] == 4
