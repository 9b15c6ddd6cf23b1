"""Statistics of gates over many tokens: sums over passes and processes, in float64 whatever the gates' own precision.

Legend: P pairs of opposite layers, B batch, T time.
"""

import torch
from torch import Tensor

from skipsweep.distributed import World


class Moments:
    """Means and variances of gates, pair by pair."""

    def __init__(self, pairs: int, device: torch.device):
        self._sums = torch.zeros(3, pairs, dtype=torch.float64, device=device)

    def add(self, gates: Tensor) -> None:
        """Count the gates (P, B, T) of one pass."""
        wide = gates.detach().double()
        self._sums += torch.stack([torch.ones_like(wide), wide, wide.square()]).sum((2, 3))

    def reduce(self, world: World) -> None:
        """Count those of all processes."""
        world.sum(self._sums)

    @property
    def mean(self) -> Tensor:
        """(P,)."""
        return self._sums[1] / self._sums[0]

    @property
    def variance(self) -> Tensor:
        """E[g^2] - E[g]^2 over all tokens, (P,)."""
        return self._sums[2] / self._sums[0] - self.mean.square()


class OpenFractionCounter:
    """Fractions of blocks that gates leave to be computed, pair by pair."""

    def __init__(self, pairs: int, device: torch.device):
        self._sums = torch.zeros(4, pairs, dtype=torch.float64, device=device)

    def add(self, gates: Tensor) -> None:
        """Count the gates (P, B, T) of one pass."""
        is_open = (gates.detach() > 0).double()
        before = torch.arange(1, gates.shape[-1] + 1, device=gates.device).expand_as(gates)
        counted = [torch.ones_like(is_open), is_open, before, is_open * is_open.cumsum(-1)]
        self._sums += torch.stack([each.double() for each in counted]).sum((2, 3))

    def reduce(self, world: World) -> None:
        """Count those of all processes."""
        world.sum(self._sums)

    @property
    def tokens(self) -> Tensor:
        """Fraction of the tokens whose gate is not exactly 0, (P,)."""
        return self._sums[1] / self._sums[0]

    @property
    def products(self) -> Tensor:
        """Fraction of a query's products with the keys up to its own in which both are open, (P,)."""
        return self._sums[3] / self._sums[2]


class GateStatistics:
    """What a validation finds out about gates: moments and open fractions."""

    def __init__(self, pairs: int, device: torch.device):
        self._moments, self.open_fractions = Moments(pairs, device), OpenFractionCounter(pairs, device)

    def add(self, gates: Tensor) -> None:
        """Count the gates (P, B, T) of one pass."""
        self._moments.add(gates)
        self.open_fractions.add(gates)

    def reduce(self, world: World) -> None:
        """Count those of all processes."""
        self._moments.reduce(world)
        self.open_fractions.reduce(world)

    def values(self) -> dict[str, list[float]]:
        """Name -> figures, pair by pair: the mean (without a name), the variance, and the part that is exactly 0."""
        closed = 1 - self.open_fractions.tokens
        by_name = {"": self._moments.mean, "variance": self._moments.variance, "zeros": closed}
        return {name: figures.tolist() for name, figures in by_name.items()}
