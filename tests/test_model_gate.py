"""Gates over the middle layers (skip-middle paper): their formulas, what a closed one does, and where they are
refused."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from model_recipes import DOCUMENTS, EOT, randomised, recipe, tokens

from skipsweep.config import Free, Recipe, Residual
from skipsweep.errors import UserError
from skipsweep.model import count
from skipsweep.model.attention import ChunkedMask, attend_layer
from skipsweep.model.gate import SkipMiddle
from skipsweep.model.gpt import GPT, build
from skipsweep.model.seams import LayerContext
from skipsweep.sweep import identity
from skipsweep.sweep.canonical import canonical_form
from skipsweep.sweep.entry import from_command_line
from skipsweep.sweep.validate import validate

FREE = Free(init="normal", attention="keys", floor=1e-6)
LLAMA = {"plain": True, "block": "llama", "norm_scheme": "sandwich", "layers": 6, "init_std": 0.1}
SPEEDRUN = {"layers": 6, "residual": Residual(unet=[[0, 3]])}


def gated(gates: Free = FREE, head: str = "last", sources: Any = (), **changes: Any) -> Recipe:
    return replace(recipe(head, sources, **changes), gate_targets=gates)


def gate_of(model: GPT) -> SkipMiddle:
    assert isinstance(model.gate, SkipMiddle)
    return model.gate


def opened(cfg: Recipe) -> GPT:
    """A model with gates of all kinds: open, half open, closed."""
    model = randomised(cfg)
    with torch.no_grad():
        gate_of(model).weight.mul_(0.3)
        gate_of(model).bias.fill_(0.1)
    return model


def gates_of(model: GPT, ids: torch.Tensor) -> list[torch.Tensor]:
    found: list[Any] = []
    hook = model.gate.register_forward_hook(lambda _m, _a, g: found.append(g))
    model.logits(ids)
    hook.remove()
    return found


@pytest.mark.parametrize("trunk", [LLAMA, SPEEDRUN])
def test_gates_follow_the_equations(trunk: dict[str, Any]) -> None:
    """From what leaves the block before, not from what is mixed into it."""
    cfg = gated(dtype="float64", **trunk)
    model, (ids, _) = opened(cfg), tokens(cfg)
    entering = [model.context(ids, 0).x00]
    for block in model.blocks:
        block.register_forward_hook(lambda _m, _a, x: entering.append(x))
    found = gates_of(model, ids)
    total = torch.zeros(*ids.shape, 1, dtype=torch.float64)
    for i in range(3):
        total = total + torch.relu(entering[i] @ gate_of(model).weight[i][:, None] + gate_of(model).bias[i])
        expected = 1 - total.clamp(0, 1)
        torch.testing.assert_close(found[i], expected)
        assert torch.equal(found[i], found[5 - i])
    every = torch.cat(found)
    assert (every == 0).any()
    assert ((every > 0) & (every < 1)).any()


@pytest.mark.parametrize("trunk", [LLAMA, SPEEDRUN])
def test_gates_that_start_with_zeros_are_the_dense_model(trunk: dict[str, Any]) -> None:
    """And have no gradient: they never will be another."""
    cfg = gated(replace(FREE, init="zero", attention="none"), **trunk)
    model, dense, (ids, targets) = build(cfg), build(recipe(**trunk)), tokens(cfg)
    assert torch.equal(model.logits(ids), dense.logits(ids))
    keys = build(gated(replace(FREE, init="zero"), **trunk))
    torch.testing.assert_close(keys.logits(ids), dense.logits(ids), rtol=1e-5, atol=1e-5)
    model(ids, targets).backward()
    gradient = gate_of(model).weight.grad
    assert gradient is not None
    assert not gradient.any()


def test_a_closed_gate_takes_out_the_blocks_change_and_nothing_else() -> None:
    cfg = gated(**SPEEDRUN, dtype="float64")
    model, (ids, _) = randomised(cfg).eval(), tokens(cfg)
    with torch.no_grad():
        gate_of(model).weight.zero_()
        gate_of(model).bias.copy_(torch.tensor([0.0, 0.0, 2.0]))
    dense = GPT(model.context, model.inject, build(recipe()).gate, list(model.blocks), model.readout, model.head)
    for block in model.blocks[2:4]:
        block.forward = lambda x, g, layer: x
    expected = dense.logits(ids)
    for block in model.blocks[2:4]:
        del block.forward
    torch.testing.assert_close(model.logits(ids), expected)


@pytest.mark.parametrize("attention", ["keys", "none", "queries"])
@pytest.mark.parametrize("training", [True, False])
def test_nothing_sees_a_later_token(attention: str, training: bool) -> None:
    cfg = gated(replace(FREE, attention=attention), "add", (0, 2), **LLAMA)
    model, (ids, _) = opened(cfg).train(training), tokens(cfg)
    other = ids.clone()
    other[:, 6] = (ids[:, 6] + 1) % cfg.data.vocab_size
    moved = (model.logits(ids) - model.logits(other)).abs().amax(-1) > 1e-6
    assert not moved[:, :6].any()
    assert moved[:, 6].all()


# ------------------------------------------------------------------------------------------------------ gated attention


def attended(g: torch.Tensor, axis: str, training: bool = True, docs: torch.Tensor | None = None, window: int = 0):
    """Attention over random queries, keys and values, and the same by equation 3."""
    source = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(2, 2, 7, 4, generator=source, dtype=torch.float64) for _ in range(3))
    gate = SkipMiddle(gated(replace(FREE, attention=axis)), torch.float64).train(training)
    visible = ChunkedMask(7, docs, window, 2)
    none = torch.zeros(0)
    layer = gate.bias_attention(LayerContext((none, none), visible, None, None, None), g[..., None])
    sees = visible.sees(torch.arange(7), torch.arange(7))
    weights = (0.5 * q @ k.mT).exp() * sees
    weights = weights * g[:, None, None, :].clamp(min=1e-6 if training else 0.0) if axis == "keys" else weights
    return attend_layer(q, k, v, layer, 0.5), weights @ v / weights.sum(-1, keepdim=True)


SOME = torch.tensor([[1.0, 0.5, 0.2, 1.0, 0.1, 0.7, 1.0]] * 2, dtype=torch.float64)


@pytest.mark.parametrize("axis", ["keys", "queries", "none"])
@pytest.mark.parametrize("window", [0, 2])
def test_attention_sees_gates_as_equation_3_says(axis: str, window: int) -> None:
    docs = torch.tensor([[0, 0, 0, 1, 1, 1, 1]] * 2) if window else None
    found, expected = attended(SOME, axis, docs=docs, window=window)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_closed_keys_have_no_weight_at_evaluation_and_the_floor_s_in_training() -> None:
    g = SOME.clone()
    g[:, 2] = g[:, 4] = 0.0
    for training in (True, False):
        found, expected = attended(g, "keys", training)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    nothing, _ = attended(torch.zeros(2, 7, dtype=torch.float64), "keys", training=False)
    assert nothing.isfinite().all()


@pytest.mark.parametrize("trunk", [LLAMA | {"layers": 4}, {"layers": 4}])
def test_the_gates_gradient_is_that_of_finite_differences(trunk: dict[str, Any]) -> None:
    """It could be lost on its way through attention without anybody noticing."""
    cfg = gated(dtype="float64", **trunk)
    model, (ids, targets) = opened(cfg), tokens(cfg)
    model(ids, targets).backward()
    for parameter in gate_of(model).parameters():
        gradient = parameter.grad
        assert gradient is not None
        direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        losses = []
        with torch.no_grad():
            for step in (1e-6, -2e-6):
                parameter += step * direction
                losses.append(model(ids, targets))
            parameter += 1e-6 * direction
        assert (losses[0] - losses[1]) / 2e-6 == pytest.approx((gradient * direction).sum().item(), rel=1e-4)


def test_documents_stay_apart() -> None:
    cfg = gated(**SPEEDRUN, **DOCUMENTS)
    model, (ids, _) = opened(cfg), tokens(cfg)
    ids[:, 5] = EOT
    other = ids.clone()
    other[:, 2] = 7
    assert torch.equal(model.logits(ids)[:, 5:], model.logits(other)[:, 5:])


# ------------------------------------------------------------------------------------------------- counts and refusals


def test_gates_are_counted() -> None:
    cfg = gated(**LLAMA)
    model, (ids, targets) = build(cfg), tokens(cfg)
    assert count.parameters(cfg)["gates"] == sum(p.numel() for p in model.gate.parameters()) == 3 * (16 + 1)
    assert count.flops_per_token(cfg)["gates"] == 3 * 2 * 3 * 16
    assert model(ids, targets).isfinite()


@pytest.mark.parametrize("init", ["normal", "open"])
def test_where_gates_start(init: str) -> None:
    model = build(gated(Free(init=init, bias=-1.0 if init == "open" else 0.0, attention="keys", floor=1e-6), dim=512))
    assert gate_of(model).weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert set(gate_of(model).bias.tolist()) == {-1.0 if init == "open" else 0.0}


def shipped(*overrides: str) -> Recipe:
    request = from_command_line(["gate_targets=free", *overrides])
    config = request.composer(request.overrides)
    validate(config)
    return canonical_form(config, replace(config.data, vocab_size=257, fingerprint="none"))


def test_the_papers_gated_model_has_the_released_size() -> None:
    trunk = ("model=skip_middle", "embeddings=plain", "residual=none", "skip_layers=none")
    request = from_command_line(["gate_targets=free", *trunk])
    config = request.composer(request.overrides)
    run = canonical_form(config, replace(config.data, vocab_size=50257, fingerprint="none"))
    assert count.total(count.parameters(run)) == 190_483_974


REFUSED = {
    "model.layers=7": r"gate_targets=free pairs opposite layers, but model\.layers=7 is odd; valid: an even number",
    "head_type=concat_mlp": r"head_type=concat_mlp takes the last MLP, which gate_targets=free could not skip",
    "gate_targets.init=closed": r"gate_targets\.init=closed is unknown; valid: normal, open, zero",
    "gate_targets.attention=values": r"gate_targets\.attention=values is unknown; valid: keys, queries, none",
    "gate_targets.floor=0": r"gate_targets\.floor=0\.0 is the smallest gate; valid: above 0, at most 1",
    "gate_targets.init=open": r"gate_targets\.init=open with gate_targets\.bias=0\.0 is not open; valid: below 0",
}


@pytest.mark.parametrize("override", REFUSED)
def test_what_cannot_be_is_refused(override: str) -> None:
    with pytest.raises(UserError, match=REFUSED[override]):
        shipped("skip_layers=[0,1]", override)


def test_settings_without_effect_make_no_other_run() -> None:
    plain = identity.run_id(shipped())
    assert identity.run_id(shipped("gate_targets.bias=-3")) == plain
    unseen = [identity.run_id(shipped("gate_targets.attention=none", f"gate_targets.floor={x}")) for x in (0.1, 0.2)]
    assert unseen[0] == unseen[1] != plain
