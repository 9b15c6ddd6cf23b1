"""When are two runs the same run? When these agree:

* the resolved settings that differ from the neutral element (or have none), in canonical form;
* fingerprints of content: texts, tokenizer, split (never a path);
* `RESULTS_VERSION`, and where a mechanism has changed by itself, its own.

The id is the hash of that. The whole recipe lies beside it (identity.json), so that a default that has moved since is
noticed instead of silently giving two experiments one name.
"""

import hashlib
import json
from typing import Any

from skipsweep.config import MISSING, NEUTRAL_CHOICE, Recipe, RunConfig, defaults, leaves, recipe_of
from skipsweep.errors import UserError

RESULTS_VERSION = 2
"""Raised by one whenever a change of code changes numbers; docs/changed-results.md says why. Part of every id."""

MECHANISM_VERSIONS = {
    ("head_type.name", "add_relu"): 3,
    ("head_type.name", "add_tanh"): 3,
    ("head_type.name", "add_relu_linear"): 3,
    ("head_type.name", "concat_mlp_narrow"): 3,
}
"""Setting -> version with which it became what it is, for mechanisms that changed alone: part of the ids of runs that
have it, and of no others. Versions count on from RESULTS_VERSION, which goes past them all when it is raised."""

ID_LENGTH = 12


def settings(recipe: Recipe) -> dict[str, Any]:
    """Dotted path -> value of everything that is not neutral. `recipe` is canonical."""
    neutral = defaults(recipe) | {f"{group}.name": name for group, name in NEUTRAL_CHOICE.items()}
    found = {}
    for path, value in leaves(recipe).items():
        tag_without_neutral = path.endswith(".name") and path.split(".")[0] not in NEUTRAL_CHOICE
        if tag_without_neutral or neutral[path] == MISSING or value != neutral[path]:
            found[path] = value
    return found


def versions(recipe: Recipe, results_version: int = RESULTS_VERSION) -> dict[str, Any]:
    """`results_version`, and `mechanisms` (`setting=value` -> version) if the recipe has one that changed by itself."""
    found = settings(recipe)
    own = {f"{path}={value}": v for (path, value), v in MECHANISM_VERSIONS.items() if found.get(path) == value}
    return {"results_version": results_version} | ({"mechanisms": own} if own else {})


def run_id(recipe: Recipe, results_version: int = RESULTS_VERSION) -> str:
    """12 hex digits: the chance of any collision among 5,000 runs is 4e-8."""
    return digest({**versions(recipe, results_version), "settings": settings(recipe)})


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
        **versions(recipe),
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
