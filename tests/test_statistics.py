"""Statistics of final losses against scipy, statsmodels, published figures and cases made by hand."""

import math
import re

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestIndPower, TTestPower

from skipsweep.analyze import descriptive, statistics

RECORD = [2.919485, 2.918384, 2.918878, 2.918476, 2.920099, 2.919609, 2.918705, 2.91872, 2.919772, 2.918594, 2.917798,
          2.919295, 2.920676, 2.919743, 2.920052, 2.919843, 2.920081, 2.919675, 2.919486, 2.919177,
          2.919529, 2.919678]  # fmt: skip
"""The multi-output article: final losses of the layer-11 record."""
RECORD_TIMES = [1384.256, 1384.324, 1384.185, 1383.412, 1392.184, 1392.305, 1383.552, 1383.785, 1383.811, 1383.785,
                1383.434, 1383.753, 1383.082, 1383.284, 1383.827, 1385.682, 1383.579, 1383.422, 1383.467, 1385.108,
                1383.398, 1384.058]  # fmt: skip
SMALL = [3.278, 3.2777, 3.2799, 3.2783, 3.2784, 3.28, 3.2787, 3.278, 3.2797, 3.2804]
"""Of modded-nanogpt #159."""


def draws(*sizes: int, seed: int = 0, sds: tuple[float, ...] | None = None) -> list[list[float]]:
    generator = np.random.default_rng(seed)
    return [(3.0 + (sds[i] if sds else 1.0) * generator.normal(size=n)).tolist() for i, n in enumerate(sizes)]


# ------------------------------------------------------------------------------------------------------ published ones


def test_the_seeds_own_figures_digit_by_digit() -> None:
    found = statistics.summary(RECORD)
    assert found is not None
    assert found.sd is not None
    assert f"{found.mean:.4f}" == "2.9194"
    assert f"{found.sd:.5f}" == "0.00069"
    assert f"{statistics.below_target(RECORD, 2.92):.7f}" == "0.0001256"
    times = statistics.summary(RECORD_TIMES)
    assert times is not None
    assert f"{times.mean:.4f} {times.sd:.4f}" == "1384.6224 2.5382"
    assert f"p={statistics.below_target(SMALL, 3.28):.4f}" == "p=0.0034"
    small = statistics.summary(SMALL)
    assert small is not None
    assert f"{small.sd:.4f} {small.mean:.4f}" == "0.0010 3.2789"


def test_the_target_is_tested_as_scipy_does() -> None:
    for losses, target in ((RECORD, 2.92), (SMALL, 3.28), ([1.0, 2.0], 0.5)):
        expected = stats.ttest_1samp(losses, target, alternative="less").pvalue
        assert statistics.below_target(losses, target) == pytest.approx(expected, rel=1e-12)


# ----------------------------------------------------------------------------------------------------------- summaries


def test_a_summary_made_by_hand() -> None:
    found = statistics.summary([1.0, 2.0, 3.0])
    half = 4.302652729749462 / math.sqrt(3)  # t quantile of 2 degrees of freedom
    assert found == statistics.Summary(3, 2.0, 1.0, pytest.approx(2 - half), pytest.approx(2 + half))
    assert statistics.summary([2.5]) == statistics.Summary(1, 2.5, None, None, None)
    assert statistics.summary([]) is None


def test_equal_values_have_no_spread_and_prove_nothing() -> None:
    equal = [0.1 + 0.2, 0.3, 0.3]  # equal but for rounding
    assert descriptive.sd(equal) == 0.0
    assert statistics.below_target(equal, 5.0) is None
    assert statistics.below_target([1.0], 5.0) is None
    test = statistics.compare(equal, {"arm": [0.2, 0.2]})["arm"]
    assert (test.difference, test.p, test.low) == (pytest.approx(-0.1), None, None)
    assert statistics.paired({"arm": [(1.0, 1.5), (2.0, 2.5)]})["arm"].p is None


# ------------------------------------------------------------------------------------------------------------- dunnett


@pytest.mark.parametrize("sizes", [(5, 3, 4, 5, 8), (3, 3), (10, 2, 2), (2, 3, 6)], ids=str)
def test_dunnett_is_scipys(sizes: tuple[int, ...]) -> None:
    base, *arms = draws(*sizes, seed=sum(sizes))
    arms = [[v + 0.7 * i for v in arm] for i, arm in enumerate(arms)]
    ours = statistics.compare(base, {str(i): arm for i, arm in enumerate(arms)})
    theirs = stats.dunnett(*arms, control=base, rng=np.random.default_rng(0))
    interval = theirs.confidence_interval()
    for i, test in enumerate(ours.values()):
        assert test.method == "dunnett"
        assert test.p == pytest.approx(theirs.pvalue[i], abs=2e-4)  # theirs is sampled
        assert test.low == pytest.approx(interval.low[i], abs=5e-3)
        assert test.high == pytest.approx(interval.high[i], abs=5e-3)


@pytest.mark.parametrize(("base", "arms", "df"), [(4, (4, 4), 6), (3, (1, 9), 2), (2, (5, 5, 1), 40)], ids=str)
def test_a_critical_value_leaves_five_per_cent_outside(base: int, arms: tuple[int, ...], df: int) -> None:
    """Against scipy's multivariate t, integrated over the cube, with the correlations written out."""
    critical = statistics.Dunnett(base, arms, df).critical(0.05)
    roots = np.sqrt([n / (n + base) for n in arms])
    shape = np.outer(roots, roots) + np.diag(1 - roots**2)
    edge = np.full(len(arms), critical)
    inside = stats.multivariate_t.cdf(edge, shape=shape, df=df, lower_limit=-edge, random_state=0)
    assert inside == pytest.approx(0.95, abs=2e-4)


def test_an_arm_of_one_run_is_judged_by_the_spread_of_the_others() -> None:
    """n = 1 adds nothing to the pooled sd, but can be compared: by hand, with one arm Dunnett's test is Student's."""
    base = [1.0, 2.0, 3.0]
    test = statistics.compare(base, {"one": [5.0]})["one"]
    t = 3.0 / (1.0 * math.sqrt(1 / 3 + 1))
    assert test.p == pytest.approx(2 * stats.t.sf(t, 2), rel=1e-12)
    assert test.sd == 1.0
    alone = statistics.compare([1.0], {"one": [5.0]})["one"]  # nobody has a spread
    assert (alone.difference, alone.p, alone.sd) == (4.0, None, None)


def test_one_arm_of_equal_runs_beside_others_with_a_spread() -> None:
    tests = statistics.compare([1.0, 2.0], {"equal": [3.0, 3.0], "other": [1.0, 1.5]})
    assert tests["equal"].sd == pytest.approx(math.sqrt((0.5 + 0 + 0.125) / 3))
    assert tests["equal"].p is not None


def test_nothing_to_compare() -> None:
    assert statistics.compare([], {"a": [1.0, 2.0]}) == {}
    assert statistics.compare([1.0, 2.0], {"a": []}) == {}


# ------------------------------------------------------------------------------------------------ welch, holm, paired


def test_the_widest_arms_variance_against_that_of_the_others() -> None:
    """By hand, the last group being the widest; of two groups it is the usual two-sided F-test."""
    groups = draws(5, 6, 2, sds=(1.0, 1.0, 30.0))
    ratio = np.var(groups[2], ddof=1) / ((4 * np.var(groups[0], ddof=1) + 5 * np.var(groups[1], ddof=1)) / 9)
    assert statistics.widest(groups) == pytest.approx(3 * stats.f.sf(ratio, 1, 9), rel=1e-10)
    assert statistics.widest([*groups, [7.0], [8.0, 8.0], []]) == statistics.widest(groups)  # they have no spread
    ratio = np.var(groups[1], ddof=1) / np.var(groups[0], ddof=1)
    both = 2 * min(stats.f.sf(ratio, 5, 4), stats.f.cdf(ratio, 5, 4))
    assert statistics.widest(groups[:2]) == pytest.approx(both, rel=1e-10)
    assert statistics.widest([[1.0, 2.0, 3.0]]) is None
    assert statistics.widest([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0], [3.0, 4.0]]) is None


def test_one_diverged_run_does_not_hide_what_the_others_show() -> None:
    """5 arms of 5 runs, sd .0006, .01 apart; one run of the last one ended at 7.3."""
    base, *arms = [[2.9 + 0.01 * i + 0.0006 * (v - 3) for v in arm] for i, arm in enumerate(draws(*[5] * 5))]
    arms[-1][0] = 7.3
    tests = statistics.compare(base, {str(i): arm for i, arm in enumerate(arms)})
    assert [test.p is not None and test.p < 1e-4 for test in tests.values()] == [True, True, True, False]
    assert {test.method for test in tests.values()} == {"welch"}


@pytest.mark.parametrize("sizes", [(5,) * 5, (2,) * 5, (8, 8, 3, 2), (3, 3), (6,)], ids=str)
def test_a_run_far_from_its_arm_is_named_and_no_other(sizes: tuple[int, ...]) -> None:
    """By where its arm's runs lie: arms far from each other are what a sweep looks for."""
    groups = {str(i): [v + 1000.0 * i for v in group] for i, group in enumerate(draws(*sizes))}
    assert statistics.far(groups) == []
    last = str(len(sizes) - 1)
    groups[last][1] += 5000.0
    assert statistics.far(groups) == [(last, 1)]


def test_two_diverged_runs_do_not_make_the_scale() -> None:
    groups = {str(i): group for i, group in enumerate(draws(5, 5, 5, 5))}
    groups["1"][0] = groups["1"][3] = groups["2"][4] = 5000.0
    assert statistics.far(groups) == [("1", 0), ("1", 3), ("2", 4)]
    assert statistics.far({"a": [1.0, 5000.0], "b": [2.0], "c": []}) == [], "nobody says what is usual"


def test_arms_that_clearly_spread_otherwise_are_tested_by_welch_with_holm() -> None:
    base, *arms = draws(12, 12, 12, 2, seed=3, sds=(0.1, 3.0, 0.1, 0.1))
    assert statistics.variances_differ([base, *arms])
    tests = statistics.compare(base, {str(i): [v + i for v in arm] for i, arm in enumerate(arms)})
    raw = [stats.ttest_ind([v + i for v in arm], base, equal_var=False) for i, arm in enumerate(arms)]
    corrected = multipletests([one.pvalue for one in raw], method="holm")[1]
    for test, expected, one in zip(tests.values(), corrected, raw, strict=True):
        assert test.method == "welch"
        assert test.p == pytest.approx(expected, rel=1e-9)
        interval = one.confidence_interval()
        assert (test.low, test.high) == (pytest.approx(interval.low), pytest.approx(interval.high))


def test_which_test_is_chosen_does_not_depend_on_the_means() -> None:
    groups = draws(8, 8, 8, sds=(1.0, 1.2, 4.0))
    moved = [[v + 100.0 * i for v in group] for i, group in enumerate(groups)]
    assert statistics.widest(moved) == pytest.approx(statistics.widest(groups))


def test_holm_is_statsmodels() -> None:
    p = [0.04, 0.001, 0.03, 0.9, 0.012]
    assert statistics.holm(p) == pytest.approx(multipletests(p, method="holm")[1].tolist())


def test_pairs_are_scipys() -> None:
    base, arm = draws(6, 6)
    test = statistics.paired({"a": list(zip(base, arm, strict=True)), "none": []})["a"]
    assert test.p == pytest.approx(stats.ttest_rel(arm, base).pvalue, rel=1e-10)
    assert test.difference == pytest.approx(np.mean(arm) - np.mean(base))
    assert test.method == "paired"


# --------------------------------------------------------------------------------------------------------------- power


@pytest.mark.parametrize(("n", "difference"), [(2, 4.0), (5, 1.5), (20, 0.6)])
def test_power_of_two_arms_is_statsmodels(n: int, difference: float) -> None:
    assert statistics.power(2 * difference, 2.0, n) == pytest.approx(
        TTestIndPower().power(difference, n, 0.05), rel=1e-9
    )


def test_more_arms_share_the_level_and_pool_their_spread() -> None:
    """By hand: 4 arms of 3 runs are 3 comparisons at 5/3 %, on 8 degrees of freedom."""
    design = statistics.Design(4)
    assert (design.alpha, design.df(3)) == (0.05 / 3, 8)
    assert statistics.Design(4, pooled=False).df(3) == 4
    t = stats.t.ppf(1 - 0.05 / 6, 8)
    expected = stats.nct.sf(t, 8, 2.0 * math.sqrt(3 / 2)) + stats.nct.cdf(-t, 8, 2.0 * math.sqrt(3 / 2))
    assert statistics.power(2.0, 1.0, 3, design) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("n", "difference"), [(3, 4.0), (5, 1.5), (20, 0.6)])
def test_power_of_pairs_is_statsmodels(n: int, difference: float) -> None:
    """n pairs are n differences: a test of one sample, whatever the other arms."""
    pairs = statistics.Design(2, paired=True)
    assert statistics.power(2 * difference, 2.0, n, pairs) == pytest.approx(
        TTestPower().power(difference, n, 0.05), rel=1e-9
    )
    assert statistics.Design(5, paired=True).df(n) == n - 1


def test_advised_pairs_find_what_they_are_to_find() -> None:
    """On 2 (n - 1) degrees of freedom it would be 3 pairs, which find it in 61 % of sweeps."""
    needed = statistics.seeds_for(2.0, 1.0, statistics.Design(2, paired=True))
    assert needed == 5
    found = 0
    for seed in range(400):
        difference, base = draws(needed, needed, seed=seed)
        pairs = [(b, b + 2.0 + d) for b, d in zip(base, difference, strict=True)]
        found += (p := statistics.paired({"a": pairs})["a"].p) is not None and p < statistics.ALPHA
    assert found > 0.8 * 400


@pytest.mark.parametrize("df", [1, 2, 4])
def test_an_sd_of_few_runs_says_how_large_it_could_be(df: int) -> None:
    factor = float(re.findall(r"could be (.*) times", statistics.few(df))[0])
    assert factor == pytest.approx((df / stats.chi2.ppf(0.05, df)) ** 0.5, abs=0.06)
    assert statistics.few(5) == ""


def test_what_seeds_detect_and_how_many_are_needed_agree() -> None:
    expected = TTestIndPower().solve_power(effect_size=0.9, alpha=0.05, power=0.8)
    assert statistics.seeds_for(0.9 * 0.0007, 0.0007) == math.ceil(expected)
    for n in (2, 3, 7, 40):
        found = statistics.detectable(0.0007, n)
        assert found is not None
        assert statistics.power(found, 0.0007, n) == pytest.approx(0.8, abs=1e-6)
        assert statistics.seeds_for(found * 1.0001, 0.0007) == n


def test_power_at_its_ends() -> None:
    assert statistics.detectable(1.0, 1) is None
    assert statistics.seeds_for(0.0, 1.0) is None
    assert statistics.seeds_for(1e-9, 1.0) is None
    assert statistics.seeds_for(50.0, 1.0) == 2


# ------------------------------------------------------------------------------------------------- nothing to be found


def found_something(sizes: tuple[int, ...], sds: tuple[float, ...] | None = None, sweeps: int = 1000) -> int:
    """In how many sweeps of arms that differ in their seeds alone a difference is found."""
    found = 0
    for seed in range(sweeps):
        base, *arms = draws(*sizes, seed=seed, sds=sds)
        tests = statistics.compare(base, {str(i): arm for i, arm in enumerate(arms)})
        found += any(test.p is not None and test.p < statistics.ALPHA for test in tests.values())
    return found


def test_identical_arms_are_found_to_differ_at_the_nominal_rate() -> None:
    """1,000 sweeps like control_aa: 5 arms that differ in their seeds alone, 4 runs each."""
    found = found_something((4,) * 5)
    assert stats.binomtest(found, 1000, 0.05).pvalue > 0.001, found


def test_an_arm_of_few_runs_that_spreads_more_is_mostly_not_found_to_differ() -> None:
    """Dunnett's test alone would find something far more often, though no arm differs."""
    assert found_something((5, 5, 5, 5, 3), (1.0, 1.0, 1.0, 1.0, 5.0), sweeps=400) < 0.19 * 400
