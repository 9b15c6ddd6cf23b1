"""Gradients of a whole batch: summed over micro-batches and processes, and brought to whoever updates the parameter."""

from collections import deque
from collections.abc import Mapping
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

from skipsweep.distributed import World


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The precision in which many small numbers of type `dtype` are added up."""
    return torch.promote_types(dtype, torch.float32)


class Gradients:
    """Takes every gradient as soon as a backward pass has it, and sends it off while the pass goes on.

    Parameters' `grad` stays empty. Gradients of several micro-batches are summed in float32 at least; that of a single
    one is sent in the parameter's own precision, as in the medium track's record.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], owners: Mapping[str, int], world: World):
        """Parameter `name` belongs to rank `owners[name]`."""
        self._parameters, self._owners, self._world = dict(parameters), owners, world
        self._sums: dict[str, Tensor] = {}
        self._works: list[dist.Work] = []
        self._micro_batches = 0
        self._is_ours = self._is_last = False
        # The order in which gradients are sent must be the same everywhere: it is that of rank 0's first pass.
        self._order: list[str] | None = None
        self._arrived: dict[str, None] = {}
        self._queue: deque[str] = deque()
        for name, parameter in self._parameters.items():
            parameter.register_post_accumulate_grad_hook(partial(self._take, name))

    # ------------------------------------------------------------------------------------------------------ backward

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add the gradients of one micro-batch; `last`: the step's last, after which they are under way.

        A parameter that the loss does not depend on has a gradient of zero.
        """
        self._is_ours, self._is_last = True, last
        self._micro_batches += 1
        self._arrived, self._queue = {}, deque(self._order or ())
        try:
            loss.backward()
        finally:
            self._is_ours = False
        if last:
            self._complete()
            self._micro_batches = 0

    def _take(self, name: str, parameter: nn.Parameter) -> None:
        """Autograd's hook: `parameter.grad` is that of this micro-batch."""
        if not self._is_ours or parameter.grad is None:
            return
        gradient, parameter.grad = parameter.grad, None
        if name in self._sums:
            self._sums[name] += gradient
        else:
            self._sums[name] = gradient.to(self._dtype(parameter))
        self._arrived[name] = None
        if self._is_last:
            self._send_arrived()

    def _dtype(self, parameter: nn.Parameter) -> torch.dtype:
        alone = self._is_last and self._micro_batches == 1
        return parameter.dtype if alone else at_least_float32(parameter.dtype)

    def _complete(self) -> None:
        """All that is left, zeros for what never arrived."""
        if self._order is None:
            late = self._parameters.keys() - self._arrived.keys()
            self._order = order = self._world.broadcast([*self._arrived, *sorted(late)])
            self._queue = deque(order)
        for name, parameter in self._parameters.items():
            if name not in self._sums:
                self._sums[name] = torch.zeros_like(parameter, dtype=self._dtype(parameter))
        while self._queue:
            self._send(self._queue.popleft())

    # ------------------------------------------------------------------------------------------------- communication

    def _send_arrived(self) -> None:
        while self._queue and self._queue[0] in self._arrived:
            self._send(self._queue.popleft())

    def _send(self, name: str) -> None:
        if self._world.size > 1:
            work = dist.reduce(self._sums[name], self._owners[name], async_op=True)
            assert work is not None
            self._works.append(work)

    def _wait(self) -> None:
        """Until every gradient is where it belongs; those of others are dropped."""
        for work in self._works:
            work.wait()
        self._works.clear()
        self._sums = {name: g for name, g in self._sums.items() if self._owners[name] == self._world.rank}

    # ------------------------------------------------------------------------------------------------------- results

    def own(self) -> Mapping[str, Tensor]:
        """Parameter -> gradient of the whole batch, for those that are this process's. Waits for them."""
        self._wait()
        return self._sums

    def norm(self) -> Tensor:
        """L2 norm of the whole gradient over all parameters (float64 scalar), the same on every process."""
        total = torch.zeros((), dtype=torch.float64, device=self._world.device)
        gradients = list(self.own().values())
        for dtype in {g.dtype for g in gradients}:
            same = [g for g in gradients if g.dtype == dtype]
            norms = torch._foreach_norm(same, 2, dtype=at_least_float32(dtype))  # type: ignore[attr-defined]
            total += torch.stack(norms).double().square().sum()
        return self._world.sum(total).sqrt()

    def drop(self) -> None:
        """Forget them all."""
        self._sums = {}
