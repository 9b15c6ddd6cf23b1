"""When are two runs the same run? When these agree:

* the resolved settings that differ from the neutral element (or have none), in canonical form;
* fingerprints of content: texts, tokenizer, split (never a path);
* `RESULTS_VERSION`.

The id is the hash of that. The whole recipe lies beside it (identity.json), so that a default that has moved since is
noticed instead of silently giving two experiments one name.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from skipsweep.config import (
    MISSING,
    NEUTRAL_CHOICE,
    Config,
    Constant,
    Control,
    Data,
    Free,
    Gated,
    GateTargets,
    LambdaInit,
    Listed,
    Model,
    Muon,
    NoControl,
    Optim,
    Recipe,
    Residual,
    RunConfig,
    Schedule,
    SkipLayers,
    TargetControl,
    Targeted,
    choices,
    defaults,
    leaves,
    recipe_of,
)
from skipsweep.errors import UserError
from skipsweep.model import gate_targets, readout_specs, shape, wiring
from skipsweep.sweep import select

RESULTS_VERSION = 2
"""Raised by one whenever a change of code changes numbers; docs/changed-results.md says why. Part of every id."""

ID_LENGTH = 12


def canonical(config: Config, data: Data) -> RunConfig:
    """The one form of all configurations that train the same thing. `data`: resolved, with its fingerprint.

    Sources are sorted; without sources the head is `last`, whatever head_type says, so that `none` is one baseline for
    all heads; initial lambdas that no mechanism uses are neutral. Raises UserError for impossible sources.
    """
    asked = select.sources(config.skip_layers.layers, config.selection_method, config.model.layers, config.seed)
    readout_specs.check(config.head_type, asked, config.model, config.residual)
    _check_last_mlp(config, asked)
    ordered = sorted(asked, key=select.canonical_key)
    head = readout_specs.canonical(config.head_type, ordered, config.model)
    given: dict[str, Any] = {f.name: getattr(config, f.name) for f in fields(RunConfig)}
    _check_gates(config, asked)
    given |= {"skip_layers": SkipLayers(list(ordered)), "head_type": head, "data": data, **_wired(config)}
    given["gate_targets"] = _gate_targets(config)
    given["control"] = _control(config)
    run = RunConfig(**given)
    return replace(run, lambda_init=_lambda_init(run, asked))


def _check_gates(config: Config, asked: Sequence[select.Source]) -> None:
    if asked and isinstance(config.gate_targets, Gated) and readout_specs.SPECS[config.head_type.name].owns_last_mlp:
        valid = ", ".join(name for name, spec in readout_specs.SPECS.items() if not spec.owns_last_mlp)
        raise UserError(
            f"head_type={config.head_type.name} takes the last MLP, which gate_targets={config.gate_targets.name} "
            f"could not skip; valid with gates: {valid}"
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
    """Raises UserError for a control that has nothing to control, or does not say where to."""
    gates, control = config.gate_targets, config.control
    if isinstance(control, NoControl):
        if isinstance(gates, Targeted):
            raise UserError(
                f"gate_targets={gates.name} says where to, but control=none takes no gate there; valid: "
                f"{', '.join(f'control={name}' for name in choices(TargetControl))}, or gate_targets=free"
            )
        return control
    if not isinstance(gates, Gated):
        useful = Targeted if isinstance(control, TargetControl) else Gated
        valid = ", ".join(f"gate_targets={name}" for name in choices(useful))
        raise UserError(
            f"control={control.name} has no gates to control with gate_targets={gates.name}; valid: {valid}"
        )
    if isinstance(control, TargetControl) and not isinstance(gates, Targeted):
        valid = ", ".join(f"gate_targets={name}" for name in choices(Targeted))
        raise UserError(f"control={control.name} needs targets, gate_targets={gates.name} has none; valid: {valid}")
    return control


def _check_last_mlp(config: Config, asked: Sequence[select.Source]) -> None:
    last = config.model.layers - 1
    taken = asked and readout_specs.SPECS[config.head_type.name].owns_last_mlp
    if taken and last in wiring.no_mlp(config.model.no_mlp, config.model.layers):
        raise UserError(f"head_type={config.head_type.name} takes the last MLP, but model.no_mlp has layer {last}")


def _wired(config: Config) -> dict[str, Any]:
    """The groups of the trunk and its training, with the layers that `scaled` means and without what has no effect.

    Raises UserError for impossible choices.
    """
    layers = config.model.layers
    wired: dict[str, Any] = {
        "model": _model(config.model),
        "residual": _residual(config),
        "optim": _optim(config.optim),
        "schedule": _schedule(config),
    }
    value_layers = wiring.value_layers(config.embeddings.value_layers, layers, wired["model"].no_attention)
    wired["embeddings"] = replace(config.embeddings, value_layers=value_layers)
    wiring.check(wired["model"], wired["embeddings"])
    return wired


def _model(model: Model) -> Model:
    without = wiring.no_attention(model.no_attention, model.layers)
    return replace(
        model,
        kv_heads=model.kv_heads if model.kv_heads != model.heads else 0,
        no_attention=without,
        no_mlp=wiring.no_mlp(model.no_mlp, model.layers),
        max_document=model.max_document if model.document_mask else 0,
        softcap_curve=model.softcap_curve if model.softcap else Model.softcap_curve,
        rotary_base=model.rotary_base if model.rotary_fraction else Model.rotary_base,
        **_windows(model, without),
    )


def _optim(optim: Optim) -> Optim:
    """Settings of an outer optimiser or a warm-up that is not there are neutral."""
    unused: dict[str, Any] = {} if optim.outer_every else {"outer_lr": 0.0, "outer_momentum": 0.0}
    if isinstance(optim, Muon) and not optim.momentum_warmup:
        unused["momentum_start"] = optim.momentum
    return replace(optim, **unused)


def _windows(model: Model, without: Sequence[int]) -> dict[str, Any]:
    """What has an effect only where there are windows: which layers have the long one, and how it grows."""
    if not model.window:
        return {"long_window": [], "window_growth": "none", "window_stages": [], "last_window": 0, "yarn": False}
    staged = model.window_growth == "stages"
    long = wiring.long_window(model.long_window, model.layers)
    return {
        "long_window": [layer for layer in long if layer not in without],
        "window_stages": list(model.window_stages) if staged else [],
        "yarn": model.yarn and staged,
    }


def _residual(config: Config) -> Residual:
    """Without U-net skips it makes no difference what they would be multiplied by."""
    layers = config.model.layers
    residual = replace(config.residual, unet=wiring.unet(config.residual.unet, layers))
    wiring.check_residual(residual, layers)
    return residual if residual.unet else replace(residual, unet_weight=Residual.unet_weight)


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
    init, neutral, of_head = run.lambda_init, LambdaInit(), readout_specs.SPECS[run.head_type.name].lambdas
    kept: dict[str, Any] = {"x_lambda": (init if "x_lambda" in of_head else neutral).x_lambda}
    for key, count in _places(run).items():
        kept[key] = _per_place(f"lambda_init.{key}", getattr(init, key), count) if count else getattr(neutral, key)
    for key in readout_specs.PER_SOURCE:
        if key in of_head:
            kept[key] = _per_source(f"lambda_init.{key}", getattr(init, key), asked, run.skip_layers.layers)
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


def _per_place(key: str, value: Any, count: int) -> Any:
    """One number where all are equal, else a list with one per place."""
    values = list(value) if isinstance(value, list | tuple) else [value] * count
    if len(values) != count:
        raise UserError(f"{key} has {len(values)} values for {count} places; valid: one number, or one per place")
    for v in values:
        if isinstance(v, bool) or not isinstance(v, int | float):
            raise UserError(f"{key}: {v} is no number")
    return float(values[0]) if len(set(values)) == 1 else list(map(float, values))


def _per_source(key: str, value: Any, asked: Sequence[select.Source], ordered: Sequence[select.Source]) -> Any:
    """One number where all are equal, else a list in canonical order."""
    values = list(value) if isinstance(value, list | tuple) else [value] * len(asked)
    if len(values) != len(asked):
        raise UserError(
            f"{key} has {len(values)} values for {len(asked)} sources; valid: one number, or one per source"
        )
    for v in values:
        if isinstance(v, bool) or not isinstance(v, int | float):
            raise UserError(f"{key}: {v} is no number")
    by_source = dict(zip(asked, map(float, values), strict=True))
    sorted_values = [by_source[s] for s in ordered]
    same = len(set(sorted_values)) == 1
    return sorted_values[0] if same else sorted_values


def settings(recipe: Recipe) -> dict[str, Any]:
    """Dotted path -> value of everything that is not neutral. `recipe` is canonical."""
    neutral = defaults(recipe) | {f"{group}.name": name for group, name in NEUTRAL_CHOICE.items()}
    found = {}
    for path, value in leaves(recipe).items():
        tag_without_neutral = path.endswith(".name") and path.split(".")[0] not in NEUTRAL_CHOICE
        if tag_without_neutral or neutral[path] == MISSING or value != neutral[path]:
            found[path] = value
    return found


def run_id(recipe: Recipe, results_version: int = RESULTS_VERSION) -> str:
    """12 hex digits: the chance of any collision among 5,000 runs is 4e-8."""
    return digest({"results_version": results_version, "settings": settings(recipe)})


def digest(value: Any) -> str:
    """Hash of plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:ID_LENGTH]


def slug(recipe: Recipe) -> str:
    """What a person reads in a folder's name; made of the identity alone."""
    sources = recipe.skip_layers.layers
    shown = "_".join(map(str, sources)) if len(sources) <= 6 else f"{len(sources)}sources"
    readout = f"{recipe.head_type.name}-{shown}" if sources else "none"
    trunk = f"{recipe.model.layers}x{recipe.model.dim}"
    replicate = f"-r{recipe.replicate}" if recipe.replicate else ""
    return f"{trunk}-{recipe.data.name}-{readout}-s{recipe.seed}{replicate}"


def name(recipe: Recipe) -> str:
    """The run folder's name."""
    return f"{slug(recipe)}-{run_id(recipe)}"


def document(config: RunConfig) -> dict[str, Any]:
    """The content of identity.json."""
    recipe = recipe_of(config)
    return {
        "id": run_id(recipe),
        "results_version": RESULTS_VERSION,
        "settings": settings(recipe),
        "recipe": leaves(recipe),
    }


def check_drift(run: str, frozen: dict[str, Any], config: RunConfig) -> None:
    """Raise UserError if a run of the same id was made with another value of some setting: a default has moved.

    A setting that did not exist then had its neutral value: else it would be in the id.
    """
    now = leaves(recipe_of(config))
    for path, then in frozen["recipe"].items():
        if path in now and now[path] != then:
            raise UserError(
                f"run {run}: the default of {path} has moved from {then} to {now[path]} since it was made; "
                f"a default must stay neutral: set {path} in conf/ instead, or move the run away"
            )
