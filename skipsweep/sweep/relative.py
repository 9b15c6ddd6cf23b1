"""Lengths of a schedule, and depths, given as factors, so that an experiment asks the same at every scale: a 140th
fewer steps are 40 of the medium track's 5,590 and 1 of a tiny run's 200."""

import math
from dataclasses import replace

from skipsweep.config import Config, Relative, Schedule
from skipsweep.errors import UserError


def resolved(config: Config) -> Config:
    """`config` with its factors worked into the schedule, and none left. Raises UserError for one that is none."""
    factors = config.relative
    if factors == Relative():
        return config
    for key, factor in vars(factors).items():
        if factor is not None and not 0 < factor < math.inf:
            raise UserError(f"relative.{key}={factor} must be above 0: 0.9 makes it a tenth shorter")
    model = replace(config.model, layers=_depth(config.model.layers, factors.layers))
    return replace(config, model=model, schedule=_scaled(config.schedule, factors), relative=Relative())


def _scaled(schedule: Schedule, factors: Relative) -> Schedule:
    return replace(
        schedule,
        steps=_length(schedule.steps, factors.steps),
        horizon=_horizon(schedule.horizon, factors.horizon, schedule, factors),
        window_horizon=_horizon(schedule.window_horizon, factors.window_horizon, schedule, factors),
    )


def _depth(layers: int, factor: float) -> int:
    """Even, so that layers make pairs; as it is where nothing is asked."""
    return layers if factor == 1 else max(2 * round(layers * factor / 2), 2)


def _horizon(own: int, factor: float | None, schedule: Schedule, factors: Relative) -> int:
    """In steps; 0, which is the run's own length, where neither the schedule nor a factor says anything else."""
    if factor is None:
        return _length(own, factors.steps) if own else 0
    return _length(own or schedule.steps, factor)


def _length(steps: int, factor: float) -> int:
    return max(round(steps * factor), 1)
