"""Final validation losses that others published, to stand as "published" beside a reproduction's own.

All three files are from snimu/modded-nanogpt-experiments @ 6536c19 (Apache-2.0), experiments/00005-emb-lm-skip:
one row is one run, losses in nats per token over 10,485,760 validation tokens, times in seconds on 8 H100. Runs with
other SETTINGS are other experiments: beside them a figure says nothing.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from skipsweep.errors import UserError

SETTINGS: Mapping[str, Any] = {
    "data.name": "fineweb10B",
    "model.layers": 16,
    "model.dim": 1024,
    "model.block": "speedrun",
    "embeddings.mix": True,
    "embeddings.extra": 1,
    "embeddings.value_layers": [[0, 11], [1, 12], [2, 13], [3, 14], [4, 15]],
    "residual.unet": [[6, 9], [4, 10], [2, 11]],
    "residual.rolling": False,
    "residual.parallel_tail": 0,
    "gate_targets.name": "none",
    "optim.name": "muon",
}
"""Of the medium track, on which all of them ran."""
OF_HEAD: Mapping[str, Mapping[str, Any]] = {"add": {"lambda_init.x_lambda": 1.0, "lambda_init.skip_lambda": 0.0}}
"""What else they have in common with one head."""
_ROOT = "snimu/modded-nanogpt-experiments @ 6536c19, experiments/00005-emb-lm-skip/"
METHODS = {
    "btw": "best_to_worst",
    "wtb": "worst_to_best",
    "lth": "early_to_late",
    "htl": "late_to_early",
    "random": "random",
}
"""The author's name of an ordering -> ours (low to high is early to late)."""


@dataclass(frozen=True)
class Published:
    """One experiment as published."""

    name: str
    source: str
    """Repository, commit and file that the figures stand in."""
    caveat: str
    """What a reader must know before comparing."""
    steps: int
    """Training steps of every run."""
    arms: dict[str, list[float]]
    """Arm -> final validation loss of each run, nats per token."""


_SOURCES = {
    "single_add": (
        "results.md (5001)",
        "one run per layer, on a stack without Snoo and update smoothing; the residual starts from x01",
    ),
    "concat_head": ("results.md (21, 22, 2300-2314)", "one run per arm, on the same stack as single_add"),
    "multi_add": (
        "results-multiple.md (8000)",
        "mostly one run per arm, layers in the order of its own ranking; "
        "in arms `random/` every rank drew layers of its own, so they are no baseline",
    ),
}
NAMES = tuple(_SOURCES)


@cache
def load(name: str) -> Published:
    """The experiment `name`, one of NAMES. Arms: `layer=11`; `input_emb`, `layer11`; `best_to_worst/N=5`.

    Raises UserError for a name that is not there.
    """
    if name not in _SOURCES:
        raise UserError(f"no published losses called {name}; valid: {', '.join(NAMES)}")
    arms: dict[str, list[float]] = {}
    steps = set()
    text = resources.files(__name__).joinpath(f"{name}.csv").read_text(encoding="utf-8")
    for row in csv.DictReader(text.splitlines()):
        arms.setdefault(_arm(name, row), []).append(float(row["final_val_loss"]))
        steps.add(int(row["total_steps"]))
    file, caveat = _SOURCES[name]
    return Published(name, _ROOT + file, caveat, steps.pop(), arms)


def _arm(name: str, row: dict[str, str]) -> str:
    if name == "single_add":
        return f"layer={row['layer']}"
    if name == "concat_head":
        return row["source"]
    return f"{METHODS[row['method']]}/N={row['n']}"
