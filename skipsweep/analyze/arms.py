"""Arms of a sweep with their results: the table at the end of a launch."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from skipsweep import sweep_file
from skipsweep.analyze import documents
from skipsweep.rundir import Multirun


@dataclass(frozen=True)
class Arm:
    """What is known of one arm. A figure that is not known is None."""

    name: str
    planned: int
    """Points of the arm."""
    done: int
    failed: int
    val_loss: float | None
    """Mean final validation loss over the finished seeds, nats per token."""
    val_loss_sd: float | None
    """Standard deviation over the finished seeds; None below two."""
    difference: float | None
    """Mean difference to the baseline, over the seeds that both have finished; where they have no seed in common, the
    difference of the two means."""
    pairs: int
    """How many seeds that mean is over; 0 with a difference: it is one of means, unpaired."""
    steps: int | None
    train_time_s: float | None
    """Mean training time."""
    parameters: int | None
    flops_per_token: int | None
    """Operations of a training pass, as planning counts them."""
    inference_estimated: float | None
    """Operations of a forward pass per token, blocks in proportion to their open tokens at the end (seed 004's
    estimate), of the whole model without gates; mean over the finished seeds."""
    inference_measured: float | None
    """The same with the products of open queries with open keys as they were counted in the last validation."""
    has_gates: bool
    """Whether a finished run says what its gates left to be computed."""
    is_baseline: bool
    same_as: str | None
    """An earlier arm that is served by the very same runs (`head_type` without sources, say)."""
    confounds: Sequence[str]
    """Keys in which it differs from the baseline besides what it may."""


def of_sweep(multirun: Multirun, name: str) -> list[Arm]:
    """The arms of a sweep, in the order planned; the baseline first. Raises UserError without a plan."""
    plan = sweep_file.read_plan(multirun, name)
    grouped: dict[str, dict[tuple[int, int], str]] = {}
    for point in sweep_file.points(name, plan):
        grouped.setdefault(point.arm, {})[point.seed, point.replicate] = point.run
    results = {run: documents.result(multirun.run(run)) for runs in grouped.values() for run in runs.values()}
    baseline = plan.get("baseline")
    order = sorted(grouped, key=lambda arm: arm != baseline)
    confounds = plan.get("confounds", {})  # those of imported sweeps have none
    first: dict[tuple[str, ...], str] = {}
    arms = []
    for name in order:
        original = first.setdefault(tuple(run for _, run in sorted(grouped[name].items())), name)
        same_as = None if original == name else original
        marks = name == baseline, same_as, confounds.get(name, ())
        arms.append(_arm(multirun, name, grouped[name], grouped[order[0]], results, marks))
    return arms


def _arm(
    multirun: Multirun,
    name: str,
    runs: dict[tuple[int, int], str],
    base: dict[tuple[int, int], str],
    results: dict[str, dict[str, Any] | None],
    marks: tuple[bool, str | None, Sequence[str]],
) -> Arm:
    is_baseline, same_as, confounds = marks
    found = [r for run in runs.values() if (r := results[run]) is not None]
    losses = [r["val_loss"] for r in found]
    difference, pairs = versus(_by_seed(runs, results), _by_seed(base, results))
    failed = sum(multirun.run(run).read_status()["state"] == "failed" for run in runs.values() if results[run] is None)
    return Arm(
        name=name,
        planned=len(runs),
        done=len(found),
        failed=failed,
        val_loss=mean(losses),
        val_loss_sd=sd(losses),
        difference=None if is_baseline or same_as else difference,
        pairs=pairs,
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


def _by_seed(
    runs: Mapping[tuple[int, int], str], results: Mapping[str, dict[str, Any] | None]
) -> dict[Hashable, float | None]:
    """Seed -> mean final validation loss over its finished replicates; None: none has finished."""
    losses: dict[Hashable, list[float]] = {}
    for (seed, _), run in runs.items():
        found = results[run]
        # the seed of what was imported is only the order of the files: it pairs with nothing
        of_seed = losses.setdefault(run if found and "imported" in found else seed, [])
        of_seed += [found["val_loss"]] if found else []
    return {seed: mean(of_seed) for seed, of_seed in losses.items()}


def versus(own: Mapping[Hashable, float | None], base: Mapping[Hashable, float | None]) -> tuple[float | None, int]:
    """(difference to the baseline, number of pairs it is the mean over). Both: seed -> loss, None: not finished.

    Arms that share seeds are compared over those that both have finished; only arms that share none, finished or not,
    by their means.
    """
    shared = own.keys() & base.keys()
    if shared:
        pairs = [(own[seed], base[seed]) for seed in shared]
        differences = [a - b for a, b in pairs if a is not None and b is not None]
        return mean(differences), len(differences)
    a, b = (mean([loss for loss in arm.values() if loss is not None]) for arm in (own, base))
    return (None if a is None or b is None else a - b), 0


def _total(results: Sequence[dict[str, Any]], key: str) -> int | None:
    """Sum over the groups of a count; None where no run says it (imported ones do not)."""
    groups = next((found[key] for found in results if found.get(key)), None)
    return None if groups is None else sum(groups.values())


def inference_flops(results: Sequence[Mapping[str, Any]], column: str) -> float | None:
    """Mean operations of a forward pass per token, those of the whole model where there are no gates; None where no run
    says it."""
    columns = [found.get("inference_flops_per_token") or {} for found in results]
    said = [of_run.get(column) or of_run.get("dense") for of_run in columns]
    return mean([float(sum(parts.values())) for parts in said if parts])


def mean(values: Sequence[float]) -> float | None:
    """Arithmetic mean; None of nothing."""
    return math.fsum(values) / len(values) if values else None


def sd(values: Sequence[float]) -> float | None:
    """Standard deviation of a sample (n - 1); None below two values."""
    if len(values) < 2:
        return None
    centre = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((v - centre) ** 2 for v in values) / (len(values) - 1))
