"""Arms of a sweep against its baseline: which runs count, which test, what it says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from skipsweep.analyze import statistics
from skipsweep.analyze.evidence import Evidence, Run
from skipsweep.analyze.statistics import Design, Summary, Test


@dataclass(frozen=True)
class Arm:
    """One arm's final losses and what they say."""

    name: str
    runs: tuple[Run, ...]
    losses: tuple[float, ...]
    """Final validation losses of the finished runs, nats per token."""
    summary: Summary | None
    test: Test | None
    """Against the baseline; None for the baseline itself, and where there is nothing to test."""
    shares: str | None
    """The arm that it has runs in common with: not independent, hence left out of the test."""
    below_target: float | None
    """p that the mean lies below the target."""

    @property
    def differs(self) -> bool:
        """Whether it can be told from the baseline."""
        return self.test is not None and self.test.p is not None and self.test.p < statistics.ALPHA


@dataclass(frozen=True)
class Comparison:
    """All arms, the baseline first."""

    arms: Mapping[str, Arm]
    baseline: Arm | None
    family: int
    """How many arms were tested together."""
    spread: float | None
    """Standard deviation of a run within its arm, pooled."""

    @property
    def design(self) -> Design:
        """As which further seeds would be planned."""
        one_sd = all(arm.test.method == "dunnett" for arm in self.arms.values() if arm.test is not None)
        return Design(self.family + 1, pooled=one_sd)


def compare(evidence: Evidence) -> Comparison:
    """Test every arm that shares no run with the baseline or with an arm tested before it."""
    runs = {arm: tuple(evidence.of_arm(arm)) for arm in evidence.arms()}
    shares = _shared(runs)
    losses = {arm: tuple(loss for run in found if (loss := run.val_loss) is not None) for arm, found in runs.items()}
    tested = {arm: losses[arm] for arm in runs if arm != evidence.baseline and arm not in shares}
    tests = _tests(evidence, losses, tested) if evidence.baseline is not None else {}
    arms = {
        arm: Arm(
            arm,
            runs[arm],
            losses[arm],
            statistics.summary(losses[arm]),
            tests.get(arm),
            shares.get(arm),
            None if evidence.target is None else statistics.below_target(losses[arm], evidence.target),
        )
        for arm in runs
    }
    pooled = statistics.pooled_sd([losses[arm] for arm in runs if arm not in shares])
    baseline = arms.get(evidence.baseline) if evidence.baseline is not None else None
    return Comparison(arms, baseline, len(tests), pooled and pooled[0])


def _shared(runs: Mapping[str, Sequence[Run]]) -> dict[str, str]:
    """Arm -> an earlier one (the baseline comes first) that some of its runs serve as well."""
    owner: dict[str, str] = {}
    shares: dict[str, str] = {}
    for arm, found in runs.items():
        other = next((owner[run.name] for run in found if run.name in owner), None)
        if other is not None:
            shares[arm] = other
            continue
        owner |= {run.name: arm for run in found}
    return shares


def _tests(
    evidence: Evidence, losses: Mapping[str, Sequence[float]], tested: Mapping[str, Sequence[float]]
) -> dict[str, Test]:
    assert evidence.baseline is not None
    if evidence.paired:
        return statistics.paired({arm: pairs(evidence, arm) for arm in tested})
    return statistics.compare(losses[evidence.baseline], tested)


def pairs(evidence: Evidence, arm: str) -> list[tuple[float, float]]:
    """(baseline's loss, the arm's loss) of equal seed and replicate."""
    assert evidence.baseline is not None
    arms = evidence.arms()
    base = {(p.seed, p.replicate): evidence.runs[p.run].val_loss for p in arms[evidence.baseline]}
    both = [(base.get((p.seed, p.replicate)), evidence.runs[p.run].val_loss) for p in arms[arm]]
    return [(a, b) for a, b in both if a is not None and b is not None]
