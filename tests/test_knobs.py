"""No dead knobs: every field of a recipe changes what is trained. The table must name every leaf, or say why not."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from model_recipes import HEAD_FIELDS
from runs import configuration

from skipsweep import config as c
from skipsweep.data import prepare
from skipsweep.data.batches import Batches
from skipsweep.distributed import World
from skipsweep.sweep.canonical import canonical_form
from skipsweep.train import Trainer

STEPS = 4

OTHER: dict[str, Any] = {
    "skip_layers.layers": [1],
    "head_type.name": c.AddRenorm(),
    "lambda_init.x_lambda": 0.7,
    "lambda_init.skip_lambda": 0.2,
    "lambda_init.backout": 0.2,
    "lambda_init.block_x": 0.9,
    "lambda_init.block_x00": 0.1,
    "lambda_init.block_extra": 0.1,
    "lambda_init.unet": 0.5,
    "lambda_init.rolling_x": 0.5,
    "lambda_init.rolling": 0.5,
    "lambda_init.tail": 0.5,
    "lambda_init.value": 0.4,
    "lambda_init.value_embedding": 0.4,
    "head_type.width": 4,
    "head_type.widen_head": True,
    "head_type.norm_each": True,
    "head_type.hidden": 8,
    "model.layers": 4,
    "model.dim": 24,
    "model.heads": 1,
    "model.mlp_ratio": 3.0,
    "model.no_attention": [],
    "model.mlp_multiple": 40,
    "model.block": "llama",
    "model.norm_scheme": "sandwich",
    "model.norm_eps": 0.1,
    "model.kv_heads": 1,
    "model.init_std": 0.3,
    "model.softcap": 5.0,
    "model.vocab_multiple": 9,
    "model.rotary_base": 100.0,
    "model.rotary_fraction": 1.0,
    "model.attention_scale": 0.2,
    "model.value_norm": False,
    "model.value_lambda": False,
    "model.window": 0,
    "model.window_block": 1,
    "model.window_growth": "none",
    "model.long_window": [],
    "model.no_mlp": [1],
    "model.softcap_curve": "tanh",
    "model.smeared": True,
    "model.attention_gate": True,
    "model.window_stages": [1, 3],
    "model.last_window": 2,
    "model.yarn": True,
    "lambda_init.smear": 0.7,
    "model.dtype": "float32",
    "embeddings.mix": False,
    "embeddings.extra": 0,
    "embeddings.value_layers": [],
    "residual.unet": [],
    "residual.unet_weight": "sigmoid",
    "residual.rolling": True,
    "residual.parallel_tail": 2,
    "data.seq_len": 32,
    "data.val_seq_len": 32,
    "data.batch_tokens": 256,
    "data.val_tokens": 128,
    "data.order": "sequential",
    "data.order_seed": 1,
    "data.states": 16,
    "data.branching": 3,
    "data.train_tokens": 5000,
    "data.chain_seed": 1,
    "optim.lr": 0.04,
    "optim.momentum": 0.5,
    "optim.momentum_start": 0.5,
    "optim.momentum_warmup": 2,
    "optim.newton_schulz": [[2.0, -1.5, 0.5]],
    "optim.smoothing": 0.5,
    "optim.mlp_decay_factor": 1.0,
    "optim.outer_every": 2,
    "optim.outer_lr": 0.5,
    "optim.outer_momentum": 0.1,
    "optim.embed_lr": 0.1,
    "optim.head_lr": 0.04,
    "optim.scalar_lr": 0.2,
    "optim.beta1": 0.5,
    "optim.beta2": 0.5,
    "optim.eps": 1e-3,
    "optim.weight_decay": 1.0,
    "schedule.steps": 5,
    "schedule.warmup_steps": 2,
    "schedule.warmup_start": 0.5,
    "schedule.cooldown": 0.9,
    "schedule.final": 0.5,
    "schedule.horizon": 8,
    "schedule.window_horizon": 8,
    "seed": 1,
}

HEAD: dict[str, c.HeadType] = {
    "lambda_init.backout": c.Backout(),
    **{
        f"head_type.{f.name}": cls(**HEAD_FIELDS.get(name, {}))
        for name, cls in c.choices(c.HeadType).items()
        for f in fields(cls)
        if f.name != "name"
    },
}
"""Leaf -> a head that has it; all others are tried with `add`."""

LLAMA = {"model.block": "llama", "model.value_norm": False, "model.init_std": 0.1}
STAGED = {"model.window_growth": "stages", "model.window_stages": [1, 2]}
NEEDS: dict[str, dict[str, Any]] = {
    "lambda_init.rolling_x": {"residual.rolling": True, "lambda_init.rolling": 0.3},
    "lambda_init.rolling": {"residual.rolling": True},
    "lambda_init.tail": {"residual.parallel_tail": 2, "lambda_init.tail": 1.5},
    "residual.rolling": {"lambda_init.rolling": 0.3},
    "lambda_init.smear": {"model.smeared": True},
    "model.smeared": {"lambda_init.smear": 0.3},
    "model.window_stages": STAGED,
    "model.block": {"model.value_norm": False},
    "model.norm_scheme": LLAMA,
    "model.kv_heads": LLAMA | {"embeddings.value_layers": []},
    "schedule.warmup_start": {"schedule.warmup_steps": 2},
    "model.yarn": STAGED,
}
"""Leaf -> what it cannot do without, besides a trunk of four layers."""

NOT_TRIED = {
    "data.epochs": "a permission; its canonical form says how many epochs a run begins, which steps decide",
    "data.fingerprint": "found, not chosen",
    "data.vocab_size": "found, not chosen",
    "data.tokenizer": "a synthetic corpus has none",
    "replicate": "repeats the very same run on purpose",
    "data.name": "another choice has other fields",
    "model.padded_tables": "rows that no token has; only their number counts",
    "model.max_document": "a synthetic corpus is one document; tests/test_model_small_2025_11.py",
    "model.document_mask": "a synthetic corpus is one document; tests/test_model_attention.py",
    "optim.name": "another choice has other fields; every choice has a golden trace",
    "schedule.name": "every choice has a golden trace",
    "control.name": "every choice is compared with a replay of its own: tests/test_control.py",
    "gate_targets.name": "the fields of `free` change the numbers: tests/test_model_gate.py",
}


def numbers(config: c.Config, data_root: Path) -> list[float]:
    """All losses of a short training."""
    data = prepare.resolve(config.data, data_root)
    run = canonical_form(config, data)
    found = []
    for boundary in Trainer(run, Batches(data, data_root), World()).run():
        found += [x for x in (boundary.train_loss, boundary.val_loss) if x is not None]
    return [float(x) for x in found]


def base(data_root: Path) -> c.Config:
    config = configuration(data_root, data_root, schedule=c.Trapezoid(steps=STEPS, cooldown=0.5, final=0.1))
    config.model = replace(config.model, dtype="float64")
    config.lambda_init = replace(config.lambda_init, skip_lambda=0.1)
    return config


def changed(node: Any, path: list[str], value: Any) -> Any:
    head, *rest = path
    if rest == ["name"]:
        return replace(node, **{head: value})
    return replace(node, **{head: changed(getattr(node, head), rest, value) if rest else value})


@pytest.mark.parametrize("path", OTHER)
def test_every_field_changes_the_numbers(path: str, data_root: Path) -> None:
    config = base(data_root)
    if path == "embeddings.mix":  # further embeddings need the sum
        config.embeddings = replace(config.embeddings, extra=0)
    config.head_type = HEAD.get(path, config.head_type)
    for key, value in (NEEDS[path] | {"model.layers": 4} if path in NEEDS else {}).items():
        config = changed(config, key.split("."), value)
    assert numbers(changed(config, path.split("."), OTHER[path]), data_root) != numbers(config, data_root)


def test_the_table_is_complete(data_root: Path) -> None:
    heads = {f"head_type.{f.name}" for head in c.choices(c.HeadType).values() for f in fields(head)}
    assert c.leaves(c.recipe_of(base(data_root))).keys() | heads == OTHER.keys() | NOT_TRIED.keys()


def test_the_comparison_can_fail(data_root: Path) -> None:
    """The same settings give the same numbers, or the test above would prove nothing."""
    config = base(data_root)
    assert numbers(config, data_root) == numbers(replace(config, replicate=1), data_root)
