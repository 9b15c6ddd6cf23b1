"""What an inspection says, as plain data. Imports no torch."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Token:
    """A token id, and its bytes as text: those that are not UTF-8 as <0xE2>, of ids without bytes the number."""

    id: int
    text: str


@dataclass(frozen=True)
class Guess:
    """A next token and its probability, over all rows of the head."""

    id: int
    text: str
    p: float


@dataclass(frozen=True)
class Lens:
    """What the head makes of one vector per position."""

    what: str
    """`layer 3` (the stream after that block), `output`, `x00`, `ve0`, ..., `ve0, layer 3` (what attention adds of
    it)."""
    normed: bool
    """Whether the vector was normed before the head; the output has passed the readout."""
    aside: bool
    """Left out where there is room for few."""
    top: list[list[Guess]]
    """Per position, likeliest first; ties keep all of them, lower ids first."""

    @property
    def title(self) -> str:
        """`what`, marked '(not normed)' if the vector was decoded without a norm."""
        return self.what if self.normed or self.what == "output" else f"{self.what} (not normed)"


@dataclass(frozen=True)
class Source:
    """What one embedding or layer contributes to the output."""

    name: str
    stream_weight: float
    """Its coefficient in the stream that leaves the trunk: the product of the later lambdas, summed over all paths."""
    output_weight: float
    """The same in the output, mean over positions."""
    rms: float
    """Of the embedding, or of what the block added."""
    share: float | None
    """Part along the output; all sum to 1. None where the output is 0."""


@dataclass(frozen=True)
class Inspection:
    """All readings of one run on one prompt. What is not defined for a run is left out, and `notes` says why."""

    run: str
    step: int
    window_blocks: int
    """Blocks that the long attention window had there; 0: all."""
    prompt_source: str
    prompt: list[Token]
    notes: list[str]
    lambdas: dict[str, float]
    lens: list[Lens]
    stream_rms: dict[str, float]
    """`layer 3` -> RMS of the stream after that block."""
    embedding_rms: dict[str, float]
    """`x00`: as it is used, normed; `ve0`: as it is used, not normed."""
    shares: list[dict[str, Any]]
    """Every weighted sum: mechanism, layer, terms with weight, rms and share."""
    contributions_of: str
    """`stream` or `readout`: what `contributions` add up to."""
    contributions: list[Source]
    contributions_error: float
    """Largest difference between their sum and the output, in units of the output's RMS: rounding."""
    effective_rank: float
    effective_rank_most: int
    """The largest it could be on this prompt: the smaller of tokens and channels."""


def visible(text: str) -> str:
    """A token for a table's cell: spaces as dots, what does not print escaped."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return shown.replace(" ", "·")
