"""Counts against the built model and torch's own counter."""

import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_recipes import ARMS, OWNERS, recipe, tokens
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from skipsweep.config import Embeddings, Free, Recipe
from skipsweep.model import init
from skipsweep.model.count import (
    flops_per_token,
    inference_columns,
    inference_flops_per_token,
    parameters,
    total,
)
from skipsweep.model.gpt import build
from skipsweep.model.readout import READOUTS, Add, _parameters
from skipsweep.model.readout_specs import SPECS
from skipsweep.model.shape import attention_layers
from skipsweep.model.window import window_blocks
from skipsweep.optim.gate_statistics import GateStatistics
from skipsweep.sweep.canonical import canonical_form
from skipsweep.sweep.entry import from_command_line

MEDIUM = {"layers": 16, "dim": 1024, "heads": 8, "mlp_ratio": 4.0, "vocab_size": 50257, "seq_len": 1024}
RECORD = MEDIUM | {"no_attention": [7], "vocab_multiple": 128, "window": 0}
"""What counts of the medium track's record 15, less its value embeddings."""


SMALL_TRACK = {"no_mlp": [1], "smeared": True, "attention_gate": True, "padded_tables": True}
"""The small track's; layer 1 is left out."""


LLAMA = {"plain": True, "block": "llama", "norm_scheme": "sandwich", "kv_heads": 1, "mlp_multiple": 5}


def group_of(name: str) -> str:
    if "lambdas" in name:
        return "scalars"
    if "norm" in name or name == "head.scale":
        return "norms"
    if name.startswith("blocks."):
        return f"blocks.{name.split('.')[2]}"
    if name == "context.smear.gate":
        return "embed.smear"
    if name == "readout.embed.extra":
        return "embed.readout"
    if name.startswith("context.embed."):
        return "embed.values" if ".ve" in name else "embed.tokens"
    return name.split(".")[0]


@pytest.mark.parametrize(
    "size",
    [{}, SMALL_TRACK, LLAMA, {"plain": True}, {"embeddings": Embeddings(extra=0, value_layers=3 * [[0]])}, MEDIUM],
)
@pytest.mark.parametrize(("head", "layers"), ARMS)
def test_parameters_by_group_are_the_built_models(head, layers, size):
    if size is LLAMA and head in OWNERS:
        pytest.skip("refused when planning")
    cfg = recipe(head, layers, **size)
    built = Counter(
        {"scalars": 0, "embed.values": 0, "embed.readout": 0, "embed.smear": 0, "readout": 0, "norms": 0, "gates": 0}
    )
    for name, parameter in build(cfg, "meta").named_parameters():
        built[group_of(name)] += parameter.numel()
    assert parameters(cfg) == dict(built)
    assert total(parameters(cfg)) == sum(built.values())


class Scaled(Add):
    """`add` with a gain per channel of every source."""

    def __init__(self, cfg: Recipe, dtype: torch.dtype) -> None:
        super().__init__(cfg, dtype)
        self.gain = _parameters("gain", cfg, dtype)

    def terms(self, *seen):
        last, *skips = super().terms(*seen)
        scaled = [(h * self.gain[str(s)]).to(h.dtype) for s, h in zip(self.sources, skips, strict=True)]
        return [last, *scaled]


def products(model):
    """Operations of a training pass, by torch's counter."""
    with FlopCounterMode(display=False) as counted, sdpa_kernel(SDPBackend.MATH):
        model(*tokens(recipe())).backward()
    return counted.get_total_flops()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gain_per_channel_is_a_parameter_and_no_product(dtype, monkeypatch):
    """What docs/add-a-mechanism.md says of a head whose parameters are no matrices."""
    head, layers = "add", (0, 2, "input")
    without = recipe(head, layers, window=0, dtype=dtype)
    before, operations, counted = parameters(without), flops_per_token(without), products(build(without))
    monkeypatch.setitem(SPECS, head, replace(SPECS[head], gains=("gain",)))
    monkeypatch.setitem(READOUTS, head, Scaled)
    monkeypatch.setattr(init, "RULES", (*init.RULES, init.Rule("readout.gain.*", "scalar", init._ones)))
    assert parameters(without) == before | {"readout": 3 * 16}
    assert flops_per_token(without) == operations
    model = build(without)
    gains = {name: p for name, p in model.named_parameters() if name.startswith("readout.gain.")}
    assert {p.shape for p in gains.values()} == {(16,)}
    assert {p.dtype for p in gains.values()} == {torch.float32}
    assert {name: init.parameter_roles(model)[name] for name in gains} == dict.fromkeys(gains, "scalar")
    assert products(model) == counted
    assert all(p.grad is not None for p in gains.values())


def test_figures_of_the_medium_track():
    assert parameters(recipe(plain=True, **MEDIUM)) == {
        "embed.tokens": 51_463_168,
        "embed.values": 0,
        "embed.readout": 0,
        "embed.smear": 0,
        "blocks.attention": 16 * 4_194_304,
        "blocks.mlp": 134_217_728,
        "readout": 0,
        "head": 51_463_168,
        "gates": 0,
        "norms": 0,
        "scalars": 0,
    }
    added = total(parameters(recipe("concat", (11,), **RECORD))) - total(parameters(recipe(**RECORD)))
    assert added == parameters(recipe(**RECORD))["head"] == 51_511_296
    assert parameters(recipe("add", (11,), plain=True, **MEDIUM))["scalars"] == 2


def test_operations_of_the_medium_track():
    """6 for each of the 248,643,584 weights of blocks and head, attention scores apart."""
    flops = flops_per_token(recipe(**RECORD))
    scores = flops.pop("blocks.attention.scores")
    assert total(flops) == 6 * 248_643_584 == pytest.approx(1.4919e9, rel=1e-4)
    assert scores == 15 * 2 * 2 * 3 * 1024 * 512.5


@pytest.mark.parametrize(("head", "layers"), ARMS)
@pytest.mark.parametrize("size", [{}, {"plain": True}, SMALL_TRACK, LLAMA])
def test_operations_agree_with_torchs_counter(head, layers, size):
    if size is LLAMA and head in OWNERS:
        pytest.skip("refused when planning")
    cfg = recipe(head, layers, window=0, **size)
    ids, targets = tokens(cfg, batch=3)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        build(cfg)(ids, targets).backward()
    counted = {str(op): flops for op, flops in counter.get_flop_counts()["Global"].items()}
    ours = {group: flops * ids.numel() for group, flops in flops_per_token(cfg).items()}
    scores = ours.pop("blocks.attention.scores")
    assert counted.pop("aten.mm") == sum(ours.values())
    # the counter takes the full square of T keys for every query, we the (T + 1) / 2 that are not masked
    seq_len = cfg.data.seq_len
    assert sum(counted.values()) * (seq_len + 1) == scores * 2 * seq_len


PARTS = {"blocks.attention": "LlamaBlock.attention", "blocks.mlp": "LlamaBlock.mlp", "head": "Head"}
"""Group -> the module whose products the counter adds up, over all layers."""


@pytest.mark.parametrize("gates", ["none", "free"])
@pytest.mark.parametrize("passes", [1, 3])
def test_operations_of_seed_004s_model_agree_with_torchs_counter_by_part(gates, passes):
    """Forward, and forward and backward, without computing anything. Within 2 %: a gated key has a channel more."""
    trunk = ("model=skip_middle", "embeddings=plain", "residual=none", "skip_layers=none", f"gate_targets={gates}")
    request = from_command_line([*trunk, "data.seq_len=1024", "data.batch_tokens=8192", "data.val_tokens=8192"])
    config = request.composer(request.overrides)
    cfg = canonical_form(config, replace(config.data, vocab_size=50257, fingerprint="none"))
    model, ids = build(cfg, "meta"), torch.zeros(1, 1024, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter:
        logits = model.logits(ids)
        if passes == 3:
            logits.sum().backward()
    counts = {name: Counter({str(op): n for op, n in c.items()}) for name, c in counter.get_flop_counts().items()}
    scores, pairs = counts["Global"]["aten.bmm"], 1025 / 2 / 1024  # the counter takes the whole square
    found = {part: counts[module].total() for part, module in PARTS.items()}
    found["blocks.attention"] -= scores
    found["gates"] = counts["Global"].total() - scores - sum(found.values())
    ours = flops_per_token(cfg) if passes == 3 else inference_flops_per_token(cfg)
    assert found == {part: ours[part] * 1024 for part in found}
    assert (found["gates"] > 0) == (gates == "free")
    assert scores * pairs == pytest.approx(ours["blocks.attention.scores"] * 1024, rel=0.02)
    assert (scores * pairs == ours["blocks.attention.scores"] * 1024) == (gates == "none")
    assert total(ours) == sum(ours[part] for part in (*found, "blocks.attention.scores"))


def test_inference_has_the_last_window():
    shape = {"window": 8, "window_block": 2, "window_growth": "cubic", "seq_len": 16, "steps": 4}
    last = recipe(**shape | {"window_growth": "none"})
    assert inference_flops_per_token(recipe(**shape)) == inference_flops_per_token(last)
    assert total(flops_per_token(recipe(**shape))) < total(flops_per_token(last))


def test_operations_of_a_pass_are_six_per_weight_and_token():
    cfg = recipe("concat", (3, 11), plain=True, **MEDIUM)
    flops, weights = flops_per_token(cfg), parameters(cfg)
    assert flops["embed"] == 0
    for group in ("blocks.attention", "blocks.mlp", "head"):
        assert flops[group] == 6 * weights[group]
    # 16 layers, 2 products, 2 operations, 3 passes, 1024 channels, 512.5 keys
    assert flops["blocks.attention.scores"] == 16 * 2 * 2 * 3 * 1024 * 512.5


@settings(deadline=None, max_examples=60)
@given(
    seq_len=st.integers(1, 40),
    block=st.integers(1, 9),
    window=st.integers(0, 50),
    growth=st.sampled_from(["none", "cubic"]),
    steps=st.integers(1, 12),
    horizon=st.sampled_from([0, 5, 20]),
)
def test_keys_that_are_seen_are_counted_one_by_one(seq_len, block, window, growth, steps, horizon):
    """Layers 0, 2, 3 have attention; 0 and 3 the long window."""
    shape = {"window": window, "window_block": block, "window_growth": growth}
    cfg = recipe(seq_len=seq_len, steps=steps, window_horizon=horizon, **shape)
    seen = 0
    for step in range(steps):
        long = window_blocks(cfg.model, cfg.schedule, step)
        seen += 2 * pairs(seq_len, block, long) + pairs(seq_len, block, max(long // 2, 1) if long else 0)
    expected = 2 * 2 * 3 * cfg.model.dim * seen / seq_len / steps
    assert flops_per_token(cfg)["blocks.attention.scores"] == pytest.approx(expected, rel=1e-9, abs=0.51)


def pairs(length: int, block: int, window: int) -> int:
    q, k = torch.arange(length)[:, None], torch.arange(length)[None, :]
    near = (q // block - k // block < window) if window else True
    return int(((k <= q) & near).sum())


def test_counting_does_not_import_torch():
    code = "import sys, skipsweep.model.count; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_inference_is_a_third_of_training_where_windows_do_not_grow():
    cfg = recipe(window_growth="none", steps=3)
    found, training = inference_flops_per_token(cfg), flops_per_token(cfg)
    assert {group: 3 * flops for group, flops in found.items()} == pytest.approx(training, abs=2)
    longer = replace(cfg, data=replace(cfg.data, val_seq_len=2 * cfg.data.seq_len))
    assert inference_flops_per_token(longer)["blocks.attention.scores"] > found["blocks.attention.scores"]


@pytest.mark.parametrize("trunk", [LLAMA, {"window": 0}])
def test_what_gates_leave_is_what_a_skipping_pass_computes(trunk):
    """Of the linear maps to the operation; estimated products go by open tokens, measured ones by open pairs."""
    gates = Free(init="open", bias=-0.3, attention="keys", floor=1e-6)
    cfg = replace(recipe(**trunk), gate_targets=gates)
    ids, _ = tokens(cfg, batch=3)
    model, gate_statistics = build(cfg).eval().requires_grad_(False), GateStatistics(2, torch.device("cpu"))
    model.gate.weight.mul_(20)
    with (
        model.gate.observed_by(gate_statistics.add),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        model.logits(ids, skip=True)
    counted = {str(op): flops for op, flops in counter.get_flop_counts()["Global"].items()}
    open_fractions = gate_statistics.open_fractions.tokens.tolist(), gate_statistics.open_fractions.products.tolist()
    assert 0.1 < min(open_fractions[0]) < max(open_fractions[0]) < 0.95
    columns = inference_columns(cfg, *open_fractions)
    scores = {name: column.pop("blocks.attention.scores") for name, column in columns.items()}
    maps = sum(flops for op, flops in counted.items() if op in ("aten.mm", "aten.addmm"))
    assert maps == pytest.approx(total(columns["measured"]) * ids.numel(), rel=1e-3)
    assert columns["measured"] == columns["estimated"]
    assert total(columns["estimated"]) < total(columns["dense"])
    per_layer = scores["dense"] / len(attention_layers(cfg.model))
    parts = [[pairs_of[min(i, 3 - i)] for i in attention_layers(cfg.model)] for pairs_of in open_fractions]
    assert scores["estimated"] == pytest.approx(per_layer * sum(parts[0]), abs=1)
    assert scores["measured"] == pytest.approx(per_layer * sum(parts[1]), abs=1)
    assert inference_columns(cfg, [], []).keys() == {"dense"}
