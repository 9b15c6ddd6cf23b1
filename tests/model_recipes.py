"""Small recipes and models for the tests of the trunk."""

import hashlib
from typing import Any

import torch

from skipsweep.config import (
    AdamW,
    Constant,
    HeadType,
    LambdaInit,
    Model,
    NoGates,
    Recipe,
    SkipLayers,
    Synthetic,
    choices,
)
from skipsweep.model.gpt import GPT, build
from skipsweep.model.init import parameter_roles

ARMS = [
    ("last", ()),
    ("add", (1,)),
    ("add", (0, 2, "input")),
    ("add_renorm", (0, 1)),
    ("add_renorm", ("input",)),
    ("concat", (2,)),
    ("concat", (0, 1, "input", "last")),
]
"""Heads with sources, on a trunk of 4 layers."""

TRUNK = {"layers": 4, "dim": 16, "heads": 2, "mlp_ratio": 2.0, "softcap": 15.0}


def recipe(head: str = "last", sources: Any = (), seed: int = 0, **changes: Any) -> Recipe:
    """A canonical recipe; `changes` go to the trunk, the data or the initial lambdas, whichever has the field."""
    data = {"seq_len": 10, "vocab_size": 32}
    init = {}
    trunk = dict(TRUNK)
    for key, value in changes.items():
        target = data if key in data else init if key in ("x_lambda", "skip_lambda") else trunk
        target[key] = value
    return Recipe(
        skip_layers=SkipLayers(list(sources)),
        head_type=choices(HeadType)[head](),
        lambda_init=LambdaInit(**init),
        gate_targets=NoGates(),
        model=Model(**trunk),
        data=Synthetic(tokenizer="none", states=data["vocab_size"], branching=2, train_tokens=1000, **data),
        optim=AdamW(),
        schedule=Constant(steps=1),
        seed=seed,
    )


def randomised(cfg: Recipe) -> GPT:
    """A model whose zero-initialised parameters are not zero; parameters of one name and shape are equal in all."""
    model = build(cfg)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter_roles(model)[name] != "scalar":
                seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
                draw = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
                parameter.copy_(draw * parameter.shape[-1] ** -0.5)
    return model


def tokens(cfg: Recipe, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets (B, T)."""
    source = torch.Generator().manual_seed(1)
    ids = torch.randint(cfg.data.vocab_size, (batch, cfg.data.seq_len + 1), generator=source)
    return ids[:, :-1], ids[:, 1:]
