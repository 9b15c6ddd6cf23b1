"""What others published of an arm, to stand beside ours: declared by the experiment, else from the shipped figures.

Planning has kept of the declared ones those on the runs' own corpus. The shipped ones are found by what an arm is, with
the settings that they were made with and nowhere else.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from skipsweep import published as shipped
from skipsweep.analyze import descriptive
from skipsweep.analyze.comparison import Comparison
from skipsweep.analyze.documents import as_number
from skipsweep.analyze.evidence import Evidence, Run
from skipsweep.sweep_file import PlannedPoint

_CONCAT = {"input": "input_emb", "extra": "extra_emb", "last": "layer15"}
"""Our named sources of a concat head -> theirs."""


@dataclass(frozen=True)
class Figures:
    """Final validation losses of one published arm, nats per token. What was not said is None."""

    mean: float | None
    sd: float | None = None
    n: int | None = None
    steps: int | None = None
    caveat: str | None = None
    """How those runs differed from ours besides."""


def published(evidence: Evidence) -> dict[str, Figures]:
    """Arm -> published figures; also of declared arms that the sweep has not got."""
    return {arm: _declared(theirs) for arm, theirs in evidence.published.items()} | {
        arm: theirs
        for arm, points in evidence.arms().items()
        if arm not in evidence.published and (theirs := _of_arm(points, evidence.runs)) is not None
    }


def rows(evidence: Evidence, compared: Comparison) -> list[dict[str, Any]]:
    """One row per arm that somebody has published."""
    return [_row(arm, theirs, compared) for arm, theirs in published(evidence).items()]


def _row(name: str, theirs: Figures, compared: Comparison) -> dict[str, Any]:
    arm = compared.arms.get(name)
    ours = arm and arm.summary
    return {
        "arm": name,
        "ours": ours and ours.mean,
        "sd": ours and ours.sd,
        "n": ours and ours.n,
        "published": theirs.mean,
        "published_sd": theirs.sd,
        "published_n": theirs.n,
        "published_steps": theirs.steps,
        "difference": None if ours is None or theirs.mean is None else ours.mean - theirs.mean,
    }


def _declared(theirs: Any) -> Figures:
    """A number alone is a mean."""
    if not isinstance(theirs, Mapping):
        return Figures(as_number(theirs))
    n, steps = theirs.get("n"), theirs.get("steps")
    return Figures(
        as_number(theirs.get("mean")),
        as_number(theirs.get("sd")),
        n if isinstance(n, int) else None,
        steps if isinstance(steps, int) else None,
    )


def _of_arm(points: list[PlannedPoint], runs: Mapping[str, Run]) -> Figures | None:
    """The shipped figures of an arm all of whose points are the same published one."""
    found = {_key(point, runs[point.run].recipe) for point in points}
    key = found.pop() if len(found) == 1 else None
    if key is None:
        return None
    experiment, arm = key
    theirs = shipped.load(experiment)
    losses = theirs.arms.get(arm)
    if losses is None:
        return None
    caveat = f"{theirs.name}: {theirs.caveat}"
    return Figures(fmean(losses), descriptive.sd(losses), len(losses), theirs.steps, caveat)


def _key(point: PlannedPoint, recipe: Mapping[str, Any]) -> tuple[str, str] | None:
    """(published experiment, its arm) that a point repeats; None for none, and with other settings than theirs."""
    head = _setting(recipe, "head_type.name")
    theirs = {**shipped.SETTINGS, **shipped.OF_HEAD.get(str(head), {})}
    if any(_setting(recipe, key) != value for key, value in theirs.items()):
        return None
    match head, point.sources:
        case "add", [int(layer)]:
            return "single_add", f"layer={layer}"
        case "concat", [int(layer)]:
            return "concat_head", f"layer{layer}"
        case "concat", [str(name)] if name in _CONCAT:
            return "concat_head", _CONCAT[name]
        case "add", [_, _, *_]:
            return _of_ordering(point)
    return None


def _setting(recipe: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key; None where there is none."""
    group, name = key.split(".")
    found = recipe.get(group)
    return found.get(name) if isinstance(found, Mapping) else None


def _of_ordering(point: PlannedPoint) -> tuple[str, str] | None:
    return ("multi_add", f"{point.method}/N={len(point.sources)}") if point.method else None
