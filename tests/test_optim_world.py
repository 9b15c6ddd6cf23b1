"""Two processes share the work of one optimiser and come to what one process comes to."""

import multiprocessing
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optim_cases as cases
import pytest
import torch
import torch.distributed as dist
from optim_cases import ADAMW, GO, HALT, ROLES, distance, equal, muon, parameters, state_of, values
from torch import Tensor, nn

from skipsweep.distributed import World
from skipsweep.optim.optimiser import Optimiser

BOTH = {"adamw": ADAMW, "muon": muon(outer_every=4)}
STEPS = 9
Results = list[dict[str, Any]]
"""What each rank reports."""


# ------------------------------------------------------------------------------------------------- what a process does


def train(
    world: World, optimiser: Optimiser, ps: Mapping[str, nn.Parameter], steps: range, micro_batches: int = 2
) -> list[Tensor]:
    """Steps on a batch of four pieces, shared among processes and micro-batches; returns the gradients' norms."""
    norms = []
    for step in steps:
        share = range(4)[world.rank :: world.size]
        size = len(share) // micro_batches
        for first in range(0, len(share), size):
            pieces = share[first : first + size]
            loss = torch.stack([piece_loss(ps, step, piece, world.rank) for piece in pieces]).sum()
            optimiser.backward(loss, last=first + size == len(share))
        norms.append(optimiser.grad_norm())
        optimiser.step(step, 1 - step / 20, GO)
    return norms


def piece_loss(ps: Mapping[str, nn.Parameter], step: int, piece: int, rank: int) -> Tensor:
    """A quarter of the batch's loss. Its gradients become known in another order on every rank."""
    gradients = cases.gradients_of(10 * step + piece, next(iter(ps.values())).dtype)
    ordered = dict(sorted(ps.items(), reverse=rank == 1))
    return cases.loss_of(ordered, gradients) + sum(p.square().sum() for p in ordered.values()) / 8


def straight(world: World, name: str, dtype: torch.dtype = torch.float64, micro_batches: int = 2) -> dict[str, Any]:
    ps = parameters(dtype)
    optimiser = Optimiser(BOTH[name], ps, ROLES, world)
    norms = train(world, optimiser, ps, range(STEPS), micro_batches)
    return {"values": values(ps), "norms": norms, "state": state_of(optimiser)}


def moving(world: World, name: str) -> dict[str, Any]:
    """Three steps on two processes, three on one, three on two again; in between only parameters and state survive."""
    ps = parameters()
    optimiser = Optimiser(BOTH[name], ps, ROLES, world)
    train(world, optimiser, ps, range(3))
    state = state_of(optimiser)
    if world.is_leader:
        single, ps = World(), copies(ps)
        optimiser = Optimiser(BOTH[name], ps, ROLES, single)
        optimiser.load_state(state)
        train(single, optimiser, ps, range(3, 6))
        state = state_of(optimiser)
    state, at_six = world.broadcast((state, values(ps)))
    ps = copies(at_six)
    optimiser = Optimiser(BOTH[name], ps, ROLES, world)
    optimiser.load_state(state)
    train(world, optimiser, ps, range(6, 9))
    return {"values": values(ps), "state": state_of(optimiser)}


def copies(ps: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(p.detach().clone()) for name, p in ps.items()}


def bad_on_rank_1(world: World) -> dict[str, Any]:
    """A step that is halted because one process's gradient is not finite, and one that is not, after it."""
    ps = parameters(torch.bfloat16)
    optimiser = Optimiser(BOTH["muon"], ps, ROLES, world)
    train(world, optimiser, ps, range(2))
    before, state = values(ps), state_of(optimiser)
    gradients = cases.gradients_of(0, torch.bfloat16)
    if world.rank == 1:
        gradients["blocks.0.mlp.fc"][0, 0] = torch.inf
    optimiser.backward(cases.loss_of(ps, gradients), last=True)
    norm = optimiser.grad_norm()
    optimiser.step(2, 1.0, HALT)
    unchanged = equal(values(ps), before) and equal(state_of(optimiser), state)
    train(world, optimiser, ps, range(2, 3))
    return {"norm": norm, "unchanged": unchanged, "values": values(ps), "state": state_of(optimiser)}


def shares(world: World) -> dict[str, Any]:
    """Numbers of state that this process holds itself."""
    optimiser = Optimiser(BOTH["muon"], parameters(), ROLES, world)
    held = {key: value.numel() for key, value in optimiser._tensors().items() if not value.is_meta}
    return {key: size for key, size in held.items() if not key.endswith("/step")}


@contextmanager
def recorded() -> Iterator[list[Tensor]]:
    """The gradients that are sent meanwhile."""
    reduce, sent = dist.reduce, []

    def recording(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        sent.append(tensor)
        return reduce(tensor, *args, **kwargs)

    dist.reduce = recording
    yield sent
    dist.reduce = reduce


def overlap(world: World) -> dict[str, Any]:
    """Messages sent by the time each parameter's gradient became known, in the first and in the second step."""
    ps, steps = parameters(), []
    optimiser = Optimiser(BOTH["muon"], ps, ROLES, world)
    for step in range(2):
        with recorded() as sent:
            counts: list[int] = []
            hooks = [
                p.register_post_accumulate_grad_hook(lambda _, c=counts, s=sent: c.append(len(s))) for p in ps.values()
            ]
            # One order for both ranks: where it differs, one has to wait for the other's.
            optimiser.backward(cases.loss_of(ps, cases.gradients_of(step)), last=True)
            optimiser.grad_norm()
            optimiser.step(step, 1.0, GO)
        steps.append(counts)
        for hook in hooks:
            hook.remove()
    return {"steps": steps}


def precision(world: World) -> list[set[torch.dtype]]:
    """In which gradients of bfloat16 parameters are sent, in steps of one, one, two and one micro-batches."""
    ps, found = parameters(torch.bfloat16), []
    optimiser = Optimiser(ADAMW, ps, ROLES, world)
    for step, micro_batches in enumerate([1, 1, 2, 1]):
        with recorded() as sent:
            train(world, optimiser, ps, range(step, step + 1), micro_batches)
        found.append({tensor.dtype for tensor in sent})
    return found


def work(rank: int, folder: Path) -> None:
    """The whole life of one process."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    world, found = World(rank, 2), {}
    for name in BOTH:
        found[f"straight {name}"] = straight(world, name)
        found[f"moving {name}"] = moving(world, name)
        found[f"bfloat16 {name}"] = straight(world, name, torch.bfloat16, micro_batches=1)
    found["bad"] = bad_on_rank_1(world)
    found["overlap"] = overlap(world)
    found["precision"] = precision(world)
    found["shares"] = shares(world)
    found["compiler"] = "torch._dynamo" in sys.modules
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("ranks")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=work, args=(rank, folder)) for rank in range(2)]
    for process in processes:
        process.start()
    try:
        deadline = time.monotonic() + 60
        for process in processes:
            process.join(deadline - time.monotonic())
        assert [process.exitcode for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


# ------------------------------------------------------------------------------------------------------ what came of it


@pytest.mark.parametrize("name", BOTH)
def test_two_processes_are_one(name: str, results: Results) -> None:
    """In float64, to rounding, over steps of which two are outer ones."""
    one = straight(World(), name)
    for rank in range(2):
        two = results[rank][f"straight {name}"]
        assert distance(one["values"], two["values"]) < 1e-11
        torch.testing.assert_close(torch.stack(one["norms"]), torch.stack(two["norms"]), rtol=1e-12, atol=0)
    assert distance(one["state"], results[0][f"straight {name}"]["state"]) < 1e-11
    assert results[1][f"straight {name}"]["state"] == {}


@pytest.mark.parametrize("name", BOTH)
def test_all_processes_have_the_same_bits(name: str, results: Results) -> None:
    for kind in ("straight", "bfloat16"):
        first, second = (results[rank][f"{kind} {name}"] for rank in range(2))
        assert equal(first["values"], second["values"])
        assert all(torch.equal(a, b) for a, b in zip(first["norms"], second["norms"], strict=True))


@pytest.mark.parametrize("name", BOTH)
def test_a_state_moves_from_two_processes_to_one_and_back(name: str, results: Results) -> None:
    stayed, moved = results[0][f"straight {name}"], results[0][f"moving {name}"]
    assert distance(stayed["values"], moved["values"]) < 1e-11
    assert distance(stayed["state"], moved["state"]) < 1e-11


@pytest.mark.parametrize("name", BOTH)
def test_bfloat16_parameters_are_their_masters_rounded_on_every_process(name: str, results: Results) -> None:
    state = results[0][f"bfloat16 {name}"]["state"]
    for rank in range(2):
        for parameter, p in results[rank][f"bfloat16 {name}"]["values"].items():
            assert torch.equal(p, state[f"{parameter}/master"].bfloat16())


def test_a_bad_gradient_anywhere_is_seen_everywhere_and_leaves_no_trace(results: Results) -> None:
    assert [result["bad"]["norm"].isfinite().item() for result in results] == [False, False]
    assert [result["bad"]["unchanged"] for result in results] == [True, True]
    assert equal(results[0]["bad"]["values"], results[1]["bad"]["values"])
    assert all(value.isfinite().all() for value in results[0]["bad"]["state"].values())


def test_gradients_are_sent_while_the_backward_pass_goes_on(results: Results) -> None:
    """The first step finds out in which order they come; from then on each goes as soon as it is there."""
    for result in results:
        assert result["overlap"]["steps"] == [[0] * len(ROLES), list(range(1, 1 + len(ROLES)))]


def test_what_was_summed_in_float32_is_sent_in_float32(results: Results) -> None:
    """And what was not, in half as many bytes."""
    half, full = {torch.bfloat16}, {torch.float32}
    assert [result["precision"] for result in results] == 2 * [[half, half, full, half]]


def test_every_number_of_state_is_held_once(results: Results) -> None:
    first, second = (result["shares"] for result in results)
    alone = shares(World())
    assert not first.keys() & second.keys()
    assert first | second == alone
    assert 0.4 < sum(first.values()) / sum(alone.values()) < 0.6


def test_training_does_not_load_the_compiler(results: Results) -> None:
    """It would cost every process more than a second."""
    assert [result["compiler"] for result in results] == [False, False]
