"""The small track's trunk against its record 45 written independently: losses, lengths of the stream, gradients."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from model_recipes import randomised, recipe, shaken, tokens
from reference_small import EOT, Reference
from torch import Tensor

from skipsweep.config import Residual, RunConfig
from skipsweep.model import count
from skipsweep.model.attention import documents
from skipsweep.model.context import Smear
from skipsweep.model.gpt import GPT, build
from skipsweep.model.head import Head
from skipsweep.model.norm import norm
from skipsweep.model.shape import scalars
from skipsweep.model.window import window_blocks
from skipsweep.optim.schedule import lr_factor
from skipsweep.sweep import validate
from skipsweep.sweep.canonical import canonical_form
from skipsweep.sweep.entry import from_command_line

DIM, HEADS = 48, 3


def small(*overrides: str, tokenizer: str = "gpt2", vocab: int = 50257) -> RunConfig:
    """The shipped configuration, canonical, without its corpus."""
    request = from_command_line(["experiment=small_2025_11", *overrides])
    config = request.composer(request.overrides)
    validate.validate(config)
    return canonical_form(config, replace(config.data, tokenizer=tokenizer, vocab_size=vocab, fingerprint="none"))


def narrow() -> GPT:
    """All of its wiring, 48 channels wide, in float64, every parameter moved."""
    sizes = (f"model.dim={DIM}", f"model.heads={HEADS}", "model.dtype=float64")
    return shaken(small(*sizes, tokenizer="bytes", vocab=257))


def names_of_record(model: GPT, of_gradient: bool = False) -> dict[str, Tensor]:
    """Our parameters (or gradients) under the record's names; scalars that nothing reads are 0."""
    own = {name: p.grad if of_gradient else p.detach() for name, p in model.named_parameters()}
    record: dict[str, Any] = {
        "embed.weight": own["context.embed.x00"],
        "smear_gate.weight": own["context.smear.gate"],
        "lm_head.weight": own["head.weight"],
        **{f"value_embeds.{k}.weight": own[f"context.embed.ve{k}"] for k in range(3)},
    }
    for i in range(1, 12):
        if i != 7:
            qkvo = torch.cat((own[f"blocks.{i}.attention.qkv"], own[f"blocks.{i}.attention.out"][None]))
            record[f"blocks.{i}.attn.qkvo_w"] = qkvo.reshape(DIM, 4 * DIM)
            record[f"blocks.{i}.attn.attn_gate.weight"] = own[f"blocks.{i}.attention.gate"]
        record[f"blocks.{i}.mlp.c_fc"] = own[f"blocks.{i}.mlp.fc"].T
        record[f"blocks.{i}.mlp.c_proj"] = own[f"blocks.{i}.mlp.proj"]
    at = {"lambda/unet_logit/4-7": 1, "lambda/smear": 60, "lambda/backout/8": 61}
    for i in range(1, 12):
        at |= {f"lambda/block/{i}/{name}": 12 + 2 * i + k for k, name in enumerate(("x", "x00"))}
        at |= {f"lambda/value/{i}/{name}": 36 + 2 * i + k for k, name in enumerate(("v", "ve"))}
    flat = torch.zeros(62, dtype=torch.float64)
    for vector in (name.removesuffix(".weight") for name in own if name.endswith("lambdas.weight")):
        for label, value in zip(model.get_submodule(vector).start, own[f"{vector}.weight"], strict=True):
            flat[at[label]] = value
    return record | {"scalars": flat}


@pytest.mark.parametrize(("window", "length"), [(3, 640), (7, 1024), (13, 2176)])
def test_losses_lengths_and_gradients_are_the_records(window: int, length: int):
    """In three stages; the longest text has a document of more than 2,048 tokens."""
    model = narrow()
    ids = torch.randint(0, 250, (length + 1,), generator=torch.Generator().manual_seed(length))
    ids[[0, 17, 200] if length < 2000 else [0, 17]] = EOT
    ids, targets = ids[:-1], ids[1:]
    lengths: list[float] = []
    for block in list(model.blocks)[1:]:
        block.register_forward_hook(lambda _m, _a, x: lengths.append(float(x.detach().square().mean().sqrt())))
    ours = model(ids[None], targets[None], reduction="none", window=window)[0]
    ours.mean().backward()

    parameters = {name: p.clone().requires_grad_() for name, p in names_of_record(model).items()}
    reference = Reference(parameters, HEADS)
    theirs = reference.losses(ids, targets, window)
    theirs.mean().backward()

    assert (ours - theirs).abs().max() < 1e-10
    assert lengths == pytest.approx(reference.lengths, rel=1e-10)
    for name, gradient in names_of_record(model, of_gradient=True).items():
        assert parameters[name].grad is not None
        assert gradient.any(), name
        assert torch.allclose(gradient, parameters[name].grad, rtol=1e-7, atol=1e-12), name


def test_the_model_has_the_records_size():
    """268,665,628 parameters, less 24 of its 64 scalars, which nothing reads: 11 of 12 for U-net skips, layer 0's two
    in the sum, 9 for values of layers without attention or value embedding, and 2 that fill up the vector."""
    counts = count.parameters(small())
    assert count.total(counts) == 268_665_628 - 24
    assert counts["scalars"] == 64 - 24
    assert sum(p.numel() for p in build(small(), "meta").parameters()) == count.total(counts)


def test_scalars_start_where_the_records_do():
    found = scalars(small())
    assert found["lambda/unet_logit/4-7"] == -1.5
    assert found["lambda/smear"] == 0
    assert found["lambda/backout/8"] == 0.5
    assert {v for label, v in found.items() if label.endswith("/x")} == {1.1}
    assert {v for label, v in found.items() if label.endswith("/x00")} == {0.0}
    assert {v for label, v in found.items() if label.startswith("lambda/value/")} == {0.5}
    assert not any("/block/0/" in label for label in found), "layer 0 is left out"


def test_windows_and_rates_over_the_run():
    """Three stages of 2,185 steps, then 40 at the end of both schedules; the last validation sees 20 blocks."""
    run = small()
    steps = {0: 3, 728: 3, 729: 7, 1456: 7, 1457: 11, 2184: 11, 2185: 13, 2224: 13, 2225: 20}
    assert {step: window_blocks(run.model, run.schedule, step) for step in steps} == steps
    for step in (0, 1092, 1093, 2000, 2184, 2185, 2224):
        x = min(step / 2185, 1)
        left = min((1 - x) / 0.5, 1)
        assert lr_factor(run.schedule, step) == pytest.approx(left + (1 - left) * 0.1)


def test_its_softcap_is_the_sigmoid_less_a_constant():
    head = Head(4, 7, 15.0, torch.float64, "tanh")
    head.weight.data = torch.randn(7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 9
    x = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(head(x), 30 * torch.sigmoid(x @ head.weight.T / 7.5) - 15)
    features, targets = x[None].requires_grad_(), torch.tensor([[0, 3, 6]])
    plain = torch.nn.functional.cross_entropy(head(features)[0], targets[0])
    expected = torch.autograd.grad(plain, [features, head.weight])
    ours = head.loss(features, targets, "mean")
    torch.testing.assert_close(ours, plain)
    for mine, theirs in zip(torch.autograd.grad(ours, [features, head.weight]), expected, strict=True):
        torch.testing.assert_close(mine, theirs)


# ------------------------------------------------------------------------------------------- its parts, one by one

PARTS = {"no_mlp": [1], "smeared": True, "attention_gate": True, "softcap_curve": "tanh", "padded_tables": True}


def test_a_layer_with_neither_attention_nor_mlp_is_left_out():
    """Layer 1 of four; what stands behind it is what stood before."""
    cfg = recipe(no_mlp=[1], residual=Residual())
    model, (ids, _) = randomised(cfg), tokens(cfg)
    seen: list[Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _m, _a, x: seen.append(x))
    model.logits(ids)
    assert torch.equal(seen[0], seen[1])
    assert not any(label.startswith("lambda/block/1/") for label in model.lambdas())
    assert not list(model.blocks[1].parameters())
    assert model.lambdas().keys() == scalars(cfg).keys()


def test_without_weight_smear_is_nothing_bit_for_bit():
    """Its neutral setting, lambda_init.smear=0."""
    ids, targets = tokens(recipe())
    losses = [randomised(recipe(smeared=on))(ids, targets, reduction="none") for on in (True, False)]
    assert torch.equal(*losses)


def test_smear_is_its_formula_and_moves_x00_alone():
    cfg = recipe(smeared=True, dtype="float64")
    model, (ids, _) = randomised(cfg), tokens(cfg)
    smear = model.context.smear
    assert isinstance(smear, Smear)
    with torch.no_grad():
        smear.lambdas.weight.fill_(0.7)
    e = model.get_parameter("context.embed.x00")[ids]
    ctx = model.context(ids, 0)
    for t in range(1, 4):
        gate = (e[:, t, :12] @ smear.gate[0]).sigmoid()[:, None]
        expected = e[:, t] + 0.7 * gate * e[:, t - 1]
        torch.testing.assert_close(ctx.x00[:, t], expected / expected.square().mean(-1, keepdim=True).sqrt())
    assert torch.equal(ctx.x00[:, 0], norm(e[:, 0]))
    assert torch.equal(ctx.embeddings[1], norm(model.get_parameter("context.embed.x01")[ids]))


def test_an_open_gate_at_zero_halves_what_heads_gather():
    """There is no neutral setting; but twice the output matrix makes up for gates of 0."""
    ids, _ = tokens(recipe())
    gated, plain = randomised(recipe(attention_gate=True)), randomised(recipe())
    with torch.no_grad():
        for name, p in gated.named_parameters():
            if name.endswith("attention.gate"):
                p.zero_()
            if name.endswith("attention.out"):
                p.mul_(2)
    torch.testing.assert_close(gated.logits(ids), plain.logits(ids))


def test_rows_for_no_token_change_nothing():
    ids, _ = tokens(recipe())
    padded, plain = randomised(recipe(padded_tables=True)), randomised(recipe())
    with torch.no_grad():
        for name, p in plain.named_parameters():
            padded.get_parameter(name)[: len(p)] = p
    assert padded.get_parameter("context.embed.x00").shape == (35, 16)
    assert torch.equal(padded.logits(ids), plain.logits(ids))


def test_long_documents_count_as_several():
    ids = torch.tensor([[1, 1, 1, 1, EOT, 1, 1, EOT, 1, 1, 1, 1, 1, 1, 1]])
    numbers = documents(ids, EOT, 3)[0]
    starts = [t for t in range(15) if t == 0 or numbers[t] != numbers[t - 1]]
    assert starts == [0, 3, 4, 7, 10, 13]
    assert torch.equal(documents(ids, EOT, 0)[0], documents(ids, EOT)[0])


@pytest.mark.parametrize(
    "changes", [{}, {"window": 6, "window_growth": "stages", "window_stages": [1, 2], "yarn": True}]
)
def test_no_loss_depends_on_a_later_token_and_every_parameter_on_some_loss(changes: dict[str, Any]):
    cfg = recipe("backout", (2,), backout=0.4, seq_len=7, **PARTS, **changes)
    model = randomised(cfg)
    smear = model.context.smear
    assert isinstance(smear, Smear)
    with torch.no_grad():
        smear.lambdas.weight.fill_(0.7)
    ids = torch.arange(7)[None]
    whole = model.logits(ids)
    for t in range(7):
        other = ids.clone()
        other[0, t:] += 10
        assert (model.logits(other) != whole).any(-1)[0].tolist() == [False] * t + [True] * (7 - t)
    model(*tokens(cfg)).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.any(), name  # noqa: PT018
