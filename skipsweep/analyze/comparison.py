"""Arms of a sweep against its baseline: which runs count, which test, what it says."""

from collections.abc import Mapping
from dataclasses import dataclass

from skipsweep.analyze import descriptive, statistics
from skipsweep.analyze.arms import training_flops
from skipsweep.analyze.descriptive import BySeed, Spread
from skipsweep.analyze.evidence import Evidence, Run
from skipsweep.analyze.statistics import Design, Summary, Test


@dataclass(frozen=True)
class TestedArm:
    """One arm's final losses and what they say."""

    name: str
    runs: tuple[Run, ...]
    planned: int
    """Seeds; an imported run is one by itself."""
    losses: tuple[float, ...]
    """Final validation losses, nats per token: one per finished seed, see `descriptive.per_seed`."""
    by_seed: BySeed
    """The losses of all finished runs behind them."""
    summary: Summary | None
    test: Test | None
    """Against the baseline; None for the baseline itself, and where there is nothing to test."""
    shares: str | None
    """The arm that it has runs in common with: not independent, hence left out of the test."""
    below_target: float | None
    """p that the mean lies below the target."""

    @property
    def finished(self) -> list[tuple[Run, float]]:
        """Runs that have a final loss, and what it is: several per seed where it was repeated."""
        return [(run, loss) for run in self.runs if (loss := run.val_loss) is not None]

    @property
    def parameters(self) -> float | None:
        """Mean over its finished runs; None where none says it, as imported ones do not."""
        groups = [(run.result or {}).get("parameters") for run in self.runs]
        return descriptive.mean([sum(found.values()) for found in groups if found])

    @property
    def training_flops(self) -> float | None:
        """Mean over its finished runs, in units of 1e15."""
        return descriptive.mean([f for run in self.runs if (f := training_flops(run.result or {})) is not None])

    @property
    def differs(self) -> bool:
        """Whether it can be told from the baseline."""
        return self.test is not None and self.test.p is not None and self.test.p < statistics.ALPHA


@dataclass(frozen=True)
class Comparison:
    """All arms, the baseline first."""

    arms: Mapping[str, TestedArm]
    baseline: TestedArm | None
    family: int
    """How many arms were tested together."""
    spread: Spread | None
    """Of seeds within their arm, of all arms that share no run; in a paired sweep of differences."""

    @property
    def design(self) -> Design:
        """As which further seeds would be planned."""
        return statistics.design(self.spread, self.family + 1)


def compare(evidence: Evidence) -> Comparison:
    """Test every arm that shares no run with the baseline or with an arm tested before it."""
    runs = {arm: tuple(evidence.of_arm(arm)) for arm in evidence.arms()}
    shares = descriptive.sharing({arm: [run.name for run in found] for arm, found in runs.items()})
    results = {name: run.result for name, run in evidence.runs.items()}
    by_seed = {arm: descriptive.by_seed(points, results) for arm, points in evidence.arms().items()}
    losses = {arm: tuple(descriptive.per_seed(found)) for arm, found in by_seed.items()}
    tested = [arm for arm in runs if arm != evidence.baseline and arm not in shares]
    tests: Mapping[str, Test] = {}
    if evidence.baseline is not None and evidence.paired:
        base = by_seed[evidence.baseline]
        tests = statistics.paired({arm: descriptive.pairs(by_seed[arm], base) for arm in tested})
    elif evidence.baseline is not None:
        tests = statistics.compare(losses[evidence.baseline], {arm: losses[arm] for arm in tested})
    arms = {
        arm: TestedArm(
            arm,
            runs[arm],
            len({point.run if evidence.runs[point.run].imported else point.seed for point in points}),
            losses[arm],
            by_seed[arm],
            statistics.summary(losses[arm]),
            tests.get(arm),
            shares.get(arm),
            None if evidence.target is None else statistics.below_target(losses[arm], evidence.target),
        )
        for arm, points in evidence.arms().items()
    }
    alone = {arm: found for arm, found in by_seed.items() if arm not in shares}
    spread = descriptive.spread(alone, evidence.baseline, evidence.paired)
    baseline = arms.get(evidence.baseline) if evidence.baseline is not None else None
    return Comparison(arms, baseline, len(tests), spread)
