"""What the schedules of a plan do over the steps, as few points as give the curves. Imports no torch."""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skipsweep.config import Model, Muon, Optim, RunConfig, Schedule
from skipsweep.model.window import short_window_blocks, window_blocks
from skipsweep.optim.schedule import lr_factor, momentum, peak_rates
from skipsweep.sweep.plan import Plan

MAX_POINTS = 200
"""Points of a curve at most."""
EXACT = 1e-9
"""Distance from a curve, in units of its largest value, that is rounding."""


@dataclass(frozen=True)
class Curve:
    """A quantity over the steps: straight lines between these points."""

    unit: str
    steps: list[int]
    """Ascending; first and last step, every corner and both sides of every jump among them."""
    values: list[float]

    def at(self, steps: NDArray[np.float64]) -> NDArray[np.float64]:
        """Values at any steps."""
        return np.interp(steps, self.steps, self.values)

    def times(self, factor: float) -> "Curve":
        """The same curve, scaled."""
        return Curve("", self.steps, [factor * value for value in self.values])


@dataclass
class Drawing:
    """Everything scheduled in the runs of some arms."""

    steps: int
    arms: list[str] = field(default_factory=list)
    curves: dict[str, Curve] = field(default_factory=dict)
    """`lr_factor`, `lr/<role>`; `momentum` of Muon; `window/long` and `window/short` where the window has a limit."""

    def document(self) -> dict[str, Any]:
        """As plain data."""
        curves = {
            name: {"unit": curve.unit, "steps": curve.steps, "values": curve.values}
            for name, curve in self.curves.items()
        }
        return {"arms": self.arms, "steps": self.steps, "curves": curves}


def drawings(plan: Plan) -> list[Drawing]:
    """The distinct schedules among a plan's runs, in order of first mention, each with the arms that follow it."""
    found: dict[str, Drawing] = {}
    known: dict[str, Curve] = {}
    for arm, points in plan.arms().items():
        parts = _Parts.of(plan.configs[points[0].run])  # seeds do not change it
        if repr(parts) not in found:
            found[repr(parts)] = Drawing(parts.schedule.steps, curves=parts.curves(known))
        found[repr(parts)].arms.append(arm)
    return list(found.values())


@dataclass(frozen=True)
class _Parts:
    """All that the curves are made of: runs that agree in this have the same."""

    schedule: Schedule
    rates: dict[str, float]
    muon: Muon | None
    model: Model

    @classmethod
    def of(cls, config: RunConfig) -> "_Parts":
        optim, model = config.optim, config.model
        keys = ("window", "window_block", "window_growth", "window_stages", "last_window")
        window = Model(**{key: getattr(model, key) for key in keys})
        return cls(config.schedule, peak_rates(optim), _momentum_of(optim), window)

    def curves(self, known: dict[str, Curve]) -> dict[str, Curve]:
        """`known` keeps curves that other parts have as well: a sweep over rates evaluates one schedule once."""
        updates, schedule = self.schedule.steps, self.schedule
        key = repr(schedule)
        factor = _sampled(known, f"factor {key}", "of the peak", updates, lambda step: lr_factor(schedule, step))
        made = {"lr_factor": factor} | {f"lr/{role}": factor.times(peak) for role, peak in self.rates.items()}
        if (muon := self.muon) is not None:
            key = f"momentum {updates} {muon!r}"
            made["momentum"] = _sampled(known, key, "", updates, lambda step: momentum(muon, step))
        return made | (self._windows(known) if self.model.window else {})

    def _windows(self, known: dict[str, Curve]) -> dict[str, Curve]:
        def long(step: int) -> int:
            return window_blocks(self.model, self.schedule, step)

        block, key = self.model.window_block, f"{self.model!r} {self.schedule!r}"
        seen = self.schedule.steps + 1  # the last validation comes after all updates
        return {
            "window/long": _sampled(known, f"long {key}", "tokens", seen, lambda step: block * long(step)),
            "window/short": _sampled(
                known, f"short {key}", "tokens", seen, lambda step: block * short_window_blocks(long(step))
            ),
        }


def _momentum_of(optim: Optim) -> Muon | None:
    if not isinstance(optim, Muon):
        return None
    return Muon(momentum=optim.momentum, momentum_start=optim.momentum_start, momentum_warmup=optim.momentum_warmup)


def _sampled(known: dict[str, Curve], key: str, unit: str, count: int, value: Callable[[int], float]) -> Curve:
    """`value` of the steps 0 to `count` - 1, evaluated unless it is known."""
    if key not in known:
        values = [value(step) for step in range(count)]
        steps = corners(np.array(values, dtype=np.float64))
        known[key] = Curve(unit, steps, [values[step] for step in steps])
    return known[key]


def corners(values: NDArray[np.float64], limit: int = MAX_POINTS) -> list[int]:
    """Indices between which straight lines give `values` (N,): exactly where `limit` indices suffice, else nearly.

    (Ramer 1972, Douglas & Peucker 1973, the worst segment first.)
    """
    last = len(values) - 1
    kept = {0, last}
    rounding = EXACT * float(np.abs(values).max())
    segments = [_segment(values, 0, last)]
    while len(kept) < limit:
        error, start, worst, end = heapq.heappop(segments)
        if -error <= rounding:
            break
        kept.add(worst)
        heapq.heappush(segments, _segment(values, start, worst))
        heapq.heappush(segments, _segment(values, worst, end))
    return sorted(kept)


def _segment(values: NDArray[np.float64], start: int, end: int) -> tuple[float, int, int, int]:
    """(minus the largest distance from the straight line, start, where that is, end): a heap gives the worst first."""
    line = np.linspace(values[start], values[end], end - start + 1)
    distance = np.abs(values[start : end + 1] - line)
    worst = int(distance.argmax())
    return -float(distance[worst]), start, start + worst, end
