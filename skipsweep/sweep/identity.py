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
    Data,
    LambdaInit,
    Last,
    Model,
    Muon,
    Optim,
    Recipe,
    RunConfig,
    Schedule,
    SkipLayers,
    defaults,
    leaves,
    recipe_of,
)
from skipsweep.errors import UserError
from skipsweep.model import wiring
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
    select.check_head(config.head_type, asked)
    ordered = sorted(asked, key=select.canonical_key)
    head = config.head_type if ordered else Last()
    given: dict[str, Any] = {f.name: getattr(config, f.name) for f in fields(RunConfig)}
    given |= {"skip_layers": SkipLayers(list(ordered)), "head_type": head, "data": data, **_wired(config)}
    run = RunConfig(**given)
    return replace(run, lambda_init=_lambda_init(run, asked))


def _wired(config: Config) -> dict[str, Any]:
    """The groups of the trunk and its training, with the layers that `scaled` means and without what has no effect.

    Raises UserError for impossible choices.
    """
    layers = config.model.layers
    wired: dict[str, Any] = {
        "model": _model(config.model),
        "embeddings": replace(
            config.embeddings, value_layers=wiring.value_layers(config.embeddings.value_layers, layers)
        ),
        "residual": replace(config.residual, unet=wiring.unet(config.residual.unet, layers)),
        "optim": _optim(config.optim),
        "schedule": _schedule(config),
    }
    wiring.check(wired["model"], wired["embeddings"])
    return wired


def _model(model: Model) -> Model:
    without = wiring.no_attention(model.no_attention, model.layers)
    long = [layer for layer in wiring.long_window(model.long_window, model.layers) if layer not in without]
    return replace(
        model,
        no_attention=without,
        long_window=long if model.window else [],
        window_growth=model.window_growth if model.window else Model.window_growth,
        rotary_base=model.rotary_base if model.rotary_fraction else Model.rotary_base,
    )


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
        horizon=0 if isinstance(schedule, Constant) or schedule.horizon == schedule.steps else schedule.horizon,
        window_horizon=schedule.window_horizon if grows and schedule.window_horizon != schedule.steps else 0,
    )


def _lambda_init(run: RunConfig, asked: Sequence[select.Source]) -> LambdaInit:
    """Start values, those that no mechanism uses at their neutral value."""
    init, neutral = run.lambda_init, LambdaInit()
    used = {
        "x_lambda": _has_lambdas(run.head_type.name),
        "block_x": run.embeddings.mix,
        "block_x00": run.embeddings.mix,
        "block_extra": run.embeddings.extra > 0,
        "unet": bool(run.residual.unet),
        "value": run.model.value_lambda,
        "value_embedding": bool(run.embeddings.value_layers),
    }
    kept = {key: getattr(init if in_use else neutral, key) for key, in_use in used.items()}
    if _has_lambdas(run.head_type.name):
        kept["skip_lambda"] = _skip_lambda(init.skip_lambda, asked, run.skip_layers.layers)
    return LambdaInit(**kept)


def _has_lambdas(head: str) -> bool:
    return head.startswith("add")


def _skip_lambda(value: Any, asked: Sequence[select.Source], ordered: Sequence[select.Source]) -> Any:
    """One number where all are equal, else a list in canonical order."""
    key = "lambda_init.skip_lambda"
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
