"""When a run first got below the target loss."""

from collections.abc import Sequence
from dataclasses import dataclass

from skipsweep.analyze.evidence import Evidence, Run


@dataclass(frozen=True)
class Crossing:
    """Where the straight line between two validations meets the target. It lies inside that run's own learning rate
    decay: a shorter schedule would get there at another step."""

    step: float
    time_s: float | None
    """Training time in seconds; None where it was not recorded."""


def crossing(curve: Sequence[tuple[int, float | None, float]], target: float) -> Crossing | None:
    """First crossing of a curve (step, training time in s, loss), or None where no validation lies below `target`.

    Interpolated between the last validation above and the first one below, as in the multi-output article.
    """
    before: tuple[int, float | None, float] | None = None
    for step, time, loss in curve:
        if loss < target:
            if before is None:
                return Crossing(step, time)
            part = (before[2] - target) / (before[2] - loss)
            seconds = None if time is None or before[1] is None else before[1] + part * (time - before[1])
            return Crossing(before[0] + part * (step - before[0]), seconds)
        before = step, time, loss
    return None


def curve(run: Run) -> list[tuple[int, float | None, float]]:
    """The run's validations: (step, training time in s, loss in nats per token)."""
    series = run.series("val/loss")
    return [(int(step), None if time != time else float(time), float(loss)) for step, time, loss in series.tolist()]


def rows(evidence: Evidence) -> list[dict[str, object]]:
    """One row per arm and run with validations: arm, run, seed, reached, step (rounded), time_s (4 decimals)."""
    found: list[dict[str, object]] = []
    if evidence.target is None:
        return found
    for arm, points in evidence.arms().items():
        for point in points:
            losses = curve(evidence.runs[point.run])
            if losses:
                hit = crossing(losses, evidence.target)
                found.append(
                    {"arm": arm, "run": point.run, "seed": point.seed, **_cells(hit, evidence.runs[point.run])}
                )
    return found


_NOT_REACHED = {"done": "never", "failed": "stopped"}


def _cells(hit: Crossing | None, run: Run) -> dict[str, object]:
    if hit is None:
        return {"reached": _NOT_REACHED.get(run.outcome, "not yet"), "step": None, "time_s": None}
    return {"reached": "yes", "step": round(hit.step), "time_s": None if hit.time_s is None else round(hit.time_s, 4)}
