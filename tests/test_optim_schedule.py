"""Schedules are pure functions of the step."""

import itertools
import math

import pytest

from skipsweep.config import Constant, Cosine, Model, Muon, Trapezoid
from skipsweep.model.window import window_blocks
from skipsweep.optim.schedule import lr_factor, momentum


def test_trapezoid_is_flat_then_falls_to_its_end() -> None:
    schedule = Trapezoid(steps=100, cooldown=0.4, final=0.1)
    factors = [lr_factor(schedule, step) for step in range(100)]
    assert factors[:60] == [1.0] * 60
    assert factors[80] == pytest.approx(0.5 + 0.5 * 0.1)  # half of the way down
    falls = [a - b for a, b in itertools.pairwise(factors[60:])]
    assert falls == pytest.approx([0.9 / 40] * 39)
    assert factors[99] == pytest.approx(0.1 + 0.9 / 40)  # the last update stands one step before the end


def test_the_speedruns_learning_rate() -> None:
    """1 until x < 0.3, then (1 - x) / 0.7 * 0.99 + 0.01 (medium track)."""
    schedule = Trapezoid(steps=5590, cooldown=0.7, final=0.01)
    for step in (0, 1676, 1678, 3000, 5589):
        x = step / 5590
        assert lr_factor(schedule, step) == pytest.approx(1.0 if x < 0.3 else (1 - x) / 0.7 * 0.99 + 0.01)


def test_cosine_ends_at_its_end_and_is_half_way_in_the_middle() -> None:
    schedule = Cosine(steps=100, final=0.2, warmup_steps=20)
    assert lr_factor(schedule, 20) == 1.0
    assert lr_factor(schedule, 60) == pytest.approx(0.6)
    assert lr_factor(schedule, 99) == pytest.approx(0.2 + 0.4 * (1 + math.cos(math.pi * 79 / 80)))


@pytest.mark.parametrize(
    "schedule",
    [
        Constant(steps=50, warmup_steps=4),
        Trapezoid(steps=50, cooldown=0.5, final=0.0, warmup_steps=4),
        Cosine(steps=50, final=0.0, warmup_steps=4),
    ],
)
def test_warm_up_rises_linearly_and_starts_above_nothing(schedule: Constant | Trapezoid | Cosine) -> None:
    assert [lr_factor(schedule, step) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_a_horizon_replaces_the_number_of_steps() -> None:
    """A longer or shorter run on the schedule of another: the same rates at the same steps."""
    short, long = (
        Trapezoid(steps=90, cooldown=0.7, final=0.1, horizon=100),
        Trapezoid(steps=100, cooldown=0.7, final=0.1),
    )
    assert [lr_factor(short, step) for step in range(90)] == [lr_factor(long, step) for step in range(90)]


@pytest.mark.parametrize("steps", [1, 5, 60, 99])
@pytest.mark.parametrize("shape", [(Trapezoid, {"cooldown": 0.7, "final": 0.1}), (Cosine, {"final": 0.2})])
def test_with_its_horizon_a_shorter_run_is_the_beginning_of_the_longer(
    steps: int, shape: tuple[type[Trapezoid | Cosine], dict[str, float]]
) -> None:
    """Learning rates and windows, each by its own horizon."""
    kind, fields = shape
    long = kind(steps=100, warmup_steps=0, **fields)
    short = kind(steps=steps, warmup_steps=0, horizon=100, window_horizon=100, **fields)
    model = Model(window=64, window_block=4, window_growth="cubic")
    for f in (lr_factor, lambda schedule, step: window_blocks(model, schedule, step)):
        assert [f(short, step) for step in range(steps)] == [f(long, step) for step in range(steps)]
    own = kind(steps=steps, warmup_steps=0, **fields)
    if steps == 60:
        assert [lr_factor(own, step) for step in range(60)] != [lr_factor(long, step) for step in range(60)]
        mixed = kind(steps=60, warmup_steps=0, horizon=100, **fields)
        assert window_blocks(model, mixed, 50) == window_blocks(model, own, 50) != window_blocks(model, long, 50)


def test_the_records_momentum() -> None:
    """From 0.85 to 0.95 over 300 steps, then constant."""
    optim = Muon(momentum=0.95, momentum_start=0.85, momentum_warmup=300)
    assert [momentum(optim, step) for step in (0, 150, 300, 5000)] == pytest.approx([0.85, 0.9, 0.95, 0.95])


def test_momentum_without_a_warm_up() -> None:
    assert momentum(Muon(momentum=0.9, momentum_start=0.5), 0) == 0.9
