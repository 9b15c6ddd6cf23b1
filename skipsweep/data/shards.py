"""Token shards in the speedrun's format: a header of 256 int32 (magic, version, number of tokens), then uint16 tokens.

All numbers are little-endian.
"""

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from skipsweep import files
from skipsweep.errors import DataError

MAGIC = 20240520
VERSION = 1
HEADER_BYTES = 256 * 4
TOKEN = np.dtype("<u2")
MAX_VOCAB = 2**16
MAX_TOKENS = 2**31 - 1  # the header's field is an int32

_BLOCK = 1 << 23  # tokens looked at together


def write(path: Path, parts: Iterable[NDArray[np.integer]]) -> tuple[int, str]:
    """Put a shard in place atomically, its tokens coming in parts (T,); returns their number and their sha256.

    Raises ValueError for no tokens at all, more than the header can count, or tokens outside 0..65535.
    """
    with files.replacing(path) as f:
        return _write(f, parts)


def read(path: Path) -> np.memmap:
    """The tokens (T,) of a shard, uint16, mapped and not copied. Raises DataError for a bad header or size."""
    return np.memmap(path, TOKEN, mode="r", offset=HEADER_BYTES, shape=(check_size(path),))


def check_size(path: Path) -> int:
    """Number of tokens of a shard whose header and size are sound. Raises DataError naming file and byte offset."""
    try:
        with open(path, "rb") as f:
            header, size = f.read(HEADER_BYTES), os.fstat(f.fileno()).st_size
    except FileNotFoundError:
        raise DataError(f"{path}: no such shard") from None
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror})") from e
    count = _tokens_of_header(path, header)
    _check_length(path, size, count)
    return count


def verify(
    path: Path,
    vocab_size: int,
    sha256: str | None = None,
    advance: Callable[[int], None] | None = None,
    file_hash: str | None = None,
) -> int:
    """Check all of a shard; returns the number of its tokens.

    Against the tokens' own `sha256` if given, and the hash of the whole file: `sha256:...`, or `git:...`, the sha1
    that git gives to it. `advance` is called with the number of bytes done since the last call. Raises DataError naming
    file and byte offset.
    """
    tokens = np.asarray(read(path))
    checks = _checks(path, sha256, file_hash)
    for start in range(0, len(tokens), _BLOCK):
        block = tokens[start : start + _BLOCK]
        _check_vocab(path, block, start, vocab_size)
        for digest, _, _ in checks:
            digest.update(block.data)
        if advance is not None:
            advance(block.nbytes)
    for digest, expected, fault in checks:
        if digest.hexdigest() != expected:
            raise DataError(f"{path}: {fault} {expected})")
    return len(tokens)


def _checks(path: Path, sha256: str | None, file_hash: str | None) -> list[tuple[Any, str, str]]:
    """Digests that still lack the tokens, what they should come to, and what it means if they do not."""
    found = []
    if sha256 is not None:
        fault = f"byte {HEADER_BYTES}: the tokens are not those once written (sha256"
        found.append((hashlib.sha256(), sha256, fault))
    if file_hash is not None:
        kind, _, expected = file_hash.partition(":")
        with open(path, "rb") as f:
            header, size = f.read(HEADER_BYTES), os.fstat(f.fileno()).st_size
        opening = b"blob %d\0" % size if kind == "git" else b""
        digest = (hashlib.sha1 if kind == "git" else hashlib.sha256)(opening + header)
        found.append((digest, expected, f"byte 0: the content is not what the hub lists ({kind}"))
    return found


def _write(f: BinaryIO, parts: Iterable[NDArray[np.integer]]) -> tuple[int, str]:
    count, sha256 = 0, hashlib.sha256()
    f.write(bytes(HEADER_BYTES))  # the number of tokens is known at the end
    for tokens in parts:
        content = _as_uint16(tokens)
        f.write(content.data)
        sha256.update(content.data)
        count += len(content)
    if not 0 < count <= MAX_TOKENS:
        raise ValueError(f"a shard holds 1 to {MAX_TOKENS} tokens, not {count}")
    f.seek(0)
    f.write(_header(count))
    return count, sha256.hexdigest()


def _header(tokens: int) -> bytes:
    header = np.zeros(256, "<i4")
    header[:3] = MAGIC, VERSION, tokens
    return header.tobytes()


def _as_uint16(tokens: NDArray[np.integer]) -> NDArray[np.uint16]:
    if tokens.dtype != TOKEN and tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < MAX_VOCAB:
        raise ValueError(f"tokens from {tokens.min()} to {tokens.max()} do not fit into uint16")
    return np.ascontiguousarray(tokens, TOKEN)


def _tokens_of_header(path: Path, header: bytes) -> int:
    if not header:
        raise DataError(f"{path}: byte 0: empty file; a shard opens with a header of {HEADER_BYTES} bytes")
    if len(header) < HEADER_BYTES:
        raise DataError(
            f"{path}: byte {len(header)}: the header ends here, after {len(header)} of {HEADER_BYTES} bytes"
        )
    magic, version, count = (int(n) for n in np.frombuffer(header, "<i4", count=3))
    if magic != MAGIC:
        raise DataError(f"{path}: byte 0: magic number {magic}, not {MAGIC}: no token shard")
    if version != VERSION:
        raise DataError(f"{path}: byte 4: format version {version}, not {VERSION}")
    if count <= 0:
        raise DataError(f"{path}: byte 8: the header promises {count} tokens; a shard has at least 1")
    return count


def _check_length(path: Path, size: int, count: int) -> None:
    end = HEADER_BYTES + TOKEN.itemsize * count
    if size % TOKEN.itemsize:
        raise DataError(f"{path}: byte {size - 1}: half a token at the end of the file")
    if size < end:
        held = (size - HEADER_BYTES) // TOKEN.itemsize
        raise DataError(f"{path}: byte {size}: the file ends after {held} of the {count} tokens its header promises")
    if size > end:
        raise DataError(f"{path}: byte {end}: {size - end} bytes follow the {count} tokens that the header promises")


def _check_vocab(path: Path, block: NDArray[np.uint16], start: int, vocab_size: int) -> None:
    if int(block.max()) < vocab_size:
        return
    first = int(np.argmax(block >= vocab_size))
    place = start + first
    offset = HEADER_BYTES + TOKEN.itemsize * place
    raise DataError(f"{path}: byte {offset}: token {place} is {block[first]}, the vocabulary ends at {vocab_size - 1}")
