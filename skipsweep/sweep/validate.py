"""Impossible values, refused when planning: one line with key, value and what is valid.

What concerns one group alone is here, what has to fit together is in `sweep/compatibility.py`.
"""

import math
from dataclasses import fields, is_dataclass
from typing import Any

from skipsweep.config import (
    MISSING,
    Adapting,
    ConcatMLP,
    ConcatMLPNarrow,
    Config,
    Cosine,
    Embeddings,
    Gated,
    InUnits,
    Model,
    Muon,
    ProportionalDerivative,
    Residual,
    RunConfig,
    SparsityVarianceL2,
    Trapezoid,
)
from skipsweep.data import batches
from skipsweep.errors import UserError
from skipsweep.model.readout_specs import SPECS
from skipsweep.model.shape import LLAMA
from skipsweep.sweep import compatibility

DTYPES = ("float32", "bfloat16", "float64")
DECAYS = ("beta1", "beta2", "momentum", "momentum_start", "smoothing", "outer_momentum")
"""Fields of optimisers that say what is left of a mean after a step."""


def validate(config: Config) -> None:
    """Raise UserError for the first value that cannot be, and for values that cannot go together."""
    _complete(config)
    _model(config)
    _residual(config.residual)
    batches.check(config.data)
    _head(config)
    _gates(config)
    _control(config)
    _optim(config)
    _schedule(config)
    _compute(config)
    _record(config)
    _one_of("retry", config.retry, ("none", "failed"))
    compatibility.check(config)


def _complete(node: Any, where: str = "") -> None:
    """Every mandatory value is there, and every number is one."""
    for f in fields(node):
        value, key = getattr(node, f.name), where + f.name
        if is_dataclass(value):
            _complete(value, f"{key}.")
        elif isinstance(value, str) and value == MISSING:
            raise UserError(f"{key} has no value; give one, e.g. {key}=...")
        elif any(
            isinstance(v, float) and not math.isfinite(v) for v in (value if isinstance(value, list) else [value])
        ):
            raise UserError(f"{key}={value} is not finite")


def _model(config: RunConfig) -> None:
    model = config.model
    for key in ("layers", "dim", "heads", "mlp_ratio", "rotary_base"):
        _positive(f"model.{key}", getattr(model, key))
    if model.layers < 2:
        raise UserError("model.layers=1: a trunk needs at least 2 layers")
    if model.dim % model.heads or model.dim // model.heads % 2:
        raise UserError(f"model.dim={model.dim} must be an even multiple of model.heads={model.heads}")
    _positive("model.mlp_multiple", model.mlp_multiple)
    if model.mlp_multiple == 1 and not (model.mlp_ratio * model.dim).is_integer():
        raise UserError(f"model.mlp_ratio={model.mlp_ratio} times model.dim={model.dim} is not a whole number")
    _block(config)
    for key in ("vocab_multiple", "window_block"):
        _positive(f"model.{key}", getattr(model, key))
    for key in ("softcap", "attention_scale", "window"):
        _not_negative(f"model.{key}", getattr(model, key))
    if not 0 <= model.rotary_fraction <= 1:
        raise UserError(f"model.rotary_fraction={model.rotary_fraction} is a part of all channels; valid: 0 to 1")
    _one_of("model.window_growth", model.window_growth, ("none", "cubic", "stages"))
    _one_of("model.softcap_curve", model.softcap_curve, ("root", "tanh"))
    for key in ("max_document", "last_window"):
        _not_negative(f"model.{key}", getattr(model, key))
    _stages(model)
    _one_of("model.dtype", model.dtype, DTYPES)
    _embeddings(config.embeddings)
    _not_negative("replicate", config.replicate)
    _seed("seed", config.seed)


def _block(config: RunConfig) -> None:
    """Settings that one of the kinds of block has."""
    model = config.model
    _one_of("model.block", model.block, ("speedrun", "llama"))
    _one_of("model.norm_scheme", model.norm_scheme, ("pre", "sandwich"))
    for key in ("norm_eps", "kv_heads", "init_std"):
        _not_negative(f"model.{key}", getattr(model, key))
    if model.block != LLAMA:
        if model.norm_scheme != "pre" or model.kv_heads not in (0, model.heads):
            raise UserError(
                f"model.norm_scheme={model.norm_scheme} and model.kv_heads={model.kv_heads} need model.block=llama; "
                f"valid with model.block={model.block}: pre and 0"
            )
        return
    if model.heads % (model.kv_heads or model.heads):
        divisors = ", ".join(str(n) for n in range(1, model.heads + 1) if model.heads % n == 0)
        raise UserError(f"model.kv_heads={model.kv_heads} must divide model.heads={model.heads}; valid: {divisors}")
    if model.value_norm:
        raise UserError("model.value_norm=true is for model.block=speedrun; model.block=llama norms no values")


def _embeddings(embeddings: Embeddings) -> None:
    _not_negative("embeddings.extra", embeddings.extra)
    if embeddings.extra and not embeddings.mix:
        raise UserError(
            f"embeddings.extra={embeddings.extra} needs embeddings.mix=true: that sum is where they come in"
        )


def _residual(residual: Residual) -> None:
    _one_of("residual.unet_weight", residual.unet_weight, ("raw", "sigmoid"))
    k = residual.parallel_tail
    if k and residual.rolling:
        raise UserError(f"residual.rolling=true leads from layer to layer, but residual.parallel_tail={k} has none")


def _head(config: RunConfig) -> None:
    head = config.head_type
    for size in SPECS[head.name].sizes:
        _positive(f"head_type.{size}", getattr(head, size))
    if isinstance(head, ConcatMLP | ConcatMLPNarrow) and head.hidden < 0:
        raise UserError(f"head_type.hidden={head.hidden} must not be negative; 0: as many as keep the parameters equal")


def _gates(config: RunConfig) -> None:
    gates = config.gate_targets
    if not isinstance(gates, Gated):
        return
    _one_of("gate_targets.init", gates.init, ("normal", "open", "zero"))
    _one_of("gate_targets.attention", gates.attention, ("keys", "queries", "none"))
    if not 0 < gates.floor <= 1:
        raise UserError(f"gate_targets.floor={gates.floor} is the smallest gate; valid: above 0, at most 1")
    if gates.init == "open" and gates.bias >= 0:
        raise UserError(f"gate_targets.init=open with gate_targets.bias={gates.bias} is not open; valid: below 0")


def _control(config: RunConfig) -> None:
    control = config.control
    for key in ("gamma", "delta"):
        if isinstance(control, Adapting):
            _not_negative(f"control.{key}", getattr(control, key))
    if isinstance(control, InUnits) and control.sequences is not None:
        _positive("control.sequences", control.sequences)
    if isinstance(control, SparsityVarianceL2):
        for key in ("alpha", "beta"):
            _not_negative(f"control.{key}", getattr(control, key))
    if isinstance(control, ProportionalDerivative) and control.memory < 1:
        raise UserError(f"control.memory={control.memory} is a number of steps; valid: 1 or more")


def _stages(model: Model) -> None:
    stages, growth = list(model.window_stages), model.window_growth
    if growth == "stages" and (not stages or stages != sorted(set(stages)) or stages[0] < 1):
        raise UserError(f"model.window_stages={stages} must be rising numbers of blocks, e.g. [3,7,11]")
    if stages and growth == "stages" and model.window and stages[-1] * model.window_block >= model.window:
        raise UserError(
            f"model.window={model.window} comes after the stages: it must be above the last one's "
            f"{stages[-1]} blocks of {model.window_block} tokens"
        )
    if model.yarn and growth != "stages":
        raise UserError(f"model.yarn=true goes by stages, but model.window_growth={growth}; valid: stages")


def _optim(config: RunConfig) -> None:
    optim = config.optim
    for f in fields(optim):
        key, value = f"optim.{f.name}", getattr(optim, f.name)
        if isinstance(value, int | float):
            _not_negative(key, value)
            if f.name in DECAYS and value >= 1:
                raise UserError(f"{key}={value} is a decay per step; valid: 0 to below 1")
    if optim.outer_every:
        _positive("optim.outer_lr", optim.outer_lr)
    if isinstance(optim, Muon):
        _newton_schulz(optim.newton_schulz)


def _newton_schulz(triples: Any) -> None:
    valid = isinstance(triples, list) and triples and all(isinstance(t, list) and len(t) == 3 for t in triples)
    if not valid or not all(_is_finite(number) for triple in triples for number in triple):
        raise UserError(
            f"optim.newton_schulz={triples} must be a list of one triple of finite numbers per iteration, "
            "e.g. [[3.4445,-4.775,2.0315]]"
        )


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _schedule(config: RunConfig) -> None:
    schedule = config.schedule
    _positive("schedule.steps", schedule.steps)
    if not 0 <= schedule.warmup_start <= 1:
        raise UserError(f"schedule.warmup_start={schedule.warmup_start} is a factor of the peak; valid: 0 to 1")
    for key in ("warmup_steps", "horizon", "window_horizon"):
        _not_negative(f"schedule.{key}", getattr(schedule, key))
    for key in ("steps", "horizon"):
        end = getattr(schedule, key)
        if end and schedule.warmup_steps >= end:
            raise UserError(f"schedule.warmup_steps={schedule.warmup_steps} must be below schedule.{key}={end}")
    if isinstance(schedule, Trapezoid | Cosine):
        _not_negative("schedule.final", schedule.final)
    if isinstance(schedule, Trapezoid) and not 0 < schedule.cooldown <= 1:
        raise UserError(f"schedule.cooldown={schedule.cooldown} is a part of all steps; valid: above 0, at most 1")


def _compute(config: RunConfig) -> None:
    compute = config.compute
    _one_of("compute.device", compute.device, ("cpu", "cuda"))
    for key in ("nodes", "processes"):
        _positive(f"compute.{key}", getattr(compute, key))
    for key in ("gpus", "threads", "micro_batch"):
        _not_negative(f"compute.{key}", getattr(compute, key))
    if (compute.device == "cuda") != (compute.gpus > 0):
        raise UserError(
            f"compute.device={compute.device} with compute.gpus={compute.gpus}; use compute=cpu or compute=gpu"
        )
    if compute.tune_kernels and not compute.compile:
        raise UserError("compute.tune_kernels=true tunes what is compiled; valid: with compute.compile=true")


def _record(config: RunConfig) -> None:
    record = config.record
    for key in ("log_every", "val_every", "checkpoint_every", "checkpoint_seconds"):
        _not_negative(f"record.{key}", getattr(record, key))
    if record.keep < 2:
        raise UserError(f"record.keep={record.keep}: a torn checkpoint must have a predecessor; valid: 2 or more")


def _positive(key: str, value: Any) -> None:
    if value <= 0:
        raise UserError(f"{key}={value} must be above 0")


def _seed(key: str, value: int) -> None:
    _not_negative(key, value)
    if value >= 2**63:
        raise UserError(f"{key}={value} is too large; valid: below 2^63")


def _not_negative(key: str, value: Any) -> None:
    if value < 0:
        raise UserError(f"{key}={value} must not be negative")


def _one_of(key: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise UserError(f"{key}={value} is unknown; valid: {', '.join(valid)}")
