"""What is computed once per pass: the token embedding and the rotary table.

Legend: B batch, T time, V vocabulary, D dim, K channels of a head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipsweep.model.norm import norm
from skipsweep.model.seams import Context


class TokenContext(nn.Module):
    """Context of the token ids alone: x00 = norm(embed[ids])."""

    def __init__(self, vocab: int, dim: int, head_width: int, rotary_base: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.embed = nn.Parameter(torch.empty(vocab, dim, dtype=dtype))
        self.head_width, self.rotary_base = head_width, rotary_base

    def forward(self, ids: Tensor) -> Context:
        """Context of the token ids (B, T)."""
        x00 = norm(F.embedding(ids, self.embed))
        return Context(x00, rotary_table(ids.shape[1], self.head_width, self.rotary_base, x00))


def rotary_table(length: int, head_width: int, base: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """cos and signed sin (T, 1, K) on the device of `like`, in its precision but float32 at least.

    Pair j of K / 2 turns by base^(-j / (K/2 - 1)) radians per position (Su et al. 2021, here with the longest
    wavelength at exactly 2 pi base). Angles are taken in float64: float32 is off by 0.004 rad at position 65,536.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    exponents = torch.linspace(0, 1, head_width // 2, dtype=torch.float64, device=like.device)
    positions = torch.arange(length, dtype=torch.float64, device=like.device)
    angles = torch.outer(positions, base**-exponents)[:, None, :]
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    return torch.cat((cos, cos), -1), torch.cat((sin, -sin), -1)
