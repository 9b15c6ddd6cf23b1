"""What a plan says a sweep takes: measured speeds first, then published ones, else nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest
from gpu_script import shipped

from skipsweep import files
from skipsweep.config import RunConfig, Sweep
from skipsweep.rundir import Multirun
from skipsweep.sweep import estimate as estimating
from skipsweep.sweep.plan import Plan

SECONDS, STEPS = 1405.7, 5_590
"""Of the medium track's baseline on 8 H100, as published."""


def medium(gpus: int = 8, **changes: int) -> RunConfig:
    keys = {f"schedule.{key}": value for key, value in changes.items()}
    return shipped.run(
        changes={"schedule.steps": STEPS, "data.batch_tokens": 524_288, "compute.gpus": gpus, **keys},
    )


@pytest.fixture
def planned(tmp_path: Path) -> Callable[..., Plan]:
    def make(*configs: RunConfig) -> Plan:
        named = {f"run{i}": config for i, config in enumerate(configs)}
        return Plan(Multirun(tmp_path), Sweep(), None, [], named, None, "")

    return make


def measured(plan: Plan, config: RunConfig, flops_per_s: float, dim: int | None = None) -> None:
    model = [config.model.layers, dim or config.model.dim, config.data.seq_len]
    row = {"device": "cuda", "world_size": config.compute.gpus, "model": model, "flops_per_s": flops_per_s}
    plan.multirun.path.mkdir(exist_ok=True)
    files.append_row(plan.multirun.speeds, row)


def test_the_published_run_takes_as_long_as_published(planned: Callable[..., Plan]) -> None:
    """Which holds only as long as operations are counted as they were when the speed was written down."""
    found = estimating.estimate(planned(medium()), ["run0"], 1)
    assert found is not None
    assert found.seconds == pytest.approx(SECONDS + estimating.STARTUP_S, rel=1e-9)
    assert found.gpu_hours == pytest.approx(8 * found.seconds / 3600)
    assert found.recorded


def test_side_by_side_costs_the_same_in_less_time(planned: Callable[..., Plan]) -> None:
    plan = planned(medium(), medium())
    alone, both = (estimating.estimate(plan, ["run0", "run1"], parallel) for parallel in (1, 2))
    assert alone is not None
    assert both is not None
    assert alone.seconds == pytest.approx(2 * both.seconds)
    assert alone.gpu_hours == pytest.approx(both.gpu_hours)


def test_what_was_measured_here_counts_more_than_what_was_published(planned: Callable[..., Plan]) -> None:
    config = medium()
    plan = planned(config)
    measured(plan, config, estimating.sizes(config).flops / 100)
    found = estimating.estimate(plan, ["run0"], 1)
    assert found is not None
    assert found.seconds == pytest.approx(100 + estimating.STARTUP_S)
    assert not found.recorded


def test_the_run_most_alike_counts(planned: Callable[..., Plan]) -> None:
    config = medium()
    plan = planned(config)
    measured(plan, config, estimating.sizes(config).flops / 100)
    measured(plan, config, 1.0, dim=64)  # later, but of another model
    found = estimating.estimate(plan, ["run0"], 1)
    assert found is not None
    assert found.seconds == pytest.approx(100 + estimating.STARTUP_S)


def test_no_other_machine_borrows_a_published_speed(planned: Callable[..., Plan]) -> None:
    assert estimating.estimate(planned(medium(gpus=4)), ["run0"], 1) is None
    assert estimating.estimate(planned(medium(), medium(gpus=1)), ["run0", "run1"], 1) is None


def test_sizes_are_those_of_the_arm() -> None:
    """A concat head doubles the head's weights and its operations, and nothing else."""
    last, concat = (shipped.run(head=head) for head in ("last", "concat"))
    assert estimating.sizes(concat).parameters - estimating.sizes(last).parameters == 50_304 * 1_024
    more = estimating.sizes(concat).flops_per_token - estimating.sizes(last).flops_per_token
    assert more == 6 * 50_304 * 1_024
    tokens = last.schedule.steps * last.data.batch_tokens
    assert estimating.sizes(last).flops == estimating.sizes(last).flops_per_token * tokens
