"""Before anything runs: what difference a plan's seeds can detect, where somebody has measured how runs differ.

`analyze.statistics` is imported where it is used, once a spread is known: scipy takes a moment to load, and most plans
do without it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from skipsweep.analyze import descriptive, documents
from skipsweep.analyze.descriptive import Spread
from skipsweep.sweep.estimate import estimate
from skipsweep.sweep.plan import Plan
from skipsweep.sweep_file import PlannedPoint


@dataclass(frozen=True)
class Precision:
    """What a plan's seeds are good for."""

    sd: float
    """Standard deviation of a seed's final loss, nats per token; in a paired sweep of a pair's difference."""
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
    shares = descriptive.sharing({arm: [point.run for point in points] for arm, points in arms.items()})
    arms = {arm: points for arm, points in arms.items() if arm not in shares or arm == plan.baseline}
    if plan.baseline not in arms or len(arms) < 2 or (seeds := _seeds(arms, plan.baseline, plan.paired)) < 2:
        return None
    if (known := _measured(plan, arms) or _published(plan, plan.baseline)) is None:
        return None
    from skipsweep.analyze import statistics

    if isinstance(known, Spread):
        sd, source = known.sd, f"{known.source}{statistics.few(known.df)}"
        design = statistics.design(known, len(arms))
    else:
        (sd, source), design = known, statistics.Design(len(arms), paired=plan.paired)
    found = statistics.detectable(sd, seeds, design)
    half = None if found is None else statistics.seeds_for(found / 2, sd, design)
    if found is None or half is None:
        return None
    once = [points[0].run for points in arms.values()]
    cost = estimate(plan, once, 1)
    return Precision(sd, source, seeds, found, half, (cost.gpu_hours * half or None) if cost else None)


def _seeds(arms: Mapping[str, Sequence[PlannedPoint]], baseline: str, paired: bool) -> int:
    """Of the arm with the fewest, each once; in a paired sweep those that the baseline has too."""
    seeds = {arm: {point.seed for point in points} for arm, points in arms.items()}
    return min(len(own & seeds[baseline] if paired else own) for own in seeds.values())


def _measured(plan: Plan, arms: Mapping[str, Sequence[PlannedPoint]]) -> Spread | None:
    """What a report of the runs that have finished would go by."""
    results = {
        point.run: documents.result(plan.multirun.run(point.run)) for points in arms.values() for point in points
    }
    by_seed = {arm: descriptive.by_seed(points, results) for arm, points in arms.items()}
    found = descriptive.spread(by_seed, plan.baseline, plan.paired)
    return found if found is not None and found.sd else None


def _published(plan: Plan, baseline: str) -> tuple[float, str] | None:
    """As published for the baseline on its corpus; pairs as if the seed did nothing, since nobody published those."""
    published = plan.published.get(baseline)
    sd = published.get("sd") if isinstance(published, Mapping) else None
    if not isinstance(sd, int | float) or not sd > 0:
        return None
    return sd * (2**0.5 if plan.paired else 1.0), f"published for {baseline}"
