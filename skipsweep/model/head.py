"""From features to logits to the loss.

Legend: B batch, T time, N tokens (B * T), F features, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

MAX_LOGITS = 2**25
"""Logits that exist at once, 128 MB in float32. More are computed piece by piece, forward and backward."""

REDUCTIONS = {"none": lambda losses: losses, "mean": torch.mean, "sum": torch.sum}


class Head(nn.Module):
    """Untied linear head over exactly V token ids: the softmax runs over the vocabulary, with no padding rows.

    Logits and loss are float32 at least, whatever the precision of features and weight.
    """

    def __init__(self, inputs: int, vocab: int, softcap: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.softcap = softcap
        self.weight = nn.Parameter(torch.empty(vocab, inputs, dtype=dtype))

    def forward(self, features: Tensor) -> Tensor:
        """Logits (..., V) of features (..., F)."""
        logits = F.linear(features, self.weight)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return softcapped(logits, self.softcap) if self.softcap else logits

    def loss(self, features: Tensor, targets: Tensor, reduction: str) -> Tensor:
        """Cross-entropy in nats of targets (B, T) under features (B, T, F); (B, T) for `none`, else a scalar."""
        tokens = max(1, MAX_LOGITS // self.weight.shape[0])
        pieces = zip(features.flatten(0, 1).split(tokens), targets.long().flatten().split(tokens), strict=True)
        if targets.numel() <= tokens:
            losses = [self._losses(*piece) for piece in pieces]
        else:
            losses = [checkpoint(self._losses, *p, use_reentrant=False, preserve_rng_state=False) for p in pieces]
        return REDUCTIONS[reduction](torch.cat(losses).view_as(targets))

    def _losses(self, features: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy (N,) of every token."""
        return F.cross_entropy(self(features), targets, reduction="none")


def softcapped(logits: Tensor, cap: float) -> Tensor:
    """cap * l / sqrt(l^2 + cap^2): bounded by the cap, slope 1 at 0 (speedrun, medium track)."""
    return cap * logits * torch.rsqrt(logits.square() + cap**2)
