"""Before anything runs: what difference a plan's seeds can tell, where somebody has measured how runs differ.

In closed form and without scipy, which plans must not wait for: within a few per cent of `analyze.statistics`, worst
where two arms have two seeds.
"""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from skipsweep.status import result
from skipsweep.sweep.estimate import estimate
from skipsweep.sweep.plan import Plan

ALPHA = 0.05
POWER = 0.8


@dataclass(frozen=True)
class Precision:
    """What a plan's seeds are good for."""

    sd: float
    """Standard deviation of a run's final loss, nats per token."""
    source: str
    seeds: int
    """Of the arm with the fewest."""
    difference: float
    """About the smallest true difference to the baseline that is found with 80 %, at 5 % over all arms."""
    seeds_for_half: int
    """Per arm, for half of that difference."""
    gpu_hours_for_half: float | None
    """Of all arms with so many seeds; None on CPUs, and where no speed is known."""


def precision(plan: Plan) -> Precision | None:
    """None where there is nothing to compare, a single seed, or no known spread; also where an earlier launch of the
    sweep had the baseline and this one has not."""
    arms = plan.arms()
    seeds = min((len({(p.seed, p.replicate) for p in points}) for points in arms.values()), default=0)
    if plan.baseline not in arms or len(arms) < 2 or seeds < 2 or (known := _spread(plan, plan.baseline)) is None:
        return None
    sd, source = known
    found = detectable(sd, seeds, len(arms))
    half = seeds + 1
    while detectable(sd, half, len(arms)) > found / 2:
        half += 1
    once = [points[0].run for points in arms.values()]
    cost = estimate(plan, once, 1)
    return Precision(sd, source, seeds, found, half, (cost.gpu_hours * half or None) if cost else None)


def _spread(plan: Plan, baseline: str) -> tuple[float, str] | None:
    """From the baseline's finished runs, else as published for their corpus."""
    runs = dict.fromkeys(point.run for point in plan.arms()[baseline] if plan.observations[point.run].state == "done")
    losses = [found["val_loss"] for run in runs if (found := result(plan.multirun.run(run)))]
    if len(losses) > 1 and (sd := statistics.stdev(losses)) > 0:
        return sd, f"of {len(losses)} finished runs of {baseline}"
    published = plan.published.get(baseline)
    sd = published.get("sd") if isinstance(published, Mapping) else None
    return (float(sd), f"published for {baseline}") if isinstance(sd, int | float) and sd > 0 else None


def detectable(sd: float, n: int, arms: int) -> float:
    """About the smallest true difference to the baseline that `n` >= 2 runs in each of `arms` arms find with 80 %, at
    Bonferroni's share of 5 %."""
    df = arms * (n - 1)
    return (t_quantile(1 - ALPHA / (arms - 1) / 2, df) + t_quantile(POWER, df)) * sd * math.sqrt(2 / n)


@lru_cache(maxsize=4096)
def t_quantile(p: float, df: int) -> float:
    """Quantile of Student's distribution, for p > 1/2 and whole degrees of freedom."""
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, df) < 2 * p - 1 else (low, middle)
    return math.sqrt(df) * math.tan(low)


def _within(angle: float, df: int) -> float:
    """P(|t| < sqrt(df) tan(angle)): Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    cos, odd = math.cos(angle), df % 2
    term, total = (cos if odd else 1.0), 0.0
    for k in range(odd, df - 1, 2):
        total += term
        term *= (k + 1) / (k + 2) * cos * cos
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total
