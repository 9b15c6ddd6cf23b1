"""Arms of a sweep with their results: the table at the end of a launch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from skipsweep import sweep_file
from skipsweep.analyze import descriptive, documents
from skipsweep.analyze.descriptive import Difference, mean
from skipsweep.rundir import Multirun
from skipsweep.sweep_file import PlannedPoint


@dataclass(frozen=True)
class ArmRow:
    """What is known of one arm. A figure that is not known is None."""

    name: str
    planned: int
    """Points of the arm."""
    done: int
    failed: int
    val_loss: float | None
    """Mean final validation loss over the finished seeds, nats per token; repetitions of a seed are averaged first."""
    val_loss_sd: float | None
    """Standard deviation over the finished seeds; None below two."""
    difference: float | None
    """From the baseline, as the report tests it: see `descriptive.difference`."""
    paired: bool
    """Whether the sweep was declared to be compared in pairs of equal seed."""
    pairs: int
    """Seeds that both have finished."""
    same_seeds: bool
    """Whether neither has finished a seed that the other has not."""
    steps: int | None
    train_time_s: float | None
    """Mean training time."""
    parameters: int | None
    flops_per_token: int | None
    """Operations of a training pass, as planning counts them."""
    inference_estimated: float | None
    """Operations of a forward pass per token, blocks in proportion to their open tokens at the end (the skip-middle
    paper's estimate), of the whole model without gates; mean over the finished seeds."""
    inference_measured: float | None
    """The same with the products of open queries with open keys as they were counted in the last validation."""
    has_gates: bool
    """Whether a finished run says what its gates left to be computed."""
    is_baseline: bool
    same_as: str | None
    """An earlier arm that is served by the very same runs (`head_type` without sources, say)."""
    confounds: Sequence[str]
    """Keys in which it differs from the baseline besides what it may."""


def of_sweep(multirun: Multirun, name: str) -> list[ArmRow]:
    """The arms of a sweep, in the order planned; the baseline first. Raises UserError without a plan."""
    plan = sweep_file.read_plan(multirun, name)
    grouped: dict[str, list[PlannedPoint]] = {}
    for point in sweep_file.points(name, plan):
        grouped.setdefault(point.arm, []).append(point)
    baseline = plan.get("baseline")
    grouped = {arm: grouped[arm] for arm in sorted(grouped, key=lambda arm: arm != baseline)}
    runs = {arm: list(dict.fromkeys(point.run for point in points)) for arm, points in grouped.items()}
    results = {run: documents.result(multirun.run(run)) for names in runs.values() for run in names}
    same = descriptive.same_runs(runs)
    by_seed = {arm: descriptive.by_seed(points, results) for arm, points in grouped.items()}
    paired, confounds = plan.get("paired") is True, plan.get("confounds", {})  # those of imported sweeps have none
    rows = []
    for arm, points in grouped.items():
        losses = descriptive.per_seed(by_seed[arm])
        difference = descriptive.difference(by_seed[arm], by_seed.get(baseline or "", {}), paired)
        marks = arm == baseline, paired, same.get(arm), confounds.get(arm, ())
        rows.append(_row(multirun, points, results, losses, difference, marks))
    return rows


def _row(
    multirun: Multirun,
    points: Sequence[PlannedPoint],
    results: Mapping[str, dict[str, Any] | None],
    losses: Sequence[float],
    difference: Difference,
    marks: tuple[bool, bool, str | None, Sequence[str]],
) -> ArmRow:
    is_baseline, paired, same_as, confounds = marks
    runs = dict.fromkeys(point.run for point in points)
    found = [r for run in runs if (r := results[run]) is not None]
    return ArmRow(
        name=points[0].arm,
        planned=len(points),
        done=len(found),
        failed=sum(multirun.run(run).read_status()["state"] == "failed" for run in runs if results[run] is None),
        val_loss=mean(losses),
        val_loss_sd=descriptive.sd(losses),
        difference=None if is_baseline or same_as else difference.value,
        paired=paired,
        pairs=difference.shared,
        same_seeds=difference.same_seeds,
        steps=found[0].get("steps") if found else None,
        train_time_s=mean([seconds for r in found if (seconds := r.get("train_time_s")) is not None]),
        parameters=_total(found, "parameters"),
        flops_per_token=_total(found, "flops_per_token"),
        inference_estimated=inference_flops(found, "estimated"),
        inference_measured=inference_flops(found, "measured"),
        has_gates=any("estimated" in (r.get("inference_flops_per_token") or {}) for r in found),
        is_baseline=is_baseline,
        same_as=same_as,
        confounds=confounds,
    )


def _total(results: Sequence[dict[str, Any]], key: str) -> int | None:
    """Sum over the groups of a count; None where no run says it (imported ones do not)."""
    groups = next((found[key] for found in results if found.get(key)), None)
    return None if groups is None else sum(groups.values())


def training_flops(result: Mapping[str, Any]) -> float | None:
    """Operations of the whole training, forward and backward, in units of 1e15."""
    parts, tokens = result.get("flops_per_token"), result.get("tokens")
    return None if not parts or not tokens else sum(parts.values()) * tokens / 1e15


def inference_flops(results: Sequence[Mapping[str, Any]], column: str) -> float | None:
    """Mean operations of a forward pass per token, those of the whole model where there are no gates; None where no run
    says it."""
    columns = [found.get("inference_flops_per_token") or {} for found in results]
    said = [of_run.get(column) or of_run.get("dense") for of_run in columns]
    return mean([float(sum(parts.values())) for parts in said if parts])
