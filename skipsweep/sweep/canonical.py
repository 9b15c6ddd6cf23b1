"""The one form of all configurations that train the same thing: layers for words, nothing that has no effect.

Only what cannot be read is refused here: a layer that does not exist, a list of the wrong length. Settings that cannot
go together have been refused before (`sweep/compatibility.py`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from typing import Any

from skipsweep.config import (
    Config,
    Constant,
    Control,
    Data,
    Free,
    Gated,
    GateTargets,
    InUnits,
    LambdaInit,
    Listed,
    Model,
    Muon,
    Optim,
    Residual,
    RunConfig,
    Schedule,
    SkipLayers,
    SparsityVariance,
    TargetControl,
    recipe_of,
    whole_sequences,
)
from skipsweep.errors import UserError
from skipsweep.model import gate_targets, readout_specs, shape, wiring
from skipsweep.sweep import select


def canonical_form(config: Config, data: Data) -> RunConfig:
    """The configuration of a run, from one that `validate` has let pass. `data`: resolved, with its fingerprint.

    Sources are sorted; without sources the head is `last`, whatever head_type says, so that `none` is one baseline for
    all heads; initial lambdas that no mechanism uses are neutral.
    """
    config = resolved(config)
    asked = config.skip_layers.layers
    ordered = sorted(asked, key=select.canonical_key)
    given: dict[str, Any] = {f.name: getattr(config, f.name) for f in fields(RunConfig)}
    given |= {
        "skip_layers": SkipLayers(ordered),
        "head_type": readout_specs.canonical(config.head_type, ordered, config.model),
        "gate_targets": _gate_targets(config),
        "control": _control(config),
        "model": _model(config.model),
        "residual": _residual(config.residual),
        "data": data,
        "optim": _optim(config.optim),
        "schedule": _schedule(config),
    }
    run = RunConfig(**given)
    return replace(run, lambda_init=_lambda_init(run, asked))


def resolved(config: Config) -> Config:
    """`config` with layers in place of the words that mean them; sources in the order asked for.

    Raises UserError for words that mean nothing, and for layers that are not there.
    """
    model, layers = config.model, config.model.layers
    sources = select.sources(config.skip_layers.layers, config.selection_method, layers, config.seed)
    without = wiring.no_attention(model.no_attention, layers)
    long = wiring.long_window(model.long_window, layers) if model.window else []
    tables = wiring.value_layers(config.embeddings.value_layers, layers, without)
    return replace(
        config,
        skip_layers=SkipLayers(sources),
        model=replace(model, no_attention=without, no_mlp=wiring.no_mlp(model.no_mlp, layers), long_window=long),
        residual=replace(config.residual, unet=wiring.unet(config.residual.unet, layers)),
        embeddings=replace(config.embeddings, value_layers=tables),
    )


def _gate_targets(config: Config) -> GateTargets:
    """A bias that gates do not start from, a floor that nobody sees, or targets that the control takes no notice of,
    have no effect; targets are a list, however they were said."""
    gates = config.gate_targets
    if not isinstance(gates, Gated):
        return gates
    start = {"init": gates.init, "bias": gates.bias if gates.init == "open" else 0.0}
    seen = {"attention": gates.attention, "floor": gates.floor if gates.attention == "keys" else 1.0}
    if not isinstance(config.control, TargetControl):
        return Free(**start, **seen)
    return Listed(**start, **seen, means=gate_targets.means(gates, config.model.layers))


def _control(config: Config) -> Control:
    """The unit is that of the machine where none was chosen, and none where variances cost nothing."""
    control = config.control
    if not isinstance(control, InUnits):
        return control
    if isinstance(control, SparsityVariance) and control.beta == 0:
        return replace(control, sequences=None)
    return replace(control, sequences=control.sequences or whole_sequences(config.compute, config.data))


def _model(model: Model) -> Model:
    return replace(
        model,
        kv_heads=model.kv_heads if model.kv_heads != model.heads else 0,
        max_document=model.max_document if model.document_mask else 0,
        softcap_curve=model.softcap_curve if model.softcap else Model.softcap_curve,
        rotary_base=model.rotary_base if model.rotary_fraction else Model.rotary_base,
        **_windows(model),
    )


def _windows(model: Model) -> dict[str, Any]:
    """What has an effect only where there are windows: which layers have the long one, and how it grows."""
    if not model.window:
        return {"window_growth": "none", "window_stages": [], "last_window": 0, "yarn": False}
    staged = model.window_growth == "stages"
    return {
        "long_window": [layer for layer in model.long_window if layer not in model.no_attention],
        "window_stages": list(model.window_stages) if staged else [],
        "yarn": model.yarn and staged,
    }


def _residual(residual: Residual) -> Residual:
    """Without U-net skips it makes no difference what they would be multiplied by."""
    return residual if residual.unet else replace(residual, unet_weight=Residual.unet_weight)


def _optim(optim: Optim) -> Optim:
    """Settings of an outer optimiser or a warm-up that is not there are neutral."""
    unused: dict[str, Any] = {} if optim.outer_every else {"outer_lr": 0.0, "outer_momentum": 0.0}
    if isinstance(optim, Muon) and not optim.momentum_warmup:
        unused["momentum_start"] = optim.momentum
    return replace(optim, **unused)


def _schedule(config: Config) -> Schedule:
    """Horizons that change nothing are none."""
    schedule, grows = config.schedule, bool(config.model.window) and config.model.window_growth != "none"
    return replace(
        schedule,
        warmup_start=schedule.warmup_start if schedule.warmup_steps else 0.0,
        horizon=0 if isinstance(schedule, Constant) or schedule.horizon == schedule.steps else schedule.horizon,
        window_horizon=schedule.window_horizon if grows and schedule.window_horizon != schedule.steps else 0,
    )


def _lambda_init(run: RunConfig, asked: Sequence[select.Source]) -> LambdaInit:
    """Start values, those that no mechanism uses at their neutral value."""
    init, of_head = run.lambda_init, readout_specs.SPECS[run.head_type.name].lambdas
    kept: dict[str, Any] = {"x_lambda": init.x_lambda} if "x_lambda" in of_head else {}
    for key, count in _places(run).items():
        if count:
            kept[key] = _shortest(_start_values(key, getattr(init, key), range(count), "place").values())
    for key in set(readout_specs.PER_SOURCE) & set(of_head):
        start = _start_values(key, getattr(init, key), asked, "source")
        kept[key] = _shortest(start[source] for source in run.skip_layers.layers)
    return LambdaInit(**kept)


def _places(run: RunConfig) -> dict[str, int]:
    """Field of `lambda_init` -> number of places in the trunk where a scalar starts there."""
    layers, residual, embeddings = run.model.layers, run.residual, run.embeddings
    mixed, rolling = len(shape.mixed_layers(recipe_of(run))), len(wiring.rolling_layers(residual, layers))
    return {
        "block_x": mixed,
        "block_x00": mixed,
        "block_extra": mixed if embeddings.extra else 0,
        "unet": len(residual.unet),
        "rolling_x": rolling,
        "rolling": rolling,
        "tail": residual.parallel_tail,
        "value": len(shape.attention_layers(run.model)) if run.model.value_lambda else 0,
        "value_embedding": sum(map(len, embeddings.value_layers)),
        "smear": int(run.model.smeared),
    }


def _start_values(key: str, value: Any, names: Sequence[Any], kind: str) -> dict[Any, float]:
    """Name of a place or source -> where its scalar starts, from one number for all or a list in the names' order."""
    values = list(value) if isinstance(value, list | tuple) else [value] * len(names)
    if len(values) != len(names):
        raise UserError(
            f"lambda_init.{key} has {len(values)} values for {len(names)} {kind}s; valid: one number, or one per {kind}"
        )
    for v in values:
        if isinstance(v, bool) or not isinstance(v, int | float):
            raise UserError(f"lambda_init.{key}: {v} is not a number")
    return dict(zip(names, map(float, values), strict=True))


def _shortest(values: Iterable[float]) -> float | list[float]:
    """One number where all are equal."""
    every = list(values)
    return every[0] if len(set(every)) == 1 else every
