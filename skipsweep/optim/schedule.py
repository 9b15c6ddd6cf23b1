"""Schedules: pure functions of the step. Imports no torch, so that plans can draw and count them."""

import math

from skipsweep.config import AdamW, Constant, Cosine, Muon, Optim, Schedule, Trapezoid

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
