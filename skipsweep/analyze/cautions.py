"""What a reader has to know before believing a report: everything that makes its comparison less than it seems."""

from collections.abc import Callable, Iterable

from skipsweep.analyze import descriptive, published_figures, statistics
from skipsweep.analyze.comparison import Comparison, TestedArm
from skipsweep.analyze.descriptive import named
from skipsweep.analyze.evidence import Evidence, Run

PAIRS_DF = 4
"""Degrees of freedom from which on the spread of differences is known well enough to recommend pairs."""
SAME_SIZE = 0.01
"""Part of the baseline's parameters or operations up to which an arm counts as its size."""
WORTH_PAIRING = 0.5
"""Of the spread without pairs: half of it is worth four times the seeds."""


def of(evidence: Evidence, compared: Comparison) -> list[str]:
    """All warnings that apply, the gravest first."""
    found = [rule(evidence, compared) for rule in RULES]
    return [text for text in found if text is not None]


def unfinished(evidence: Evidence, compared: Comparison) -> str | None:
    open_ = [run.name for run in evidence.runs.values() if run.outcome != "done"]
    if not open_:
        return None
    few = [
        f"{arm.name} ({len(arm.finished)}/{len(arm.runs)})"
        for arm in compared.arms.values()
        if len(arm.finished) < len(arm.runs)
    ]
    return f"{len(open_)} of {len(evidence.runs)} runs have no result; these arms rest on fewer runs: {named(few)}"


def damaged(evidence: Evidence, compared: Comparison) -> str | None:
    found = [f"{run.name}/{file}" for run in evidence.runs.values() for file in run.damaged]
    return f"damaged files, of which only what can be read counts: {named(found)}" if found else None


def no_baseline(evidence: Evidence, compared: Comparison) -> str | None:
    if compared.baseline is None:
        return "no arm is the baseline, so nothing is compared; choose one with --baseline"
    if not compared.baseline.losses:
        return f"the baseline {compared.baseline.name} has no finished run, so nothing is compared yet"
    return None


def confounded(evidence: Evidence, compared: Comparison) -> str | None:
    arms = [f"{arm} ({named(keys)})" for arm, keys in evidence.confounds.items() if keys]
    if not arms:
        return None
    return (
        "arms that differ from the baseline in more than the question asks about, so that a difference has several "
        f"possible causes: {named(arms)}"
    )


def chosen_on_its_runs(evidence: Evidence, compared: Comparison) -> str | None:
    """Of 15 layers that do nothing, the best one of 8 seeds is "found" in 17 % of sweeps by the runs that made it best,
    and in 4 % by others."""
    arms = [f"{arm} (ranked by {sweep})" for arm, sweep in evidence.chosen_on.items() if arm in compared.arms]
    if not arms:
        return None
    return (
        f"chosen on these very runs: {named(arms)}; what was best among many looks better in the runs that made it so "
        "than it is, and its p-value does not allow for that; repeat it with other seeds"
    )


def seeds_added_later(evidence: Evidence, compared: Comparison) -> str | None:
    """Who adds seeds until something is found, or for as long as it looks promising, finds it in 10 to 22 % of sweeps
    of equal arms."""
    arms = [arm for arm in evidence.seeds_added if arm in compared.arms]
    if not arms:
        return None
    return (
        f"seeds were added after results existed: {named(arms)}; p-values count one look at the results, and are too "
        "small for a second; a new sweep with other seeds alone tests anew"
    )


def declared_after_results(evidence: Evidence, compared: Comparison) -> str | None:
    if not evidence.declared_late:
        return None
    return (
        f"declared after results: {' and '.join(evidence.declared_late)}; with a choice between comparisons the most "
        "favourable one is found too often; repeat it with other seeds"
    )


def shared_runs(evidence: Evidence, compared: Comparison) -> str | None:
    arms = [f"{arm.name} (with {arm.shares})" for arm in compared.arms.values() if arm.shares]
    if not arms:
        return None
    return f"arms that share runs are not independent and are left out of the test: {named(arms)}"


def single_seed(evidence: Evidence, compared: Comparison) -> str | None:
    arms = [arm.name for arm in compared.arms.values() if len(arm.losses) == 1]
    if not arms:
        return None
    so = "whose spread is assumed to be that of the others" if _one_sd(compared) else "so that they cannot be tested"
    return f"arms with a single finished seed, {so}: {named(arms)}"


def fewer_runs(evidence: Evidence, compared: Comparison) -> str | None:
    """Where an arm of few runs spreads more than the others, Dunnett's test finds most that does not exist; with equal
    numbers it finds some as well, above all where it is the baseline that spreads (docs/reading-a-report.md)."""
    if not _one_sd(compared):
        return None
    most = max(len(arm.losses) for arm in compared.arms.values())
    arms = [f"{arm.name} ({n})" for arm in compared.arms.values() if 1 < (n := len(arm.losses)) <= most / 2]
    if not arms:
        return None
    return (
        f"arms with at most half of the others' {most} finished seeds: the test assumes that they spread as the others "
        f"do; where they spread more, it finds differences that do not exist: {named(arms)}"
    )


def diverged(evidence: Evidence, compared: Comparison) -> str | None:
    """Named, not left out: that would be a choice made after looking."""
    arms = {arm.name: arm for arm in compared.arms.values() if not arm.shares}
    found = []
    for name, i in statistics.far({name: [loss for _, loss in arm.finished] for name, arm in arms.items()}):
        run, loss = arms[name].finished[i]
        found.append(f"{run.name} of {name} ({loss:.4f})")
    if not found:
        return None
    return (
        f"runs that lie far from their arm, possibly diverged: {named(found)}; such a run dominates its arm's "
        "mean and spread, so nothing can be concluded about that arm, or about any arm if it belongs to the baseline"
    )


def other_seeds(evidence: Evidence, compared: Comparison) -> str | None:
    """A test of means holds here too; but where a seed makes much of the loss, it makes much of such a difference."""
    base = compared.baseline
    if evidence.paired or base is None:
        return None
    arms = [
        f"{arm.name} ({descriptive.of_pairs(pairs):+.5f} over the {len(pairs)} they share)"
        for arm in compared.arms.values()
        if arm.test is not None
        and arm.by_seed.keys() != base.by_seed.keys()
        and (pairs := descriptive.pairs(arm.by_seed, base.by_seed))
    ]
    if not arms:
        return None
    return (
        "arms that have not finished the same seeds as the baseline, so that part of their difference may be due to "
        f"the seeds: {named(arms)}"
    )


def repeated(evidence: Evidence, compared: Comparison) -> str | None:
    arms = [
        f"{arm.name} ({len(arm.finished)} runs, {len(arm.losses)} seed{'' if len(arm.losses) == 1 else 's'})"
        for arm in compared.arms.values()
        if len(arm.losses) < len(arm.finished)
    ]
    if not arms:
        return None
    return f"repetitions of a seed are no further evidence: it counts once, with the mean of its runs: {named(arms)}"


def no_spread(evidence: Evidence, compared: Comparison) -> str | None:
    """Seeds that agree to the last digit are one run under several names, or a seed that does nothing. Logs that were
    imported hold a few digits, of which some agree by chance."""
    arms = [
        arm.name
        for arm in compared.arms.values()
        if (arm.summary is not None and arm.summary.sd == 0)
        or (len(set(arm.losses)) < len(arm.losses) and not any(run.imported for run in arm.runs))
    ]
    if not arms:
        return None
    return f"runs of an arm ended with the very same loss, as repetitions of one seed do: {named(arms)}"


def other_steps(evidence: Evidence, compared: Comparison) -> str | None:
    if compared.baseline is None:
        return None
    base = _steps(compared.baseline)
    arms = [
        f"{arm.name} ({', '.join(map(str, sorted(own)))})"
        for arm in compared.arms.values()
        if base and (own := _steps(arm)) and own != base
    ]
    if not arms:
        return None
    return f"the baseline ran {', '.join(map(str, sorted(base)))} steps, these arms a different number: {named(arms)}"


def other_size(evidence: Evidence, compared: Comparison) -> str | None:
    """Parameters and operations lower a loss by themselves."""
    base = compared.baseline
    if base is None:
        return None
    arms = []
    for arm in compared.arms.values():
        sizes = {
            "parameters": (arm.parameters, base.parameters),
            "training FLOPs": (arm.training_flops, base.training_flops),
        }
        more = {what: own / of_base - 1 for what, (own, of_base) in sizes.items() if own and of_base}
        off = [f"{what} {100 * part:+,.0f} %" for what, part in more.items() if abs(part) > SAME_SIZE]
        arms += [f"{arm.name} ({', '.join(off)})"] if off else []
    if not arms:
        return None
    return f"arms of another size than the baseline, so that part of their difference may be due to that: {named(arms)}"


def best_of_many(evidence: Evidence, compared: Comparison) -> str | None:
    if compared.family < 3 or any(arm.differs for arm in compared.arms.values()):
        return None
    return (
        f"the best of {compared.family} arms looks better than it is: its loss is the luckiest of many; "
        "run it again with other seeds before believing it"
    )


def pairs_would_detect_more(evidence: Evidence, compared: Comparison) -> str | None:
    """Equal seeds share initial values, which may be most of what makes runs differ; the order of the data is the same
    for all (`data.order_seed`). Declared too late, pairs would be chosen for what they show."""
    base = compared.baseline
    if evidence.paired or compared.spread is None or base is None:
        return None
    tested = [arm for arm in compared.arms.values() if arm.test is not None]
    both = [descriptive.pairs(arm.by_seed, base.by_seed) for arm in tested]
    pooled = descriptive.pooled_sd([[own - of_base for of_base, own in pairs] for pairs in both])
    apart = 2**0.5 * compared.spread.sd
    if pooled is None or pooled[1] < PAIRS_DF or pooled[0] > WORTH_PAIRING * apart:
        return None
    return (
        f"differences between runs of the same seed have an sd of only {pooled[0]:.2g}, those between different seeds "
        f"one of {apart:.2g}: a new sweep with sweep.paired=true would detect smaller differences"
    )


def several_environments(evidence: Evidence, compared: Comparison) -> str | None:
    kinds: tuple[tuple[str, Callable[[Run], Iterable[object]]], ...] = (
        ("hosts", lambda run: run.env.hosts),
        ("kinds of GPU", lambda run: run.env.gpus),
        ("versions of torch", lambda run: run.env.torch),
        ("numbers of processes", lambda run: run.env.world_sizes),
        ("versions of the code", lambda run: run.env.codes),
        ("versions of the numerics", lambda run: [v for v in [run.env.results_version] if v is not None]),
    )
    found = []
    for what, of_run in kinds:
        values = sorted({str(value) for run in evidence.runs.values() for value in of_run(run)})
        if len(values) > 1:
            found.append(f"{len(values)} {what} ({named([value[:20] for value in values])})")
    return f"runs were made with {'; '.join(found)}" if found else None


def time_across_machines(evidence: Evidence, compared: Comparison) -> str | None:
    machines = {(run.env.hosts, run.env.gpus) for run in evidence.runs.values() if run.env.hosts}
    if len(machines) < 2:
        return None
    return "training times come from several machines: differences in time compare machines as well as arms"


def imported(evidence: Evidence, compared: Comparison) -> str | None:
    count = sum(run.imported for run in evidence.runs.values())
    if not count:
        return None
    return f"{count} of {len(evidence.runs)} runs were imported from logs: settings and seeds are not known"


def published_otherwise(evidence: Evidence, compared: Comparison) -> str | None:
    """Arms whose published runs took other steps than ours, and what else is known to be different about them."""
    theirs = published_figures.published(evidence)
    found = list(dict.fromkeys(one.caveat for arm, one in theirs.items() if arm in compared.arms and one.caveat))
    arms = [
        f"{arm} ({one.steps})"
        for arm, one in theirs.items()
        if arm in compared.arms and one.steps and (own := _steps(compared.arms[arm])) and own != {one.steps}
    ]
    if arms:
        found.insert(0, f"these ran a different number of steps: {named(arms)}")
    return f"published runs differ from ours in more than the machine: {'; '.join(found)}" if found else None


RULES = (
    unfinished,
    damaged,
    no_baseline,
    diverged,
    confounded,
    other_steps,
    other_size,
    chosen_on_its_runs,
    seeds_added_later,
    declared_after_results,
    shared_runs,
    single_seed,
    fewer_runs,
    other_seeds,
    repeated,
    no_spread,
    best_of_many,
    pairs_would_detect_more,
    several_environments,
    time_across_machines,
    imported,
    published_otherwise,
)


def _one_sd(compared: Comparison) -> bool:
    """Whether arms were tested as having the same spread."""
    tests = [arm.test for arm in compared.arms.values() if arm.test is not None]
    return any(test.method == "dunnett" and test.p is not None for test in tests)


def _steps(arm: TestedArm) -> set[int]:
    """How many steps its finished runs had."""
    return {run.result["steps"] for run in arm.runs if run.result and isinstance(run.result.get("steps"), int)}
