"""The skip-middle paper's trunk against an independent implementation, its sizes, and what else works on it."""

from dataclasses import replace
from typing import Any

import neutral_settings
import pytest
import torch
from model_recipes import recipe, shaken, tokens
from reference_llama import Reference
from torch import Tensor

from skipsweep.config import Embeddings, Free, Recipe, Residual
from skipsweep.errors import UserError
from skipsweep.model import count
from skipsweep.model.gpt import GPT, build
from skipsweep.model.wiring import mlp_hidden
from skipsweep.optim.schedule import lr_factor
from skipsweep.sweep.canonical import canonical_form
from skipsweep.sweep.entry import from_command_line
from skipsweep.sweep.validate import validate

LLAMA = {"block": "llama", "norm_scheme": "sandwich", "norm_eps": 1e-5, "softcap": 0.0, "heads": 4, "dim": 16}
PLAIN = ("embeddings=plain", "residual=none")


def llama(head: str = "last", sources: Any = (), **changes: Any) -> Recipe:
    return recipe(head, sources, plain=True, **LLAMA | changes)


def shipped(*overrides: str) -> Recipe:
    """A shipped configuration, canonical, without its corpus."""
    request = from_command_line(overrides)
    config = request.composer(request.overrides)
    validate(config)
    return canonical_form(config, replace(config.data, tokenizer="gpt2", vocab_size=50257, fingerprint="none"))


def names_of_reference(model: GPT, of_gradient: bool = False) -> dict[str, Tensor]:
    """Our parameters (or gradients) under the reference's names."""
    own: dict[str, Any] = {name: p.grad if of_gradient else p.detach() for name, p in model.named_parameters()}
    names = {"context.embed.x00": "embed", "context.norm.weight": "input_norm", "head.scale": "output_norm"}
    names |= {"head.weight": "head", "gate.weight": "mask.weight", "gate.bias": "mask.bias"}
    found = {names[name]: value for name, value in own.items() if name in names}
    parts = {"attention.q": "q", "attention.out": "o", "mlp.gate": "gate", "mlp.up": "up", "mlp.down": "down"}
    for part in ("attention", "mlp"):
        parts |= {f"{part}_norm.weight": f"{part}_in", f"{part}_post_norm.weight": f"{part}_out"}
    for name, value in own.items():
        if name.startswith("blocks."):
            _, i, part = name.split(".", 2)
            found |= (
                {f"{i}.k": value[0], f"{i}.v": value[1]} if part == "attention.kv" else {f"{i}.{parts[part]}": value}
            )
    return found


def reference(p: dict[str, Tensor], cfg: Recipe) -> Reference:
    model = cfg.model
    return Reference(p, model.layers, model.heads, model.kv_heads or model.heads, model.norm_eps, model.rotary_base)


def assert_gradients(model: GPT, theirs: dict[str, Tensor]) -> None:
    for name, gradient in names_of_reference(model, of_gradient=True).items():
        torch.testing.assert_close(gradient, theirs[name].grad, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("scheme", ["pre", "sandwich"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_logits_and_gradients_are_the_references(scheme: str, kv_heads: int) -> None:
    cfg = llama(norm_scheme=scheme, kv_heads=kv_heads, rotary_base=100.0, dtype="float64", layers=2, mlp_multiple=9)
    model, (ids, _) = shaken(cfg), tokens(cfg)
    ours = model.logits(ids)
    ours.square().sum().backward()
    p = {name: value.clone().requires_grad_() for name, value in names_of_reference(model).items()}
    theirs = torch.stack([reference(p, cfg).logits(one) for one in ids])
    theirs.square().sum().backward()
    assert mlp_hidden(cfg.model) == 36
    assert (ours - theirs).abs().max() < 1e-10
    assert_gradients(model, p)


def gated(**changes: Any) -> tuple[GPT, Recipe]:
    """Gates of all kinds: open, half open, closed."""
    cfg = replace(
        llama(kv_heads=2, layers=4, **changes), gate_targets=Free(init="normal", attention="keys", floor=1e-6)
    )
    model = shaken(cfg)
    found: list[Tensor] = []
    hook = model.gate.register_forward_hook(lambda _m, _a, g: found.append(g))
    model.logits(tokens(cfg)[0])
    hook.remove()
    every = torch.cat(found)
    assert all(kind.any() for kind in (every == 0, (every > 0) & (every < 1), every == 1))
    return model, cfg


@pytest.mark.parametrize("scheme", ["pre", "sandwich"])
def test_the_gated_model_is_the_references(scheme: str) -> None:
    """In training, with gradients; at evaluation, where closed keys have no weight; and skipping them."""
    model, cfg = gated(norm_scheme=scheme, dtype="float64")
    ids, _ = tokens(cfg)
    ours = model.logits(ids)
    ours.square().sum().backward()
    p = {name: value.clone().requires_grad_() for name, value in names_of_reference(model).items()}
    theirs = torch.stack([reference(p, cfg).logits(one) for one in ids])
    theirs.square().sum().backward()
    assert (ours - theirs).abs().max() < 1e-10
    assert_gradients(model, p)
    model.eval()
    with torch.no_grad():
        wanted = torch.stack([reference(p, cfg).logits(one, training=False) for one in ids])
        assert (wanted - theirs).abs().max() > 1e-6
        for skip in (False, True):
            assert (model.logits(ids, skip=skip) - wanted).abs().max() < 1e-10


@torch.no_grad()
@pytest.mark.parametrize("made", ["dense", "gated"])
def test_in_float32_they_agree_to_rounding(made: str) -> None:
    cfg = llama()
    model, cfg = gated() if made == "gated" else (shaken(cfg), cfg)
    ids, _ = tokens(cfg)
    p = {name: value.double() for name, value in names_of_reference(model).items()}
    ours, theirs = model.eval().logits(ids), torch.stack([reference(p, cfg).logits(one, training=False) for one in ids])
    assert ours.dtype == torch.float32
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


def test_the_paper_s_model_has_the_released_size() -> None:
    """The released code has 190,483,974 parameters: these, and 6 masks of 768 + 1."""
    counts = count.parameters(shipped("model=skip_middle", *PLAIN, "skip_layers=none"))
    assert counts["embed.tokens"] == counts["head"] == 50257 * 768
    assert counts["blocks.mlp"] == 12 * 3 * 768 * 3072
    assert counts["norms"] == (2 + 4 * 12) * 768
    assert count.total(counts) == 190_479_360 == 190_483_974 - 6 * (768 + 1)


@pytest.mark.parametrize("layers", [2, 4, 6, 8, 10, 12])
def test_every_depth_is_counted_as_built(layers: int) -> None:
    cfg = shipped("model=skip_middle", *PLAIN, "skip_layers=none", f"model.layers={layers}")
    assert count.total(count.parameters(cfg)) == sum(p.numel() for p in build(cfg, "meta").parameters())


def test_the_baseline_is_table_2() -> None:
    cfg = shipped("experiment=skip_middle_dense")
    assert cfg.data.batch_tokens == 512 * 1024
    factors = [lr_factor(cfg.schedule, step) for step in (0, 978, 1956, 10758, 19559)]
    assert factors == pytest.approx([0.1, 0.55, 1.0, 0.5, 0.0], abs=6e-4)
    assert {cfg.optim.lr, cfg.optim.embed_lr, cfg.optim.head_lr, cfg.optim.scalar_lr} == {1e-3}  # pyright: ignore


def test_initial_values_are_normal() -> None:
    for name, values in build(llama(init_std=0.02, dim=64, vocab_size=500)).named_parameters():
        if not values.numel():
            continue
        if "norm" in name or name == "head.scale":
            assert torch.equal(values, torch.ones_like(values))
        else:
            assert values.std().item() == pytest.approx(0.02, rel=0.1), name


@pytest.mark.parametrize("scheme", ["pre", "sandwich"])
def test_no_token_sees_a_later_one(scheme: str) -> None:
    cfg = llama("add", (0, 2), norm_scheme=scheme, kv_heads=2)
    model, (ids, _) = shaken(cfg), tokens(cfg)
    other = ids.clone()
    other[:, 6] = (ids[:, 6] + 1) % cfg.data.vocab_size
    moved = (model.logits(ids) != model.logits(other)).any(-1)
    assert not moved[:, :6].any()
    assert moved[:, 6:].all()


# ----------------------------------------------------------------------------------------------------- other mechanisms


@pytest.mark.parametrize("head", [name for name, neutral in neutral_settings.HEADS.items() if not neutral.wider])
def test_heads_are_the_baseline_at_their_neutral_setting(head: str) -> None:
    neutral = neutral_settings.HEADS[head]
    changes = {key.split(".")[1]: value for key, value in neutral.settings.items()}
    trunk: dict[str, Any] = {"init_std": 0.1, "norm_eps": 0.0}  # `add_renorm` differs by half of norm_eps
    base, cfg = llama(**trunk), llama(head, (0, 2), **trunk, **changes)
    ids, _ = tokens(cfg)
    expected, found = build(base).logits(ids), build(cfg).logits(ids)
    assert (found - expected).abs().max() <= neutral.tolerance * expected.abs().max()


def test_skips_and_sums_are_the_baseline_at_their_neutral_setting() -> None:
    between: dict[str, Any] = {}
    for name in ("unet", "rolling", "mix"):
        neutral = neutral_settings.BETWEEN_BLOCKS[name]
        assert neutral is not None
        between |= {key.split(".")[1]: value for key, value in neutral.settings.items()}
    groups = {
        "residual": Residual(unet=[[0, 2]], rolling=True),
        "embeddings": Embeddings(mix=True, extra=1, value_layers=[[0, 3]]),
        "value": 1.0,
        "value_embedding": 0.0,
    }
    cfg = llama(init_std=0.1, value_lambda=True, attention_gate=True, **groups, **between)
    base = llama(init_std=0.1, attention_gate=True)
    ids, _ = tokens(cfg)
    assert torch.equal(build(cfg).logits(ids), build(base).logits(ids))


IMPOSSIBLE = {
    "model.block=gpt": r"model\.block=gpt is unknown; valid: speedrun, llama",
    "model.norm_scheme=post": r"model\.norm_scheme=post is unknown; valid: pre, sandwich",
    "model.kv_heads=3": r"model\.kv_heads=3 must divide model\.heads=4; valid: 1, 2, 4",
    "model.kv_heads=2": r"embeddings\.value_layers needs .* model\.kv_heads=4",
    "model.value_norm=true": r"model\.value_norm=true is for model\.block=speedrun",
    "model.block=speedrun": r"need model\.block=llama; valid with model\.block=speedrun: pre and 0",
    "head_type=concat_mlp": r"head_type=concat_mlp has the MLP of model\.block=speedrun",
}


@pytest.mark.parametrize("override", IMPOSSIBLE)
def test_what_cannot_be_is_refused(override: str) -> None:
    with pytest.raises(UserError, match=IMPOSSIBLE[override]):
        shipped("model=skip_middle_tiny", "skip_layers=[0,1]", override)
