"""From features to logits to the loss.

Legend: B batch, T time, N tokens, F features, V rows of the head.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

MAX_LOGITS = {"cpu": 2**25, "cuda": 2**28}
"""Logits that exist at once, 128 MB and 1 GB in float32. More are computed piece by piece, forward and backward."""


class Head(nn.Module):
    """Untied linear head with a softmax over all of its rows, which may be a few more than there are token ids.

    The weight is float32 at least, and cast to the features' precision for the product (medium track); logits and loss
    are float32 at least. `scaled`: features are multiplied by learned weights first, those of the norm that made them
    (Llama's last one).
    """

    def __init__(
        self, inputs: int, rows: int, softcap: float, dtype: torch.dtype, curve: str = "root", scaled: bool = False
    ) -> None:
        super().__init__()
        self.softcap = softcap
        self.softcapped, kernel = CURVES[curve]
        self.weight = nn.Parameter(torch.empty(rows, inputs, dtype=torch.promote_types(dtype, torch.float32)))
        scale = torch.empty(inputs, dtype=self.weight.dtype) if scaled else None
        self.scale = None if scale is None else nn.Parameter(scale)
        self._uncompiled, self._kernel = kernel, cast(Any, kernel)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (..., V) of features (..., F)."""
        logits = F.linear(self._scaled(features), self.weight.to(features.dtype)).to(self.weight.dtype)
        return self.softcapped(logits, self.softcap) if self.softcap else logits

    def loss(self, features: Tensor, targets: Tensor, reduction: str) -> Tensor:
        """Cross-entropy in nats of targets (B, T) under features (B, T, F); (B, T) for `none`, else a scalar."""
        flat, wanted = features.flatten(0, 1), targets.long().flatten()
        size = self._piece(flat)
        if reduction == "none":
            return self._each(flat, wanted, size).view_as(targets)
        if torch.is_grad_enabled():
            total = _SummedLoss.apply(self._scaled(flat), self.weight, wanted, self.softcap, size, self._kernel)
            assert isinstance(total, Tensor)
        else:
            total = self._each(flat, wanted, size).sum()
        return total / {"mean": targets.numel(), "sum": 1}[reduction]

    def compile_kernel(self) -> None:
        """Compute loss and slope of a piece's logits in one compiled kernel."""
        self._kernel = torch.compile(self._uncompiled, dynamic=False)

    def _piece(self, flat: Tensor) -> int:
        """Tokens whose logits exist at once; pieces of one size where possible, each size being a kernel of its own."""
        most = max(MAX_LOGITS[flat.device.type] // self.weight.shape[0], 1)
        whole = range(most // 128 * 128, 0, -128)
        return next((size for size in whole if len(flat) % size == 0), whole.start or most)

    def _each(self, flat: Tensor, targets: Tensor, size: int) -> Tensor:
        """Cross-entropy (N,) of every token; its backward pass computes a piece's logits once more."""
        pieces = list(zip(flat.split(size), targets.split(size), strict=True))
        if len(pieces) == 1 or not torch.is_grad_enabled():
            return torch.cat([self._losses(*piece) for piece in pieces])
        return torch.cat([checkpoint(self._losses, *p, use_reentrant=False, preserve_rng_state=False) for p in pieces])

    def _scaled(self, features: Tensor) -> Tensor:
        return features if self.scale is None else (features * self.scale).to(features.dtype)

    def _losses(self, flat: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self(flat), targets, reduction="none")


def softcapped(logits: Tensor, cap: float) -> Tensor:
    """cap * l / sqrt(l^2 + cap^2): bounded by the cap, slope 1 at 0 (speedrun, medium track)."""
    return cap * logits * torch.rsqrt(logits.square() + cap**2)


def loss_and_slope(logits: Tensor, targets: Tensor, softcap: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy, summed over targets (N,), of softcapped logits (N, V), and its slope by the logits (N, V).

    Computed in float32 at least; the slope has the logits' own precision, and compiled nothing wider is held whole.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    scale = torch.rsqrt(wide.square() + softcap**2) * softcap if softcap else None
    capped = wide if scale is None else wide * scale
    log_sum = capped.logsumexp(-1, keepdim=True)
    chosen = targets[:, None]
    loss = (log_sum - capped.gather(-1, chosen)).sum()
    slope = (capped - log_sum).exp()
    if torch.compiler.is_compiling():  # fuses into the sweep over the logits; a scatter would be one more
        slope = slope - (torch.arange(slope.shape[-1], device=slope.device) == chosen).to(slope.dtype)
    else:
        slope = slope.scatter_add(-1, chosen, slope.new_full((), -1.0).expand_as(chosen))
    slope = slope if scale is None else slope * scale.pow(3)  # d capped / d logits = scale^3
    return loss, slope.to(logits.dtype)


def tanh_capped(logits: Tensor, cap: float) -> Tensor:
    """cap * tanh(l / cap): bounded by the cap, slope 1 at 0.

    The small track has 2 cap * sigmoid(2 l / cap), which is larger by cap everywhere: the same after the softmax.
    """
    return cap * torch.tanh(logits / cap)


def tanh_loss_and_slope(logits: Tensor, targets: Tensor, softcap: float) -> tuple[Tensor, Tensor]:
    """`loss_and_slope` with `tanh_capped`."""
    if not softcap:
        return loss_and_slope(logits, targets, 0.0)
    capped = tanh_capped(logits.to(torch.promote_types(logits.dtype, torch.float32)), softcap)
    loss, slope = loss_and_slope(capped, targets, 0.0)
    return loss, (slope * (1 - (capped / softcap).square())).to(logits.dtype)


CURVES = {"root": (softcapped, loss_and_slope), "tanh": (tanh_capped, tanh_loss_and_slope)}
"""`model.softcap_curve` -> the curve, and loss and slope under it."""


class _SummedLoss(torch.autograd.Function):
    """Cross-entropy summed over tokens, with both gradients computed in the forward pass.

    Each piece's logits are needed once, not again in the backward pass: three products instead of four.
    """

    @staticmethod
    def forward(
        ctx: Any, flat: Tensor, weight: Tensor, targets: Tensor, softcap: float, size: int, kernel: Any
    ) -> Tensor:
        narrow = weight.to(flat.dtype)
        of_features, of_weight = [], torch.zeros_like(weight)
        total = weight.new_zeros(())
        for features, wanted in zip(flat.split(size), targets.split(size), strict=True):
            loss, slope = kernel(F.linear(features, narrow), wanted, softcap)
            total += loss
            of_features.append(slope @ narrow)
            of_weight += slope.T @ features
        ctx.save_for_backward(torch.cat(of_features), of_weight)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        of_features, of_weight = ctx.saved_tensors
        (grad,) = grads
        return of_features * grad.to(of_features.dtype), of_weight * grad, None, None, None, None
