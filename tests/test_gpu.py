"""The GPU path: the same numbers as on CPU to rounding, and a guard that stops within its window."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gpu_script import checks, gates, gpu
from runs import configuration
from torch import Tensor

from skipsweep import config as c
from skipsweep.data import prepare
from skipsweep.data.batches import Batches
from skipsweep.distributed import World
from skipsweep.sweep.canonical import canonical_form
from skipsweep.train import LOOK_EVERY, NonFinite, Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DEVICE = "cuda"


def trainer(data_root: Path, device: str, steps: int = 6) -> Trainer:
    config = configuration(data_root, data_root, schedule=c.Constant(steps=steps))
    config.model = replace(config.model, dtype="float64")
    if device == "cuda":
        config.compute = c.Compute(device="cuda", gpus=1, micro_batch=4)
    run = canonical_form(config, prepare.resolve(config.data, data_root))
    return Trainer(run, Batches(run.data, data_root), World(device=torch.device(device)))


def losses(made: Trainer) -> list[float]:
    return [float(b.train_loss) for b in made.run() if b.train_loss is not None]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # the compiler looks at it
@pytest.mark.parametrize("section", ["attention", "blocks", "loss", "optimiser", "trainer", "gates"])
def test_what_the_benchmark_checks_holds(section: str, tmp_path: Path) -> None:
    """FlexAttention (with gates too), compiled code, loss and optimiser against references; skipping; recompilation,
    resuming, waiting."""
    found = tmp_path / "found.jsonl"
    (checks.SECTIONS | gates.SECTIONS)[section](gpu.Report(section, found), DEVICE)
    rows = [json.loads(line) for line in found.read_text().splitlines()]
    assert rows
    assert [row for row in rows if row["status"] not in ("ok", "measured")] == []


def test_a_gpu_trains_the_same_model(data_root: Path) -> None:
    assert losses(trainer(data_root, DEVICE)) == pytest.approx(losses(trainer(data_root, "cpu")), rel=1e-9)


def test_a_state_moves_between_devices(data_root: Path) -> None:
    straight = losses(trainer(data_root, "cpu"))
    first, second = trainer(data_root, DEVICE), trainer(data_root, "cpu")
    for boundary in first.run():
        if boundary.step == 3:
            break
    second.load_state(first.state())
    assert losses(second) == pytest.approx(straight[3:], rel=1e-9)


def test_the_guard_stops_in_time_with_the_last_good_parameters(data_root: Path) -> None:
    made = trainer(data_root, DEVICE, steps=3 * LOOK_EVERY["cuda"])
    good: dict[str, Tensor] = {}
    with pytest.raises(NonFinite) as raised:
        for boundary in made.run():
            if boundary.step == 2:
                good = {n: p.detach().clone() for n, p in made.model.named_parameters()}
                made._backward = _poisoned(made)  # type: ignore[method-assign]
    assert raised.value.step == 3
    assert made.step <= 2 + LOOK_EVERY["cuda"]
    assert all(torch.equal(p, good[n]) for n, p in made.model.named_parameters())


def _poisoned(made: Trainer) -> Callable[[int], tuple[Tensor, Tensor]]:
    original = made._backward

    def backward(step: int) -> tuple[Tensor, Tensor]:
        loss, norm = original(step)
        return loss * float("nan"), norm

    return backward
