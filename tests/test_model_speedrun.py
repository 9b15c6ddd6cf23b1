"""The medium trunk against record 15 written independently: losses, lengths of the stream, gradients."""

from dataclasses import replace

import pytest
import torch
from model_recipes import shaken
from reference_trunk import EOT, Reference
from torch import Tensor

from skipsweep.config import Recipe
from skipsweep.model import count
from skipsweep.model.gpt import GPT
from skipsweep.sweep.canonical import canonical_form
from skipsweep.sweep.entry import from_command_line

LAYERS, DIM, HEADS = 16, 32, 2


def medium(*overrides: str, tokenizer: str = "gpt2", vocab: int = 50257) -> Recipe:
    """The shipped configuration of the medium track, canonical, without its corpus."""
    request = from_command_line(["model=medium", *overrides])
    config = request.composer(request.overrides)
    return canonical_form(config, replace(config.data, tokenizer=tokenizer, vocab_size=vocab, fingerprint="none"))


def narrow(*overrides: str) -> Recipe:
    """The medium trunk, all of its wiring, 32 channels wide, in float64."""
    sizes = (f"model.dim={DIM}", f"model.heads={HEADS}", "model.dtype=float64")
    return medium(*sizes, *overrides, tokenizer="bytes", vocab=257)


def names_of_record(model: GPT, of_gradient: bool = False) -> dict[str, Tensor]:
    """Our parameters (or gradients) under the record's names, as docs/speedrun.md says; unused scalars are 0."""
    own = {name: p.grad if of_gradient else p.detach() for name, p in model.named_parameters()}
    record = {
        "embed1.weight": own["context.embed.x00"],
        "embed2.weight": own["context.embed.x01"],
        "lm_head.weight": own["head.weight"],
        **{f"value_embeds.{k}.weight": own[f"context.embed.ve{k}"] for k in range(5)},
    }
    for i in range(LAYERS):
        if i != 7:
            qkv, out = own[f"blocks.{i}.attention.qkv"], own[f"blocks.{i}.attention.out"]
            record[f"blocks.{i}.attn.qkvo_w"] = torch.cat((qkv, out[None]))
        record[f"blocks.{i}.mlp.fc_w"] = own[f"blocks.{i}.mlp.fc"]
        record[f"blocks.{i}.mlp.proj_w"] = own[f"blocks.{i}.mlp.proj"]
    return record | {"scalars": flat_scalars(model, own)}


def flat_scalars(model: GPT, own: dict[str, Tensor]) -> Tensor:
    """The record's vector: 16 U-net weights by source, 16 x 3 of the blocks, 16 x 2 of the values, 2 of the output."""
    at = {f"lambda/unet/{source}-{target}": source for source, target in ((6, 9), (4, 10), (2, 11))}
    for i in range(LAYERS):
        at |= {f"lambda/block/{i}/{name}": LAYERS + 3 * i + k for k, name in enumerate(("x", "x00", "x01"))}
        at |= {f"lambda/value/{i}/{name}": 4 * LAYERS + 2 * i + k for k, name in enumerate(("v", "ve"))}
    at |= {"lambda/x": 96, "lambda/skip/11": 97}
    flat = torch.zeros(98, dtype=torch.float64)
    for vector, module in ((n.removesuffix(".weight"), own[n]) for n in own if n.endswith("lambdas.weight")):
        for label, value in zip(model.get_submodule(vector).start, module, strict=True):
            flat[at[label]] = value
    return flat


def text(length: int, *ends: int) -> tuple[Tensor, Tensor]:
    """Tokens with documents that open at `ends`."""
    ids = torch.randint(0, 250, (length + 1,), generator=torch.Generator().manual_seed(length))
    ids[list(ends)] = EOT
    return ids[:-1], ids[1:]


@pytest.mark.parametrize("window", [1, 3, 7])
@pytest.mark.parametrize("skip", [None, 11])
def test_losses_lengths_and_gradients_are_the_records(window: int, skip: int | None):
    model = shaken(narrow(f"skip_layers={'none' if skip is None else skip}", "head_type=add"))
    ids, targets = text(7 * 128, 0, 200, 201, 400, 640)
    lengths: list[float] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _m, _a, x: lengths.append(float(x.detach().square().mean().sqrt())))
    ours = model(ids[None], targets[None], reduction="none", window=window)[0]
    ours.mean().backward()

    parameters = {name: p.clone().requires_grad_() for name, p in names_of_record(model).items()}
    reference = Reference(parameters, LAYERS, HEADS)
    theirs = reference.losses(ids, targets, window, skip)
    theirs.mean().backward()

    assert (ours - theirs).abs().max() < 1e-10
    assert lengths == pytest.approx(reference.lengths, rel=1e-10)
    for name, gradient in names_of_record(model, of_gradient=True).items():
        assert parameters[name].grad is not None
        assert torch.allclose(gradient, parameters[name].grad, rtol=1e-7, atol=1e-12), name


def test_the_medium_model_has_the_records_size():
    """608,885,856 parameters, less 20 of its 96 scalars, which nothing reads: 13 of the 16 for U-net skips, both of
    the layer without attention, and 5 for value embeddings of layers that have none."""
    counts = count.parameters(medium())
    assert counts["embed.tokens"] + counts["embed.values"] == 360_242_176
    assert counts["head"] == 51_511_296
    assert counts["blocks.mlp"] == 134_217_728
    assert counts["blocks.attention"] == 62_914_560
    assert counts["scalars"] == 96 - 20
    assert count.total(counts) == 608_885_856 - 20
    assert count.parameters(medium("skip_layers=11", "head_type=add"))["scalars"] == 98 - 20
