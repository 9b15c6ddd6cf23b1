"""The GPU path: the same numbers as on CPU to rounding, and a guard that stops within its window."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import configuration

from skipsweep import config as c
from skipsweep.data import prepare
from skipsweep.data.batches import Batches
from skipsweep.distributed import World
from skipsweep.sweep import identity
from skipsweep.train import LOOK_EVERY, NonFinite, Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

GPU = c.Compute(device="cuda", gpus=1, micro_batch=4)


def trainer(data_root: Path, device: str, steps: int = 6) -> Trainer:
    config = configuration(data_root, data_root, schedule=c.Constant(steps=steps))
    config.model = replace(config.model, dtype="float64")
    config.compute = GPU if device == "cuda" else config.compute
    run = identity.canonical(config, prepare.resolve(config.data, data_root))
    return Trainer(run, Batches(run.data, data_root), World(device=torch.device(device)))


def losses(made: Trainer) -> list[float]:
    return [float(b.train_loss) for b in made.run() if b.train_loss is not None]


def test_a_gpu_trains_the_same_model(data_root: Path) -> None:
    assert losses(trainer(data_root, "cuda")) == pytest.approx(losses(trainer(data_root, "cpu")), rel=1e-9)


def test_a_state_moves_between_devices(data_root: Path) -> None:
    straight = losses(trainer(data_root, "cpu"))
    first, second = trainer(data_root, "cuda"), trainer(data_root, "cpu")
    for boundary in first.run():
        if boundary.step == 3:
            break
    second.load_state(first.state())
    assert losses(second) == pytest.approx(straight[3:], rel=1e-9)


def test_the_guard_stops_in_time_with_the_last_good_parameters(data_root: Path) -> None:
    made = trainer(data_root, "cuda", steps=3 * LOOK_EVERY["cuda"])
    good: dict[str, torch.Tensor] = {}
    with pytest.raises(NonFinite) as raised:
        for boundary in made.run():
            if boundary.step == 2:
                good = {n: p.detach().clone() for n, p in made.model.named_parameters()}
                made._backward = _poisoned(made)  # type: ignore[method-assign]
    assert raised.value.step <= 2 + LOOK_EVERY["cuda"]
    assert all(torch.equal(p, good[n]) for n, p in made.model.named_parameters())


def _poisoned(made: Trainer) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    original = made._backward

    def backward(ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return original(ids, targets) * float("nan")

    return backward
