"""Controls of gates against a plain replay over all layers, as the paper writes it; their targets; and what training
does with them, across a restart too. Two processes: test_world.py."""

import math
import random
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import MODEL, configuration

from skipsweep import config as c
from skipsweep.data import prepare
from skipsweep.data.batches import Batches
from skipsweep.distributed import World
from skipsweep.errors import UserError
from skipsweep.model.gate_targets import means
from skipsweep.optim.control import Driver, build_driver
from skipsweep.optim.gate_statistics import GateStatistics
from skipsweep.sweep import identity
from skipsweep.sweep.canonical import canonical_form
from skipsweep.sweep.entry import from_command_line
from skipsweep.sweep.validate import validate
from skipsweep.train import Trainer

# P pairs of opposite layers, B batch, T time

TARGETS = [1.0, 0.7, 0.2]
RATES: dict[str, Any] = {"gamma": 0.3, "delta": 0.02, "variance_shift": -0.05}
CONTROLS: dict[str, c.Control] = {
    "sparsity": c.Sparsity(alpha=0.3),
    "sparsity_variance": c.SparsityVariance(alpha=0.3, beta=-0.2),
    "sparsity_variance_l2": c.SparsityVarianceL2(alpha=0.3, beta=0.2, variance_shift=0.1),
    "squared": c.SparsityVarianceL2(alpha=0.3, beta=0.2, squared=True),
    "adaptive": c.Adaptive(alpha=0.1, beta=-0.1, **RATES),
    "proportional": c.Proportional(alpha=0.1, beta=-0.1, **RATES),
    "proportional_derivative": c.ProportionalDerivative(alpha=0.1, beta=-0.1, memory=3, **RATES),
}
STEPS, MICRO_BATCHES, TOKENS = 12, 2, 5

Gates = list[list[float]]
"""Of a micro-batch: per pair, per token."""


def gates_of_a_run() -> list[list[Gates]]:
    """Per step, per micro-batch: gates that move to and fro, so that deviations of either sign grow and shrink."""
    source = random.Random(7)

    def one(step: int, pair: int) -> list[float]:
        centre = TARGETS[pair] + 0.4 * math.sin(step / 2 + pair)
        return [min(max(centre + source.uniform(-0.3, 0.3), 0.0), 1.0) for _ in range(TOKENS)]

    return [[[one(step, pair) for pair in range(3)] for _ in range(MICRO_BATCHES)] for step in range(STEPS)]


# --------------------------------------------------------------------------------------------------------- the replay


def mirrored(pairs: list[Any]) -> list[Any]:
    """Per layer."""
    return [*pairs, *reversed(pairs)]


def replay(control: Any) -> tuple[list[float], list[list[float]], list[list[float]]]:
    """Losses of all micro-batches; after every step, alpha and beta per layer."""
    mu = mirrored(TARGETS)
    sigma2 = [max(m * (1 - m) + getattr(control, "variance_shift", 0.0), 0.0) for m in mu]
    alpha, beta = [control.alpha] * 6, [getattr(control, "beta", 0.0)] * 6
    recent: dict[str, list[float]] = {}
    losses, alphas, betas = [], [], []
    for step in gates_of_a_run():
        for micro_batch in step:
            means_l = [statistics.fmean(g) for g in mirrored(micro_batch)]
            variances = [statistics.variance(g) for g in mirrored(micro_batch)]
            losses.append(loss(control, alpha, beta, means_l, variances, mu, sigma2))
        together = mirrored([[x for micro_batch in step for x in micro_batch[pair]] for pair in range(3)])
        off = [statistics.fmean(g) - m for g, m in zip(together, mu, strict=True)]
        off_variance = [statistics.pvariance(g) - s for g, s in zip(together, sigma2, strict=True)]
        alpha = changed(control, alpha, off, recent, "mean")
        beta = changed(control, beta, off_variance, recent, "variance")
        alphas.append(alpha)
        betas.append(beta)
    return losses, alphas, betas


def loss(control: Any, alpha: Any, beta: Any, g: Any, s2: Any, mu: Any, sigma2: Any) -> float:
    layers = range(6)
    if control.name != "sparsity_variance_l2":
        return sum(alpha[i] * g[i] + beta[i] * s2[i] for i in layers) / 6
    squares = [sum((x - y) ** 2 for x, y in zip(*both, strict=True)) for both in ((g, mu), (s2, sigma2))]
    if control.squared:
        return (control.alpha * squares[0] + control.beta * squares[1]) / 6
    return control.alpha * squares[0] ** 0.5 + control.beta * squares[1] ** 0.5


def changed(control: Any, before: list[float], off: list[float], recent: dict[str, list[float]], name: str) -> Any:
    if control.name not in ("adaptive", "proportional", "proportional_derivative"):
        return before
    after = []
    if name not in recent:
        recent[name] = list(off)
    else:
        recent[name] = [r * (1 - 1 / 3) + d / 3 for r, d in zip(recent[name], off, strict=True)]
    for a, d, r in zip(before, off, recent[name], strict=True):
        if abs(d) <= control.delta:
            after.append(a)
        elif control.name == "adaptive":
            after.append(a + control.gamma * (1 if d > 0 else -1))
        elif control.name == "proportional" or (d - r) * d > 0:
            after.append(a + control.gamma * d)
        else:
            after.append(a)
    return after


def driver(control: c.Control) -> Driver:
    found = build_driver(control, TARGETS, 3, World())
    assert isinstance(found, Driver)
    return found


def tensor(gates: Gates) -> torch.Tensor:
    return torch.tensor(gates, dtype=torch.float64)[:, None]


def step(at_work: Driver, micro_batches: list[Gates], halted: float = 0.0) -> list[float]:
    """Losses on the gates, without their weights in the batch."""
    assert at_work.observer is not None
    found, weight = [], 1 / len(micro_batches)
    at_work.begin()
    for gates in micro_batches:
        at_work.observer(tensor(gates))
        found.append(at_work.on_top(torch.zeros((), dtype=torch.float64), weight).item() / weight)
    total = at_work.end()
    assert total is not None
    assert total.item() == pytest.approx(statistics.fmean(found), nan_ok=True)
    at_work.update(torch.tensor(halted))
    return found


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_is_its_formula(name: str) -> None:
    control = CONTROLS[name]
    at_work = driver(control)
    losses, alphas, betas = replay(control)
    found: list[float] = []
    for micro_batches, alpha, beta in zip(gates_of_a_run(), alphas, betas, strict=True):
        found += step(at_work, micro_batches)
        readings = at_work.readings()
        assert mirrored(readings["alpha"]) == pytest.approx(alpha, abs=1e-12)
        assert mirrored(readings["beta"]) == pytest.approx(beta, abs=1e-12)
    assert found == pytest.approx(losses, abs=1e-12)
    moved = alphas[0] != alphas[-1]
    assert moved == isinstance(control, c.Adapting)


@pytest.mark.parametrize("name", ["adaptive", "proportional", "proportional_derivative"])
def test_masked_steps_change_nothing_and_a_state_continues(name: str) -> None:
    run, control = gates_of_a_run(), CONTROLS[name]
    straight, halted = driver(control), driver(control)
    for micro_batches in run[:6]:
        step(straight, micro_batches)
        step(halted, micro_batches)
        step(halted, run[-1], halted=1.0)
        step(halted, [[[math.nan] * TOKENS] * 3], halted=1.0)
    resumed = driver(control)
    resumed.load_state({key: value.clone() for key, value in halted.state().items()})
    for micro_batches in run[6:]:
        step(straight, micro_batches)
        step(resumed, micro_batches)
    assert resumed.state().keys() == straight.state().keys()
    assert all(torch.equal(value, straight.state()[key]) for key, value in resumed.state().items())


@pytest.mark.parametrize("name", ["proportional", "proportional_derivative"])
def test_coefficients_do_not_depend_on_how_a_batch_is_cut(name: str) -> None:
    whole, cut = driver(CONTROLS[name]), driver(CONTROLS[name])
    for one, other in gates_of_a_run():
        step(whole, [[[*a, *b] for a, b in zip(one, other, strict=True)]])
        step(cut, [one, other])
    for key, value in whole.state().items():
        torch.testing.assert_close(cut.state()[key], value, rtol=1e-12, atol=1e-12)


def test_the_loss_moves_gates_towards_their_targets() -> None:
    """A mean above its target gets dearer, and the gradient of the loss lowers it; below, the other way round."""
    for level, sign in ((0.9, 1.0), (0.3, -1.0)):
        at_work = driver(c.Proportional(gamma=1.0, delta=0.01))
        gates = torch.full((3, 1, TOKENS), level, dtype=torch.float64, requires_grad=True)
        assert at_work.observer is not None
        step(at_work, [[[level] * TOKENS] * 3])
        at_work.observer(gates)
        on_top = at_work.on_top(torch.zeros((), dtype=torch.float64), 1.0)
        on_top.backward()
        assert gates.grad is not None
        assert torch.equal(gates.grad[1].sign(), torch.full((1, TOKENS), sign, dtype=torch.float64))


# ------------------------------------------------------------------------------------------------------------- targets


def test_targets_are_linear_with_both_ends() -> None:
    gates: dict[str, Any] = {"init": "normal", "attention": "keys", "floor": 1e-6}
    assert means(c.Linear(start=1.0, end=0.1, **gates), 8) == [1.0, 0.7, 0.4, 0.1]
    assert means(c.Linear(start=1.0, end=0.0, **gates), 12) == [1.0, 0.8, 0.6, 0.4, 0.2, 0.0]
    assert means(c.Linear(start=1.0, end=0.3, **gates), 2) == [0.3]
    assert means(c.Listed(means=[1, 0.5], **gates), 4) == [1.0, 0.5]
    assert means(c.Free(**gates), 4) == []


SHORT = ["model.layers=4", "control=proportional"]


Shipped = Callable[..., c.RunConfig]


@pytest.fixture(scope="module")
def shipped() -> Shipped:
    """The canonical configuration of a command line."""
    composer = from_command_line([]).composer

    def made(*overrides: str) -> c.RunConfig:
        config = composer(overrides)
        validate(config)
        return canonical_form(config, replace(config.data, vocab_size=257, fingerprint="none"))

    return made


def test_equal_targets_are_one_run_however_they_are_said(shipped: Shipped) -> None:
    linear, listed, other = (
        identity.run_id(c.recipe_of(shipped(*SHORT, *gates)))
        for gates in (["gate_targets=linear"], ["gate_targets=[1,.5]"], ["gate_targets=[1,.4]"])
    )
    assert linear == listed != other
    unseen = ["model.layers=4", "control=sparsity"]
    ids = [identity.run_id(c.recipe_of(shipped(*unseen, f"gate_targets={one}"))) for one in ("free", "linear")]
    assert ids[0] == ids[1]
    assert identity.run_id(c.recipe_of(shipped("model.layers=4", "gate_targets=free"))) != ids[0]


REFUSED = {
    ("gate_targets=[1,.5,0]",): r"gate_targets\.means=\[1\.0, 0\.5, 0\.0\] has 3 values, but 4 layers make 2 pairs",
    ("gate_targets=[1,1.5]",): r"gate_targets\.means: 1\.5 is no mean of gates; valid: 0 to 1",
    ("gate_targets=linear", "gate_targets.end=-.1"): r"gate_targets\.end: -0\.1 is no mean of gates",
    ("gate_targets=list",): r"no value for gate_targets\.means: it has no default",
    ("gate_targets=none",): r"control=proportional has no gates to control with .*=none; valid: gate_targets=linear, ",
    ("gate_targets=free",): r"control=proportional needs targets, gate_targets=free has none; valid: gate_targets=lin",
    (
        "gate_targets=linear",
        "control=none",
    ): r"control=none drives no gate to them; valid: control=sparsity_variance_l2, ",
    ("gate_targets=linear", "model.layers=5"): r"model\.layers=5 is odd; valid: an even number",
    ("gate_targets=linear", "control.gamma=-1"): r"control\.gamma=-1\.0 must not be negative",
    ("gate_targets=linear", "control.gamma=???"): r"no value for control\.gamma: it has no default; set it",
    ("gate_targets=[.5,1]",): r"means=\[0\.5, 1\.0\]: an inner pair is never more open than an outer one; valid: ",
    ("gate_targets=linear", "gate_targets.start=.2"): r"start=0\.2 and gate_targets\.end=0\.5: an inner pair is never",
    ("gate_targets=linear", "gate_targets.init=zero"): r"init=zero gives gates no gradient, so control=proportional ",
    ("gate_targets=linear", "control=sparsity_variance_l2", "control.alpha=-1"): r"alpha=-1\.0 must not be negative",
    ("gate_targets=linear", "control.sequences=0"): r"control\.sequences=0 must be above 0",
    ("gate_targets=linear", "control.sequences=3", "data.seq_len=64", "data.batch_tokens=512"): (
        r"control\.sequences=3: .* multiples of 8 sequences \(compute.micro_batch=0, .* is 8\); valid: 1, 2, 4, 8$"
    ),
    (
        "gate_targets=linear",
        "control.sequences=4",
        "data.seq_len=64",
        "data.batch_tokens=512",
        "compute.micro_batch=2",
    ): r"multiples of 2 .*; valid: 1, 2, or compute\.micro_batch=4$",
    (
        "gate_targets=linear",
        "control=proportional_derivative",
        "control.memory=.5",
    ): r"=0\.5 is a number of steps",
    (
        "gate_targets=linear",
        "head_type=concat_mlp",
        "skip_layers=[0]",
    ): r"the last MLP, which gate_targets=linear",
}


@pytest.mark.parametrize("overrides", REFUSED)
def test_what_cannot_be_is_refused(overrides: tuple[str, ...], shipped: Shipped) -> None:
    with pytest.raises(UserError, match=REFUSED[overrides]):
        shipped(*SHORT, *overrides)


# ---------------------------------------------------------------------------------------------------------- statistics


def test_gate_statistics_count_what_is_left_to_compute() -> None:
    gate_statistics = GateStatistics(1, torch.device("cpu"))
    gate_statistics.add(torch.tensor([[[0.5, 0.0, 1.0], [0.0, 0.0, 0.0]]]))
    gate_statistics.add(torch.tensor([[[1.0, 1.0, 0.25]]]))
    gate_statistics.reduce(World())
    every = [0.5, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.25]
    found = gate_statistics.values()
    assert found[""] == [pytest.approx(statistics.fmean(every))]
    assert found["variance"] == [pytest.approx(statistics.pvariance(every))]
    assert found["zeros"] == [pytest.approx(4 / 9)]
    assert gate_statistics.open_fractions.tokens.tolist() == [pytest.approx(5 / 9)]
    # of 1 + 2 + 3 products in each of three sequences: 1 + 2, none, and all
    assert gate_statistics.open_fractions.products.tolist() == [pytest.approx((3 + 0 + 6) / 18)]


# ------------------------------------------------------------------------------------------------------------ training


GATES = c.Listed(init="normal", attention="keys", floor=1e-6, means=[0.9, 0.4])
CONTROL = c.ProportionalDerivative(gamma=2.0, delta=0.01, memory=4)


def trainer(data_root: Path, **changes: Any) -> Trainer:
    """Of a speedrun trunk whose head sees another layer too."""
    config = configuration(data_root, data_root, **{"gate_targets": GATES, "control": CONTROL} | changes)
    config.model = replace(MODEL, layers=4, dtype="float64")
    run = canonical_form(config, prepare.resolve(config.data, data_root))
    return Trainer(run, Batches(run.data, data_root), World())


WITH_UNITS = {
    "proportional": c.Proportional(gamma=1.0, delta=0.01, sequences=2),
    "sparsity_variance": c.SparsityVariance(alpha=0.3, beta=-0.3, sequences=2),
    "sparsity_variance_l2": c.SparsityVarianceL2(alpha=0.3, beta=0.3, sequences=2),
    "squared": c.SparsityVarianceL2(alpha=0.3, beta=0.3, squared=True, sequences=2),
}


@pytest.mark.parametrize("name", WITH_UNITS)
def test_micro_batches_of_whole_units_change_no_number(name: str, data_root: Path) -> None:
    """8 sequences at once, 4, or a unit of 2. Another unit gives other numbers, and another id."""
    control: Any = WITH_UNITS[name]

    def trained(micro_batch: int, unit: int = 2) -> tuple[str, list[float]]:
        compute = c.Compute(micro_batch=micro_batch, threads=1)
        made = trainer(data_root, control=replace(control, sequences=unit), compute=compute)
        losses = [x for row in made.run() for x in (row.val_loss, row.train_loss, row.control_loss) if x is not None]
        return identity.run_id(c.recipe_of(made.config)), [float(x) for x in [*losses, *made.gates().values()]]

    id_, found = trained(8)
    for micro_batch in (4, 2):
        assert trained(micro_batch) == (id_, pytest.approx(found, rel=1e-9, abs=1e-10))
    other_id, others = trained(8, unit=8)
    assert other_id != id_
    assert max(abs(a - b) for a, b in zip(found, others, strict=True)) > 1e-6


def test_the_unit_is_the_machines_micro_batch_unless_it_is_said(shipped: Shipped) -> None:
    """Frozen when planning, and so in the id; where nothing depends on it there is none."""
    gates = ["model.layers=4", "gate_targets=linear", "data.batch_tokens=1024", "data.seq_len=64"]
    cases: dict[tuple[str, ...], int | None] = {
        ("control=proportional",): 16,
        ("control=proportional", "compute.processes=2"): 8,
        ("control=proportional", "compute.micro_batch=4"): 4,
        ("control=proportional", "compute.micro_batch=64"): 16,
        ("control=proportional", "compute.micro_batch=6"): 2,  # micro-batches of 6, 6 and 4
        ("control=proportional", "compute=gpu", "data.batch_tokens=524288"): 1024,
        ("control=proportional", "control.sequences=4"): 4,
        ("gate_targets=free", "control=sparsity_variance"): 16,
        ("gate_targets=free", "control=sparsity_variance", "control.beta=0"): None,
    }
    runs = {case: shipped(*gates, *case) for case in cases}
    assert {case: getattr(run.control, "sequences", "no such field") for case, run in runs.items()} == cases
    asked = shipped(*gates, "control=proportional", "compute.micro_batch=4")
    said = shipped(*gates, "control=proportional", "compute.micro_batch=8", "control.sequences=4")
    assert identity.run_id(c.recipe_of(asked)) == identity.run_id(c.recipe_of(said))
    assert "control.sequences" in identity.settings(c.recipe_of(asked))
    sparse = [shipped(*gates, "gate_targets=free", "control=sparsity", f"compute.micro_batch={n}") for n in (2, 4)]
    assert len({identity.run_id(c.recipe_of(run)) for run in sparse}) == 1


def test_a_restart_in_the_middle_changes_no_bit(data_root: Path) -> None:
    """And the speedrun's trunk, with a head that sees an earlier layer, trains under a control."""
    straight, first, second = (trainer(data_root) for _ in range(3))
    rows = {boundary.step: boundary for boundary in straight.run()}
    for boundary in first.run():
        if boundary.step == 5:
            break
    saved = first.state()
    assert [key for key in saved["optim"] if key.startswith("control/")]
    second.load_state(saved)
    for boundary in second.run():
        loss, control_loss = rows[boundary.step].train_loss, rows[boundary.step].control_loss
        assert boundary.train_loss is not None
        assert loss is not None
        assert boundary.control_loss is not None
        assert control_loss is not None
        assert torch.equal(boundary.train_loss, loss)
        assert torch.equal(boundary.control_loss, control_loss)
    assert second.gates() == straight.gates()
    assert abs(second.gates()["gate/alpha/1"]) > 0.01


def test_the_reported_loss_is_the_cross_entropy_alone(data_root: Path) -> None:
    """At the first step nothing has adapted: a dearer start moves the control's loss, not the reported one."""
    found = []
    for alpha in (0.0, 3.0):
        run = trainer(data_root, control=replace(CONTROL, alpha=alpha)).run()
        next(run)
        boundary = next(run)
        assert boundary.train_loss is not None
        assert boundary.control_loss is not None
        found.append((boundary.train_loss.item(), boundary.control_loss.item()))
    assert found[0][0] == found[1][0]
    assert found[0][1] == 0.0
    assert found[1][1] > 0.5
