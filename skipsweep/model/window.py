"""The attention window as a function of the step. Imports no torch, so that plans can draw and count it."""

import math
from collections import Counter
from functools import lru_cache

from skipsweep.config import Model, Schedule


def window_blocks(model: Model, schedule: Schedule, step: int) -> int:
    """Blocks that a query sees in layers with the long window, its own included, after `step` updates; 0: all.

    (Medium track, reference record 15: tokens are rounded up to whole blocks; at least one.)
    """
    if model.window and model.last_window and step >= schedule.steps:
        return math.ceil(model.last_window / model.window_block)
    return _blocks(*_window_shape(model), _part_of(schedule, step))


def windows(model: Model, schedule: Schedule) -> Counter[int]:
    """`window_blocks` -> number of the run's steps that have it."""
    return _windows(*_window_shape(model), schedule.steps, schedule.window_horizon)


Stages = tuple[int, ...]


def _window_shape(model: Model) -> tuple[int, int, str, Stages]:
    return model.window, model.window_block, model.window_growth, tuple(model.window_stages)


@lru_cache(maxsize=256)
def _windows(window: int, block: int, growth: str, stages: Stages, steps: int, horizon: int) -> Counter[int]:
    schedule = Schedule(steps=steps, window_horizon=horizon)
    return Counter(_blocks(window, block, growth, stages, _part_of(schedule, step)) for step in range(steps))


def _part_of(schedule: Schedule, step: int) -> float:
    return min(step / (schedule.window_horizon or schedule.steps), 1.0)


def _blocks(window: int, block: int, growth: str, stages: Stages, x: float) -> int:
    if not window:
        return 0
    if growth == "stages" and x < 1:
        return stages[int(len(stages) * x)]
    grown = window * (_cubic(x) if growth == "cubic" else 1.0)
    return max(math.ceil(grown / block), 1)


def _cubic(x: float) -> float:
    """From 0 to 1 with a plateau of 1/2 in the middle: 4x^3 - 6x^2 + 3x."""
    return 4 * x**3 - 6 * x**2 + 3 * x


def short_window_blocks(long: int) -> int:
    """Blocks that a query sees in layers with the short window, its own included; 0: all. `long`: those with the long
    one (`window_blocks`)."""
    return max(long // 2, 1) if long else 0
