"""How long runs will take and what they cost, from throughputs measured before, here or by others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from skipsweep import files
from skipsweep.config import RunConfig, recipe_of, world_size
from skipsweep.model import count
from skipsweep.sweep.plan import Plan

STARTUP_S = 6.0
"""Seconds that a run takes besides training: imports, warm-up, validation at the start (measured on 2 cores)."""

Speed = Mapping[str, Any]
"""A row of speed.jsonl: device, world_size, model [layers, dim, seq_len], flops_per_s over all devices."""

RECORDED: tuple[Speed, ...] = (
    # Medium track, 8 H100: 5,590 steps in 1405.7 s (PR 137, 160 runs); operations per token as we count them.
    {
        "device": "cuda",
        "world_size": 8,
        "model": [16, 1024, 65_536],
        "flops_per_s": 1_684_123_336 * 524_288 * 5_590 / 1405.7,
    },
)
"""Published speeds, for machines and models on which nothing has been measured yet. No other model borrows them."""


@dataclass(frozen=True)
class Estimate:
    """What a number of runs take."""

    seconds: float
    """Wall time, as many at a time as asked for."""
    gpu_hours: float
    """Over all devices of all runs; 0 on CPUs."""
    recorded: bool
    """Of at least one run the speed is a published one, not measured here."""


@dataclass(frozen=True)
class Sizes:
    """What a run's model is made of and costs, by `model.count`."""

    parameters: int
    flops_per_token: int
    """Of a training pass, forward and backward, the mean over the run."""
    flops: float
    """Of the whole run."""


def sizes(config: RunConfig) -> Sizes:
    """Parameters and operations, so that "same parameter count" is a figure before anything is trained."""
    recipe = recipe_of(config)
    per_token = count.total(count.flops_per_token(recipe))
    tokens = config.schedule.steps * config.data.batch_tokens
    return Sizes(count.total(count.parameters(recipe)), per_token, float(per_token) * tokens)


def estimate(plan: Plan, runs: Sequence[str], parallel: int) -> Estimate | None:
    """What `runs` take, `parallel` at a time; None where one of them is on a machine whose speed nobody knows."""
    measured = list(files.read_rows(plan.multirun.speeds))
    total = gpu_hours = 0.0
    recorded = False
    for config in (plan.configs[run] for run in runs):
        speed = _measured(measured, config)
        if speed is None:
            speed, recorded = _recorded(config), True
        if speed is None:
            return None
        seconds = sizes(config).flops / speed["flops_per_s"] + STARTUP_S
        total += seconds
        gpu_hours += seconds / 3600 * config.compute.nodes * config.compute.gpus
    # Runs side by side share the cores that were measured, unless each has a device of its own.
    on_gpu = all(plan.configs[run].compute.device == "cuda" for run in runs)
    return Estimate(total / parallel if on_gpu else total, gpu_hours, recorded)


def _measured(rows: Sequence[Speed], config: RunConfig) -> Speed | None:
    """The last run that was most like this one."""
    alike = [row for row in rows if _same_machine(row, config)]
    same = [row for row in alike if row["model"] == _shape(config)]
    return (same or alike)[-1] if alike else None


def _recorded(config: RunConfig) -> Speed | None:
    return next((row for row in RECORDED if _same_machine(row, config) and row["model"] == _shape(config)), None)


def _same_machine(row: Speed, config: RunConfig) -> bool:
    return row["device"] == config.compute.device and row["world_size"] == world_size(config.compute)


def _shape(config: RunConfig) -> list[int]:
    return [config.model.layers, config.model.dim, config.data.seq_len]
