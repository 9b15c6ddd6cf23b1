"""Initialisation: the table's distributions, and independence of everything but seed and name."""

import hashlib
import math

import pytest
import torch
from model_recipes import LAMBDAS, recipe
from torch import nn

from skipsweep.config import Embeddings
from skipsweep.model import init
from skipsweep.model.gpt import build
from skipsweep.model.init import generator, initialise, parameter_roles
from skipsweep.model.lambdas import Lambdas

WIDE = {"dim": 64, "heads": 2, "vocab_size": 500, "mlp_ratio": 4.0}


def parameters(*args, **changes):
    return {name: p.detach() for name, p in build(recipe(*args, **changes)).named_parameters()}


def test_values_follow_the_table():
    for name, values in parameters("add", (1,), **WIDE, x_lambda=0.5, skip_lambda=-0.25).items():
        kind = name.split(".")[-1]
        if name.startswith("context.embed."):
            assert abs(values.mean()) < 4 / math.sqrt(values.numel())
            assert values.std().item() == pytest.approx(1, abs=4 / math.sqrt(2 * values.numel()))
            assert values.abs().max() > 3
        elif kind in ("qkv", "fc"):
            bound = math.sqrt(3) * 0.5 / math.sqrt(values.shape[-1])
            assert values.abs().max() <= bound
            assert values.abs().max() > 0.99 * bound
            assert values.std().item() == pytest.approx(0.5 / math.sqrt(values.shape[-1]), rel=0.02)
            assert abs(values.mean()) < 4 * 0.5 / math.sqrt(values.shape[-1] * values.numel())
        elif name.startswith("readout"):
            assert values.tolist() == [0.5, -0.25]
        elif kind == "weight" and "lambdas" in name:
            assert set(values.tolist()) <= {torch.tensor(start).item() for start in LAMBDAS.values()}
        else:
            assert kind in ("out", "proj", "weight")
            assert not values.any(), name


def test_the_medium_tracks_bound():
    qkv = parameters(plain=True, layers=1, dim=1024, heads=8, mlp_ratio=0.25)["blocks.0.attention.qkv"]
    assert qkv.shape == (3, 1024, 1024)
    assert qkv.abs().max().item() == pytest.approx(0.027063, abs=1e-6)


def test_queries_keys_values_and_layers_draw_apart():
    model = parameters()
    parts = [part for i in (0, 2, 3) for part in model[f"blocks.{i}.attention.qkv"]]
    parts += [model[f"context.embed.{table}"] for table in ("x00", "x01", "ve0")]
    assert len(parts) == 12
    for n, part in enumerate(parts):
        assert not any(torch.equal(part, other) for other in parts[:n])


def test_other_layers_and_mechanisms_move_no_draw():
    small = parameters()
    others = (
        parameters("concat", (1, "input")),
        parameters("add", (2,), layers=6),
        parameters(mlp_ratio=3.0),
        parameters(no_attention=[]),
        parameters(embeddings=Embeddings(mix=True, extra=2, value_layers=[[0, 3], [2]])),
        parameters(plain=True, vocab_multiple=5),
    )
    for other in others:
        shared = [n for n in small if n in other and other[n].shape == small[n].shape and "lambdas" not in n]
        assert len(shared) >= 10
        assert all(torch.equal(small[name], other[name]) for name in shared)


def test_the_order_of_parameters_plays_no_part():
    model = build(recipe())
    reverse = nn.Module()
    for name in reversed([name for name, _ in model.named_parameters()]):
        *path, last = name.split(".")
        owner = reverse
        for n, part in enumerate(path):
            if not hasattr(owner, part):
                original = model.get_submodule(".".join(path[: n + 1]))
                owner.add_module(part, original if isinstance(original, Lambdas) else nn.Module())
            owner = getattr(owner, part)
        owner.register_parameter(last, nn.Parameter(torch.empty_like(model.get_parameter(name))))
    initialise(reverse, 0)
    assert next(reverse.named_parameters())[0] == "head.weight"
    for name, parameter in build(recipe()).named_parameters():
        assert torch.equal(reverse.get_parameter(name), parameter)


def test_seeds_differ_and_zero_is_one_of_them():
    zero, one = parameters(seed=0), parameters(seed=1)
    for name in ("context.embed.x00", "context.embed.ve0", "blocks.0.attention.qkv", "blocks.3.mlp.fc"):
        assert not torch.equal(zero[name], one[name])
        assert torch.equal(zero[name], parameters(seed=0)[name])


def test_the_global_generator_is_neither_read_nor_moved():
    torch.manual_seed(1)
    first = parameters()
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = parameters()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_all_precisions_start_from_the_same_draws(dtype):
    exact, other = parameters("add", (1,)), parameters("add", (1,), dtype=dtype)
    for name, values in exact.items():
        assert torch.equal(other[name].to(values.dtype), values.to(other[name].dtype).to(values.dtype)), name


def test_lambdas_of_a_float64_model_start_at_the_number_given():
    found = parameters("add", (1,), skip_lambda=0.1, dtype="float64")
    assert found["readout.lambdas.weight"].tolist() == [1.0, 0.1]
    assert found["inject.mix.lambdas.weight"].tolist() == [0.9, 0.2, 0.1] * 4


def test_a_model_from_the_meta_device_starts_the_same():
    cfg = recipe("add", (1,))
    model = build(cfg, "meta")
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not list(model.buffers())
    model = model.to_empty(device="cpu")
    initialise(model, cfg.seed)
    for name, values in build(cfg).named_parameters():
        assert torch.equal(model.get_parameter(name), values)


def test_the_seed_of_a_draw_is_the_hash_of_seed_and_name():
    digest = hashlib.sha256(b"7:blocks.0.mlp.fc").digest()
    assert generator(7, "blocks.0.mlp.fc").initial_seed() == int.from_bytes(digest[:8], "little") >> 1
    assert generator(1, "1:x").initial_seed() != generator(11, ":x").initial_seed()


def test_an_uncovered_parameter_is_an_error():
    model = nn.Module()
    model.novel = nn.Parameter(torch.zeros(2))
    for use in (lambda: initialise(model, 0), lambda: parameter_roles(model)):
        with pytest.raises(LookupError, match="novel is covered by 0 rules"):
            use()


def test_a_parameter_covered_twice_is_an_error(monkeypatch):
    monkeypatch.setattr(init, "RULES", (*init.RULES, init.RULES[0]))
    with pytest.raises(LookupError, match=r"context\.embed\.\w+ is covered by 2 rules"):
        parameter_roles(build(recipe(), "meta"))
