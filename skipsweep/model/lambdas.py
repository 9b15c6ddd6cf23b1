"""Learned scalars: one vector per mechanism, every entry with the label it is logged under."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Lambdas(nn.Module):
    """Label -> learned scalar. Kept in float32 at least, whatever the precision of the arithmetic around it."""

    def __init__(self, start: dict[str, float], dtype: torch.dtype) -> None:
        super().__init__()
        self.start = start
        self.weight = nn.Parameter(torch.empty(len(start), dtype=torch.promote_types(dtype, torch.float32)))

    def forward(self) -> dict[str, Tensor]:
        """Label -> scalar, 0-dimensional and still on its device, in the order of `start`."""
        return dict(zip(self.start, self.weight.unbind(), strict=True))


def read(vectors: Iterable[Lambdas]) -> dict[str, float]:
    """Label -> value over several vectors, in one transfer to the host."""
    given = list(vectors)
    if not given:
        return {}
    values = torch.cat([v.weight.detach() for v in given]).tolist()
    return dict(zip((label for v in given for label in v.start), values, strict=True))
