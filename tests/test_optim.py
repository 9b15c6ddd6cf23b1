"""An update is what its definition says, applied whole, at the right rate, or not at all."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import optim_cases as cases
import pytest
import torch
from optim_cases import (
    ADAMW,
    GO,
    HALT,
    ROLES,
    SHAPES,
    alone,
    apply,
    distance,
    equal,
    muon,
    parameters,
    state_of,
    values,
)
from torch import Tensor, nn

from skipsweep.config import AdamW, Muon
from skipsweep.optim.newton_schulz import orthogonalise
from skipsweep.optim.owners import balance, newton_schulz_cost
from skipsweep.optim.schedule import momentum

BOTH = {"adamw": ADAMW, "muon": muon(outer_every=3)}


def lr_factor(step: int) -> float:
    return 1.0 if step < 20 else (40 - step) / 20


# ----------------------------------------------------------------------------------------------------- AdamW, by torch


def of_torch(ps: dict[str, nn.Parameter], rates: dict[str, float], optim: AdamW | Muon, decay: float) -> Any:
    """torch.optim.AdamW on the roles that have a rate, decay on matrices."""
    return torch.optim.AdamW(
        [
            {
                "params": [p],
                "lr": rates[ROLES[n]],
                "peak": rates[ROLES[n]],
                "weight_decay": decay * (ROLES[n] == "matrix"),
            }
            for n, p in ps.items()
            if ROLES[n] in rates
        ],
        betas=(optim.beta1, optim.beta2),
        eps=optim.eps,
    )


def step_of_torch(reference: Any, ps: dict[str, nn.Parameter], step: int, dtype: torch.dtype) -> None:
    for name, p in ps.items():
        p.grad = cases.gradients_of(step, dtype)[name]
    for group in reference.param_groups:
        group["lr"] = group["peak"] * lr_factor(step)
    reference.step()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_adamw_is_torchs(dtype: torch.dtype, tolerance: float) -> None:
    """Every role at its own rate; only matrices decay."""
    ours, theirs = parameters(dtype), parameters(dtype)
    optimiser = alone(ADAMW, ours)
    reference = of_torch(theirs, {"embed": 0.1, "matrix": 0.01, "head": 0.03, "scalar": 0.5}, ADAMW, decay=0.1)
    for step in range(40):
        apply(optimiser, ours, step, lr_factor(step))
        step_of_torch(reference, theirs, step, dtype)
    assert distance(values(ours), values(theirs)) < tolerance


# ------------------------------------------------------------------------------------------------- Muon, by definition


class Plain:
    """Muon, Adam and the outer optimiser with the record's values, one matrix at a time, as they are defined."""

    TRIPLES = (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    )

    def __init__(self, ps: dict[str, nn.Parameter], outer: bool):
        self.ps, self.slow = ps, {n: p.detach().clone() for n, p in ps.items()}
        self.m = {n: torch.zeros_like(p) for n, p in ps.items()}
        self.s = {n: torch.zeros_like(p) for n, p in ps.items()}
        self.adam = of_torch(ps, {"embed": 0.3, "head": 1 / 320, "scalar": 0.015}, muon(), decay=0.0)
        # Its gradients are set apart from those of the inner step.
        self.sgd = torch.optim.SGD(self.slow.values(), lr=0.68, momentum=0.37, nesterov=True) if outer else None

    @torch.no_grad()
    def step(self, step: int, dtype: torch.dtype) -> None:
        step_of_torch(self.adam, self.ps, step, dtype)
        for name, p in self.ps.items():
            if ROLES[name] == "matrix":
                gradient = cases.gradients_of(step, dtype)[name]
                matrices = [(p, gradient, self.m[name], self.s[name])]
                if p.ndim == 3:
                    matrices = list(zip(*matrices[0], strict=True))
                for w, g, m, s in matrices:
                    self.matrix(w, g, m, s, step, decay=0.02 if ".mlp." in name else 0.01)
        if self.sgd and step % 28 == 0:
            for name, p in self.ps.items():
                self.slow[name].grad = self.slow[name] - p
            self.sgd.step()
            for name, p in self.ps.items():
                p.copy_(self.slow[name])

    def matrix(self, w: Tensor, g: Tensor, m: Tensor, s: Tensor, step: int, decay: float) -> None:
        mu, lr = 0.85 + 0.1 * min(step / 300, 1), 0.03 * lr_factor(step)
        m.copy_(mu * m + (1 - mu) * g)
        v = self.newton_schulz(mu * m + (1 - mu) * g)
        s.copy_(0.2 * s + 0.8 * v)
        w.mul_(1 - lr * decay)
        w.sub_(lr * math.sqrt(max(1, w.shape[0] / w.shape[1])) * s)

    def newton_schulz(self, x: Tensor) -> Tensor:
        if x.shape[0] > x.shape[1]:
            return self.newton_schulz(x.T).T
        x = x / (x.square().sum().sqrt() + 1e-7)
        for a, b, c in self.TRIPLES:
            gram = x @ x.T
            x = a * x + b * (gram @ x) + c * (gram @ gram @ x)
        return x


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-4)])
@pytest.mark.parametrize("outer", [True, False])
def test_muon_is_what_the_record_does(dtype: torch.dtype, tolerance: float, outer: bool) -> None:
    """With the values of `optim=muon`; 40 steps hold the outer steps after steps 1 and 29."""
    ours, theirs = parameters(dtype), parameters(dtype)
    optimiser = alone(muon() if outer else muon(outer_every=0), ours)
    reference = Plain(theirs, outer)
    for step in range(40):
        apply(optimiser, ours, step, lr_factor(step))
        reference.step(step, dtype)
        assert distance(values(ours), values(theirs)) < tolerance, step


def test_without_smoothing_there_is_no_buffer_for_it() -> None:
    plain, almost = parameters(), parameters()
    optimiser, other = alone(muon(smoothing=0.0), plain), alone(muon(smoothing=1e-15), almost)
    for step in range(3):
        apply(optimiser, plain, step)
        apply(other, almost, step)
    assert distance(values(plain), values(almost)) < 1e-12
    assert {key.rsplit("/")[1] for key in other.state().keys() - optimiser.state().keys()} == {"smoothed"}


def test_orthogonalised_matrices_keep_their_singular_vectors_and_have_singular_values_near_one() -> None:
    for rows, columns in ((16, 64), (64, 16), (32, 32)):
        x = torch.randn(4, rows, columns, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        u, s, vh = torch.linalg.svd(x, full_matrices=False)
        turned = u.mT @ orthogonalise(x, muon().newton_schulz, torch.float64) @ vh.mT
        singular = turned.diagonal(dim1=-2, dim2=-1)
        torch.testing.assert_close(turned, torch.diag_embed(singular))
        large = s > 0.01 * s.square().sum(-1, keepdim=True).sqrt()
        assert large.float().mean() > 0.9
        assert ((singular - 1).abs()[large] < 0.3).all()


def test_newton_schulz_runs_in_the_parameters_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        seen = []
        baddbmm = torch.baddbmm
        with monkeypatch.context() as patch:
            patch.setattr(torch, "baddbmm", lambda x, *a, **k: seen.append(x.dtype) or baddbmm(x, *a, **k))  # noqa: B023
            ps = parameters(dtype)
            apply(alone(muon(), ps), ps, 0)
        assert set(seen) == {dtype}


# -------------------------------------------------------------------------------------------------------------- masking


def broken(ps: dict[str, nn.Parameter], value: float) -> Tensor:
    """A loss whose every gradient is `value`."""
    return cases.loss_of(ps, {name: torch.full_like(p, value) for name, p in ps.items()})


@pytest.mark.parametrize("value", [math.nan, math.inf, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", BOTH)
def test_a_halted_step_changes_nothing(name: str, dtype: torch.dtype, value: float) -> None:
    """Neither parameters nor state nor the count of steps, be it an outer step or not, be it the first or not."""
    ps = parameters(dtype)
    with torch.no_grad():
        ps["head.weight"].view(-1)[:2] = torch.tensor([0.0, -0.0])
    optimiser = alone(BOTH[name], ps)
    for halted in (0, 1, 3, 4):
        before, state = values(ps), state_of(optimiser)
        optimiser.backward(broken(ps, value), last=True)
        optimiser.step(halted, 1.0, HALT)
        assert equal(values(ps), before)
        assert equal(state_of(optimiser), state)
        apply(optimiser, ps, halted)
        assert not equal(values(ps), before)


def test_a_halted_step_is_as_if_it_had_not_been() -> None:
    straight, halted = parameters(), parameters()
    first, second = alone(BOTH["muon"], straight), alone(BOTH["muon"], halted)
    for step in range(5):
        apply(first, straight, step)
        second.backward(broken(halted, math.nan), last=True)
        second.step(step, 1.0, HALT)
        apply(second, halted, step)
    assert equal(values(straight), values(halted))


def test_the_host_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step must not wait for the device: nothing reads a tensor's value, nor copies a number to the device."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("the host waits for the device")

    ps = parameters(torch.float32)
    optimiser = alone(BOTH["muon"], ps)
    for step in range(4):
        optimiser.backward(cases.loss_of(ps, cases.gradients_of(step, torch.float32)), last=True)
        with monkeypatch.context() as patch:
            for method in ("item", "__bool__", "__float__", "__int__", "tolist", "cpu", "nonzero"):
                patch.setattr(Tensor, method, refuse)
            patch.setattr(torch, "tensor", refuse)
            optimiser.grad_norm()
            optimiser.step(step, 1.0, GO)


# ------------------------------------------------------------------------------------------------------------ gradients


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_micro_batches_add_up_to_the_batch(dtype: torch.dtype) -> None:
    whole, parts = parameters(dtype), parameters(dtype)
    first, second = alone(ADAMW, whole), alone(ADAMW, parts)
    pieces = [cases.gradients_of(k, dtype) for k in range(3)]
    first.backward(cases.loss_of(whole, {n: sum(p[n] for p in pieces) for n in SHAPES}), last=True)
    for k, piece in enumerate(pieces):
        second.backward(cases.loss_of(parts, piece), last=k == 2)
    assert first.grad_norm().item() == pytest.approx(second.grad_norm().item(), rel=1e-6)
    first.step(0, 1.0, GO), second.step(0, 1.0, GO)
    assert distance(values(whole), values(parts)) < 1e-4
    assert all(p.grad is None for p in (*whole.values(), *parts.values()))


def test_bfloat16_gradients_add_up_in_float32() -> None:
    """256 + 8 x 0.5: in bfloat16 each addition would be rounded away."""
    ps = parameters(torch.bfloat16)
    optimiser = alone(ADAMW, ps)
    for k, value in enumerate([256.0] + 8 * [0.5]):
        optimiser.backward(broken(ps, value), last=k == 8)
    numbers = sum(p.numel() for p in ps.values())
    assert optimiser.grad_norm().item() == pytest.approx(260 * math.sqrt(numbers), rel=1e-6)


def test_the_norm_is_that_of_all_gradients() -> None:
    ps = parameters(torch.float32)
    ps["context.embed"] = nn.Parameter(ps["context.embed"].detach().bfloat16())  # precisions may be mixed
    optimiser = alone(ADAMW, ps)
    gradients = {name: g.to(ps[name].dtype) for name, g in cases.gradients_of(0).items()}
    optimiser.backward(cases.loss_of(ps, gradients), last=True)
    expected = torch.cat([g.double().flatten() for g in gradients.values()]).norm()
    assert optimiser.grad_norm().item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_norm_tells_of_a_single_bad_number(value: float) -> None:
    ps = parameters(torch.float32)
    optimiser = alone(muon(), ps)
    gradients = cases.gradients_of(0, torch.float32)
    gradients["blocks.1.mlp.fc"][3, 3] = value
    optimiser.backward(cases.loss_of(ps, gradients), last=True)
    assert not optimiser.grad_norm().isfinite()


@pytest.mark.parametrize("name", BOTH)
def test_what_a_loss_does_not_depend_on_has_a_gradient_of_zero(name: str) -> None:
    left, right = parameters(), parameters()
    first, second = alone(BOTH[name], left), alone(BOTH[name], right)
    unused = {"blocks.0.mlp.fc", "context.embed", "inject.lambdas.weight"}
    gradients = cases.gradients_of(0)
    first.backward(cases.loss_of({n: p for n, p in left.items() if n not in unused}, gradients), last=True)
    second.backward(cases.loss_of(right, gradients | {n: 0 * gradients[n] for n in unused}), last=True)
    first.step(0, 1.0, GO), second.step(0, 1.0, GO)
    assert distance(values(left), values(right)) == 0.0


# ------------------------------------------------------------------------------------------------------------- bfloat16


@pytest.mark.parametrize("name", BOTH)
def test_a_bfloat16_parameter_is_its_master_rounded(name: str) -> None:
    ps = parameters(torch.bfloat16)
    optimiser = alone(BOTH[name], ps)
    for step in range(5):
        apply(optimiser, ps, step)
        state = optimiser.state()
        for parameter, p in ps.items():
            assert torch.equal(p, state[f"{parameter}/master"].bfloat16())
        assert {value.dtype for value in state.values()} == {torch.float32}


@pytest.mark.parametrize("optim", [ADAMW, muon(outer_every=0, smoothing=0.0)], ids=["adamw", "muon"])
def test_small_updates_of_bfloat16_parameters_are_not_lost(optim: AdamW | Muon) -> None:
    """A hundred steps of a thousandth of what bfloat16 can tell apart come to what they come to in float32."""
    rounded, exact = parameters(torch.bfloat16), parameters(torch.bfloat16)
    exact = {name: nn.Parameter(p.detach().float()) for name, p in exact.items()}
    first, second = alone(optim, rounded), alone(optim, exact)
    start = values(exact)
    for _ in range(100):
        for optimiser, ps in ((first, rounded), (second, exact)):
            gradients = {name: g.bfloat16().to(ps[name].dtype) for name, g in cases.gradients_of(0).items()}
            optimiser.backward(cases.loss_of(ps, gradients), last=True)
            optimiser.step(0, 1e-3, GO)
    state = first.state()
    for name, p in exact.items():
        moved = p - start[name]
        assert (state[f"{name}/master"] - p).norm() < 0.02 * moved.norm()


def test_float32_parameters_are_their_own_masters() -> None:
    ps = parameters(torch.float32)
    assert not any(key.endswith("/master") for key in alone(muon(), ps).state())


# ---------------------------------------------------------------------------------------------------------------- state


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", BOTH)
def test_state_by_name_continues_exactly(name: str, dtype: torch.dtype) -> None:
    straight = parameters(dtype)
    first = alone(BOTH[name], straight)
    for step in range(4):
        apply(first, straight, step)
    # Another order of parameters: the names decide.
    resumed = {n: nn.Parameter(p.detach().clone()) for n, p in reversed(straight.items())}
    second = alone(BOTH[name], resumed)
    second.load_state(state_of(first))
    for step in range(4, 9):
        apply(first, straight, step)
        apply(second, resumed, step)
    assert equal(values(straight), {n: resumed[n].detach() for n in straight})
    assert equal(state_of(first), state_of(second))


def test_a_state_that_was_taken_over_is_not_shared() -> None:
    ps = parameters()
    optimiser = alone(BOTH["muon"], ps)
    saved = state_of(optimiser)
    kept = {key: value.clone() for key, value in saved.items()}
    optimiser.load_state(saved)
    apply(optimiser, ps, 0)
    assert equal(saved, kept)


@pytest.mark.parametrize("change", ["more", "fewer", "another optimiser's"])
def test_state_of_other_parameters_is_refused(change: str) -> None:
    optimiser = alone(ADAMW, parameters())
    state = dict(optimiser.state())
    if change == "more":
        state["other/exp_avg"] = torch.zeros(4, 3)
    elif change == "fewer":
        state = {key: value for key, value in state.items() if not key.startswith("head.weight/")}
    else:
        state = alone(muon(), parameters()).state()
    with pytest.raises(KeyError, match=r"other parameters: .*(other/exp_avg|head\.weight/exp_avg|momentum)"):
        optimiser.load_state(state)


def test_learning_rates_are_logged_by_role() -> None:
    ps = {name: p for name, p in parameters().items() if ROLES[name] != "scalar"}
    assert alone(ADAMW, ps).learning_rates(0.5) == {"lr/embed": 0.05, "lr/matrix": 0.005, "lr/head": 0.015}


# ---------------------------------------------------------------------------------------------------------- compilation


def test_steps_after_the_first_compile_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Learning rate and momentum change from step to step, and once a step is an outer one."""
    graphs: list[Any] = []

    def backend(graph: Any, _: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    eager, compiled = parameters(), parameters()
    first, second = alone(muon(outer_every=3), eager), alone(muon(outer_every=3), compiled, compile=True)
    counts = []
    for step in range(6):
        apply(first, eager, step, lr_factor=1 / (1 + step))
        apply(second, compiled, step, lr_factor=1 / (1 + step))
        counts.append(len(graphs))
    assert counts == [3] * 6, "one for each of three shapes"
    assert distance(values(eager), values(compiled)) < 1e-13


# --------------------------------------------------------------------------------------------------------------- owners


def test_the_medium_models_work_is_shared_evenly() -> None:
    """On 8 processes: matrices by Newton-Schulz cost, and one table each of those that Adam serves."""
    shapes = {f"fc{i}": (4096, 1024) for i in range(16)} | {f"proj{i}": (1024, 4096) for i in range(16)}
    shapes |= {f"qkv{i}": (3, 1024, 1024) for i in range(15)} | {f"out{i}": (1024, 1024) for i in range(15)}
    tables = {f"table{i}": 50257 * 1024 for i in range(7)} | {"head": 50304 * 1024, "lambdas": 98}
    for costs in ({name: newton_schulz_cost(shape) for name, shape in shapes.items()}, tables):
        owners = balance(costs, 8)
        loads = [sum(costs[name] for name in costs if owners[name] == rank) for rank in range(8)]
        assert max(loads) / (sum(loads) / 8) < 1.05
        assert balance(dict(reversed(costs.items())), 8) == owners


def test_one_dear_parameter_weighs_as_much_as_several_cheap_ones() -> None:
    assert balance({"a": 3, "b": 3, "c": 8, "d": 2}, 2) == {"c": 0, "a": 1, "b": 1, "d": 1}


def test_cost_counts_the_multiplications_of_an_iteration() -> None:
    """XX', its square, and that times X, on the short side."""
    assert newton_schulz_cost((2, 5)) == newton_schulz_cost((5, 2)) == 2 * 2 * 5 + 2**3 + 2 * 2 * 5
    assert newton_schulz_cost((3, 4, 4)) == 3 * newton_schulz_cost((4, 4))


def test_the_records_values() -> None:
    optim = muon()
    assert (optim.lr, optim.weight_decay, optim.mlp_decay_factor, optim.smoothing) == (0.03, 0.01, 2, 0.2)
    assert (optim.embed_lr, optim.head_lr, optim.scalar_lr) == (0.3, 1 / 320, 0.015)
    assert (optim.beta1, optim.beta2, optim.eps) == (0.8, 0.95, 1e-10)
    assert (optim.outer_every, optim.outer_lr, optim.outer_momentum) == (28, 0.68, 0.37)
    assert tuple(map(tuple, optim.newton_schulz)) == Plain.TRIPLES
    assert momentum(optim, 150) == pytest.approx(0.9)


def test_the_first_outer_step_shortens_the_first_step() -> None:
    """To 0.68 x 1.37 of itself (reference: the record's own first step)."""
    inner, outer = parameters(), parameters()
    start = values(inner)
    apply(alone(muon(outer_every=0), inner), inner, 0)
    apply(alone(muon(), outer), outer, 0)
    for name in SHAPES:
        torch.testing.assert_close(outer[name] - start[name], 0.68 * 1.37 * (inner[name] - start[name]))
