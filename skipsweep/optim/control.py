"""The control of a run's gates at work: between the forward passes of a step, its backward passes, and its update.

Legend: P pairs of opposite layers, B batch, T time.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from skipsweep.config import Control, InUnits
from skipsweep.distributed import World
from skipsweep.optim.control_losses import ControlLoss, build_control_loss
from skipsweep.optim.gate_statistics import Moments

PREFIX = "control/"
"""What the names of a control's tensors begin with, in a state that holds others too."""


class NoDriver:
    """What stands beside the optimiser where there is no control."""

    observer: Callable[[Tensor], None] | None = None
    """Has to see the gates (P, B, T) of a micro-batch before its loss; None: need not."""

    def begin(self) -> None:
        """Before the first micro-batch of a step."""

    def on_top(self, loss: Tensor, weight: float) -> Tensor:
        """`loss` (scalar, weighted already) plus that of the gates, which has the same weight in the batch."""
        return loss

    def end(self) -> Tensor | None:
        """After the last micro-batch: the batch's loss on the gates, without the cross-entropy, over all processes."""
        return None

    def update(self, halted: Tensor) -> None:
        """Adapt to the step's gates; where `halted` (scalar) is 1 nothing changes."""

    def state(self) -> dict[str, Tensor]:
        """`control/NAME` -> tensor, the same on every process: what a continued run needs."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned, on any number of processes."""

    def readings(self) -> dict[str, list[float]]:
        """Name -> coefficients or targets, pair by pair."""
        return {}


class Driver(NoDriver):
    """A control at work: watches gates, adds up what they are like in a step, and adapts."""

    def __init__(self, control_loss: ControlLoss, sequences: int | None, world: World):
        """`sequences` of a unit; None: a micro-batch is one."""
        self._control_loss, self._sequences, self._world = control_loss, sequences, world
        self._pairs = len(control_loss.alpha)
        self.observer = self._observe
        self.begin()

    def begin(self) -> None:
        self._loss = self._zero()
        self._total = self._zero()
        self._moments = Moments(self._pairs, self._world.device)

    def _observe(self, gates: Tensor) -> None:
        pairs, batch, time = gates.shape
        unit = self._sequences or batch
        self._loss = self._control_loss.loss(gates.reshape(pairs, batch // unit, unit * time))
        self._moments.add(gates)

    def on_top(self, loss: Tensor, weight: float) -> Tensor:
        own = self._loss * weight
        self._total += own.detach()
        return loss + own

    def end(self) -> Tensor | None:
        self._moments.reduce(self._world)
        return self._world.sum(self._total)

    def update(self, halted: Tensor) -> None:
        self._control_loss.update(self._moments.mean, self._moments.variance, halted)

    def state(self) -> dict[str, Tensor]:
        return {f"{PREFIX}{name}": tensor for name, tensor in self._control_loss.tensors().items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        for name, tensor in self.state().items():
            tensor.copy_(state[name])

    def readings(self) -> dict[str, list[float]]:
        return {name: values.tolist() for name, values in self._control_loss.readings().items()}

    def _zero(self) -> Tensor:
        return torch.zeros((), dtype=torch.float64, device=self._world.device)


def build_driver(control: Control, means: Sequence[float], pairs: int, world: World) -> NoDriver:
    """What drives the gates of so many pairs of layers to these targets (empty: there are none)."""
    control_loss = build_control_loss(control, means, pairs, world.device)
    sequences = control.sequences if isinstance(control, InUnits) else None
    return Driver(control_loss, sequences, world) if control_loss else NoDriver()
