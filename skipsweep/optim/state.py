"""What optimisers remember of their weights."""

from collections.abc import Mapping

import torch
from torch import Tensor


def zeros(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name -> zeros of a weight's shape, type and device.

    `zeros_like` of a meta tensor would load symbolic shapes, which costs every process of a run a second.
    """
    return {name: torch.zeros(w.shape, dtype=w.dtype, device=w.device) for name, w in weights.items()}
