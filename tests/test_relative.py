"""Factors on a schedule's lengths: what they come to, and that they leave no trace in a run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from runs import configuration

from skipsweep.config import Config, Relative, Schedule, Trapezoid
from skipsweep.errors import UserError
from skipsweep.sweep.relative import resolved


def lengths(schedule: Schedule, **factors: Any) -> tuple[int, int, int]:
    """Steps, horizon and window horizon."""
    config: Config = configuration(Path("/nowhere"), Path("/nowhere"), schedule=schedule)
    config.relative = Relative(**factors)
    found = resolved(config)
    assert found.relative == Relative()
    return found.schedule.steps, found.schedule.horizon, found.schedule.window_horizon


def trapezoid(steps: int, **horizons: Any) -> Schedule:
    return Trapezoid(steps=steps, cooldown=0.5, final=0.1, **horizons)


@pytest.mark.parametrize(
    ("factors", "found"),
    [
        ({}, (5590, 0, 0)),
        ({"steps": 0.992844}, (5550, 0, 0)),
        ({"window_horizon": 1.0662}, (5590, 0, 5960)),
        ({"steps": 0.95, "horizon": 1}, (5310, 5590, 0)),
        ({"steps": 0.95, "horizon": 1.0, "window_horizon": 1.0}, (5310, 5590, 5590)),
        ({"steps": 1e-9}, (1, 0, 0)),
    ],
)
def test_of_the_runs_own_length(factors: dict[str, float], found: tuple[int, int, int]) -> None:
    assert lengths(trapezoid(5590), **factors) == found


def test_horizons_that_are_there_shrink_along_unless_they_have_a_factor() -> None:
    """The small track goes on for 40 steps beyond its horizon."""
    schedule = trapezoid(2225, horizon=2185, window_horizon=2185)
    assert lengths(schedule, steps=0.5) == (1112, 1092, 1092)
    assert lengths(schedule, steps=0.5, horizon=1) == (1112, 2185, 1092)


@pytest.mark.parametrize(("factor", "layers"), [(1, 12), (0.1667, 2), (0.5, 6), (0.8333, 10), (0.01, 2)])
def test_depths_are_even(factor: float, layers: int) -> None:
    config = configuration(Path("/nowhere"), Path("/nowhere"), relative=Relative(layers=factor))
    config.model = replace(config.model, layers=12)
    assert resolved(config).model.layers == layers


@pytest.mark.parametrize("factor", [0, -1, float("inf"), float("nan")])
@pytest.mark.parametrize("key", ["steps", "horizon", "window_horizon", "layers"])
def test_what_is_no_factor_is_refused(key: str, factor: float) -> None:
    with pytest.raises(UserError, match=rf"relative\.{key}={factor} must be above 0"):
        lengths(trapezoid(10), **{key: factor})
