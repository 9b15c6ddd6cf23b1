"""The training loop. It yields a `Boundary` after every step and knows no file, no wandb and no SLURM.

Everything that a run's numbers depend on is in the configuration: batches are a pure function of the step, the
initialisation one of seed and parameter name, and the loop draws nothing at random. What continues a run is `state`.
"""

import math
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skipsweep.config import RunConfig, micro_batch_tokens
from skipsweep.data.prefetch import Reader
from skipsweep.distributed import World
from skipsweep.errors import UserError
from skipsweep.model.gate_targets import mean_targets
from skipsweep.model.gpt import build
from skipsweep.model.init import parameter_roles
from skipsweep.model.window import window_blocks
from skipsweep.optim.control import PREFIX, build_driver
from skipsweep.optim.gate_statistics import GateStatistics
from skipsweep.optim.optimiser import Optimiser
from skipsweep.optim.schedule import lr_factor

# B sequences of a micro-batch, T tokens of a sequence

VALIDATIONS = 10
"""Validations per run when `record.val_every` is 0, not counting the one at step 0."""

LOOK_EVERY = {"cpu": 1, "cuda": 16}
"""Steps between two looks at what the device knows (is all finite? is any rank told to stop?): a GPU has to be waited
for."""


class NonFinite(Exception):
    """A loss or gradient was not finite; no update with it was applied."""

    def __init__(self, step: int, what: str):
        super().__init__(f"{what} is not finite at step {step}")
        self.step = step


@dataclass
class Boundary:
    """The state between two steps: `step` updates have been applied."""

    step: int
    train_loss: Tensor | None
    """Mean cross-entropy of the batch of the last update (scalar, nats per token), without the control's loss; None at
    step 0 and right after a resume."""
    grad_norm: Tensor | None
    """L2 norm of the whole gradient of the last update (scalar)."""
    val_loss: float | None
    """Validation loss (nats per token) where one was due."""
    control_loss: Tensor | None = None
    """The control's loss on the gates of that batch (scalar), where there is a control."""


class Clock:
    """Seconds of training: runs only between `start` and `pause`, and carries over restarts."""

    def __init__(self, device: torch.device):
        self._device = device
        self._total = 0.0
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        running = time.perf_counter() - self._since if self._since is not None else 0.0
        return self._total + running

    @seconds.setter
    def seconds(self, value: float) -> None:
        self._total, self._since = value, None

    def start(self) -> None:
        """Run, or go on running."""
        if self._since is None:
            self._synchronise()
            self._since = time.perf_counter()

    def pause(self) -> None:
        """Stand still, if not already."""
        self._synchronise()
        self._total, self._since = self.seconds, None

    def _synchronise(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


class Trainer:
    """Model, optimiser and data of one run, on one of its processes."""

    def __init__(self, config: RunConfig, batches: Reader, world: World):
        self.config, self.batches, self.world = config, batches, world
        self.model = build(config, world.device)
        self._parameters = dict(self.model.named_parameters())
        compiled, roles = config.compute.compile, parameter_roles(self.model)
        self.optimiser = Optimiser(config.optim, self._parameters, roles, world, compiled)
        self.control = build_driver(config.control, mean_targets(config), self.model.gate.pairs, world)
        self.gate_statistics: GateStatistics | None = None
        """What the gates were like in the last validation; None without gates, and before."""
        if compiled:
            self.model.compile_parts(config.compute.tune_kernels)
        self.step = 0
        self.clock = Clock(world.device)
        # 1 from the first non-finite loss or gradient on, and never reset: later updates are masked as well, so that
        # the parameters stay those of the last good step until the host has seen it.
        self._halted = torch.zeros((), device=world.device)
        self._masked = torch.zeros((), device=world.device)

    # ------------------------------------------------------------------------------------------------------ the loop

    def run(self) -> Iterator[Boundary]:
        """Train from where we stand to the last step. Whoever consumes may stop at any boundary, and save there.

        Raises NonFinite within `LOOK_EVERY` steps of a non-finite loss or gradient, on every rank.
        """
        steps = self.config.schedule.steps
        val_every = self.config.record.val_every or math.ceil(steps / VALIDATIONS)
        self._warm_up()
        if self.step == 0:
            yield Boundary(0, None, None, self.validate())
        while self.step < steps:
            self.clock.start()
            loss, grad_norm, control_loss = self._update()
            if self.step % LOOK_EVERY[self.world.device.type] == 0 or self.step == steps:
                self._raise_if_halted()
            val_due = self.step % val_every == 0 or self.step == steps
            if val_due:
                self.clock.pause()
            val_loss = self.validate() if val_due else None
            yield Boundary(self.step, loss, grad_norm, val_loss, control_loss)

    def _update(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """One optimiser step on the whole batch; returns what `_backward` does."""
        loss, grad_norm, control_loss = self._backward(self.step)
        finite = torch.isfinite(loss) & torch.isfinite(grad_norm)
        self._halted = torch.maximum(self._halted, (~finite).to(self._halted.dtype))
        self._masked += self._halted
        self.optimiser.step(self.step, lr_factor(self.config.schedule, self.step), self._halted)
        self.control.update(self._halted)
        self.step += 1
        return loss, grad_norm, control_loss

    def _backward(self, step: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Gradients of the mean loss over the batch of all processes, accumulated by micro-batches, and of a control's
        on top.

        Returns the one, the norm of the whole gradient, and the other.
        """
        ids_BT, targets_BT = self._to_device(self.batches.train(step))
        size, window = self._micro_batch(self.config.data.seq_len), self._window(step)
        total = torch.zeros((), device=self.world.device, dtype=torch.float64 if self._is_double else torch.float32)
        pairs = list(zip(ids_BT.split(size), targets_BT.split(size), strict=True))
        self.control.begin()
        with self.model.gate.observed_by(self.control.observer):
            for number, (ids, targets) in enumerate(pairs, start=1):
                weight = len(ids) / (len(ids_BT) * self.world.size)
                loss = self.model(ids, targets, window=window) * weight
                self.optimiser.backward(self.control.on_top(loss, weight), last=number == len(pairs))
                total += loss.detach()
        return self.world.sum(total), self.optimiser.grad_norm(), self.control.end()

    def _window(self, step: int) -> int:
        """Blocks that the long attention window has after `step` updates."""
        return window_blocks(self.config.model, self.config.schedule, step)

    def _micro_batch(self, seq_len: int) -> int:
        """Sequences of `seq_len` tokens in a forward pass: as many tokens as a micro-batch of training has."""
        asked, world = self.config.compute.micro_batch, self.world
        tokens = micro_batch_tokens(self.config.data, asked, world.size, world.device.type)
        return max(tokens // seq_len, 1)

    @property
    def halted(self) -> bool:
        """Whether a loss or gradient was not finite, so that updates are masked; waits for the device."""
        return bool(self._halted.item())

    def _raise_if_halted(self) -> None:
        if self.halted:
            self.clock.pause()
            raise NonFinite(self.step - int(self._masked.item()) + 1, "training loss or gradient")

    @torch.no_grad()
    def validate(self) -> float:
        """Mean loss (nats per token) over the first `val_tokens` of the validation split, over all processes.

        Raises NonFinite if it is not finite.
        """
        data, total = self.config.data, torch.zeros((), dtype=torch.float64, device=self.world.device)
        size, window = self._micro_batch(data.val_seq_len or data.seq_len), self._window(self.step)
        statistics = GateStatistics(self.model.gate.pairs, self.world.device)
        self.model.eval()
        with self.model.gate.observed_by(statistics.add):
            for first in range(0, self.batches.val_sequences, size):
                ids, targets = self._to_device(self.batches.val(first, first + size))
                total += self.model(ids, targets, "sum", window, self.config.compute.skip).double()
        self.model.train()
        mean = self.world.sum(total).item() / self.config.data.val_tokens
        if not math.isfinite(mean):
            raise NonFinite(self.step, "validation loss")
        if self.model.gate.pairs:
            statistics.reduce(self.world)
            self.gate_statistics = statistics
        return mean

    def _warm_up(self) -> None:
        """Run one step whose update is masked, so that compilation, first allocations and first messages are not timed;
        parameters and all state are unchanged."""
        rng = _random_states()
        step = min(self.step, self.config.schedule.steps - 1)
        self._backward(step)
        self.optimiser.step(step, 0.0, torch.ones_like(self._halted))
        _set_random_states(rng)

    @property
    def _is_double(self) -> bool:
        return self.config.model.dtype == "float64"

    def _to_device(self, arrays: tuple[np.ndarray, np.ndarray]) -> tuple[Tensor, Tensor]:
        tensors = [torch.from_numpy(a) for a in arrays]
        if self.world.device.type == "cuda":  # from pageable memory the host would wait for all that is under way
            tensors = [t.pin_memory().to(self.world.device, non_blocking=True) for t in tensors]
        ids, targets = tensors
        return ids, targets

    # ------------------------------------------------------------------------------------------------------ its state

    def lambdas(self) -> dict[str, float]:
        """Every learned scalar under its label."""
        return {label: float(value) for label, value in self.model.lambdas().items()}

    def gates(self) -> dict[str, float]:
        """What gates were like in the last validation, and the control's coefficients and targets now:
        `gate/LAYER` (mean), `gate/variance/LAYER`, `gate/zeros/LAYER`, `gate/alpha/LAYER`, .. by layer of the first
        half; layer L - 1 - l is like l. Empty without gates."""
        found = (self.gate_statistics.values() if self.gate_statistics else {}) | self.control.readings()
        return {
            "/".join(filter(None, ("gate", name, str(layer)))): value
            for name, values in found.items()
            for layer, value in enumerate(values)
        }

    def open_fractions(self) -> tuple[list[float], list[float]]:
        """Fractions of tokens, and of products of queries with keys, that gates left open in the last validation, by
        layer of the first half; empty without gates."""
        if self.gate_statistics is None:
            return [], []
        fractions = self.gate_statistics.open_fractions
        return fractions.tokens.tolist(), fractions.products.tolist()

    def state(self) -> dict[str, Any]:
        """All that the rest of the run depends on: `model`, `optim` (tensors by name, those of a control among them),
        `random` (one entry per rank), `step`, `train_time_s`. Every rank must call it.

        Raises NonFinite if the last updates were masked: it would be the state of an earlier step.
        """
        self._raise_if_halted()
        return {
            "model": {name: p.detach() for name, p in self._parameters.items()},
            "optim": self.optimiser.state() | self.control.state(),
            "random": self.world.gather(_random_states()),
            "step": self.step,
            "train_time_s": self.clock.seconds,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned, on any number of processes.

        Raises UserError if it was saved by a model with other parameters.
        """
        if state["model"].keys() != self._parameters.keys():
            odd = sorted(state["model"].keys() ^ self._parameters.keys())
            raise UserError(f"the checkpoint belongs to a model with other parameters: {', '.join(odd[:5])}")
        with torch.no_grad():
            for name, value in state["model"].items():
                self._parameters[name].copy_(value)
        optim = state["optim"]
        self.control.load_state({name: value for name, value in optim.items() if name.startswith(PREFIX)})
        self.optimiser.load_state({name: value for name, value in optim.items() if not name.startswith(PREFIX)})
        self.step, self.clock.seconds = state["step"], state["train_time_s"]
        states = state["random"]
        _set_random_states(states[self.world.rank % len(states)])


def _random_states() -> dict[str, Any]:
    """States of all global generators, in types that `torch.load(weights_only=True)` accepts.

    The loop draws nothing itself; this is for mechanisms that do (dropout, stochastic depth).
    """
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": (kind, [int(k) for k in keys], position, has_gauss, gauss),  # type: ignore[union-attr]
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _set_random_states(states: Mapping[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, gauss = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, gauss))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
