"""What a prepared corpus depends on, as a hash: never on a path, nor on how a run reads it."""

import hashlib
import json
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from skipsweep import files
from skipsweep.config import Data, Synthetic
from skipsweep.data import documents, synthetic, tokenizer
from skipsweep.errors import DataError

FORMAT = 1
"""Rises whenever the same content, tokenizer and split would be written as other tokens."""

LENGTH = 16
"""Hexadecimal digits."""

_RACY_NS = 2_000_000_000


def fingerprint(cfg: Data, root: Path | None = None) -> str:
    """Hash of texts, document boundaries, tokenizer and split; of its parameters for a synthetic corpus.

    Texts are read and hashed anew unless the data root `root` is given: it then remembers hashes, by path, size and
    times of all files. Raises DataError for texts that are missing or unreadable, UserError for a tokenizer that does
    not exist.
    """
    content = _chain(cfg) if isinstance(cfg, Synthetic) else _texts(cfg, root)
    return _hash(content)


def of_shards(tokenizer_name: str, train: Sequence[str], val: Sequence[str]) -> str:
    """Hash of a corpus that others have tokenised: tokenizer, and the hashes of all its files in order."""
    return _hash(["shards", tokenizer.identity(tokenizer_name), list(train), list(val)])


def _hash(content: list[Any]) -> str:
    return hashlib.sha256(json.dumps([FORMAT, content]).encode()).hexdigest()[:LENGTH]


def _chain(cfg: Synthetic) -> list[Any]:
    synthetic.check(cfg)
    return ["chain", synthetic.FORMAT, cfg.states, cfg.branching, cfg.train_tokens, cfg.chain_seed]


def _texts(cfg: Data, root: Path | None) -> list[Any]:
    tokenizer.vocab_size(cfg.tokenizer)
    paths = documents.find(cfg)
    content = documents.digest(paths) if root is None else _remembered_digest(paths, root)
    tails = ["tails"] if documents.gives_tails(paths) else []
    return ["texts", documents.SPLIT_RULE, tokenizer.identity(cfg.tokenizer), content, *tails]


def _remembered_digest(paths: list[Path], root: Path) -> str:
    before = [_stamp(path) for path in paths]
    memory = root / ".hashes" / hashlib.sha256(json.dumps(before).encode()).hexdigest()
    with suppress(OSError, ValueError):
        known = memory.read_text("ascii")
        if len(known) == 64:
            return known
    digest = documents.digest(paths)
    newest = max(max(stamp[2:]) for stamp in before)
    if time.time_ns() - newest > _RACY_NS:  # a file just written may change again and keep its times
        with suppress(OSError):
            memory.parent.mkdir(parents=True, exist_ok=True)
            files.write_bytes(memory, digest.encode())
    return digest


def _stamp(path: Path) -> tuple[str, int, int, int]:
    """Path, size and times (ns): unchanged as long as nobody writes to the file."""
    try:
        stat = path.stat()
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror})") from e
    # the time of change too: copying and unpacking set the time of modification back
    return str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
