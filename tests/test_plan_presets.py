"""The speedrun's runs as one word each, and what a schedule may be."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from runs import configuration

from skipsweep import config as c
from skipsweep.errors import UserError
from skipsweep.model.window import window_blocks
from skipsweep.optim.schedule import lr_factor
from skipsweep.sweep.entry import from_command_line
from skipsweep.sweep.expand import expand
from skipsweep.sweep.validate import validate


def preset(*arguments: str) -> c.Config:
    """The single run that `python launch.py ARGUMENTS` is."""
    request = from_command_line(arguments)
    (point,) = expand(request.overrides, request.sweep, request.composer.options)
    assert not request.multirun
    assert not request.sweep.arms
    assert request.sweep.name is None
    return request.config(point)


def test_the_mediums_baseline_and_record() -> None:
    baseline, record = (preset(f"experiment=medium_{name}") for name in ("baseline", "record"))
    assert isinstance(record.optim, c.Muon)
    assert record.data.name == "fineweb10B"
    assert record.schedule == c.Trapezoid(steps=5550, cooldown=0.7, final=0.01)
    assert record.head_type == c.Add()
    assert (record.model.layers, record.model.dim) == (16, 1024)
    assert record.compute == c.Compute(device="cuda", nodes=1, gpus=8, compile=True)
    assert record.record.val_every == 125
    ours, theirs = c.leaves(record), c.leaves(baseline)
    assert {key: (theirs[key], ours[key]) for key in ours if ours[key] != theirs[key]} == {
        "skip_layers.layers": ("none", 11),
        "schedule.steps": (5590, 5550),
    }


def test_the_baseline_is_what_its_choices_make() -> None:
    """`model=medium data=fineweb10B` with 5,590 steps and the track's optimisers, nothing hidden in the preset."""
    choices = ("model=medium", "data=fineweb10B", "optim=muon", "schedule=speedrun", "skip_layers=none")
    recipe = c.recipe_of(preset("experiment=medium_baseline"))
    assert c.leaves(recipe) == c.leaves(c.recipe_of(preset(*choices)))


@pytest.mark.parametrize(
    ("scale", "single"),
    [("medium", "medium_baseline"), ("small_2025_11", "small_2025_11"), ("skip_middle", "skip_middle_dense")],
)
def test_a_scale_is_what_the_single_run_is(scale: str, single: str) -> None:
    assert c.leaves(preset(f"scale={scale}")) == c.leaves(preset(f"experiment={single}"))


def test_presets_can_be_changed() -> None:
    changed = preset("experiment=medium_record", "compute=cpu", "schedule.steps=7", "skip_layers=3", "data=synthetic")
    assert (changed.compute.device, changed.schedule.steps, changed.skip_layers.layers) == ("cpu", 7, 3)
    assert isinstance(changed.data, c.Synthetic)


def test_gpus_compile() -> None:
    assert preset("compute=gpu").compute == c.Compute(device="cuda", gpus=1, compile=True)


IMPOSSIBLE: dict[str, tuple[c.Schedule, str]] = {
    "horizon": (c.Constant(steps=5, horizon=-1), r"schedule\.horizon=-1 must not be negative"),
    "window": (c.Constant(steps=5, window_horizon=-1), r"schedule\.window_horizon=-1 must not be negative"),
    "warm-up beyond the horizon": (
        c.Cosine(steps=50, horizon=10, warmup_steps=10, final=0.0),
        r"schedule\.warmup_steps=10 must be below schedule\.horizon=10",
    ),
    "warm-up beyond the end": (
        c.Cosine(steps=10, horizon=50, warmup_steps=10, final=0.0),
        r"schedule\.warmup_steps=10 must be below schedule\.steps=10",
    ),
    "an uphill step": (c.Trapezoid(steps=5, cooldown=0.5, final=-0.1), r"schedule\.final=-0\.1 must not be negative"),
    "uphill, bent": (c.Cosine(steps=5, final=-0.1), r"schedule\.final=-0\.1 must not be negative"),
}


def with_schedule(schedule: c.Schedule) -> Any:
    return replace(configuration(Path("/nowhere"), Path("/nowhere")), schedule=schedule)


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_impossible_schedules(case: str) -> None:
    schedule, told = IMPOSSIBLE[case]
    with pytest.raises(UserError, match=told):
        validate(with_schedule(schedule))


def test_a_horizon_may_lie_before_the_end() -> None:
    """What is scheduled then stays where it has arrived."""
    schedule = c.Trapezoid(steps=100, horizon=50, window_horizon=20, warmup_steps=3, cooldown=0.5, final=0.25)
    validate(with_schedule(schedule))
    assert [lr_factor(schedule, step) for step in (24, 50, 75, 99)] == [1.0, 0.25, 0.25, 0.25]
    model = c.Model(window=1024, window_block=128, window_growth="cubic")
    assert [window_blocks(model, schedule, step) for step in (0, 20, 60, 100)] == [1, 8, 8, 8]
