"""`skipsweep generate`."""

import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from skipsweep import trained
from skipsweep.data.text import TextStream, text_of
from skipsweep.data.tokenizer import end_of_text
from skipsweep.errors import UserError
from skipsweep.generation.generate import ClosedCounter, generate, room
from skipsweep.generation.sampling import Sampling
from skipsweep.rundir import RunDir

DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class GeneratedToken:
    """One token of the text."""

    id: int
    text: str
    p: float
    """Its probability among those that it was drawn from."""


@dataclass(frozen=True)
class Generated:
    """What `skipsweep generate` says."""

    run: str
    step: int
    prompt: str
    text: str
    """What follows the prompt; an end-of-text is not part of it."""
    tokens: list[GeneratedToken]
    ended: str
    """`end of text` or `tokens`: as many as were asked for."""
    closed: list[float]
    """Per layer the share of tokens that it was closed to, the prompt's included; empty without gates."""
    skipped: bool
    """Whether closed blocks were left out, or only multiplied by 0 (gates that others' attention looks at)."""
    seconds: float
    """The prompt's included, loading is not."""


def run(
    asked: RunDir,
    text: str,
    tokens: int | None,
    how: Sampling,
    stop: bool,
    device: str,
    say: Callable[[str], None] = lambda _: None,
) -> Generated:
    """Continue `text`; `say` is told every piece of it as soon as it is certain. Raises UserError."""
    config = trained.read_config(asked)
    prompt = trained.prompt(config, text, without="valid: a run on text")
    tokens = room(config, prompt.shape[1], tokens)
    how.check(config.data.vocab_size)
    _check(device)
    given = trained.load(asked)
    given.model.to(device)
    content, last = trained.bytes_of(config), end_of_text(config.data.tokenizer) if stop else None
    closed, generated, stream, parts = ClosedCounter(), list[GeneratedToken](), TextStream(), list[str]()

    def told(part: str) -> None:
        parts.append(part)
        say(part)

    started = time.perf_counter()
    for one in generate(given, prompt.to(device), tokens, how, last, closed):
        generated.append(GeneratedToken(one.id, text_of(content(one.id)), one.p))
        if one.id != last:
            told(stream.add(content(one.id)))
    told(stream.end())
    seconds = time.perf_counter() - started
    ended = "end of text" if generated[-1].id == last else "tokens"
    skipped = given.model.gate.skips
    return Generated(
        asked.name, given.step, text, "".join(parts), generated, ended, closed.shares(), skipped, round(seconds, 3)
    )


def _check(device: str) -> None:
    if device not in DEVICES:
        raise UserError(f"--device {device}; valid: {', '.join(DEVICES)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda, but torch finds no GPU here; valid: cpu")


# ------------------------------------------------------------------------------------------------------------- terminal


def teller(prompt: str) -> Callable[[str], None]:
    """What writes a text to standard output as it comes, after its prompt.

    Control characters but line ends and tabs are shown: a model may say anything, and a terminal obeys. What its
    encoding lacks is escaped.
    """
    before = [prompt]

    def write(part: str) -> None:
        shown = "".join(_harmless("".join(before) + part))
        encoding = sys.stdout.encoding or "utf-8"
        sys.stdout.write(shown.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
        before.clear()

    return write


def _harmless(text: str) -> Iterator[str]:
    for c in text:
        yield f"<0x{ord(c):02X}>" if unicodedata.category(c) == "Cc" and c not in "\n\t" else c


def summary(generated: Generated) -> str:
    """One line about what was done."""
    count = len(generated.tokens)
    ended = " (end of text)" if generated.ended == "end of text" else ""
    line = f"{generated.run}, step {generated.step}: {count} tokens{ended} in {generated.seconds:.1f} s"
    if generated.closed:
        share = sum(generated.closed) / len(generated.closed)
        line += f"; blocks closed to {100 * share:.0f} % of tokens" + ("" if generated.skipped else ", but computed")
    return line
