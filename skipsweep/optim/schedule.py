"""Schedules: pure functions of the step. Imports no torch, so that plans can draw them."""

import math

from skipsweep.config import Constant, Cosine, Schedule, Trapezoid


def lr_factor(schedule: Schedule, step: int) -> float:
    """Factor of the peak learning rate in the update from `step` to `step + 1` (0-based, below `schedule.steps`)."""
    if step < schedule.warmup_steps:
        return (step + 1) / (schedule.warmup_steps + 1)
    match schedule:
        case Constant():
            return 1.0
        case Trapezoid(cooldown=cooldown, final=final):
            return _trapezoid(step / schedule.steps, cooldown, final)
        case Cosine(final=final):
            done = (step - schedule.warmup_steps) / max(schedule.steps - schedule.warmup_steps, 1)
            return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done))
    raise TypeError(f"no such schedule: {schedule}")


def _trapezoid(x: float, cooldown: float, final: float) -> float:
    """1 until x = 1 - cooldown, then linearly to `final` at x = 1 (the speedrun's form, x = step / steps)."""
    if x < 1 - cooldown:
        return 1.0
    left = (1 - x) / cooldown
    return left + (1 - left) * final
