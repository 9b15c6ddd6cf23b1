"""The files of runs, read so that nothing in them can break analysis: what is damaged is missing, and named.

Without numpy: `skipsweep list` and `status` read through here, and are to take a moment.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from skipsweep import files
from skipsweep.files import as_number
from skipsweep.rundir import RunDir
from skipsweep.status import Observation, observe

# -------------------------------------------------------------------------------------------------------------- values


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
