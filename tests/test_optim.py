"""Schedules are pure functions of the step; an update is applied whole, at the right rate, or not at all."""

import itertools
import math

import pytest
import torch
from torch import nn

from skipsweep.config import AdamW, Constant, Cosine, Trapezoid
from skipsweep.optim.groups import Optimiser
from skipsweep.optim.schedule import lr_factor

ADAMW = AdamW(lr=0.01, embed_lr=0.1, head_lr=0.03, scalar_lr=0.5, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1)
ROLES = {"e": "embed", "m": "matrix", "h": "head", "s": "scalar"}


def parameters() -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return {name: nn.Parameter(torch.randn(4, 3, generator=generator)) for name in ROLES}


def backward(ps: dict[str, nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for p in ps.values():
        p.grad = torch.randn(p.shape, generator=generator)


# ------------------------------------------------------------------------------------------------------------ schedules


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


# ------------------------------------------------------------------------------------------------------------ optimiser


def test_every_role_has_its_rate_and_only_matrices_decay() -> None:
    """Against one torch.optim.AdamW per role."""
    ours, theirs = parameters(), parameters()
    optimiser = Optimiser(ADAMW, ours, ROLES)
    rates = {"e": 0.1, "m": 0.01, "h": 0.03, "s": 0.5}
    references = {
        n: torch.optim.AdamW([p], lr=rates[n], betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1 if n == "m" else 0.0)
        for n, p in theirs.items()
    }
    for step in range(5):
        backward(ours, step), backward(theirs, step)
        optimiser.step(0.5, torch.zeros(()))
        for name, reference in references.items():
            reference.param_groups[0]["lr"] = rates[name] * 0.5
            reference.step()
    for name in ROLES:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-6, rtol=1e-5)


def test_a_halted_step_changes_nothing() -> None:
    """Neither parameters nor moments nor the count of steps, even with gradients that are no numbers."""
    ps = parameters()
    optimiser = Optimiser(ADAMW, ps, ROLES)
    backward(ps, 0)
    optimiser.step(1.0, torch.zeros(()))
    before = {n: p.detach().clone() for n, p in ps.items()}
    state = {key: value.clone() for key, value in optimiser.state().items()}
    for p in ps.values():
        p.grad = torch.full_like(p, float("nan"))
    optimiser.step(1.0, torch.ones(()))
    assert all(torch.equal(p, before[n]) for n, p in ps.items())
    assert all(torch.equal(value, state[key]) for key, value in optimiser.state().items())


def test_state_by_name_continues_exactly() -> None:
    straight, resumed = parameters(), parameters()
    first = Optimiser(ADAMW, straight, ROLES)
    for step in range(3):
        backward(straight, step)
        first.step(1.0, torch.zeros(()))
    saved = {key: value.clone() for key, value in first.state().items()}
    with torch.no_grad():
        for name, p in resumed.items():
            p.copy_(straight[name])
    # Another order of parameters: the names decide.
    second = Optimiser(ADAMW, dict(reversed(resumed.items())), ROLES)
    second.load_state(saved)
    for optimiser, ps in ((first, straight), (second, resumed)):
        backward(dict(sorted(ps.items())), 9)
        optimiser.step(1.0, torch.zeros(()))
    assert all(torch.equal(straight[n], resumed[n]) for n in ROLES)


def test_state_of_other_parameters_is_refused() -> None:
    optimiser = Optimiser(ADAMW, parameters(), ROLES)
    with pytest.raises(KeyError, match="other"):
        optimiser.load_state({"other/exp_avg": torch.zeros(4, 3)})


def test_learning_rates_are_logged_by_role() -> None:
    optimiser = Optimiser(ADAMW, parameters(), ROLES)
    assert optimiser.learning_rates(0.5) == {"lr/embed": 0.05, "lr/matrix": 0.005, "lr/head": 0.015, "lr/scalar": 0.25}
