"""An outer optimiser around the inner one: SGD with Nesterov momentum on what many inner steps have moved."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from skipsweep.optim.state import zeros


class Outer:
    """DiLoCo's outer step (Douillard et al. 2023) on one worker, called Snoo in the medium track (record 12).

    Slow weights follow the fast ones; after steps 1, 1 + every, 1 + 2 every, ... what the fast ones are ahead is taken
    as a negative gradient, the slow weights take one step of SGD, and the fast ones go on from there. Both are kept in
    the weights' precision, float32 at least. (The record works on bfloat16 parameters as such, and there loses what
    is too small for them.)
    """

    def __init__(self, weights: Mapping[str, Tensor], every: int, lr: float, momentum: float):
        """Slow weights start where `weights` are; those of other processes are meta tensors."""
        self._weights, self._every, self._lr, self._momentum = dict(weights), every, lr, momentum
        self._slow = {name: w.clone() for name, w in weights.items()}
        self._velocity = zeros(weights)

    def update(self, names: Iterable[str], step: int, halted: Tensor) -> None:
        """The outer step, if one is due after the inner one from `step` to `step + 1`, on those of `names` that are
        this process's; nothing changes where `halted` is 1."""
        if step % self._every:
            return
        for name in names:
            if not self._weights[name].is_meta:
                self._advance(self._weights[name], self._slow[name], self._velocity[name], halted != 0)

    def _advance(self, fast: Tensor, slow: Tensor, velocity: Tensor, stay: Tensor) -> None:
        gradient = slow - fast
        faster = torch.add(gradient, velocity, alpha=self._momentum)
        target = slow - self._lr * (gradient + self._momentum * faster)
        velocity.copy_(torch.where(stay, velocity, faster))
        fast.copy_(torch.where(stay, fast, target))
        slow.copy_(torch.where(stay, slow, target))

    def state(self) -> dict[str, Tensor]:
        """`<parameter>/<key>` -> tensor of the parameter's shape; a meta tensor where another process has it."""
        slow = {f"{name}/outer_slow": value for name, value in self._slow.items()}
        return slow | {f"{name}/outer_momentum": value for name, value in self._velocity.items()}
