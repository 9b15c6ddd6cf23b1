"""Blocks that compute their open tokens alone: the same numbers, less work, and where it is refused."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from model_recipes import DOCUMENTS, EMBEDDINGS, EOT, randomised, recipe, tokens
from torch import Tensor

from skipsweep.config import Free, Recipe, Residual, recipe_of
from skipsweep.errors import UserError
from skipsweep.model.gate import SkipMiddle
from skipsweep.model.gpt import GPT
from skipsweep.sweep import identity
from skipsweep.sweep.canonical import canonical_form
from skipsweep.sweep.entry import from_command_line
from skipsweep.sweep.validate import validate

KEYS = Free(init="normal", attention="keys", floor=1e-6)
LLAMA: dict[str, Any] = {"plain": True, "block": "llama", "norm_scheme": "sandwich", "layers": 6, "kv_heads": 1}
SPEEDRUN: dict[str, Any] = {"layers": 6, "residual": Residual(unet=[[0, 3]])}
TRUNKS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "llama": ("last", (), LLAMA),
    "llama, value embeddings": ("last", (), LLAMA | {"kv_heads": 2, "embeddings": EMBEDDINGS, "value_lambda": True}),
    "speedrun": ("add", (0, 2, "input"), SPEEDRUN),
    "documents": ("add", (0, 2), SPEEDRUN | DOCUMENTS | {"max_document": 7}),
    "rolling": ("concat", (0, "extra"), {"layers": 6, "residual": Residual(rolling=True), "attention_gate": True}),
    "parallel tail": ("backout", (0,), {"layers": 6, "residual": Residual(parallel_tail=2), "smeared": True}),
}


class Given(SkipMiddle):
    """Gates as they are told, one (B, T) per pair of layers."""

    given: list[Tensor]

    def forward(self, i: int, x: Tensor, gate_state: list[Tensor]) -> Tensor:
        return self.given[min(i, 2 * self.pairs - 1 - i)][..., None].to(x.device)


def model_of(name: str, **changes: Any) -> tuple[GPT, Tensor]:
    """An evaluated model with `Given` gates, and tokens of three sequences, with documents where it knows them."""
    head, sources, trunk = TRUNKS[name]
    settings: dict[str, Any] = {"seq_len": 24} | trunk | changes
    cfg = replace(recipe(head, sources, **settings), gate_targets=KEYS)
    model, (ids, _) = randomised(cfg), tokens(cfg, 3)
    if cfg.data.tokenizer != "none":
        ids[0, 5] = ids[0, 6] = ids[2, 20] = EOT
    model.gate.__class__ = Given
    return model.eval(), ids


def tell(model: GPT, gates: list[Tensor], floor: float = 1e-6) -> None:
    gate: Any = model.gate
    gate.given, gate.floor = gates, floor


def nested(shape: tuple[int, int], pairs: int = 3) -> list[Tensor]:
    """Gates as the model makes them: closed, half open and open, and inner ones never more open."""
    source = torch.Generator().manual_seed(4)
    masks = torch.rand((pairs, *shape), generator=source).sub(0.35).clamp(min=0) * 1.2
    return list(1 - masks.cumsum(0).clamp(0, 1))


def one_open(shape: tuple[int, int]) -> list[Tensor]:
    gates = [torch.zeros(shape) for _ in range(3)]
    for g in gates:
        g[1, 7] = 1.0
    return gates


GATES: dict[str, Any] = {
    "nested": nested,
    "all open": lambda shape: [torch.ones(shape)] * 3,
    "all half open": lambda shape: [torch.full(shape, 0.4)] * 3,
    "all closed": lambda shape: [torch.zeros(shape)] * 3,
    "open or closed": lambda shape: [(g > 0.5).float() for g in nested(shape)],
    "one token open": one_open,
    "one sequence closed": lambda shape: [g * torch.tensor([1.0, 0.0, 1.0])[:, None] for g in nested(shape)],
}


def both(model: GPT, ids: Tensor, window: int = 0) -> tuple[Tensor, Tensor]:
    """Logits by masking, and by skipping."""
    return model.logits(ids, window), model.logits(ids, window, skip=True)


@torch.no_grad()
@pytest.mark.parametrize("trunk", TRUNKS)
@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("window", [0, 3])
def test_logits_are_those_of_the_masked_evaluation(trunk: str, gates: str, window: int) -> None:
    model, ids = model_of(trunk)
    tell(model, GATES[gates](tuple(ids.shape)))
    masked, skipped = both(model, ids, window)
    assert (masked - skipped).abs().max() < 1e-5


@torch.no_grad()
def test_windows_over_several_chunks_of_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skipsweep.model.attention.CHUNK", 4)
    model, ids = model_of("documents", seq_len=60)
    tell(model, nested((3, 60)))
    masked, skipped = both(model, ids, window=4)
    assert (masked - skipped).abs().max() < 1e-5


@torch.no_grad()
def test_the_models_own_gates() -> None:
    """Drawn, not told: some closed, some half open."""
    model, ids = model_of("speedrun")
    model.gate.__class__ = SkipMiddle
    masked, skipped = both(model, ids, 3)
    assert (masked - skipped).abs().max() < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("trunk", ["llama", "documents"])
def test_blocks_see_open_tokens_only(trunk: str) -> None:
    """One sequence of them all; nothing where all are closed; the plain block where all gates are 1."""
    model, ids = model_of(trunk)
    some, none, all_ = nested((3, 24))[1], torch.zeros(3, 24), torch.ones(3, 24)
    tell(model, [all_, some, none])
    seen = []
    for block in model.blocks:
        inner = block.forward
        block.forward = lambda x, g, layer, inner=inner: (seen.append((x.shape[:2], g, layer)), inner(x, g, layer))[1]
    model.logits(ids, skip=True)
    opened = int((some > 0).sum())
    assert 0 < opened < 72
    assert [tuple(shape) for shape, _, _ in seen] == [(3, 24), (1, opened), (1, opened), (3, 24)]
    for shape, g, layer in seen:
        assert (g is None) == (layer.key_bias is None) == (shape[0] == 3)


@torch.no_grad()
def test_training_skips_nothing() -> None:
    """There closed keys have the floor's weight."""
    model, ids = model_of("llama")
    tell(model, one_open((3, 24)), floor=0.5)
    masked, skipped = both(model.train(), ids)
    assert torch.equal(masked, skipped)
    assert (masked - both(model.eval(), ids)[0]).abs().max() > 1e-3


def composed(*overrides: str) -> Recipe:
    request = from_command_line(overrides)
    config = request.composer(request.overrides)
    validate(config)
    return recipe_of(canonical_form(config, replace(config.data, vocab_size=257, fingerprint="none")))


def test_skipping_makes_no_other_run() -> None:
    ids = [identity.run_id(composed("gate_targets=free", f"compute.skip={value}")) for value in ("false", "true")]
    assert ids[0] == ids[1]


REFUSED = {
    (): r"compute\.skip=true needs gates, but gate_targets=none; valid: false, or",
    ("gate_targets=free", "gate_targets.attention=none"): r"with gate_targets\.attention=none open tokens look at them",
    ("gate_targets=free", "gate_targets.attention=queries"): r"valid: false, or gate_targets\.attention=keys",
}


@pytest.mark.parametrize("overrides", REFUSED)
def test_what_cannot_be_skipped_is_refused(overrides: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=REFUSED[overrides]):
        composed(*overrides, "compute.skip=true")
