"""A trained model and a prompt -> tokens, one by one.

Legend: B batch, T time.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from skipsweep import trained
from skipsweep.config import RunConfig
from skipsweep.errors import UserError
from skipsweep.generation.sampling import Sampler, Sampling
from skipsweep.model.decode import Decoder
from skipsweep.trained import Trained

TOKENS = 200
"""Length of a text that nobody asked to be longer, or as many tokens as fit."""


@dataclass(frozen=True)
class Next:
    """A token, and its probability among those that it was drawn from."""

    id: int
    p: float


class ClosedCounter:
    """How often every block was closed to a token that passed it."""

    def __init__(self) -> None:
        self.tokens = 0
        self._closed: Tensor | None = None
        """Of these, per pair of layers (pairs,); None without gates."""

    def add(self, gates: Tensor) -> None:
        """Count the gates (pairs, 1, T) of one pass."""
        closed = (gates <= 0).sum((1, 2))
        self._closed = closed if self._closed is None else self._closed + closed
        self.tokens += gates[0].numel()

    def shares(self) -> list[float]:
        """Per layer; empty without gates."""
        by_pair = [] if self._closed is None else [closed / self.tokens for closed in self._closed.tolist()]
        return [*by_pair, *reversed(by_pair)]


def room(config: RunConfig, prompt: int, tokens: int | None) -> int:
    """Tokens to make after a prompt of so many. Raises UserError for more than the model was made for.

    Positions and windows beyond the longest sequence in training or validation were never seen: nothing slides.
    """
    most = trained.longest(config) - prompt
    if most < 1:
        raise UserError(f"--text fills all {prompt} tokens that the model was made for; valid: a shorter text")
    if tokens is not None and not 1 <= tokens <= most:
        raise UserError(
            f"--tokens {tokens}; valid: 1 to {most}, which with the prompt's {prompt} make the longest text that the "
            "model was made for"
        )
    return min(TOKENS, most) if tokens is None else tokens


def generate(
    given: Trained,
    prompt: Tensor,
    tokens: int,
    how: Sampling,
    last: int | None = None,
    closed: ClosedCounter | None = None,
) -> Iterator[Next]:
    """Draw `tokens` tokens after `prompt` (1, T), fewer where one of them is `last`; `closed` counts gates."""
    decoder = Decoder(given.model, prompt.shape[1] + tokens, given.window)
    sampler = Sampler(how, given.config.data.vocab_size)
    news = prompt
    with given.model.gate.observed_by(closed.add if closed else None):
        for _ in range(tokens):
            drawn, p = sampler.draw(decoder.logits(news))
            yield Next(drawn, p)
            if drawn == last:
                return
            news = prompt.new_tensor([[drawn]])
