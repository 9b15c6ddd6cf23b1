"""Many runs at a glance. Reads three small files per run, and every plan: a thousand runs in well under a second."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

from skipsweep import sweep_file
from skipsweep.analyze import arms, documents
from skipsweep.analyze.documents import observed
from skipsweep.rundir import SINGLE, Multirun, RunDir
from skipsweep.status import Observation


@dataclass(frozen=True)
class Row:
    """One run. A figure that is not known is None."""

    run: str
    id: str
    state: str
    cause: str | None
    val_loss: float | None
    steps: int | None
    train_time_s: float | None
    sweeps: list[str]
    """`single` among them for a run that was launched by itself."""


@dataclass(frozen=True)
class Status:
    """Where runs stand."""

    sweep: str | None
    question: str | None
    counts: dict[str, int]
    runs: list[Observation]
    arms: list[arms.ArmRow]
    sweeps: list[str]
    """All sweeps, where none was asked for."""


def runs(multirun: Multirun) -> list[Row]:
    """Every run, by name."""
    sweeps = _sweeps(multirun)
    return [_row(run, sweeps[run.name]) for run in multirun.all_runs()]


def _sweeps(multirun: Multirun) -> dict[str, list[str]]:
    """Run -> the sweeps whose plans name it: what a run noted itself may be of a sweep that was renamed or deleted, or
    be lost with its folder. A plan that is damaged names none."""
    found: dict[str, list[str]] = defaultdict(list)
    for sweep in multirun.all_sweeps():
        points = documents.document(sweep.plan).get("points")
        named = (point.get("run") for point in points if isinstance(point, dict)) if isinstance(points, list) else ()
        for run in {name for name in named if isinstance(name, str)}:
            found[run].append(sweep.name)
    return found


def _row(run: RunDir, sweeps: list[str]) -> Row:
    seen, damaged = observed(run), []
    result: dict[str, Any] = (documents.result(run, damaged) if seen.state == "done" else None) or {}
    return Row(
        run=run.name,
        id=run.id,
        state=seen.state,
        cause=f"{damaged[0]} damaged" if damaged else seen.cause,
        val_loss=result.get("val_loss"),
        steps=result.get("steps"),
        train_time_s=result.get("train_time_s"),
        sweeps=sorted([*sweeps, SINGLE] if SINGLE in run.read_serves() else sweeps),
    )


def status(multirun: Multirun, sweep: str | None) -> Status:
    """All runs, or those of one sweep with its arms.

    Raises UserError for a sweep that does not exist or whose plan cannot be read.
    """
    if sweep is None:
        seen = [observed(run) for run in multirun.all_runs()]
        return Status(None, None, _counts(seen), seen, [], [s.name for s in multirun.all_sweeps()])
    plan = sweep_file.read_plan(multirun, sweep)
    names = sweep_file.runs(sweep_file.points(sweep, plan))
    seen = [observed(multirun.run(name)) for name in names]
    return Status(sweep, plan.get("question"), _counts(seen), seen, arms.of_sweep(multirun, sweep), [])


def _counts(seen: list[Observation]) -> dict[str, int]:
    return dict(Counter(one.state for one in seen))
