"""The trunk and its readouts: neutral settings, causality, sources, learned scalars, seams."""

import gc
import math
import weakref
from dataclasses import replace

import pytest
import torch
from model_recipes import ARMS, AWAY, DOCUMENTS, EOT, OWNERS, RESIDUAL, randomised, recipe, tokens
from neutral_settings import HEADS, Neutral
from torch import nn
from torch.func import functional_call

from skipsweep.config import Embeddings, LambdaInit, Recipe, Residual
from skipsweep.model.gpt import GPT, build
from skipsweep.model.init import ROLES, parameter_roles
from skipsweep.model.lambdas import Lambdas
from skipsweep.model.readout import READOUTS
from skipsweep.model.seams import Context, Gate, Inject
from skipsweep.model.shape import scalars

SKIPPING = [arm for arm in ARMS if arm[0] != "last"]


def with_settings(cfg: Recipe, settings: dict) -> Recipe:
    for key, value in settings.items():
        group, name = key.split(".")
        value = value(cfg.model) if callable(value) else value
        cfg = replace(cfg, **{group: replace(getattr(cfg, group), **{name: value})})
    return cfg


# ------------------------------------------------------------------------------------------------------------- neutral


def test_every_head_has_a_neutral_setting():
    assert set(HEADS) == set(READOUTS) - {"last"}


@pytest.mark.parametrize(("head", "layers"), SKIPPING)
@pytest.mark.parametrize("size", [{}, {"dim": 128, "heads": 4, "vocab_size": 257, "seq_len": 64}, {"plain": True}])
@pytest.mark.parametrize("widen", [False, True])
def test_at_its_neutral_setting_a_mechanism_is_the_baseline(head, layers, size, widen):
    if widen and head not in OWNERS:
        pytest.skip("has no such switch")
    neutral = HEADS[head]
    base = randomised(recipe(**size))
    arm = build(
        with_settings(recipe(head, layers, **size, **({"widen_head": widen} if widen else {})), neutral.settings)
    )
    take_over(arm, base, neutral)
    ids, targets = tokens(recipe(**size))
    same(arm.logits(ids), base.logits(ids), neutral.tolerance)
    same(arm(ids, targets), base(ids, targets), neutral.tolerance)


@pytest.mark.parametrize("layers", [(2,), (0, 1, "input", "last")])
def test_concat_leaves_the_last_layers_channels_alone_bit_for_bit(layers):
    ids, _ = tokens(recipe())
    base = randomised(recipe()).features(ids)
    assert torch.equal(randomised(recipe("concat", layers)).features(ids)[..., :16], base)


def take_over(arm: GPT, base: GPT, neutral: Neutral) -> None:
    """Copy the baseline's parameters; where the arm's are larger, fill with zeros."""
    own = dict(arm.named_parameters())
    renamed = {old.format(last=len(base.blocks) - 1): new for old, new in neutral.renamed.items()}
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            name = renamed.get(name, name)
            assert own[name].shape == parameter.shape or name in neutral.wider, name
            place = tuple(slice(length) for length in parameter.shape)
            own[name].zero_()[place] = parameter


def same(ours: torch.Tensor, baseline: torch.Tensor, tolerance: float) -> None:
    if tolerance == 0:
        assert torch.equal(ours, baseline)
    assert (ours - baseline).abs().max() <= tolerance * baseline.abs().max()


def test_add_at_its_neutral_setting_trains_like_the_baseline_bit_for_bit():
    base, arm = randomised(recipe()), randomised(recipe("add", (0, 2)))
    ids, targets = tokens(recipe())
    for model in (base, arm):
        model(ids, targets).backward()
    own = dict(arm.named_parameters())
    for name, parameter in base.named_parameters():
        assert torch.equal(own[name].grad, parameter.grad), name


def neutral_trunk(**changes) -> GPT:
    """The full trunk with all scalars where LambdaInit's defaults put them."""
    cfg = recipe(**changes)
    return randomised(replace(cfg, lambda_init=LambdaInit()))


@pytest.mark.parametrize(
    ("keep", "without"),
    [
        ({}, {"embeddings": Embeddings(), "residual": Residual(), "value_lambda": False}),
        ({}, {"residual": Residual()}),
        ({}, {"embeddings": Embeddings(mix=True, extra=1)}),
        ({}, {"embeddings": Embeddings(value_layers=[[0, 3]])}),
        ({}, {"value_lambda": False}),
        ({}, {"document_mask": False}),
        (DOCUMENTS, {"embeddings": Embeddings(), "residual": Residual(), "value_lambda": False}),
        ({"window": 10}, {"window": 0}),
        ({"value_norm": False}, {"value_norm": False, "residual": Residual(), "embeddings": Embeddings()}),
    ],
)
def test_the_trunks_mechanisms_start_out_as_nothing_bit_for_bit(keep, without):
    """With and without, losses and the gradients of what both have are equal, as far as nothing is added."""
    full, less = neutral_trunk(**keep), neutral_trunk(**keep | without)
    ids, targets = tokens(recipe(**keep))
    ids[:, [0, 4]] = EOT if keep == DOCUMENTS else 0
    losses = [model(ids, targets, reduction="none") for model in (full, less)]
    assert torch.equal(*losses)
    for loss in losses:
        loss.sum().backward()
    own = dict(full.named_parameters())
    for name, parameter in less.named_parameters():
        if "lambdas" not in name:
            torch.testing.assert_close(own[name].grad, parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [{"block_x": 0.8}, {"block_x00": 0.3}, {"block_extra": 0.3}, {"unet": 0.3}, {"value": 0.4},
     {"value_embedding": 0.1}, {"rotary_base": 100.0}, {"rotary_fraction": 1.0}, {"attention_scale": 0.0},
     {"value_norm": False}, {"no_attention": []}, {"softcap": 0.0},
     {"residual": Residual(unet=[[0, 2], [0, 3]])}, {"embeddings": Embeddings(mix=True, extra=1)}],
)  # fmt: skip
def test_every_choice_of_the_trunk_changes_the_losses(changes):
    losses = [randomised(recipe(**given))(*tokens(recipe()), reduction="none") for given in ({}, changes)]
    assert (losses[0] - losses[1]).abs().max() > 1e-3


@pytest.mark.parametrize(("head", "layers"), SKIPPING)
def test_away_from_its_neutral_setting_a_mechanism_is_not_the_baseline(head, layers):
    ids, _ = tokens(recipe())
    arm = randomised(recipe(head, layers, **AWAY))
    assert not torch.allclose(arm.logits(ids), randomised(recipe()).logits(ids), atol=1e-3)


# -------------------------------------------------------------------------------------------------------------- arms


@pytest.mark.parametrize(("head", "layers"), SKIPPING)
def test_arms_of_one_seed_share_their_parameters_bit_for_bit(head, layers):
    base, arm = build(recipe(seed=3)), dict(build(recipe(head, layers, seed=3)).named_parameters())
    for name, parameter in base.named_parameters():
        of_owned_mlp = head in OWNERS and name.startswith("blocks.3.mlp.")
        assert (name in arm) != of_owned_mlp
        if name != "head.weight" and not of_owned_mlp:
            assert torch.equal(arm[name], parameter), name


@pytest.mark.parametrize(("head", "layers"), ARMS)
def test_the_first_loss_is_ln_of_the_heads_rows(head, layers):
    """32 ids in multiples of 5: the rows that stand for no id take part in the softmax."""
    cfg = recipe(head, layers)
    each = build(cfg)(*tokens(cfg), reduction="none")
    assert each.tolist() == [[pytest.approx(math.log(35), rel=1e-6)] * 10] * 2
    assert build(cfg)(*tokens(cfg)).item() == pytest.approx(math.log(35), rel=1e-6)
    assert build(recipe(head, layers, vocab_multiple=1))(*tokens(cfg)).item() == pytest.approx(math.log(32), rel=1e-6)


def test_without_sources_every_head_is_the_baseline():
    ids, _ = tokens(recipe())
    for head in READOUTS:
        model = randomised(recipe(head))
        assert model.lambdas() == randomised(recipe()).lambdas()
        assert torch.equal(model.logits(ids), randomised(recipe()).logits(ids))


@pytest.mark.parametrize(
    ("head", "layers"),
    [("add", (2, 0)), ("add", (1, 1)), ("add", (3,)), ("add", ("last",)), ("add", (-1,)), ("concat", ("input", 1)),
     ("last", (1,)), ("add", ("middle",))],
)  # fmt: skip
def test_a_recipe_that_is_not_canonical_is_refused(head, layers):
    with pytest.raises(ValueError, match="is not canonical"):
        build(recipe(head, layers))


def test_a_missing_vocabulary_is_refused():
    with pytest.raises(ValueError, match="vocab_size"):
        build(recipe(vocab_size=0))


# ----------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize(("head", "layers"), [arm for arm in ARMS if arm[0] != "add_detached"])
def test_gradients_agree_with_differences(head, layers):
    assert_gradients(head, layers, [role for role in ROLES if role != "scalar"], fast_mode=True)
    assert_gradients(head, layers, ["scalar"], fast_mode=False)


def assert_gradients(head, layers, roles, fast_mode):
    cfg = recipe(head, layers, dtype="float64", **AWAY, dim=8, vocab_size=7, seq_len=4)
    model = randomised(cfg)
    ids, targets = tokens(cfg)
    names = [name for name, role in parameter_roles(model).items() if role in roles]
    values = [model.get_parameter(name).detach().clone().requires_grad_() for name in names]

    def loss(*given):
        return functional_call(model, dict(zip(names, given, strict=True)), (ids, targets), {"window": 1})

    assert torch.autograd.gradcheck(loss, values, fast_mode=fast_mode)


@pytest.mark.parametrize(("head", "layers"), ARMS)
def test_every_parameter_gets_a_gradient(head, layers):
    cfg = recipe(head, layers, **AWAY)
    model = randomised(cfg)
    model(*tokens(cfg)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
@pytest.mark.parametrize(("head", "layers"), ARMS)
def test_other_precisions_agree_with_float32(head, layers, dtype):
    exact, other = randomised(recipe(head, layers, **AWAY)), randomised(recipe(head, layers, dtype=dtype, **AWAY))
    wide = torch.float64 if dtype == "float64" else torch.float32
    losses = [model(*tokens(recipe()), window=2) for model in (exact, other)]
    for loss in losses:
        loss.backward()
    assert losses[1].dtype == wide
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-6 if dtype == "float64" else 0.01)
    theirs = dict(exact.named_parameters())
    for name, parameter in other.named_parameters():
        is_wide = name == "head.weight" or parameter_roles(other)[name] == "scalar"
        assert parameter.dtype == (wide if is_wide else getattr(torch, dtype)), name
        assert parameter.grad is not None
        assert parameter.grad.dtype == parameter.dtype
        assert near(parameter.grad, theirs[name].grad, 1e-4 if dtype == "float64" else 0.2), name


def near(ours: torch.Tensor, exact: torch.Tensor, tolerance: float) -> bool:
    """Whether the difference is short, compared with what is right."""
    return bool((ours.double() - exact.double()).norm() <= tolerance * exact.double().norm())


# ----------------------------------------------------------------------------------------------------------- causality


TABLES = ("x00", "x01", "ve0")


@pytest.mark.parametrize(("head", "layers"), ARMS)
def test_a_loss_depends_on_every_earlier_token_and_on_no_later_one(head, layers):
    cfg = recipe(head, layers, **AWAY, seq_len=7)
    ids = torch.stack([torch.arange(7), torch.arange(10, 17)])
    for table in TABLES:
        assert torch.equal(seen_by(randomised(cfg), table, ids, 0), torch.ones(2, 7, 7).tril().bool())


def seen_by(model: GPT, table: str, ids: torch.Tensor, window: int) -> torch.Tensor:
    """Which tokens' rows of an embedding a loss depends on: (B, losses, tokens), from the gradients.

    Every position holds a token of its own, so that the gradient's row tells the position; targets are not embedded.
    """
    losses = model(ids, torch.zeros_like(ids), reduction="none", window=window)
    weight, found = model.get_parameter(f"context.embed.{table}"), []
    for loss in losses.flatten():
        (grad,) = torch.autograd.grad(loss, weight, retain_graph=True)
        found.append(grad[ids].abs().amax(-1) > 0)
    seen = torch.stack(found).unflatten(0, ids.shape)
    own = torch.eye(len(ids), dtype=torch.bool)[:, None, :, None]
    assert not (seen & ~own).any(), "a sequence sees another one"
    return (seen & own).any(2)


@pytest.mark.parametrize(
    ("head", "layers"), [("last", ()), ("add", (0, 2, "input")), ("concat", (0, 1, "input", "last"))]
)
@pytest.mark.parametrize("window", [1, 2, 3, 4])
def test_a_loss_depends_on_what_the_layers_windows_reach_and_nothing_else(head, layers, window):
    """Layers 0, 2 and 3 have attention; 0 and 3 the long window, in blocks of 2 tokens."""
    cfg = recipe(head, layers, **AWAY, seq_len=14)
    position = torch.arange(14)
    q, k = position[:, None], position[None, :]
    near = {w: ((k <= q) & (q // 2 - k // 2 < w)).float() for w in (window, max(window // 2, 1))}
    reach = near[window] @ near[max(window // 2, 1)] @ near[window] > 0
    assert torch.equal(seen_by(randomised(cfg), "x00", position[None], window)[0], reach)


@pytest.mark.parametrize(("head", "layers"), ARMS)
@pytest.mark.parametrize("window", [0, 3])
def test_no_token_sees_another_document(head, layers, window):
    """Bit for bit, in all that layers read beside the stream too: value embeddings, x00, x01, U-net skips."""
    cfg = recipe(head, layers, **AWAY, seq_len=16, **DOCUMENTS)
    model, (ids, targets) = randomised(cfg), tokens(cfg, batch=3)
    ids[:] = ids % EOT
    ids[1, [0, 5, 11]] = ids[2, [3, 4]] = EOT  # the first sequence is one document
    moved = ids.clone()
    for row, at in ((0, 9), (1, 7), (2, 1)):
        moved[row, at] = (ids[row, at] + 1) % EOT
    with torch.no_grad():
        before, after = (model(given, targets, reduction="none", window=window) for given in (ids, moved))
    same = torch.ones(3, 16, dtype=torch.bool)
    same[0, 9:] = same[1, 7:11] = same[2, 1:3] = False
    assert torch.equal(before == after, same)


def test_without_the_mask_a_token_sees_earlier_documents():
    cfg = recipe(document_mask=False, **DOCUMENTS)
    model, (ids, targets) = randomised(cfg), tokens(cfg)
    ids[:, 5] = EOT
    moved = torch.where(torch.arange(10) == 1, 7, ids)
    with torch.no_grad():
        before, after = (model(given, targets, reduction="none") for given in (ids, moved))
    assert (before[:, 1:] != after[:, 1:]).all()


def test_tokens_of_a_synthetic_corpus_open_no_documents():
    ids, targets = tokens(recipe(vocab_size=257))
    ids[:, 5] = EOT
    losses = [randomised(recipe(vocab_size=257, document_mask=on))(ids, targets) for on in (True, False)]
    assert torch.equal(*losses)


# ------------------------------------------------------------------------------------------------------------- sources


@pytest.mark.parametrize(("head", "layers"), ARMS)
def test_a_source_changes_what_the_head_sees_iff_it_is_chosen(head, layers):
    readout = randomised(recipe(head, layers, **AWAY)).readout
    draws = iter(torch.randn(6, 2, 3, 16, generator=torch.Generator().manual_seed(0)))
    x, outputs = next(draws), {k: next(draws) for k in range(3)}
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    ctx = Context((next(draws), next(draws)), [], ids)
    before = readout(x, outputs, ctx)
    assert before.shape == (2, 3, readout.width)
    for k in range(3):
        moved = outputs | {k: -outputs[k]}
        assert torch.equal(readout(x, moved, ctx), before) == (k not in layers)
    for source, other in (
        ("input", Context((-ctx.x00, ctx.embeddings[1]), [], ids)),
        ("extra", Context(ctx.embeddings, [], ids + 1)),
    ):
        assert torch.equal(readout(x, outputs, other), before) == (source not in layers)
    assert not torch.equal(readout(-x, outputs, ctx), before)


def test_readouts_are_their_formulas():
    def unit(a):
        return a / a.square().mean(-1, keepdim=True).sqrt()

    x, h, x00 = torch.randn(3, 1, 2, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64).unbind()
    settings = {"dtype": "float64", "x_lambda": 0.8, "skip_lambda": [-0.3, 0.1]}
    args = (x, {1: h}, Context((unit(x00), x), []))
    total = unit(x) * 0.8 - unit(h) * 0.3 + unit(x00) * 0.1
    expected = {"add": total, "add_renorm": unit(total), "concat": torch.cat((unit(x), unit(h), unit(x00)), -1)}
    for head, value in expected.items():
        torch.testing.assert_close(build(recipe(head, (1, "input"), **settings)).readout(*args), value)
    twice = build(recipe("concat", ("last",), dtype="float64")).readout(*args)
    torch.testing.assert_close(twice, torch.cat((unit(x), unit(x)), -1))


class Watched(nn.Module):
    """A block that remembers its output without keeping it alive."""

    def __init__(self, block: nn.Module, alive: list) -> None:
        super().__init__()
        self.block, self.alive = block, alive

    def forward(self, x, g, ctx):
        y = self.block(x, g, ctx)
        self.alive.append(weakref.ref(y))
        return y


@pytest.mark.parametrize(("head", "layers"), ARMS)
def test_only_outputs_that_a_seam_needs_are_kept(head, layers):
    model, alive, seen = randomised(recipe(head, layers)), [], {}
    model.blocks = nn.ModuleList([Watched(block, alive) for block in model.blocks])

    def look(module, args):
        gc.collect()
        x, outputs, _ = args
        held = {k for k, ref in enumerate(alive) if ref() is not None and ref() is not x}
        seen.update(held=held, right=all(outputs[k] is alive[k]() for k in outputs), given=set(outputs))

    model.readout.register_forward_pre_hook(look)
    with torch.no_grad():
        model.logits(tokens(recipe())[0])
    chosen = {k for k in layers if isinstance(k, int)} | {0, 1}  # those of the U-net skips
    assert seen == {"held": chosen, "given": chosen, "right": True}


# ------------------------------------------------------------------------------------------------------------- scalars


def test_learned_scalars_carry_their_labels():
    model = build(recipe("add", (0, 2, "input"), plain=True, x_lambda=0.75, skip_lambda=[-0.25, 0.5, 0.125]))
    expected = {"lambda/x": 0.75, "lambda/skip/0": -0.25, "lambda/skip/2": 0.5, "lambda/skip/input": 0.125}
    assert {label: value for label, value in model.lambdas().items() if label in expected} == expected
    assert isinstance(model.readout.lambdas, Lambdas)
    assert {k: v.item() for k, v in model.readout.lambdas().items()} == expected


def test_all_mechanisms_scalars_start_where_lambda_init_says():
    cfg = recipe("add", (2,), **AWAY, dtype="float64")
    block = {
        f"lambda/block/{i}/{name}": value for i in range(4) for name, value in (("x", 0.9), ("x00", 0.2), ("x01", 0.1))
    }
    unet = {f"lambda/unet/{pair}": 0.5 for pair in ("0-2", "0-3", "1-3")}
    own = {f"lambda/value/{i}/v": 0.7 for i in (0, 2, 3)}
    beside = {f"lambda/value/{i}/ve": 0.4 for i in (0, 3)}
    head = {"lambda/x": 0.8, "lambda/skip/2": -0.3}
    assert build(cfg).lambdas() == block | unet | own | beside | head
    assert list(build(cfg).lambdas()) == list(scalars(cfg))


SCALARS = scalars(recipe("add", (0, 2, "input"), **AWAY))


@pytest.mark.parametrize("label", SCALARS)
def test_every_scalar_has_a_slope_of_its_own(label):
    """Moving the entry with this label moves the loss as its gradient says."""
    model = randomised(recipe("add", (0, 2, "input"), **AWAY, dtype="float64"))
    (vector,) = (v for v in model.modules() if isinstance(v, Lambdas) and label in v.start)
    place = list(vector.start).index(label)
    batch = tokens(recipe())
    model(*batch).backward()
    losses = []
    for step in (1e-5, -2e-5):
        with torch.no_grad():
            vector.weight[place] += step
        losses.append(model(*batch).item())
    assert model.lambdas()[label] == pytest.approx(SCALARS[label] - 1e-5)
    assert vector.weight.grad is not None
    slope = vector.weight.grad[place].item()
    assert abs(slope) > 1e-6
    assert slope == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=1e-4)


def test_a_label_moves_the_source_it_names():
    cfg = recipe("add", (0, 2))
    model = randomised(cfg)
    ids, targets = tokens(cfg)
    model(ids, targets).backward()
    assert isinstance(model.readout.lambdas, Lambdas)
    slopes = dict(zip(model.readout.lambdas.start, model.readout.lambdas.weight.grad.tolist(), strict=True))
    for n, layer in enumerate((0, 2)):
        moved = randomised(recipe("add", (0, 2), skip_lambda=[1e-3 * (m == n) for m in range(2)]))
        alone = randomised(recipe("add", (layer,), skip_lambda=1e-3))
        torch.testing.assert_close(moved.logits(ids), alone.logits(ids))
        rise = (moved(ids, targets) - model(ids, targets)).item()
        assert rise == pytest.approx(1e-3 * slopes[f"lambda/skip/{layer}"], rel=0.05, abs=1e-6)


def test_one_start_value_per_source():
    with pytest.raises(ValueError, match="zip"):
        build(recipe("add", (0, 1), skip_lambda=[0.1]))


@pytest.mark.parametrize(("head", "layers"), ARMS)
def test_labels_and_parameters_of_all_mechanisms_are_apart(head, layers):
    model = build(recipe(head, layers))
    labels = [label for v in model.modules() if isinstance(v, Lambdas) for label in v.start]
    assert len(set(labels)) == len(labels) == len(model.lambdas())


def test_two_mechanisms_cannot_share_a_label():
    model = build(recipe("add", (1,)))

    class Greedy(Inject):
        def __init__(self):
            super().__init__()
            self.lambdas = Lambdas({"lambda/x": 1.0}, torch.float32)

    with pytest.raises(ValueError, match="lambda/x"):
        GPT(model.context, Greedy(), model.gate, list(model.blocks), model.readout, model.head)


def test_every_parameter_has_one_role():
    model = build(recipe("add", (1,)))
    roles = parameter_roles(model)
    assert list(roles) == [name for name, _ in model.named_parameters()]
    assert set(roles.values()) == set(ROLES)
    assert roles["readout.lambdas.weight"] == "scalar"
    assert roles["head.weight"] == "head"
    assert {roles[f"context.embed.{table}"] for table in ("x00", "x01", "ve0")} == {"embed"}
    assert {roles[f"{seam}.lambdas.weight"] for seam in ("context", "inject.mix", "inject.unet")} == {"scalar"}
    assert roles["blocks.3.mlp.proj"] == "matrix"


# --------------------------------------------------------------------------------------------------------------- seams


def test_an_inject_gets_the_outputs_it_needs_and_changes_the_stream():
    class AddFirst(Inject):
        needs = frozenset({0})

        def forward(self, i, x, ctx, outputs):
            assert set(outputs) == ({0} if i > 0 else set())
            return x + outputs[0] if i == 2 else x

    plain = randomised(recipe(plain=True))
    model = GPT(plain.context, AddFirst(), plain.gate, list(plain.blocks), plain.readout, plain.head)
    ids, _ = tokens(recipe())
    ctx = plain.context(ids, 0)
    first = plain.blocks[0](ctx.x00, None, ctx.layers[0])
    x = first + plain.blocks[1](first, None, ctx.layers[1])
    for block, layer in zip(list(plain.blocks)[2:], ctx.layers[2:], strict=True):
        x = block(x, None, layer)
    assert torch.equal(model.logits(ids), plain.head(plain.readout(x, {}, ctx)))


def test_the_trunks_injects_are_their_formulas():
    """U-net skips first, then the weighted sum; both from what stood before the block."""
    cfg = recipe(dtype="float64", unet=0.5)
    assert RESIDUAL.unet == [[0, 2], [0, 3], [1, 3]]
    inject = build(cfg).inject
    x, x00, x01, h0, h1 = torch.randn(5, 2, 3, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ctx, outputs = Context((x00, x01), []), {0: h0, 1: h1}
    skips = {0: 0 * x, 1: 0 * x, 2: 0.5 * h0, 3: 0.5 * h0 + 0.5 * h1}
    for i in range(4):
        expected = 0.9 * (x + skips[i]) + 0.2 * x00 + 0.1 * x01
        torch.testing.assert_close(inject(i, x, ctx, outputs), expected, rtol=1e-14, atol=1e-14)
    assert inject.needs == {0, 1}


def test_a_gate_has_a_memory_within_one_pass_and_closes_blocks():
    class Half(Gate):
        """Closes the blocks after the second, from what it noted before."""

        def forward(self, i, x, gate_state):
            gate_state.append(torch.full_like(x[..., :1], float(i < 2)))
            assert len(gate_state) == i + 1
            return gate_state[i]

    plain = randomised(recipe(residual=Residual(), embeddings=Embeddings()))
    gated = GPT(plain.context, plain.inject, Half(), list(plain.blocks), plain.readout, plain.head)
    short = GPT(plain.context, plain.inject, plain.gate, list(plain.blocks)[:2], plain.readout, plain.head)
    ids, _ = tokens(recipe())
    for _ in range(2):
        assert torch.equal(gated.logits(ids), short.logits(ids))


def test_the_loss_comes_per_token_summed_or_averaged():
    cfg = recipe("add", (1,))
    model = randomised(cfg)
    ids, targets = tokens(cfg)
    each = model(ids, targets, reduction="none")
    assert each.shape == ids.shape
    torch.testing.assert_close(model(ids, targets, reduction="sum"), each.sum())
    torch.testing.assert_close(model(ids, targets), each.mean())
    torch.testing.assert_close(model(ids[1:], targets[1:], reduction="none"), each[1:])
