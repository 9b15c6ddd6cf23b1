"""Panels for arms that differ in more than the layer and the head: the same layer under another wiring is no repetition
of it, and its baseline is the arm without sources under that wiring."""

from collections.abc import Mapping, Sequence
from typing import Any

from skipsweep.analyze import descriptive
from skipsweep.analyze.evidence import Evidence, Run

SHOWN = ("skip_layers", "head_type")
"""Groups that the figure shows by itself."""
OF_SOURCES = ("lambda_init.x_lambda", "lambda_init.skip_lambda", "lambda_init.backout")
"""Settings that nothing is made of without sources."""


def of_layers(evidence: Evidence) -> tuple[dict[str, str], dict[str, float]]:
    """Of arms with one layer as source, where those of a head differ in further settings: arm -> these
    (`residual.rolling=True`); arm -> mean final loss of the arm without sources that has them too, where there is one.
    """
    first = {arm: points[0] for arm, points in evidence.arms().items()}
    settings = {arm: _settings(evidence.runs[point.run]) for arm, point in first.items()}
    heads: dict[Any, list[str]] = {}
    for arm, point in first.items():
        if len(point.sources) == 1 and isinstance(point.sources[0], int):
            heads.setdefault(str(evidence.runs[point.run].setting("head_type", "name")), []).append(arm)
    keys = _splitting([[settings[arm] for arm in arms] for arms in heads.values()])
    if not keys:
        return {}, {}
    results = {name: run.result for name, run in evidence.runs.items()}
    points = {arm: points for arm, points in evidence.arms().items() if not first[arm].sources}
    losses = {arm: descriptive.mean(descriptive.per_seed(descriptive.by_seed(points[arm], results))) for arm in points}
    labels, alone = {}, {}
    for arm in (arm for arms in heads.values() for arm in arms):
        labels[arm] = ", ".join(f"{key}={settings[arm].get(key)}".replace(" ", "") for key in keys)
        own = [settings[arm].get(key) for key in keys if key not in OF_SOURCES]
        for other, loss in losses.items():
            if loss is not None and own == [settings[other].get(key) for key in keys if key not in OF_SOURCES]:
                alone.setdefault(arm, loss)
    return labels, alone


def _splitting(groups: Sequence[Sequence[Mapping[str, Any]]]) -> list[str]:
    """The fewest keys, in order, that tell apart whatever settings differ within a group. One that some lack is younger
    than their runs, or another choice's own."""
    found: list[str] = []
    every = [settings for group in groups for settings in group]
    for key in (key for key in (every[0] if every else ()) if all(key in settings for settings in every)):
        if any(_kinds(group, [*found, key]) > _kinds(group, found) for group in groups):
            found.append(key)
    return found


def _kinds(group: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> int:
    return len({repr([settings.get(key) for key in keys]) for settings in group})


def _settings(run: Run) -> dict[str, Any]:
    """Dotted key -> value, of everything but source, head and seed."""
    return {
        f"{group}.{key}": value
        for group, inner in run.recipe.items()
        if isinstance(inner, Mapping) and group not in SHOWN
        for key, value in inner.items()
    }
