"""`skipsweep power`: what a number of seeds can tell apart, and how many a difference takes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from skipsweep.analyze import comparison, statistics
from skipsweep.analyze import evidence as reading
from skipsweep.analyze.evidence import Evidence, Run
from skipsweep.analyze.statistics import Design
from skipsweep.errors import UserError
from skipsweep.rundir import Multirun


@dataclass(frozen=True)
class Spread:
    """Spread of the final loss between runs that differ only in their seed, or of differences in pairs."""

    sd: float
    """Nats per token."""
    source: str
    arms: int = 2
    """Arms that are to have so many seeds, the baseline among them."""
    pooled: bool = True
    """Whether all arms' seeds are to go into the sd, as the report's test has it."""
    paired: bool = False
    gpu_hours: float | None = None
    """Of one run; None where that is not known, or no GPU was used."""

    @property
    def design(self) -> Design:
        return Design(self.arms, self.pooled, self.paired)


@dataclass(frozen=True)
class Power:
    """Answers, one row per number of seeds: seeds (per arm), difference (smallest true one detected with 80 % power),
    seeds_for_half, gpu_hours_for_half (all arms with that many seeds); None where not known."""

    spread: Spread
    alpha: float
    """Level of one comparison: Bonferroni's share of 5 %."""
    rows: list[dict[str, Any]]


def given(sd: float, arms: int) -> Spread:
    """A spread that the user says. Raises UserError."""
    if not sd > 0:
        raise UserError(f"--sd {sd} is not a standard deviation; it must be above 0")
    if arms < 2:
        raise UserError(f"--arms {arms}: at least 2, the baseline among them")
    return Spread(sd, "given", arms)


def measured(multirun: Multirun, sweep: str, arms: int | None = None) -> Spread:
    """The spread that a sweep's report goes by. Raises UserError where no arm has two finished seeds that differ."""
    found = reading.read(multirun, [sweep])
    if found.baseline is None:
        raise UserError(f"sweep {sweep} has no baseline that its arms could be compared with; give --sd")
    compared = comparison.compare(found)
    spread = compared.spread
    if spread is None or not spread.sd:
        what = "pairs" if found.paired else "seeds"
        raise UserError(f"no arm of sweep {sweep} has two finished {what} that differ; they are needed, or --sd")
    to_test = sum(not arm.shares for arm in compared.arms.values())
    design = statistics.design(spread, arms or max(2, to_test))
    return replace(
        given(spread.sd, design.arms),
        source=f"measured: {spread.source}{statistics.few(spread.df)}",
        pooled=design.pooled,
        paired=design.paired,
        gpu_hours=_gpu_hours(found),
    )


def _gpu_hours(evidence: Evidence) -> float | None:
    """Mean training time of a run times its GPUs."""
    hours = [found for run in evidence.runs.values() if (found := _of_run(run)) is not None]
    return sum(hours) / len(hours) if hours else None


def _of_run(run: Run) -> float | None:
    seconds = (run.result or {}).get("train_time_s")
    if seconds is None or not run.env.gpus or not run.env.world_sizes:
        return None
    return seconds / 3600 * run.env.world_sizes[-1]


def table(spread: Spread, seeds: int | None = None, difference: float | None = None) -> Power:
    """What `seeds` per arm can tell, or how many tell `difference`, or both for usual numbers of seeds.

    Raises UserError for numbers that mean nothing.
    """
    if seeds is not None and seeds < 2:
        raise UserError(f"--seeds {seeds} cannot tell anything apart; at least 2 are needed")
    if difference is not None and not difference > 0:
        raise UserError(f"--difference {difference} must be above 0")
    if seeds is not None and difference is not None:
        raise UserError("--seeds and --difference answer each other; give one of them")
    numbers: Sequence[int] = statistics.SEEDS if seeds is None else (seeds,)
    if difference is not None:
        needed = statistics.seeds_for(difference, spread.sd, spread.design)
        if needed is None:
            raise UserError(f"more than {statistics.MOST_SEEDS} seeds per arm for {difference}: sd is {spread.sd:.3g}")
        numbers = (needed,)
    return Power(spread, spread.design.alpha, [_row(spread, n) for n in numbers])


def _row(spread: Spread, n: int) -> dict[str, Any]:
    found = statistics.detectable(spread.sd, n, spread.design)
    half = None if found is None else statistics.seeds_for(found / 2, spread.sd, spread.design)
    hours = None if half is None or spread.gpu_hours is None else half * spread.arms * spread.gpu_hours
    return {"seeds": n, "difference": found, "seeds_for_half": half, "gpu_hours_for_half": hours}
