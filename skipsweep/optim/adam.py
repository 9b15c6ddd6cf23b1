"""Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from skipsweep.optim.state import zeros


class Adam:
    """Adam on the parameters of one role, by torch's fused kernel.

    The kernel is called directly: `torch.optim` loads the compiler, which costs every process more than a second.
    Moments are kept in the weights' precision, float32 at least. (The medium track's record keeps those of bfloat16
    parameters in bfloat16, where what is added to a moment is lost below some thousandths of it.)
    """

    def __init__(
        self, weights: Mapping[str, Tensor], lr: float, betas: tuple[float, float], eps: float, weight_decay: float
    ):
        """`weights` of other processes are meta tensors."""
        self.names = tuple(weights)
        self._weights, self._lr, self._betas, self._eps, self._decay = dict(weights), lr, betas, eps, weight_decay
        self._own = [name for name, w in weights.items() if not w.is_meta]
        self._first, self._second = zeros(weights), zeros(weights)
        # One count serves all: they are updated together or not at all.
        self._steps = torch.zeros((), device=weights[self._own[0]].device if self._own else "meta")

    def update(self, gradients: Mapping[str, Tensor], step: int, lr_factor: float, halted: Tensor) -> None:
        """One update of the weights that are this process's; nothing changes where `halted` is 1."""
        if not self._own:
            return
        found_inf = halted.to(torch.float32)
        self._steps += 1 - found_inf
        weights = [self._weights[name] for name in self._own]
        torch._fused_adamw_(  # type: ignore[attr-defined]
            weights,
            [gradients[name].to(w.dtype) for name, w in zip(self._own, weights, strict=True)],
            [self._first[name] for name in self._own],
            [self._second[name] for name in self._own],
            [],
            [self._steps] * len(weights),
            lr=self._lr * lr_factor,
            beta1=self._betas[0],
            beta2=self._betas[1],
            weight_decay=self._decay,
            eps=self._eps,
            amsgrad=False,
            maximize=False,
            grad_scale=None,
            found_inf=found_inf,  # GradScaler's protocol: where it is 1 the kernel leaves everything alone
        )

    def state(self) -> dict[str, Tensor]:
        """`<parameter>/<key>` -> tensor; a meta tensor where another process has it."""
        found = {}
        for name in self.names:
            moments = {"exp_avg": self._first[name], "exp_avg_sq": self._second[name], "step": self._steps}
            found |= {f"{name}/{key}": value for key, value in moments.items()}
        return found
