"""Before anything runs: what difference a plan's seeds can detect, where somebody has measured how runs differ.

`analyze.statistics` is imported where it is used, once a spread is known: scipy takes a moment to load, and most plans
do without it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from skipsweep.analyze import descriptive
from skipsweep.status import result
from skipsweep.sweep.estimate import estimate
from skipsweep.sweep.plan import Plan


@dataclass(frozen=True)
class Precision:
    """What a plan's seeds are good for."""

    sd: float
    """Standard deviation of a run's final loss, nats per token."""
    source: str
    seeds: int
    """Of the arm with the fewest."""
    difference: float
    """The smallest true difference from the baseline that is detected with 80 % power, at 5 % over all arms."""
    seeds_for_half: int
    """Per arm, for half of that difference."""
    gpu_hours_for_half: float | None
    """Of all arms with so many seeds; None on CPUs, and where no speed is known."""


def precision(plan: Plan) -> Precision | None:
    """None where there is nothing to compare, a single seed, no known spread, or more seeds than anybody counts; also
    where an earlier launch of the sweep had the baseline and this one has not."""
    arms = plan.arms()
    seeds = min((len({p.seed for p in points}) for points in arms.values()), default=0)
    if plan.baseline not in arms or len(arms) < 2 or seeds < 2 or (known := _spread(plan, plan.baseline)) is None:
        return None
    from skipsweep.analyze import statistics

    sd, source = known
    design = statistics.Design(len(arms))
    found = statistics.detectable(sd, seeds, design)
    half = None if found is None else statistics.seeds_for(found / 2, sd, design)
    if found is None or half is None:
        return None
    once = [points[0].run for points in arms.values()]
    cost = estimate(plan, once, 1)
    return Precision(sd, source, seeds, found, half, (cost.gpu_hours * half or None) if cost else None)


def _spread(plan: Plan, baseline: str) -> tuple[float, str] | None:
    """From the baseline's finished runs, else as published for their corpus."""
    points = plan.arms()[baseline]
    done = [point for point in points if plan.observations[point.run].state == "done"]
    results = {point.run: result(plan.multirun.run(point.run)) for point in done}
    losses = descriptive.per_seed(descriptive.by_seed(done, results))
    if sd := descriptive.sd(losses):
        return sd, f"of {len(losses)} finished seeds of {baseline}"
    published = plan.published.get(baseline)
    sd = published.get("sd") if isinstance(published, Mapping) else None
    return (float(sd), f"published for {baseline}") if isinstance(sd, int | float) and sd > 0 else None
