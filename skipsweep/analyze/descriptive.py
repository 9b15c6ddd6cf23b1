"""Descriptive statistics that tables and reports share: means, spreads, differences from the baseline, and which arms
have runs in common.

Without numpy and scipy: plans and tables read through here, and are to take a moment.
"""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from skipsweep.sweep_file import PlannedPoint

TINY = 1e-12
"""A spread below this part of the mean is the rounding of equal numbers."""

BySeed = Mapping[Hashable, Sequence[float]]
"""Seed -> final validation losses of an arm's finished runs with it, in nats per token: several where it was repeated.
An imported run stands under its own name: its seed is not known, so that it pairs with nothing."""

MOST_NAMED = 5
"""Of what a message lists; the others are counted."""


def named(items: Sequence[str]) -> str:
    """The first few of a list."""
    more = f" and {len(items) - MOST_NAMED} more" if len(items) > MOST_NAMED else ""
    return ", ".join(items[:MOST_NAMED]) + more


def mean(values: Sequence[float]) -> float | None:
    """Arithmetic mean; None of nothing."""
    return fmean(values) if values else None


def sd(values: Sequence[float]) -> float | None:
    """Standard deviation of a sample (n - 1); None below two values; exactly 0 of values that are equal but for
    rounding."""
    if len(values) < 2:
        return None
    centre = fmean(values)
    found = math.sqrt(math.fsum((v - centre) ** 2 for v in values) / (len(values) - 1))
    return 0.0 if found <= TINY * abs(centre) else found


def pooled_sd(groups: Sequence[Sequence[float]]) -> tuple[float, int] | None:
    """(sd within groups, its degrees of freedom); None where no group has two values. A group of one adds nothing."""
    df = sum(len(g) - 1 for g in groups if g)
    if df < 1:
        return None
    squares = math.fsum((len(g) - 1) * s * s for g in groups if (s := sd(g)) is not None)
    return math.sqrt(squares / df), df


# ----------------------------------------------------------------------------------------------- against the baseline


@dataclass(frozen=True)
class Difference:
    """An arm's final loss against the baseline's."""

    value: float | None
    """Arm minus baseline, as the test estimates it: of the means, each over all finished seeds; in a paired sweep the
    mean over pairs. None where one of them has nothing finished."""
    shared: int
    """Seeds that both have finished."""
    same_seeds: bool
    """Whether neither has finished a seed that the other has not."""


def difference(own: BySeed, base: BySeed, paired: bool) -> Difference:
    """What a table says of an arm; `paired` as the sweep declared before it ran."""
    shared = pairs(own, base)
    a, b = per_seed(own), per_seed(base)
    value = (of_pairs(shared) if shared else None) if paired else of_means(a, b) if a and b else None
    return Difference(value, len(shared), own.keys() == base.keys())


def of_means(own: Sequence[float], base: Sequence[float]) -> float:
    """The estimate of Dunnett's and Welch's tests."""
    return fmean(own) - fmean(base)


def of_pairs(both: Sequence[tuple[float, float]]) -> float:
    """The estimate of the paired test. `both`: (baseline's loss, the arm's loss), as `pairs` has them."""
    return fmean(a - b for b, a in both)


def pairs(own: BySeed, base: BySeed) -> list[tuple[float, float]]:
    """(baseline's loss, the arm's loss) of every seed that both have finished, each the mean over its repetitions."""
    return [(fmean(base[seed]), fmean(own[seed])) for seed in own if seed in base]


def per_seed(arm: BySeed) -> list[float]:
    """One loss per seed, the mean over its repetitions: they are the very same run again, and no further evidence."""
    return [fmean(losses) for losses in arm.values()]


@dataclass(frozen=True)
class Spread:
    """What differences from the baseline are judged by, in reports and in what is planned."""

    groups: Sequence[Sequence[float]]
    """Losses of each arm, one per seed; in a paired sweep differences from the baseline, one per pair."""
    paired: bool
    sd: float
    """Within groups, nats per token."""
    df: int

    @property
    def source(self) -> str:
        """What it was measured on."""
        known = [len(group) for group in self.groups if len(group) > 1]
        what = "paired differences" if self.paired else "finished seeds"
        return f"of {sum(known)} {what} in {len(known)} arm{'s' if len(known) > 1 else ''}"


def spread(arms: Mapping[str, BySeed], baseline: str | None, paired: bool) -> Spread | None:
    """Of arms that have no runs in common; None where no arm has two seeds, or pairs."""
    base = arms.get(baseline or "", {})
    groups = (
        [[own - of_base for of_base, own in pairs(arm, base)] for name, arm in arms.items() if name != baseline]
        if paired
        else [per_seed(arm) for arm in arms.values()]
    )
    pooled = pooled_sd(groups)
    return None if pooled is None else Spread(groups, paired, *pooled)


def by_seed(points: Iterable[PlannedPoint], results: Mapping[str, Mapping[str, Any] | None]) -> BySeed:
    """An arm's points and result.json of their runs (None: not finished) as losses by seed; every run counts once."""
    found: dict[Hashable, list[float]] = {}
    for run, seed in {point.run: point.seed for point in points}.items():
        result = results[run]
        if result is not None:
            found.setdefault(run if "imported" in result else seed, []).append(float(result["val_loss"]))
    return found


# ------------------------------------------------------------------------------------------- arms with runs in common


def same_runs(arms: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Arm -> an earlier one that is served by the very same runs (`head_type` without sources, say). `arms`: names of
    their runs."""
    first: dict[frozenset[str], str] = {}
    return {arm: other for arm, runs in arms.items() if (other := first.setdefault(frozenset(runs), arm)) != arm}


def sharing(arms: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Arm -> an earlier one that some of its runs serve as well, so that the two are not independent."""
    owner: dict[str, str] = {}
    shares: dict[str, str] = {}
    for arm, runs in arms.items():
        runs = list(runs)
        other = next((owner[run] for run in runs if run in owner), None)
        if other is not None:
            shares[arm] = other
            continue
        owner |= dict.fromkeys(runs, arm)
    return shares
