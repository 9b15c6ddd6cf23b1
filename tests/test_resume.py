"""An interrupted run continues as if nothing had happened: whole state and all metric rows bit-equal, times aside.

Each kind of forgetting that a resume could be guilty of is tried as well, and must be caught by the same comparison.
"""

import random
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import MODEL, STEPS, Quiet, configuration, frozen, result, rows

from skipsweep import config as c
from skipsweep import job, train
from skipsweep.config import Compute
from skipsweep.exit_status import Exit
from skipsweep.model.gpt import GPT
from skipsweep.optim.optimiser import Optimiser
from skipsweep.record import Recorder
from skipsweep.rundir import RunDir
from skipsweep.train import Trainer


class Killed(BaseException):
    """Stands for a kill at an exact place."""


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """A job takes over signals; give them back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mechanism that draws at random in training, so that generators' states matter."""
    features = GPT.features

    def noisy(self: GPT, *given: Any) -> torch.Tensor:
        x = features(self, *given)
        return x * (1 + 0.1 * torch.randn_like(x)) if torch.is_grad_enabled() else x

    monkeypatch.setattr(GPT, "features", noisy)


@pytest.fixture
def states(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run folder -> the whole state at the end of its training."""
    kept: dict[str, Any] = {}
    finish = Recorder.finish

    def keeping(self: Recorder, trainer: Trainer, state: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
        kept[str(self.run.path)] = torch.utils._pytree.tree_map(
            lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, state
        )
        return finish(self, trainer, state, facts)

    monkeypatch.setattr(Recorder, "finish", keeping)
    return kept


ADAMW = c.AdamW(lr=0.01, embed_lr=0.05, head_lr=0.02, scalar_lr=0.05, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1)
ARMS: dict[str, dict[str, Any]] = {
    "add": {},
    "baseline": {"head_type": c.Last(), "skip_layers": c.SkipLayers()},
    "concat": {"head_type": c.Concat(), "skip_layers": c.SkipLayers([0, "input"])},
    "adamw": {"optim": ADAMW},
    "control": {
        "model": replace(MODEL, layers=4),
        "gate_targets": c.Listed(init="normal", attention="keys", floor=1e-6, means=[0.9, 0.4]),
        "control": c.ProportionalDerivative(gamma=1.0, delta=0.01, memory=4),
    },
}
"""What differs from the configuration of all tests; random mechanisms are in each."""


def start(folder: Path, data_root: Path, every: int = 3, arm: str = "add", seed: int = 0) -> RunDir:
    record = c.Record(val_every=4, checkpoint_every=every)
    return frozen(configuration(folder, data_root, record=record, seed=seed, **ARMS[arm]))


def execute(run: RunDir) -> int:
    return job.execute(run, Quiet())


Straight = Callable[..., RunDir]


@pytest.fixture(scope="module")
def _kept() -> dict[tuple[str, int], tuple[RunDir, Any]]:
    return {}


@pytest.fixture
def straight(
    states: dict[str, Any],
    _kept: dict[tuple[str, int], tuple[RunDir, Any]],
    tmp_path_factory: pytest.TempPathFactory,
    data_root: Path,
) -> Straight:
    """(arm, seed) -> a run that nothing happened to; each is executed once."""

    def get(arm: str = "add", seed: int = 0) -> RunDir:
        if (arm, seed) not in _kept:
            run = start(tmp_path_factory.mktemp("straight"), data_root, arm=arm, seed=seed)
            assert execute(run) == Exit.DONE
            _kept[arm, seed] = run, states[str(run.path)]
        run, states[str(run.path)] = _kept[arm, seed]
        return run

    return get


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Paths at which two states differ in any bit, clock times left out."""
    if isinstance(a, torch.Tensor):
        return [] if torch.equal(a, b) and a.dtype == b.dtype else [where]
    if isinstance(a, dict):
        keys = (a.keys() | b.keys()) - {"train_time_s"}
        return [d for k in sorted(keys, key=str) for d in differences(a.get(k), b.get(k), f"{where}/{k}")]
    if isinstance(a, list | tuple):
        if len(a) != len(b):
            return [where]
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{where}/{i}")]
    return [] if a == b else [where]


def all_differences(states: dict[str, Any], a: RunDir, b: RunDir) -> list[str]:
    found = differences(states[str(a.path)], states[str(b.path)])
    found += [] if rows(a) == rows(b) else ["metrics"]
    return found + ([] if result(a)["val_loss"] == result(b)["val_loss"] else ["val_loss"])


def kill_in(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, when: Callable[[Trainer, int], bool]) -> None:
    """Raise Killed, once, in the call of `owner.name` for which `when(trainer, number of calls so far)`."""
    original, calls, done = getattr(owner, name), [0], [False]

    def killing(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if not done[0] and when(self, calls[0]):
            done[0] = True
            raise Killed
        return original(self, *args, **kwargs)

    monkeypatch.setattr(owner, name, killing)


MICRO_BATCHES = 2

PLACES: dict[str, tuple[type, str, Callable[[Any, int], bool]]] = {
    "first step": (Trainer, "_update", lambda t, n: t.step == 0),
    "second step": (Trainer, "_update", lambda t, n: t.step == 1),
    # one warm-up step and four steps of two micro-batches each come before the second half of the fifth step
    "mid-accumulation": (GPT, "forward", lambda t, n: torch.is_grad_enabled() and n > 20),
    "validation": (Trainer, "validate", lambda t, n: t.step == 8),
    "before the optimiser": (Optimiser, "step", lambda o, n: n == 7),
    "last step": (Trainer, "_update", lambda t, n: t.step == STEPS - 1),
    "writing the result": (Recorder, "finish", lambda r, n: True),
}


PLACES |= {f"step {n}": (Trainer, "_update", lambda t, _, n=n: t.step == n) for n in (2, 3, 5, 7, 9)}
PR = list(PLACES)[:7]
CASES = [pytest.param("add", place, id=place) for place in PR]
CASES += [pytest.param("control", "step 7", id="control, step 7")]
CASES += [
    pytest.param(arm, place, id=f"{arm}, {place}", marks=pytest.mark.nightly)
    for arm in ARMS
    for place in PLACES
    if (arm, place) not in [("control", "step 7"), *(("add", place) for place in PR)]
]


@pytest.mark.parametrize(("arm", "place"), CASES)
def test_resume_is_bit_exact(
    arm: str,
    place: str,
    tmp_path: Path,
    data_root: Path,
    states: dict[str, Any],
    straight: Straight,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = straight(arm)
    broken = start(tmp_path, data_root, arm=arm)
    with monkeypatch.context() as patch:
        kill_in(patch, *PLACES[place])
        assert execute(broken) == Exit.FAILED
    assert execute(broken) == Exit.DONE
    assert all_differences(states, whole, broken) == []
    assert result(broken)["attempt"] == 2


@pytest.mark.parametrize("seed", range(8))
def test_resume_three_times_in_a_row(
    seed: int,
    tmp_path: Path,
    data_root: Path,
    states: dict[str, Any],
    straight: Straight,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A data position that is restored wrongly shows only at the second resume."""
    whole, broken = straight(seed=seed), start(tmp_path, data_root, every=1, seed=seed)
    for step in sorted(random.Random(seed).sample(range(1, STEPS), 3)):
        with monkeypatch.context() as patch:
            kill_in(patch, Trainer, "_update", lambda t, n, step=step: t.step == step)
            assert execute(broken) == Exit.FAILED
    assert execute(broken) == Exit.DONE
    assert all_differences(states, whole, broken) == []
    assert result(broken)["attempt"] == 4


SIGNALS: dict[str, tuple[type, str, Callable[[Any], bool], int, int]] = {
    "warm-up": (Trainer, "_warm_up", lambda t: True, 0, 0),
    "update": (Trainer, "_update", lambda t: t.step == 6, 0, 7),
    "validation": (Trainer, "validate", lambda t: t.step == 8, 0, 8),
    "saving": (Recorder, "save", lambda r: True, 5, 6),
}
"""While -> method and call in which the signal comes, steps between checkpoints, step at which it stops."""


@pytest.mark.parametrize("moment", SIGNALS)
def test_a_signal_saves_at_the_step_boundary(
    moment: str,
    tmp_path: Path,
    data_root: Path,
    states: dict[str, Any],
    straight: Straight,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is lost: the next attempt continues from the very step, not from the last periodic checkpoint."""
    owner, name, when, every, stops_at = SIGNALS[moment]
    whole, told = straight(), start(tmp_path, data_root, every=every)
    original = getattr(owner, name)

    def signalled(self: Any, *args: Any) -> Any:
        if when(self):
            signal.raise_signal(signal.SIGUSR2)
        return original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, signalled)
        assert execute(told) == Exit.PREEMPTED
    status = told.read_status()
    assert (status["state"], status["message"]) == ("preempted", "SIGUSR2")
    assert max(p.name for p in told.checkpoints.iterdir()) == f"step-{stops_at:08d}"
    assert execute(told) == Exit.DONE
    assert all_differences(states, whole, told) == []


MUTANTS: dict[str, tuple[object, str, Callable[..., Any]]] = {
    "generators forgotten": (train, "_set_random_states", lambda *_: None),
    "momentum forgotten": (Optimiser, "load_state", lambda *_: None),
    "weights forgotten": (Trainer, "load_state", lambda self, state: setattr(self, "step", state["step"])),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_forgetful_resume_is_caught(
    mutant: str,
    tmp_path: Path,
    data_root: Path,
    states: dict[str, Any],
    straight: Straight,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, broken = straight(), start(tmp_path, data_root)
    kill_in(monkeypatch, Trainer, "_update", lambda t, n: t.step == 7)
    assert execute(broken) == Exit.FAILED
    monkeypatch.setattr(*MUTANTS[mutant])
    assert execute(broken) == Exit.DONE
    assert all_differences(states, whole, broken) != []


def test_data_off_by_one_after_resume_is_caught(
    tmp_path: Path, data_root: Path, states: dict[str, Any], straight: Straight, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = straight(), start(tmp_path, data_root)
    kill_in(monkeypatch, Trainer, "_update", lambda t, n: t.step == 7)
    assert execute(broken) == Exit.FAILED
    batches = job.Batches.train
    monkeypatch.setattr(job.Batches, "train", lambda self, step: batches(self, step + 1))
    assert execute(broken) == Exit.DONE
    assert all_differences(states, whole, broken) != []


def test_accumulation_changes_nothing_but_rounding(tmp_path: Path, data_root: Path) -> None:
    import dataclasses

    losses = []
    for micro in (0, 4, 3):
        config = configuration(tmp_path / str(micro), data_root, compute=Compute(micro_batch=micro, threads=1))
        config.model = dataclasses.replace(config.model, dtype="float64")
        run = frozen(config)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "randn_like", torch.zeros_like)  # the noise of other shapes is another noise
            assert execute(run) == Exit.DONE
        losses.append([row["train/loss"] for row in rows(run) if "train/loss" in row])
    # Newton-Schulz amplifies rounding from step to step.
    assert losses[1] == pytest.approx(losses[0], abs=1e-9)
    assert losses[2] == pytest.approx(losses[0], abs=1e-9)


def test_a_finished_run_is_left_alone(tmp_path: Path, data_root: Path) -> None:
    run = start(tmp_path, data_root)
    assert execute(run) == Exit.DONE

    def stamps() -> dict[str, int]:
        return {str(p): p.stat().st_mtime_ns for p in run.path.rglob("*") if p.is_file() and "lease" not in str(p)}

    before = stamps()
    assert execute(run) == Exit.DONE
    assert stamps() == before
