"""Counts against the built model and torch's own counter."""

import subprocess
import sys
from collections import Counter

import pytest
from model_recipes import ARMS, recipe, tokens
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from skipsweep.model.count import flops_per_token, parameters, total
from skipsweep.model.gpt import build

MEDIUM = {"layers": 16, "dim": 1024, "heads": 8, "mlp_ratio": 4.0, "vocab_size": 50257, "seq_len": 1024}


def group_of(name: str) -> str:
    if name.startswith("blocks."):
        return f"blocks.{name.split('.')[2]}"
    return {"context": "embed", "head": "head"}.get(name.split(".")[0], "scalars")


@pytest.mark.parametrize("size", [{}, MEDIUM])
@pytest.mark.parametrize(("head", "layers"), ARMS)
def test_parameters_by_group_are_the_built_models(head, layers, size):
    cfg = recipe(head, layers, **size)
    built = Counter({"scalars": 0})
    for name, parameter in build(cfg, "meta").named_parameters():
        built[group_of(name)] += parameter.numel()
    assert parameters(cfg) == dict(built)
    assert total(parameters(cfg)) == sum(built.values())


def test_figures_of_the_medium_track():
    assert parameters(recipe(**MEDIUM)) == {
        "embed": 51_463_168,
        "blocks.attention": 16 * 4_194_304,
        "blocks.mlp": 134_217_728,
        "head": 51_463_168,
        "scalars": 0,
    }
    added = total(parameters(recipe("concat", (11,), **MEDIUM))) - total(parameters(recipe(**MEDIUM)))
    assert added == 51_463_168
    assert parameters(recipe("add", (11,), **MEDIUM))["scalars"] == 2


@pytest.mark.parametrize(("head", "layers"), ARMS)
def test_operations_agree_with_torchs_counter(head, layers):
    cfg = recipe(head, layers)
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


def test_operations_of_a_pass_are_six_per_weight_and_token():
    cfg = recipe("concat", (3, 11), **MEDIUM)
    flops, weights = flops_per_token(cfg), parameters(cfg)
    assert flops["embed"] == 0
    for group in ("blocks.attention", "blocks.mlp", "head"):
        assert flops[group] == 6 * weights[group]
    # 16 layers, 2 products, 2 operations, 3 passes, 1024 channels, 512.5 keys
    assert flops["blocks.attention.scores"] == 16 * 2 * 2 * 3 * 1024 * 512.5


def test_counting_does_not_import_torch():
    code = "import sys, skipsweep.model.count; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
