"""Small recipes and models for the tests of the trunk."""

import hashlib
from dataclasses import fields
from typing import Any

import torch

from skipsweep.config import (
    AdamW,
    Constant,
    Embeddings,
    HeadType,
    LambdaInit,
    Model,
    NoControl,
    NoGates,
    Recipe,
    Residual,
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
    ("concat", (0, 1, "input", "extra", "last")),
    ("add_unnormed", (0, 2, "input", "extra")),
    ("add_detached", (0, 2, "input")),
    ("add_fixed_x", (0, "extra")),
    ("add_relu", (0, 2, "input")),
    ("add_tanh", (1, "input", "extra")),
    ("add_relu_linear", (0, 2, "extra")),
    ("concat_mlp", (0, 2, "input", "extra", "last")),
    ("concat_mlp_narrow", (0, 2, "input", "extra", "last")),
    ("backout", (0, 2, "input")),
]
"""Heads with sources, on a trunk of 4 layers."""

HEAD_FIELDS = {"concat_mlp_narrow": {"width": 6}}
"""What a head cannot do without."""

OWNERS = ("concat_mlp", "concat_mlp_narrow")
"""Heads that own the last MLP."""

PLAIN = {"layers": 4, "dim": 16, "heads": 2, "mlp_ratio": 2.0, "softcap": 15.0}
"""Blocks one after the other, and nothing between them."""

TRUNK = PLAIN | {
    "no_attention": [1],
    "vocab_multiple": 5,
    "rotary_base": 64.0,
    "rotary_fraction": 0.5,
    "attention_scale": 0.3,
    "value_norm": True,
    "value_lambda": True,
    "document_mask": True,
    "window": 8,
    "window_block": 2,
    "window_growth": "cubic",
    "long_window": [0, 3],
}
"""All that the speedrun's blocks have."""

EMBEDDINGS = Embeddings(mix=True, extra=1, value_layers=[[0, 3]])
RESIDUAL = Residual(unet=[[0, 2], [0, 3], [1, 3]])
LAMBDAS = {"block_x": 0.9, "block_x00": 0.2, "block_extra": 0.1, "unet": 0.5, "value": 0.7, "value_embedding": 0.4}
"""Where scalars start, so that every mechanism has a part in what comes out."""

AWAY = {"x_lambda": 0.8, "skip_lambda": -0.3, "backout": 0.4}
"""Where readouts' scalars start, so that all sources have a part in what comes out."""

EOT = 256
"""End-of-text of the `bytes` tokenizer."""
SMALL_TRACK: dict[str, Any] = {
    "no_attention": [0, 1],
    "no_mlp": [0],
    "value_norm": False,
    "value_lambda": True,
    "smeared": True,
    "attention_gate": True,
    "padded_tables": True,
    "softcap_curve": "tanh",
    "embeddings": Embeddings(mix=True, value_layers=[[2], [3]]),
    "residual": Residual(unet=[[1, 3]], unet_weight="sigmoid"),
}
"""What the small track's trunk has of its own, on the tests' trunk."""
DOCUMENTS = {"tokenizer": "bytes", "vocab_size": 257}
"""Changes to a recipe whose texts have documents."""


def recipe(head: str = "last", sources: Any = (), seed: int = 0, plain: bool = False, **changes: Any) -> Recipe:
    """A canonical recipe of the full trunk, or of a plain one.

    `changes` go to the trunk, the data, the schedule, the initial lambdas or the head, whichever has the field, or
    replace `embeddings` or `residual` as a whole.
    """
    groups = {"embeddings": Embeddings() if plain else EMBEDDINGS, "residual": Residual() if plain else RESIDUAL}
    data = {"seq_len": 10, "vocab_size": 32, "tokenizer": "none"}
    init = {} if plain else dict(LAMBDAS)
    trunk = dict(PLAIN if plain else TRUNK)
    schedule = {"steps": 1, "window_horizon": 0}
    lambdas = {f.name for f in fields(LambdaInit)}
    cls = choices(HeadType)[head]
    of_head = {f.name: f.default for f in fields(cls)} | HEAD_FIELDS.get(head, {})
    for key, value in changes.items():
        owners = [group for group in (groups, data, schedule, of_head) if key in group]
        (owners[0] if owners else init if key in lambdas else trunk)[key] = value
    return Recipe(
        skip_layers=SkipLayers(list(sources)),
        head_type=cls(**of_head),
        lambda_init=LambdaInit(**init),
        gate_targets=NoGates(),
        control=NoControl(),
        model=Model(**trunk),
        data=Synthetic(states=data["vocab_size"], branching=2, train_tokens=1000, **data),
        optim=AdamW(),
        schedule=Constant(**schedule),
        seed=seed,
        **groups,
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


def shaken(cfg: Recipe) -> GPT:
    """The model with every parameter moved: zeros and ones would hide what they multiply."""
    model, source = build(cfg), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, p in model.named_parameters():
            spread = 0.3 if name.endswith("lambdas.weight") else p.shape[-1] ** -0.5
            p.add_(torch.randn(p.shape, generator=source, dtype=p.dtype) * spread)
    return model
