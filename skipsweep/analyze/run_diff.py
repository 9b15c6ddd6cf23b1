"""Two runs side by side: what differs in their settings, their losses at equal steps, their learned scalars."""

from dataclasses import dataclass
from typing import Any

from skipsweep.analyze import documents
from skipsweep.config import leaves
from skipsweep.rundir import RunDir


@dataclass(frozen=True)
class RunDiff:
    """Everything two runs can be compared in. `a` and `b` stand in the order asked for."""

    runs: tuple[str, str]
    settings: dict[str, tuple[Any, Any]]
    """Key -> both values, where they differ; None where a run has no such key."""
    losses: list[dict[str, Any]]
    """step, a, b, difference (b - a): validation losses at the steps that both have."""
    lambdas: dict[str, tuple[float | None, float | None]]
    """Label -> last known value in both."""
    result: dict[str, tuple[Any, Any]]
    """Final figures: val_loss, steps, tokens, train_time_s."""


def diff(a: RunDir, b: RunDir) -> RunDiff:
    """Compare two runs, finished or not."""
    metrics = a.read_metrics(), b.read_metrics()
    return RunDiff(
        runs=(a.name, b.name),
        settings=_differences(_settings(a), _settings(b)),
        losses=_losses(*metrics),
        lambdas=_pairs(_last_lambdas(metrics[0]), _last_lambdas(metrics[1])),
        result=_pairs(_final(a), _final(b)),
    )


def _settings(run: RunDir) -> dict[str, Any]:
    """Its configuration; an imported run has none."""
    return leaves(run.read_config()) if run.config.exists() else {}


def _differences(a: dict[str, Any], b: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {key: pair for key, pair in _pairs(a, b).items() if pair[0] != pair[1]}


def _pairs(a: dict[str, Any], b: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {key: (a.get(key), b.get(key)) for key in dict.fromkeys([*a, *b])}


def _losses(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> list[dict[str, Any]]:
    curves = [
        {row["step"]: loss for row in rows if (loss := documents.as_number(row.get("val/loss"))) is not None}
        for rows in (a, b)
    ]
    common = sorted(curves[0].keys() & curves[1].keys())
    return [
        {"step": step, "a": curves[0][step], "b": curves[1][step], "difference": curves[1][step] - curves[0][step]}
        for step in common
    ]


def _last_lambdas(rows: list[dict[str, Any]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for row in rows:
        learned = {key: documents.as_number(row[key]) for key in row if key.startswith(("lambda/", "gate/"))}
        found.update({key: value for key, value in learned.items() if value is not None})
    return found


def _final(run: RunDir) -> dict[str, Any]:
    result = documents.result(run) or {}
    return {key: result.get(key) for key in ("val_loss", "steps", "tokens", "train_time_s")}
