"""From what a user asks the head to see (`11`, `[11, 10]`, `top3`, `input`) to a sorted list of sources.

Resolved when planning, once, so that every rank and every restart trains the same model: the published "random" arm was
eight different models averaged, because each process drew for itself (multi-output article).
"""

import hashlib
import re
from typing import Any

from skipsweep.config import (
    BestToWorst,
    EarlyToLate,
    LateToEarly,
    Random,
    SelectionMethod,
    WorstToBest,
)
from skipsweep.errors import UserError
from skipsweep.model.readout_specs import NAMED, Source

TWO_THIRDS = "two_thirds"
"""The layer at two thirds of the depth: 11 of 16 in the medium track's record 15, 8 of 12 in the small track's."""

EACH = "each"
"""Every layer that can be a source, one arm each."""
SPREADS = rf"{EACH}|top\d+\.\.top(?:\d+|N)"
"""Pattern of the words that stand for several values of `skip_layers`; how many depends on the depth."""

_TOP = re.compile(r"top(\d+)")
_RANGE = re.compile(r"top(\d+)\.\.top(\d+|N)")


def ordering(method: SelectionMethod, layers: int, seed: int) -> list[int]:
    """The selection method's order of the layers below the last one of `layers`, first choice first.

    Raises UserError for a missing or impossible ranking.
    """
    candidates = range(layers - 1)
    match method:
        case EarlyToLate():
            return list(candidates)
        case LateToEarly():
            return list(reversed(candidates))
        case Random(seed=fixed):
            return sorted(candidates, key=lambda layer: _draw(seed if fixed is None else fixed, layer))
        case BestToWorst(ranking=ranking):
            return _checked(ranking, layers, method.name)
        case WorstToBest(ranking=ranking):
            return _checked(ranking, layers, method.name)[::-1]
    raise TypeError(f"no such selection method: {method}")


def _draw(seed: int, layer: int) -> str:
    """A hash per layer, not a generator's stream: the same order on every version of every library."""
    return hashlib.sha256(f"skipsweep ordering {seed} {layer}".encode()).hexdigest()


def _checked(ranking: list[int], layers: int, method: str) -> list[int]:
    key = "selection_method.ranking"
    if not ranking:
        raise UserError(
            f"selection_method={method} needs a ranking, best layer first: {key}=[11,10,8], or {key}_from=SWEEP (or "
            "use early_to_late, late_to_early, random)"
        )
    for layer in ranking:
        if not 0 <= layer < layers - 1:
            raise UserError(f"{key}: layer {layer} is outside the trunk; valid: 0 to {layers - 2}")
    if len(set(ranking)) < len(ranking):
        raise UserError(f"{key}={ranking} names a layer twice")
    return list(ranking)


def spread(value: Any, layers: int) -> list[int] | list[str] | None:
    """What `each` (layers 0 to L - 2) or `topA..topB` (topA, .., topB; `topN` is all L - 1 layers) stands for in a
    trunk of L = `layers`; None where `value` is not such a word.

    Raises UserError for a range that is empty or longer than the ordering.
    """
    if not isinstance(value, str) or layers < 2:
        return None
    if value == EACH:
        return list(range(layers - 1))
    found = _RANGE.fullmatch(value)
    if not found:
        return None
    first, last = int(found[1]), layers - 1 if found[2] == "N" else int(found[2])
    if not 1 <= first <= last < layers:
        raise UserError(f"skip_layers={value}: a trunk of {layers} layers has top1 to top{layers - 1}, lowest first")
    return [f"top{n}" for n in range(first, last + 1)]


def sources(value: Any, method: SelectionMethod, layers: int, seed: int) -> list[Source]:
    """The sources that `skip_layers.layers` asks for, in the order asked for.

    Raises UserError for what is not a source, lies outside the trunk, or is named twice.
    """
    chosen: list[Source] = []
    for item in _items(value):
        top = _TOP.fullmatch(item) if isinstance(item, str) else None
        chosen += _top(int(top[1]), method, layers, seed) if top else [_source(item, layers)]
    for source in chosen:
        if chosen.count(source) > 1:
            raise UserError(f"skip_layers={_show(value)} names {source} twice")
    return chosen


def tops(value: Any) -> list[str]:
    """Those items of `skip_layers.layers` that take layers from the ordering."""
    return [item for item in _items(value) if isinstance(item, str) and _TOP.fullmatch(item)]


def _items(value: Any) -> list[Any]:
    if value is None or value == "none":
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _show(value: Any) -> str:
    return str(value).replace(" ", "").replace("'", "")


def _top(n: int, method: SelectionMethod, layers: int, seed: int) -> list[int]:
    order = ordering(method, layers, seed)
    if not 1 <= n <= len(order):
        raise UserError(
            f"skip_layers=top{n}: the ordering {method.name} has {len(order)} layers ({_show(order)}); "
            f"valid: top1 to top{len(order)}"
        )
    return order[:n]


def _source(item: Any, layers: int) -> Source:
    if item in NAMED:
        return item
    if item == TWO_THIRDS:
        return min(round(2 * layers / 3), layers - 2)
    if isinstance(item, bool) or not isinstance(item, int):
        raise UserError(
            f"skip_layers: {item} is not a source; valid: none, a layer (5), a list ([5,2]), topN, " + ", ".join(NAMED)
        )
    if item == layers - 1:
        raise UserError(
            f"skip_layers: layer {item} is the last one, which the head always sees; valid: 0 to {layers - 2}"
        )
    if not 0 <= item < layers:
        raise UserError(f"skip_layers: layer {item} is outside the trunk of {layers} layers; valid: 0 to {layers - 2}")
    return item


def canonical_key(source: Source) -> tuple[int, int]:
    """Sort key: layers ascending, then the named sources."""
    return (0, source) if isinstance(source, int) else (1, NAMED.index(source))
