"""Schedules: pure functions of the step. Imports no torch, so that plans can draw and count them."""

import math
from collections import Counter
from functools import lru_cache

from skipsweep.config import AdamW, Constant, Cosine, Model, Muon, Optim, Schedule, Trapezoid

# ------------------------------------------------------------------------------------------------------- learning rate


def lr_factor(schedule: Schedule, step: int) -> float:
    """Factor of the peak learning rate in the update from `step` to `step + 1` (0-based, below `schedule.steps`)."""
    steps = schedule.horizon or schedule.steps
    if step < schedule.warmup_steps:
        done, start = (step + 1) / (schedule.warmup_steps + 1), schedule.warmup_start
        return start + (1 - start) * done
    match schedule:
        case Constant():
            return 1.0
        case Trapezoid(cooldown=cooldown, final=final):
            return _trapezoid(min(step / steps, 1.0), cooldown, final)
        case Cosine(final=final):
            done = min((step - schedule.warmup_steps) / max(steps - schedule.warmup_steps, 1), 1.0)
            return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done))
    raise TypeError(f"no such schedule: {schedule}")


def _trapezoid(x: float, cooldown: float, final: float) -> float:
    """1 until x = 1 - cooldown, then linearly to `final` at x = 1 (the speedrun's form, x = step / steps)."""
    if x < 1 - cooldown:
        return 1.0
    left = (1 - x) / cooldown
    return left + (1 - left) * final


def peak_rates(optim: Optim) -> dict[str, float]:
    """Role of parameter -> peak learning rate."""
    if not isinstance(optim, AdamW | Muon):
        raise TypeError(f"no such optimiser: {optim}")
    return {"embed": optim.embed_lr, "matrix": optim.lr, "head": optim.head_lr, "scalar": optim.scalar_lr}


# ------------------------------------------------------------------------------------------------------------ momentum


def momentum(optim: Muon, step: int) -> float:
    """Muon's momentum in the update from `step` to `step + 1`: linear over the warm-up, then constant."""
    done = min(step / optim.momentum_warmup, 1.0) if optim.momentum_warmup else 1.0
    return (1 - done) * optim.momentum_start + done * optim.momentum


# -------------------------------------------------------------------------------------------------------------- window


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
