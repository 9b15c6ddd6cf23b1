"""The files of runs and sweeps, read so that nothing in them can break analysis: what is damaged is missing, and named.

Without numpy: `skipsweep list` and `status` read through here, and are to take a moment.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skipsweep import files
from skipsweep.errors import UserError
from skipsweep.rundir import Multirun, RunDir, names_a_folder
from skipsweep.status import Observation, observe


@dataclass(frozen=True)
class Point:
    """One choice on a sweep's axes; several points may be served by the same run."""

    arm: str
    seed: int
    replicate: int
    run: str
    sources: tuple[Any, ...] = ()
    ordering: tuple[int, ...] | None = None
    """The selection method's ordering as frozen when planned, where `topN` was asked for."""
    tags: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    sweep: str = ""


# -------------------------------------------------------------------------------------------------------------- values


def as_number(value: Any) -> float | None:
    """A finite number from somebody's file; None for anything else, true and false among it."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer of hundreds of digits
        return None


def _number(value: Any) -> float | None:
    return None if as_number(value) is None else value


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and _number(value) is not None else None


def _weights(value: Any) -> dict[str, float] | None:
    """Those that are numbers."""
    return {k: v for k, v in value.items() if _number(v) is not None} if isinstance(value, dict) else None


def _parts(value: Any) -> dict[str, float] | None:
    """What is to be summed: of all parts or of none."""
    found = _weights(value)
    return found if found is not None and len(found) == len(value) else None


def _columns(value: Any) -> dict[str, dict[str, float]] | None:
    """Of a table of parts, those columns that are whole."""
    if not isinstance(value, dict):
        return None
    return {name: whole for name, column in value.items() if (whole := _parts(column)) is not None}


_RESULT: dict[str, Callable[[Any], Any]] = {
    "val_loss": _number,
    "steps": _count,
    "tokens": _count,
    "train_time_s": _number,
    "parameters": _parts,
    "flops_per_token": _parts,
    "inference_flops_per_token": _columns,
    "lambdas": _weights,
}
"""Key of result.json -> what of its value can be used; None: nothing."""


# ------------------------------------------------------------------------------------------------------ one run's files


def document(path: Path, damaged: list[str] | None = None) -> dict[str, Any]:
    """A JSON object; empty where there is none. A file that holds no such thing is added to `damaged`, by name."""
    try:
        found = files.read_json(path)
    except (OSError, ValueError):
        found = ()
    if found is not None and not isinstance(found, dict) and damaged is not None:
        damaged.append(path.name)
    return found if isinstance(found, dict) else {}


def result(run: RunDir, damaged: list[str] | None = None) -> dict[str, Any] | None:
    """result.json, without what is of another type than it has to be; None where there is none with a validation loss.
    Where anything is wrong with it, it is added to `damaged`."""
    wrong: list[str] = []
    found = document(run.result, wrong)
    usable = {key: _RESULT[key](value) if key in _RESULT else value for key, value in found.items()}
    if not wrong and (usable != found or (run.result.exists() and usable.get("val_loss") is None)):
        wrong.append(run.result.name)
    if damaged is not None:
        damaged += wrong
    return usable if usable.get("val_loss") is not None else None


def observed(run: RunDir) -> Observation:
    """Where a run stands; `damaged` where its files do not tell."""
    try:
        return observe(run)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Observation(run.name, "damaged", cause="its lease is damaged")


# --------------------------------------------------------------------------------------------------------------- plans

_STRINGS = "a list of strings"
_PLAN: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "question": ("a string", lambda value: isinstance(value, str)),
    "source": ("a string", lambda value: isinstance(value, str)),
    "baseline": ("a string", lambda value: isinstance(value, str)),
    "target": ("a number", lambda value: as_number(value) is not None),
    "may_differ": (_STRINGS, lambda value: _strings(value)),
    "commands": (_STRINGS, lambda value: _strings(value)),
    "published": ("a mapping", lambda value: isinstance(value, dict)),
    "confounds": ("a mapping of arms to lists of strings", lambda value: _lists(value)),
}
"""Key of plan.json -> what it has to be, and whether it is; each may be null or missing."""


def _strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _lists(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_strings, value.values()))


def read_plan(multirun: Multirun, name: str) -> dict[str, Any]:
    """plan.json of a sweep, without what is null. Raises UserError where there is none, or it cannot be read."""
    folder = multirun.sweep(name)
    again = "the launch that made it writes it anew"
    try:
        found = files.read_json(folder.plan) if names_a_folder(name) else None
    except (ValueError, OSError) as problem:
        raise UserError(f"{folder.plan} cannot be read ({problem}); {again}") from problem
    if found is None:
        known = ", ".join(sweep.name for sweep in multirun.all_sweeps()) or "none yet"
        raise UserError(f"no sweep {name} below {multirun.sweeps}; there are: {known}")
    if not isinstance(found, dict) or not isinstance(found.get("points"), list):
        raise UserError(f"{folder.plan} is not a plan of a sweep: it has no list of points")
    plan = {key: value for key, value in found.items() if value is not None}
    for key, (expected, is_it) in _PLAN.items():
        if key in plan and not is_it(plan[key]):
            raise UserError(f"{folder.plan} cannot be read: {key} is not {expected}; {again}")
    return plan


def points(sweep: str, plan: Mapping[str, Any]) -> list[Point]:
    """The points of a plan. Raises UserError where one cannot be read."""
    try:
        return [_point(sweep, point) for point in plan["points"]]
    except (KeyError, TypeError, ValueError) as problem:
        raise UserError(f"plan.json of sweep {sweep} has a point that cannot be read: {problem!r}") from problem


def _point(sweep: str, point: Mapping[str, Any]) -> Point:
    arm, seed, replicate = point["key"]
    run, tags, overrides = point["run"], point.get("tags") or [], point.get("overrides") or []
    if not isinstance(seed, int) or not isinstance(replicate, int) or not _strings([arm, run, *tags, *overrides]):
        raise TypeError(f"{point['key']!r} of {run!r}")
    order = point.get("ordering")
    return Point(
        arm=arm,
        seed=seed,
        replicate=replicate,
        run=run,
        sources=tuple(point.get("sources") or ()),
        ordering=None if order is None else tuple(order),
        tags=tuple(tags),
        overrides=tuple(overrides),
        sweep=sweep,
    )
