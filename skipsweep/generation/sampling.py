"""From logits to the next token.

Legend: V rows of the head.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from skipsweep.errors import UserError

SEEDS = 2**63
"""Seeds below this are told apart."""


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn."""

    temperature: float = 1.0
    """Logits are divided by it; 0: the likeliest token, always."""
    top_k: int = 0
    """Only so many of the likeliest tokens, and those as likely as the last of them; 0: all."""
    seed: int = 0

    def check(self, vocabulary: int) -> None:
        """Raise UserError for what cannot be."""
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"--temperature {self.temperature:g}; valid: 0 (the likeliest token) or more")
        if not 0 <= self.top_k <= vocabulary:
            raise UserError(f"--top-k {self.top_k}; valid: 0 (all) to {vocabulary}, the vocabulary")
        if not 0 <= self.seed < SEEDS:
            raise UserError(f"--seed {self.seed}; valid: 0 to {SEEDS - 1}")


class Sampler:
    """Draws tokens, the same for the same seed on any device, up to what rounding makes of the logits."""

    def __init__(self, how: Sampling, vocabulary: int) -> None:
        self.how, self.vocabulary = how, vocabulary
        self._source = torch.Generator().manual_seed(how.seed)

    def draw(self, logits: Tensor) -> tuple[int, float]:
        """A token after logits (V,), and its probability among those it was drawn from. Rows beyond the vocabulary
        stand for no token."""
        mine = logits[: self.vocabulary].double().cpu()
        if not self.how.temperature:
            best = int(mine.argmax())
            return best, float(mine.softmax(0)[best])
        if self.how.top_k:
            mine = mine.masked_fill(mine < mine.topk(self.how.top_k).values[-1], -math.inf)
        p = ((mine - mine.max()) / self.how.temperature).softmax(0)
        drawn = int(torch.multinomial(p, 1, generator=self._source))
        return drawn, float(p[drawn])
