"""Statistics of final losses: intervals, comparisons of arms with a baseline, tests against a target, power.

Pure functions over plain numbers; whoever plans must not import this (scipy takes a second to load). What cannot be
computed - a test without a degree of freedom, runs without any spread - is None, never 0.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean, median, median_high, median_low

import numpy as np
from scipy import special

from skipsweep.analyze.descriptive import TINY, Spread, of_means, of_pairs, pooled_sd, sd

ALPHA = 0.05
"""Level of comparisons with the baseline, over all arms together."""
TARGET_ALPHA = 0.01
"""Level of the test against the target: the speedrun's rule."""
UNEQUAL_VARIANCES = 0.05
"""Below this p-value of `widest`, arms are not given one standard deviation. Fixed here, and decided by the spreads
alone, before any mean is looked at."""
FAR = 20.0
"""Spreads from its arm beyond which a run may have diverged."""
FAR_ALPHA = 0.001
"""How often chance alone is to place a run of a sweep beyond that."""
POWER = 0.8
FEW_DF = 5
"""Degrees of freedom below which an sd says so: the true one may well be twice as large."""
SEEDS = (2, 3, 5, 8, 10, 15, 20, 40)
"""Runs per arm for which tables of power are made."""
MOST_SEEDS = 10_000
"""More seeds than this are not counted: nobody will run them."""


@dataclass(frozen=True)
class Summary:
    """What n values say of their mean."""

    n: int
    mean: float
    sd: float | None
    """Of a sample (n - 1); None below two values."""
    low: float | None
    high: float | None
    """95 % t interval of the mean."""


@dataclass(frozen=True)
class Test:
    """One arm against the baseline."""

    method: str
    """`dunnett`, `welch` (Holm's correction) or `paired` (Holm's)."""
    n: int
    """Values of the arm that went into it; pairs, where paired."""
    difference: float
    """Arm minus baseline, in the units of the values."""
    low: float | None
    high: float | None
    """95 % interval of the difference; of all arms together where the method is Dunnett's, else of this arm alone."""
    p: float | None
    """Two-sided, corrected for the number of arms. None where it cannot be computed."""
    sd: float | None
    """The standard deviation of a run that the test went by (of a pair's difference, where paired)."""


def summary(values: Sequence[float]) -> Summary | None:
    """n, mean, sd and t interval; None of nothing."""
    if not values:
        return None
    spread = sd(values)
    half = None if spread is None else t_quantile(1 - ALPHA / 2, len(values) - 1) * spread / math.sqrt(len(values))
    mean = fmean(values)
    return Summary(
        len(values), mean, spread, None if half is None else mean - half, None if half is None else mean + half
    )


def t_quantile(p: float, df: float) -> float:
    """Quantile of Student's distribution."""
    return float(special.stdtrit(df, p))


def below_target(values: Sequence[float], target: float) -> float | None:
    """p of the one-sided t-test that the mean lies below `target`: the speedrun's rule asks for p < 0.01.

    `scipy.stats.ttest_1samp(values, target, alternative="less")`; None below two values or without a spread.
    """
    spread = sd(values)
    if not spread:
        return None
    t = (fmean(values) - target) / (spread / math.sqrt(len(values)))
    return float(special.stdtr(len(values) - 1, t))


# ----------------------------------------------------------------------------------------------- against the baseline


def compare(base: Sequence[float], arms: Mapping[str, Sequence[float]]) -> dict[str, Test]:
    """Every arm with values against the baseline's: Dunnett's test on the pooled sd, or Welch's with Holm's correction
    where `variances_differ`. Arms must not share runs, with the baseline or with each other."""
    arms = {arm: values for arm, values in arms.items() if values}
    if not base or not arms:
        return {}
    if variances_differ([base, *arms.values()]):
        return _welch(base, arms)
    return _dunnett(base, arms)


def widest(groups: Sequence[Sequence[float]]) -> float | None:
    """p that no group spreads more than the others: the F-test of each variance against that of the others pooled, with
    Bonferroni's correction.

    Sees one diverged run, and works from two values on, where tests on distances to the median see nothing; of one
    group among equal ones it sees more than Bartlett's. Groups without a spread (one value, one seed repeated) say
    nothing and are left out; None with less than two others.
    """
    known = [g for g in groups if sd(g)]
    tails = []
    for i, group in enumerate(known):
        own, others = sd(group), pooled_sd(known[:i] + known[i + 1 :])
        if own and others:
            tails.append(float(special.fdtrc(len(group) - 1, others[1], (own / others[0]) ** 2)))
    return min(1.0, len(tails) * min(tails)) if tails else None


def variances_differ(groups: Sequence[Sequence[float]]) -> bool:
    """The rule that chooses between Dunnett and Welch: `widest` gives p < 0.05."""
    p = widest(groups)
    return p is not None and p < UNEQUAL_VARIANCES


def far(groups: Mapping[str, Sequence[float]]) -> list[tuple[str, int]]:
    """(group, index) of every value that lies far from its group's median, as a diverged run does.

    In units of the median of the other groups' spreads, which a diverged run or two do not set; where few values say
    what is usual, only a value much farther away is named.
    """
    spreads = {name: (found, len(group) - 1) for name, group in groups.items() if (found := sd(group))}
    count, found = sum(map(len, groups.values())), []
    for name, group in groups.items():
        elsewhere = [v for other in groups if other != name for v in groups[other]]
        centre = _centre(group, elsewhere) if group else 0.0
        others = [spread for other, spread in spreads.items() if other != name]
        for i, value in enumerate(group):
            rest = [*group[:i], *group[i + 1 :]]
            usual = others or ([(own, len(rest) - 1)] if (own := sd(rest)) else [])
            if usual and abs(value - centre) > _far(usual, count):
                found.append((name, i))
    return found


def _centre(group: Sequence[float], elsewhere: Sequence[float]) -> float:
    """The median; of the two values in the middle of an even number the one that is nearer to the other groups: of two
    runs it is the one that has not diverged."""
    around = median(elsewhere or group)
    return min(median_low(group), median_high(group), key=lambda middle: abs(middle - around))


def _far(usual: Sequence[tuple[float, int]], count: int) -> float:
    """The distance beyond which one of `count` values is far. `usual`: spreads and their degrees of freedom."""
    df = sum(freedom for _, freedom in usual)
    if len(usual) > 1:
        df = max(1, df // 2)  # a median knows less than a mean
    return max(FAR, t_quantile(1 - FAR_ALPHA / 2 / count, df)) * median_low(spread for spread, _ in usual)


def _dunnett(base: Sequence[float], arms: Mapping[str, Sequence[float]]) -> dict[str, Test]:
    pooled = pooled_sd([base, *arms.values()])
    differences = {arm: of_means(values, base) for arm, values in arms.items()}
    if pooled is None or pooled[0] == 0:
        spread = pooled and pooled[0]
        return {arm: Test("dunnett", len(arms[arm]), d, None, None, None, spread) for arm, d in differences.items()}
    spread, df = pooled
    family = Dunnett(len(base), tuple(len(values) for values in arms.values()), df)
    wide = family.critical(ALPHA)
    found = {}
    for arm, difference in differences.items():
        error = spread * math.sqrt(1 / len(base) + 1 / len(arms[arm]))
        p = family.p(abs(difference) / error)
        low, high = difference - wide * error, difference + wide * error
        found[arm] = Test("dunnett", len(arms[arm]), difference, low, high, p, spread)
    return found


def _welch(base: Sequence[float], arms: Mapping[str, Sequence[float]]) -> dict[str, Test]:
    single = {arm: _welch_one(base, values) for arm, values in arms.items()}
    return _with_holm("welch", single)


_One = tuple[int, float, float | None, float | None, float | None, float | None]
"""n, difference, low, high, p before correction, sd"""


def _welch_one(base: Sequence[float], values: Sequence[float]) -> _One:
    n, difference = len(values), of_means(values, base)
    a, b = sd(values), sd(base)
    if a is None or b is None or a + b == 0:
        return n, difference, None, None, None, None
    parts = a * a / n, b * b / len(base)
    error = math.sqrt(sum(parts))
    df = sum(parts) ** 2 / (parts[0] ** 2 / (n - 1) + parts[1] ** 2 / (len(base) - 1))
    half = t_quantile(1 - ALPHA / 2, df) * error
    p = 2 * float(special.stdtr(df, -abs(difference) / error))
    return n, difference, difference - half, difference + half, p, math.sqrt((a * a + b * b) / 2)


def paired(pairs: Mapping[str, Sequence[tuple[float, float]]]) -> dict[str, Test]:
    """Arm -> (baseline's value, arm's value) of equal seeds: t-test of the differences, Holm's correction."""
    return _with_holm("paired", {arm: _paired_one(both) for arm, both in pairs.items() if both})


def _paired_one(pairs: Sequence[tuple[float, float]]) -> _One:
    n, differences = len(pairs), [own - base for base, own in pairs]
    mean, size = of_pairs(pairs), max(abs(v) for pair in pairs for v in pair)
    spread = sd(differences)
    if not spread or spread <= TINY * size:
        return n, mean, None, None, None, spread
    error = spread / math.sqrt(n)
    half = t_quantile(1 - ALPHA / 2, n - 1) * error
    p = 2 * float(special.stdtr(n - 1, -abs(mean) / error))
    return n, mean, mean - half, mean + half, p, spread


def _with_holm(method: str, single: Mapping[str, _One]) -> dict[str, Test]:
    known = {arm: p for arm, (*_, p, _) in single.items() if p is not None}
    corrected = dict(zip(known, holm(list(known.values())), strict=True))
    return {arm: Test(method, n, d, a, b, corrected.get(arm), s) for arm, (n, d, a, b, _, s) in single.items()}


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction."""
    found, worst = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[i]))
        found[i] = worst
    return found


class Dunnett:
    """The distribution of the largest |t| when several arms are compared with one baseline (Dunnett, 1955).

    The t's are correlated because they share the baseline and the pooled sd. Given both, they are independent: what
    remains is an integral over two numbers, done on a grid. Exact to about 1e-7, without scipy's random sampling.
    """

    def __init__(self, base: int, arms: tuple[int, ...], df: int) -> None:
        """`base`, `arms`: numbers of runs; `df`: degrees of freedom of the pooled sd."""
        self._sizes = tuple(sorted(arms))
        self._base, self._df = base, df

    def p(self, t: float) -> float:
        """Probability that no true difference gives a |t| this large in any arm."""
        return _largest_beyond(self._base, self._sizes, self._df, abs(t))

    def critical(self, alpha: float) -> float:
        """The |t| that is exceeded with probability `alpha`: half a simultaneous interval, in standard errors."""
        return _critical(self._base, self._sizes, self._df, alpha)


@lru_cache(maxsize=256)
def _critical(base: int, sizes: tuple[int, ...], df: int, alpha: float) -> float:
    low, high = t_quantile(1 - alpha / 2, df), t_quantile(1 - alpha / (2 * len(sizes)), df)
    if len(sizes) == 1:
        return low
    for _ in range(28):  # between a single test's and Bonferroni's
        middle = (low + high) / 2
        low, high = (middle, high) if _largest_beyond(base, sizes, df, middle) > alpha else (low, middle)
    return (low + high) / 2


def _largest_beyond(base: int, sizes: tuple[int, ...], df: int, t: float) -> float:
    if len(sizes) == 1:
        return 2 * float(special.stdtr(df, -t))
    z, of_z, s, of_s = _grid(df)
    within = np.ones((len(s), len(z)))
    for size in sorted(set(sizes)):
        shared = math.sqrt(size / (size + base))  # correlation of two arms' t is the product of theirs
        own = math.sqrt(base / (size + base))
        above, below = (shared * z + t * s[:, None]) / own, (shared * z - t * s[:, None]) / own
        within *= (special.ndtr(above) - special.ndtr(below)) ** sizes.count(size)
    return float(min(1.0, max(0.0, of_s @ (1 - within) @ of_z)))


@lru_cache(maxsize=64)
def _grid(df: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Values and weights of the baseline's error z and of s = sd / true sd, on a logarithmic scale: equal steps over
    smooth functions that vanish at both ends converge exponentially."""
    z = np.linspace(-9.0, 9.0, 161)
    of_z = np.exp(-z * z / 2)
    low, high = (0.5 * math.log(special.chdtri(df, q) / df) for q in (1 - 1e-15, 1e-16))
    y = np.linspace(low, high, 121)
    density = df * y - df * np.exp(2 * y) / 2
    of_s = np.exp(density - density.max())
    return z, of_z / of_z.sum(), np.exp(y), of_s / of_s.sum()


# --------------------------------------------------------------------------------------------------------------- power


@dataclass(frozen=True)
class Design:
    """Arms of equal numbers of seeds, each compared with the baseline at Bonferroni's share of 5 %."""

    arms: int = 2
    """The baseline among them."""
    pooled: bool = True
    """Whether all arms' seeds go into the sd, or those of the two compared alone."""
    paired: bool = False
    """Whether pairs of equal seed are compared: the sd is that of their differences, and of one arm's alone."""

    @property
    def alpha(self) -> float:
        """Level of one comparison."""
        return ALPHA / max(1, self.arms - 1)

    def df(self, n: int) -> int:
        """Degrees of freedom of the sd with `n` seeds per arm."""
        return (1 if self.paired else max(2, self.arms) if self.pooled else 2) * (n - 1)

    def error(self, spread: float, n: int) -> float:
        """Standard error of a difference between `n` seeds per arm."""
        return spread * math.sqrt((1 if self.paired else 2) / n)


TWO_ARMS = Design()


def design(spread: Spread | None, arms: int) -> Design:
    """As `compare` and `paired` would test `arms` arms, the baseline among them."""
    if spread is None:
        return Design(arms)
    return Design(arms, pooled=not variances_differ(spread.groups), paired=spread.paired)


def few(df: int) -> str:
    """What to say of an sd with few degrees of freedom: by which factor the true one may exceed it, with 95 %
    confidence; nothing where there are more."""
    if df >= FEW_DF:
        return ""
    return f"; sd of few runs: could be {math.sqrt(df / special.chdtri(df, 0.95)):.1f} times as large"


def power(difference: float, spread: float, n: int, design: Design = TWO_ARMS) -> float:
    """Probability that `n` seeds per arm find a true `difference`, both in units of the values, as `spread` is."""
    df = design.df(n)
    shift = abs(difference) / design.error(spread, n)
    t = t_quantile(1 - design.alpha / 2, df)
    return float(1 - special.nctdtr(df, shift, t) + special.nctdtr(df, shift, -t))


def detectable(spread: float, n: int, design: Design = TWO_ARMS) -> float | None:
    """The smallest true difference that `n` seeds per arm find with a probability of 80 %; None below two."""
    if n < 2:
        return None
    low, high = 0.0, 1.0
    while power(high, 1.0, n, design) < POWER:
        high *= 2
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if power(middle, 1.0, n, design) < POWER else (low, middle)
    return spread * high


def seeds_for(difference: float, spread: float, design: Design = TWO_ARMS) -> int | None:
    """Seeds per arm that find a true `difference` with a probability of 80 %; None above `MOST_SEEDS`."""
    if difference == 0:
        return None
    low, high = 1, 2
    while power(difference, spread, high, design) < POWER:
        low, high = high, 2 * high
        if low > MOST_SEEDS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if power(difference, spread, middle, design) < POWER else (low, middle)
    return high if high <= MOST_SEEDS else None
