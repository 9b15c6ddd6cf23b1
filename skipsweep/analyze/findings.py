"""What a sweep says: one sentence, warnings, and the tables behind it."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from skipsweep.analyze import cautions, comparison, descriptive, published_figures, statistics, targets
from skipsweep.analyze.comparison import Comparison, TestedArm
from skipsweep.analyze.evidence import OUTCOMES, Evidence

Row = dict[str, Any]


@dataclass(frozen=True)
class Sheet:
    """A table of the report."""

    file: str
    """Name of its CSV, without suffix."""
    title: str
    rows: Sequence[Row]
    """A missing value is None."""
    on_page: bool = True
    """One row per run is for programs: only the CSV has it."""


@dataclass(frozen=True)
class Findings:
    """Everything a report says in words and numbers."""

    answer: str
    """One sentence, with its uncertainty."""
    counts: Mapping[str, int]
    """planned, done, failed, running, missing: numbers of runs."""
    warnings: Sequence[str]
    sheets: Sequence[Sheet]

    @property
    def tables(self) -> Mapping[str, Sequence[Row]]:
        """Title -> rows of the tables that the page shows."""
        return {sheet.title: sheet.rows for sheet in self.sheets if sheet.on_page}


def find(evidence: Evidence) -> Findings:
    """Draw the conclusions that the evidence allows."""
    compared = comparison.compare(evidence)
    crossings = targets.rows(evidence)
    sheets = [
        Sheet(
            "final_loss", "Final validation loss per arm (nats/token)", [_arm(arm) for arm in compared.arms.values()]
        ),
        Sheet("difference", f"Difference from the baseline{_name(compared)} (nats/token)", _differences(compared)),
        Sheet("target", "Is the mean below the target?", _target(evidence, compared)),
        Sheet("time_to_target_per_arm", "First below the target, per arm", _crossings_per_arm(crossings)),
        Sheet("time_to_target", "First below the target, per run", crossings, on_page=False),
        Sheet("published", "Published results beside ours", published_figures.rows(evidence, compared)),
        Sheet("lambdas", "Learned weights at the end, mean over runs", _lambdas(compared)),
        Sheet("power", "What more seeds would detect", _power(compared)),
        Sheet("runs", "Every run", _runs(evidence), on_page=False),
    ]
    return Findings(
        answer=_answer(evidence, compared),
        counts=_counts(evidence),
        warnings=cautions.of(evidence, compared),
        sheets=[sheet for sheet in sheets if sheet.rows],
    )


def _counts(evidence: Evidence) -> dict[str, int]:
    outcomes = [run.outcome for run in evidence.runs.values()]
    return {"planned": len(outcomes), **{outcome: outcomes.count(outcome) for outcome in OUTCOMES}}


# ---------------------------------------------------------------------------------------------------------- the answer


def _answer(evidence: Evidence, compared: Comparison) -> str:
    """The question's answer as far as the finished runs give one."""
    done = sum(len(arm.losses) for arm in compared.arms.values())
    if not done:
        return "No run has finished yet, so there is no answer."
    base = compared.baseline
    if base is None or base.summary is None or len(compared.arms) == 1:
        return _best(compared)
    tested = [arm for arm in compared.arms.values() if arm.test is not None]
    if not tested:
        return f"Nothing can be compared with the baseline {base.name} yet. {_best(compared)}"
    if all(arm.test is None or arm.test.p is None for arm in tested):
        why = _why_untested(compared, evidence.paired)
        return f"Differences cannot be distinguished from noise: {why}. {_best(compared)}"
    found = sorted((arm for arm in tested if arm.differs), key=lambda arm: _difference(arm))
    if not found:
        return _nothing(compared, tested)
    if len(tested) == 1:
        return f"The arm tested differs from {base.name}: {_described(found[0])}."
    better = [arm for arm in found if _difference(arm) < 0]
    verb = "differs" if len(found) == 1 else "differ"
    text = f"{len(found)} of {len(tested)} arms {verb} from {base.name}, {len(better)} with a lower loss"
    extreme = found[0] if better else found[-1]
    return f"{text}; {'best' if better else 'worst'} is {_described(extreme)}."


def _nothing(compared: Comparison, tested: Sequence[TestedArm]) -> str:
    assert compared.baseline is not None
    largest = max(tested, key=lambda arm: abs(_difference(arm)))
    if len(tested) == 1:
        lead = f"The arm tested is not distinguishable from {compared.baseline.name}:"
    else:
        lead = f"No arm is distinguishable from {compared.baseline.name}: the largest difference is"
    return f"{lead} {_described(largest)}{_more(compared, largest)}."


def _described(arm: TestedArm) -> str:
    test = arm.test
    assert test is not None
    interval = "" if test.low is None else f", 95 % interval {test.low:+.5f} to {test.high:+.5f}"
    p = "" if test.p is None else f", p = {test.p:.2g}"
    return f"{arm.name} at {test.difference:+.5f} nats/token (n = {test.n}{interval}{p})"


def _more(compared: Comparison, arm: TestedArm) -> str:
    needed = _needed(compared, arm)
    if needed is None:
        return ""
    seeds = [seed for each in compared.arms.values() for seed in each.by_seed if isinstance(seed, int)]
    first = max(seeds, default=-1) + 1
    return (
        f"; about {needed} seeds per arm would detect a true difference of that size: a new sweep with others "
        f"(sweep.name=... 'sweep.seeds=range({first},{first + needed})')"
    )


def _best(compared: Comparison) -> str:
    known = [arm for arm in compared.arms.values() if arm.summary is not None]
    best = min(known, key=lambda arm: arm.summary.mean if arm.summary else 0.0)
    assert best.summary is not None
    half = "" if best.summary.high is None else f" ± {best.summary.high - best.summary.mean:.5f} (95 %)"
    lead = "The lowest mean loss" if len(known) > 1 else "The mean loss"
    count, imported = len(best.losses), any("imported" in (run.result or {}) for run, _ in best.finished)
    seeds = f"{count} {'run' if imported else 'seed'}" + ("" if count == 1 else "s")
    return f"{lead} is {best.summary.mean:.5f}{half} nats/token over {seeds} of {best.name}."


def _why_untested(compared: Comparison, paired: bool) -> str:
    if compared.spread is None:
        return f"no arm has two finished {'pairs' if paired else 'seeds'}"
    return "runs within an arm show no spread" if compared.spread.sd == 0 else "there are too few runs"


def _difference(arm: TestedArm) -> float:
    assert arm.test is not None
    return arm.test.difference


def _needed(compared: Comparison, arm: TestedArm) -> int | None:
    """Seeds per arm that would detect the difference seen, were it the true one; None where nobody could run them."""
    test = arm.test
    if test is None or arm.differs or not test.sd:
        return None
    spread = compared.spread.sd if test.method == "paired" and compared.spread else test.sd
    return statistics.seeds_for(test.difference, spread, compared.design)


# ---------------------------------------------------------------------------------------------------------- the tables


def _name(compared: Comparison) -> str:
    return f" {compared.baseline.name}" if compared.baseline else ""


def _arm(arm: TestedArm) -> Row:
    found = arm.summary
    return {
        "arm": arm.name,
        "planned": arm.planned,
        "n": len(arm.losses),
        "mean": found and found.mean,
        "sd": found and found.sd,
        "low_95": found and found.low,
        "high_95": found and found.high,
        "min": min(arm.losses, default=None),
        "max": max(arm.losses, default=None),
        "parameters": None if arm.parameters is None else round(arm.parameters),
        "training_pflop": arm.training_flops,
    }


def _differences(compared: Comparison) -> list[Row]:
    if compared.baseline is None:
        return []
    return [_one_difference(compared, arm) for arm in compared.arms.values() if arm is not compared.baseline]


def _one_difference(compared: Comparison, arm: TestedArm) -> Row:
    test = arm.test
    return {
        "arm": arm.name,
        "n": test and test.n,
        "difference": test and test.difference,
        "low_95": test and test.low,
        "high_95": test and test.high,
        "p": test and test.p,
        "test": test and test.method,
        "says": _says(arm),
        "seeds_to_tell": _needed(compared, arm),
    }


def _says(arm: TestedArm) -> str:
    if arm.shares:
        return f"not tested: shares runs with {arm.shares}"
    if arm.test is None:
        return "nothing to compare yet"
    if arm.test.p is None:
        return "cannot be tested: no spread known"
    if not arm.differs:
        return "not distinguishable"
    return "lower loss" if arm.test.difference < 0 else "higher loss"


def _target(evidence: Evidence, compared: Comparison) -> list[Row]:
    if evidence.target is None:
        return []
    return [
        {
            "arm": arm.name,
            "n": len(arm.losses),
            "mean": arm.summary and arm.summary.mean,
            "target": evidence.target,
            "p": arm.below_target,
            "says": _says_target(arm, evidence.target),
        }
        for arm in compared.arms.values()
    ]


def _says_target(arm: TestedArm, target: float) -> str:
    if arm.below_target is None:
        return "at least two runs that differ are needed"
    return f"below (p < {statistics.TARGET_ALPHA})" if arm.below_target < statistics.TARGET_ALPHA else "not shown"


def _crossings_per_arm(rows: Sequence[Row]) -> list[Row]:
    by_arm: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_arm[row["arm"]].append(row)
    return [_crossings(arm, found) for arm, found in by_arm.items()]


def _crossings(arm: str, rows: Sequence[Row]) -> Row:
    """Means only where no run is behind: those that did not reach the target are the slow ones, and without them an arm
    looks faster the fewer of its runs get there."""
    count = {what: sum(row["reached"] == what for row in rows) for what in ("yes", "never", "stopped", "not yet")}
    behind = count["never"] + count["not yet"]
    known = () if behind else rows
    some = f"{count['yes']} of {len(rows)} reached it: no mean over the fast ones alone" if count["yes"] else None
    return {
        "arm": arm,
        "runs": len(rows),
        "reached": count["yes"],
        "never": count["never"],
        "stopped": count["stopped"],
        "not_yet": count["not yet"],
        "mean_step": descriptive.mean([row["step"] for row in known if row["step"] is not None]),
        "mean_time_s": descriptive.mean([row["time_s"] for row in known if row["time_s"] is not None]),
        "says": some if behind else None,
    }


def _lambdas(compared: Comparison) -> list[Row]:
    rows = []
    for arm in compared.arms.values():
        values: dict[str, list[float]] = defaultdict(list)
        for run in arm.runs:
            for label, value in ((run.result or {}).get("lambdas") or {}).items():
                values[label].append(value)
        for label, found in values.items():
            row = {"arm": arm.name, "lambda": label, "n": len(found), "mean": fmean(found)}
            rows.append(row | {"sd": descriptive.sd(found), "min": min(found), "max": max(found)})
    return rows


def _power(compared: Comparison) -> list[Row]:
    """Smallest true difference that n seeds per arm detect with 80 % power, at 5 % over all arms."""
    spread = compared.spread
    if spread is None or not spread.sd:
        return []
    tests = max(1, compared.family)
    return [
        {"seeds_per_arm": n, "detectable_difference": statistics.detectable(spread.sd, n, compared.design)}
        | {"sd": spread.sd, "arms_tested": tests, "power": statistics.POWER}
        for n in statistics.SEEDS
    ]


def _runs(evidence: Evidence) -> list[Row]:
    return [
        {
            "arm": arm,
            "run": point.run,
            "seed": point.seed,
            "replicate": point.replicate,
            "state": (run := evidence.runs[point.run]).outcome,
            "cause": run.cause,
            "val_loss": run.val_loss,
            "steps": (run.result or {}).get("steps"),
            "train_time_s": (run.result or {}).get("train_time_s"),
            "host": " ".join(run.env.hosts) or None,
        }
        for arm, points in evidence.arms().items()
        for point in points
    ]
