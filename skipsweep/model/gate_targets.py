"""Targets of gates, worked out when planning: for the identity, for counting, and for the control. Imports no torch."""

import itertools

from skipsweep.config import GateTargets, Linear, Listed, Recipe
from skipsweep.errors import UserError


def means(targets: GateTargets, layers: int) -> list[float]:
    """Mean gate to reach, per pair of opposite layers from the outermost in; empty where there is no target.

    Raises UserError for values that cannot be, or of a wrong number.
    """
    match targets:
        case Linear(start=start, end=end):
            _require_mean("start", start)
            _require_mean("end", end)
            by_pair, key = _linear(start, end, layers // 2), f"gate_targets.start={start} and gate_targets.end={end}"
        case Listed(means=listed):
            by_pair = _listed(listed, layers)
            for mean in by_pair:
                _require_mean("means", mean)
            key = f"gate_targets.means={by_pair}"
        case _:
            return []
    if any(inner > outer for outer, inner in itertools.pairwise(by_pair)):
        raise UserError(f"{key}: an inner pair is never more open than an outer one; valid: equal or falling means")
    return by_pair


def _require_mean(key: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise UserError(f"gate_targets.{key}: {value} is no mean of gates; valid: 0 to 1")


def _linear(start: float, end: float, pairs: int) -> list[float]:
    """Exactly `start` first, exactly `end` last (and `end` alone); rounded as a person writes them."""
    inner = [round(start + (end - start) * k / (pairs - 1), 12) for k in range(pairs - 1)]
    return [*inner, end]


def _listed(listed: list[float], layers: int) -> list[float]:
    if not isinstance(listed, list) or any(isinstance(m, bool) or not isinstance(m, int | float) for m in listed):
        raise UserError(f"gate_targets.means={listed} is no list of means; valid: e.g. [1,.75,.5,.25]")
    if len(listed) != layers // 2:
        raise UserError(
            f"gate_targets.means={listed} has {len(listed)} values, but {layers} layers make {layers // 2} pairs; "
            f"valid: one per pair, from layers 0 and {layers - 1} in"
        )
    return list(map(float, listed))


def mean_targets(recipe: Recipe) -> list[float]:
    """Of a canonical recipe."""
    return means(recipe.gate_targets, recipe.model.layers)
