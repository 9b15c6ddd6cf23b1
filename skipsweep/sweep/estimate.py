"""How long runs will take, from throughputs measured before."""

from collections.abc import Mapping, Sequence
from typing import Any

from skipsweep import files
from skipsweep.config import RunConfig, recipe_of, world_size
from skipsweep.model import count
from skipsweep.sweep.plan import Plan

STARTUP_S = 6.0
"""Seconds that a run takes besides training: imports, warm-up, validation at the start (measured on 2 cores)."""


def flops(config: RunConfig) -> float:
    """Floating-point operations of a whole run."""
    per_token = sum(count.flops_per_token(recipe_of(config)).values())
    return float(per_token) * config.schedule.steps * config.data.batch_tokens


def estimate_seconds(plan: Plan, runs: Sequence[str], parallel: int) -> float | None:
    """Wall time of `runs`, `parallel` at a time, from throughputs measured before; None until there are any."""
    rows = list(files.read_rows(plan.multirun.speeds))
    total = 0.0
    for run in runs:
        speed = _speed(rows, plan.configs[run])
        if speed is None:
            return None
        total += flops(plan.configs[run]) / speed + STARTUP_S
    # Runs side by side share the cores that were measured, unless each has a device of its own.
    on_gpu = all(plan.configs[run].compute.device == "cuda" for run in runs)
    return total / parallel if on_gpu else total


def _speed(rows: Sequence[Mapping[str, Any]], config: RunConfig) -> float | None:
    """FLOP/s of the last run that was most like this one."""
    shape = [config.model.layers, config.model.dim, config.data.seq_len]
    alike = [r for r in rows if r["device"] == config.compute.device and r["world_size"] == world_size(config.compute)]
    same = [r for r in alike if r["model"] == shape]
    return (same or alike)[-1]["flops_per_s"] if alike else None
