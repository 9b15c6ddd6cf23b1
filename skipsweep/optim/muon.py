"""Muon: Nesterov momentum, orthogonalised (Jordan et al. 2024), with smoothed updates (medium track, record 13)."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from skipsweep import config
from skipsweep.optim.newton_schulz import Coefficients, orthogonalise
from skipsweep.optim.schedule import momentum

# N matrices side by side, R rows, C columns


def update(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    momentum_NRC: Tensor,
    smoothed_NRC: Tensor | None,
    mu: Tensor,
    rate: Tensor,
    keep: Tensor,
    smoothing: float,
    coefficients: Coefficients,
    dtype: torch.dtype,
    halted: Tensor,
) -> None:
    """One step of all matrices of one shape, in place; nothing changes where `halted` is 1.

    `weights` and `gradients` are (n, R, C) each and N matrices together. What changes from step to step comes as
    tensors: compiled once, it serves all steps. `rate` is the step's length, `keep` what weight decay leaves.
    """
    stay = halted != 0
    gradient_NRC = torch.cat([g.view(-1, *momentum_NRC.shape[1:]) for g in gradients]).to(momentum_NRC.dtype)
    mean_NRC = torch.lerp(momentum_NRC, gradient_NRC, 1 - mu)
    ahead_NRC = torch.lerp(gradient_NRC, mean_NRC, mu)
    step_NRC = orthogonalise(ahead_NRC, coefficients, dtype).to(momentum_NRC.dtype)
    momentum_NRC.copy_(torch.where(stay, momentum_NRC, mean_NRC))
    if smoothed_NRC is not None:
        step_NRC = torch.lerp(step_NRC, smoothed_NRC, smoothing)
        smoothed_NRC.copy_(torch.where(stay, smoothed_NRC, step_NRC))
    for weight, step in zip(weights, step_NRC.split([len(w) for w in weights]), strict=True):
        weight.copy_(torch.where(stay, weight, weight * keep - step * rate))


class Muon:
    """Muon on matrices of one shape (rows, columns); a parameter (n, rows, columns) is n of them.

    Momentum and smoothed updates are kept in the weights' precision, float32 at least. (The medium track's record
    keeps smoothed updates of bfloat16 parameters in bfloat16: that saves memory and loses small changes.) The
    orthogonalisation alone runs in `dtype`, the parameters' own.
    """

    def __init__(
        self,
        optim: config.Muon,
        weights: Mapping[str, Tensor],
        dtype: torch.dtype,
        decay_factor: float,
        update: Callable[..., None] = update,
    ):
        """`weights` of other processes are meta tensors. `decay_factor` is one on the weight decay."""
        self.names = tuple(weights)
        self._optim, self._weights, self._dtype, self._update = optim, dict(weights), dtype, update
        self._decay = optim.weight_decay * decay_factor
        rows, columns = next(iter(weights.values())).shape[-2:]
        self._stretch = math.sqrt(max(1.0, rows / columns))
        self._own = {name: w.view(-1, rows, columns) for name, w in weights.items() if not w.is_meta}
        keys = ("momentum", "smoothed") if optim.smoothing else ("momentum",)
        self._buffers = {key: torch.cat([torch.zeros_like(w) for w in self._own.values()]) for key in keys if self._own}

    def update(self, gradients: Mapping[str, Tensor], step: int, lr_factor: float, halted: Tensor) -> None:
        """The update from `step` to `step + 1` of the weights that are this process's."""
        if not self._own:
            return
        lr = self._optim.lr * lr_factor
        mu, rate, keep = (
            self._scalar(value) for value in (momentum(self._optim, step), lr * self._stretch, 1 - lr * self._decay)
        )
        self._update(
            list(self._own.values()),
            [gradients[name] for name in self._own],
            self._buffers["momentum"],
            self._buffers.get("smoothed"),
            mu=mu,
            rate=rate,
            keep=keep,
            smoothing=self._optim.smoothing,
            coefficients=self._optim.newton_schulz,
            dtype=self._dtype,
            halted=halted,
        )

    def _scalar(self, value: float) -> Tensor:
        """On the device, filled there: a copy from the host would wait for it."""
        buffer = self._buffers["momentum"]
        return torch.full((), value, dtype=buffer.dtype, device=buffer.device)

    def state(self) -> dict[str, Tensor]:
        """`<parameter>/<key>` -> tensor of the parameter's shape; a meta tensor where another process has it."""
        found = {}
        for key in ("momentum", "smoothed") if self._optim.smoothing else ("momentum",):
            found |= {f"{name}/{key}": weight for name, weight in self._weights.items()}  # the meta ones remain
            if self._own:
                parts = self._buffers[key].split([len(w) for w in self._own.values()])
                pairs = zip(self._own, parts, strict=True)
                found |= {f"{name}/{key}": part.view_as(self._weights[name]) for name, part in pairs}
        return found
