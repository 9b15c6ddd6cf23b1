"""A trained model and a prompt -> tokens, one by one.

Legend: B batch, T time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from skipsweep import trained
from skipsweep.config import RunConfig
from skipsweep.errors import UserError
from skipsweep.generation.sampling import Sampler, Sampling
from skipsweep.model.decode import Decoder
from skipsweep.model.gpt import GPT
from skipsweep.trained import Trained

TOKENS = 200
"""Length of a text that nobody asked to be longer, or as many tokens as fit."""


@dataclass(frozen=True)
class Next:
    """A token, and its probability among those that it was drawn from."""

    id: int
    p: float


@dataclass
class Closed:
    """How often every block was closed to a token that passed it."""

    closed: dict[int, int] = field(default_factory=dict)
    passed: dict[int, int] = field(default_factory=dict)
    """Layer -> tokens."""

    def shares(self) -> list[float]:
        """Per layer; empty without gates."""
        return [self.closed[i] / self.passed[i] for i in sorted(self.passed)]


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
    given: Trained, prompt: Tensor, tokens: int, how: Sampling, last: int | None = None, closed: Closed | None = None
) -> Iterator[Next]:
    """Draw `tokens` tokens after `prompt` (1, T), fewer where one of them is `last`.

    Blocks compute what their gates leave open, and nothing else, where the gates allow it (`Gate.skips`). `closed`
    counts what they do not.
    """
    model, config = given.model, given.config
    model.skip = model.gate.skips
    decoder = Decoder(model, prompt.shape[1] + tokens, given.window)
    sampler = Sampler(how, config.data.vocab_size)
    news = prompt
    with _watched(model, closed or Closed()):
        for _ in range(tokens):
            drawn, p = sampler.draw(decoder.logits(news))
            yield Next(drawn, p)
            if drawn == last:
                return
            news = prompt.new_tensor([[drawn]])


@contextmanager
def _watched(model: GPT, closed: Closed) -> Iterator[None]:
    def count(_: Any, args: Any, g: Tensor | None) -> None:
        if g is not None:
            layer = args[0]
            closed.closed[layer] = closed.closed.get(layer, 0) + int((g <= 0).sum())
            closed.passed[layer] = closed.passed.get(layer, 0) + g.numel()

    hook = model.gate.register_forward_hook(count)
    try:
        yield
    finally:
        hook.remove()
