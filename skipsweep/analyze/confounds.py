"""In what do arms differ from a baseline besides what is in question? A second difference has effects of its own.

Planning refuses such arms (`sweep/confound.py`). Reports look again: they compare what no planning has seen together,
several sweeps, or the arms of one with another baseline.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from skipsweep import sweep_file
from skipsweep.sweep_file import PlannedPoint

Settings = Mapping[str, Any]
"""Dotted path -> value of what changes a result."""

REPETITION = ("seed", "replicate")
FOLLOWS = ("data.epochs",)
"""The number of epochs that a run begins follows from its steps."""


def differing(own: Settings, other: Settings, allowed: Sequence[str] = ()) -> list[str]:
    """Keys with two values, sorted, but those that are `allowed` or lie below one that is."""
    keys = sorted(key for key in own.keys() | other.keys() if own.get(key) != other.get(key))
    return [key for key in keys if not any(key == a or key.startswith(f"{a}.") for a in allowed)]


def found(
    points: Sequence[PlannedPoint],
    baseline: str | None,
    may_differ: Sequence[str] | None,
    settings: Callable[[str], Settings],
) -> dict[str, list[str]]:
    """Arm -> keys in which one of its points differs from the baseline's of its seed.

    Without `may_differ`, whatever sets two arms of one sweep apart is in question. `settings`: of a run; empty where
    nothing is known of them, and then nothing is said.
    """
    arms = sweep_file.arms(points)
    if baseline not in arms:
        return {}
    base = {point.seed: point.run for point in reversed(arms[baseline])}
    first = arms[baseline][0].run
    asked = _varied(points, settings) if may_differ is None else may_differ
    keys: dict[str, set[str]] = {}
    for point in points:
        own, other = settings(point.run), settings(base.get(point.seed, first))
        if own and other and point.arm != baseline:
            keys.setdefault(point.arm, set()).update(differing(own, other, (*asked, *REPETITION, *FOLLOWS)))
    return {arm: sorted(of_arm) for arm, of_arm in keys.items() if of_arm}


def _varied(points: Sequence[PlannedPoint], settings: Callable[[str], Settings]) -> list[str]:
    """Keys in which two arms of one sweep differ, each as it was begun."""
    begun: dict[tuple[str, str], Settings] = {}
    for point in points:
        begun.setdefault((point.sweep, point.arm), settings(point.run))
    first: dict[str, Settings] = {}
    keys: set[str] = set()
    for (sweep, _), own in begun.items():
        keys.update(differing(own, first.setdefault(sweep, own)))
    return sorted(keys)
