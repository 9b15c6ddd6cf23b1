"""Controls of gates, as formulas: losses on means and variances, coefficients fixed or adapting (skip-middle paper,
Table 1).

Opposite layers share their gate, targets and coefficients: the paper's mean over layers is one over pairs.

Legend: P pairs of opposite layers, U units, G gates of a unit.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from skipsweep import config as c


class ControlLoss:
    """Coefficients `alpha` of the means and `beta` of the variances, (P,), in float64; here they are fixed."""

    def __init__(self, alpha: float, beta: float, pairs: int, device: torch.device):
        self.alpha, self.beta = (
            torch.full((pairs,), start, dtype=torch.float64, device=device) for start in (alpha, beta)
        )

    def loss(self, gates: Tensor) -> Tensor:
        """Mean over units of gates (P, U, G), whose variance is the unbiased one: scalar."""
        alpha, beta = _column(self.alpha, gates), _column(self.beta, gates)
        return (alpha * _mean(gates) + beta * _variance(gates)).mean()

    def update(self, mean: Tensor, variance: Tensor, halted: Tensor) -> None:
        """Look at a step's means and variances (P,); where `halted` (scalar) is 1 nothing changes."""

    def tensors(self) -> dict[str, Tensor]:
        """Name -> what is not the same in every step."""
        return {}

    def readings(self) -> dict[str, Tensor]:
        """Name -> coefficients and targets (P,)."""
        return {"alpha": self.alpha, "beta": self.beta}


class WithTargets(ControlLoss):
    """A loss with a mean and a variance to reach, (P,)."""

    def __init__(self, alpha: float, beta: float, means: Sequence[float], shift: float, device: torch.device):
        super().__init__(alpha, beta, len(means), device)
        self.mean = torch.tensor(means, dtype=torch.float64, device=device)
        self.variance = (self.mean * (1 - self.mean) + shift).clamp(min=0)

    def readings(self) -> dict[str, Tensor]:
        return super().readings() | {"mean_target": self.mean, "variance_target": self.variance}


class L2(WithTargets):
    """Fixed coefficients of the distances to the targets."""

    def __init__(self, control: c.SparsityVarianceL2, means: Sequence[float], device: torch.device):
        super().__init__(control.alpha, control.beta, means, control.variance_shift, device)
        self.squared = control.squared

    def loss(self, gates: Tensor) -> Tensor:
        of_mean = self._size(_mean(gates) - _column(self.mean, gates))
        of_variance = self._size(_variance(gates) - _column(self.variance, gates))
        return (_column(self.alpha, gates) * of_mean + _column(self.beta, gates) * of_variance).mean()

    def _size(self, d: Tensor) -> Tensor:
        """Of what is off (P, U): the norm over all layers (1, U), of which every pair has two; or squares."""
        return d.square() if self.squared else math.sqrt(2) * torch.linalg.vector_norm(d, dim=0, keepdim=True)


class Adapting(WithTargets):
    """Coefficients that change with what is off the targets by more than `delta`."""

    def __init__(self, control: c.Adapting, means: Sequence[float], device: torch.device):
        super().__init__(control.alpha, control.beta, means, control.variance_shift, device)
        self.gamma, self.delta = control.gamma, control.delta

    def update(self, mean: Tensor, variance: Tensor, halted: Tensor) -> None:
        off = {"alpha": mean - self.mean, "beta": variance - self.variance}
        kept = {name: tensor.clone() for name, tensor in self.tensors().items()}
        for name, d in off.items():
            change = self.gamma * self.change(name, d)
            getattr(self, name).add_(torch.where(d.abs() > self.delta, change, 0.0))
        for name, tensor in self.tensors().items():
            tensor.copy_(torch.where(halted > 0, kept[name], tensor))

    def change(self, name: str, d: Tensor) -> Tensor:
        """Of a coefficient, in units of gamma; `d` (P,) is what is off, more than the tolerance or not."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        return {"alpha": self.alpha, "beta": self.beta}


class Adaptive(Adapting):
    """As fast for a small deviation as for a large one."""

    def change(self, name: str, d: Tensor) -> Tensor:
        return d.sign()


class Proportional(Adapting):
    """Equation 6."""

    def change(self, name: str, d: Tensor) -> Tensor:
        return d


class ProportionalDerivative(Adapting):
    """Proportional, but not while the deviation shrinks: `recent` is its exponential mean, this step's included, which
    starts as the first deviation (NaN until then)."""

    def __init__(self, control: c.ProportionalDerivative, means: Sequence[float], device: torch.device):
        super().__init__(control, means, device)
        self.memory = control.memory
        self.recent = {name: torch.full_like(self.mean, math.nan) for name in ("alpha", "beta")}

    def change(self, name: str, d: Tensor) -> Tensor:
        recent = self.recent[name]
        recent.copy_(torch.where(recent.isnan(), d, recent + (d - recent) / self.memory))
        return torch.where(d * (d - recent) > 0, d, 0.0)

    def tensors(self) -> dict[str, Tensor]:
        return super().tensors() | {f"recent/{name}": recent for name, recent in self.recent.items()}


def _column(values: Tensor, gates: Tensor) -> Tensor:
    """(P,) -> (P, 1), in the gates' precision."""
    return values.to(gates)[:, None]


def _mean(gates: Tensor) -> Tensor:
    return gates.mean(2)


def _variance(gates: Tensor) -> Tensor:
    """Unbiased; 0 of a single token."""
    return gates.var(2) if gates.shape[2] > 1 else torch.zeros_like(gates[..., 0])


def build_control_loss(
    control: c.Control, means: Sequence[float], pairs: int, device: torch.device
) -> ControlLoss | None:
    """Of so many pairs of layers with these targets (empty: there are none); None without a control."""
    match control:
        case c.NoControl():
            return None
        case c.Sparsity():
            return ControlLoss(control.alpha, 0.0, pairs, device)
        case c.SparsityVariance():
            return ControlLoss(control.alpha, control.beta, pairs, device)
        case c.SparsityVarianceL2():
            return L2(control, means, device)
        case c.Adaptive():
            return Adaptive(control, means, device)
        case c.Proportional():
            return Proportional(control, means, device)
        case c.ProportionalDerivative():
            return ProportionalDerivative(control, means, device)
    raise TypeError(f"no such control: {control}")
