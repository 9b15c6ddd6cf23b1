"""Making a corpus: tokens into shards in a folder of its own, put in place as a whole.

Two processes may build the same corpus at once: the one that finishes last discards its work. What an exception
interrupts leaves nothing; what a SIGKILL interrupts leaves a hidden folder, removed by a later build.
"""

import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from skipsweep.config import Data, Synthetic
from skipsweep.data import documents, shards, synthetic, tokenizer
from skipsweep.data.corpus import Corpus, Shard, Split, folder_of, write_meta
from skipsweep.data.documents import Document
from skipsweep.data.fingerprint import fingerprint
from skipsweep.errors import DataError
from skipsweep.files import fsync

SHARD_TOKENS = 100_000_000
"""Most tokens in a training shard, as in the speedrun's."""

Progress = Callable[[int, int], None]
"""Called with what is done and the whole: bytes of text, or tokens of a synthetic corpus."""

Tokens = Iterator[NDArray[np.uint16]]

_TMP = ".tmp-"
_LEFTOVER_SECONDS = 24 * 3600


def build(cfg: Data, expected: str, root: Path, progress: Progress | None = None) -> None:
    """Put the corpus of `cfg`, whose fingerprint is `expected`, below `root`.

    Raises DataError where texts change meanwhile, or where the corpus cannot be written.
    """
    final = folder_of(root, cfg.name, expected)
    tmp = root / f"{_TMP}{final.name}-{uuid.uuid4().hex}"
    try:
        tmp.mkdir(parents=True)
        _remove_leftovers(root)
        made = _chain(cfg, tmp, progress) if isinstance(cfg, Synthetic) else _texts(cfg, tmp, progress)
        if fingerprint(cfg) != expected:
            raise DataError(f"data={cfg.name}: a text changed while it was tokenised; start again when it is complete")
        write_meta(replace(made, fingerprint=expected))
        _put_in_place(tmp, final)
    except OSError as e:
        raise DataError(
            f"{root}: the corpus cannot be written ({e.strerror or e});"
            " valid for $SKIPSWEEP_DATA or paths.data: a folder that can be written to, with space left"
        ) from e
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


def _put_in_place(tmp: Path, final: Path) -> None:
    try:
        os.rename(tmp, final)
    except OSError:
        if not (final / "meta.json").exists():  # else another process was first
            raise
    fsync(final.parent)


def _remove_leftovers(root: Path) -> None:
    for folder in root.glob(f"{_TMP}*"):
        try:
            age = time.time() - folder.stat().st_mtime
        except FileNotFoundError:
            continue
        if age > _LEFTOVER_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)


def _texts(cfg: Data, folder: Path, progress: Progress | None) -> Corpus:
    parts = documents.split(documents.find(cfg))
    encode, end_of_text = tokenizer.encoder(cfg.tokenizer), tokenizer.end_of_text(cfg.tokenizer)
    advance = counter(progress, sum(len(d) for part in parts.values() for d in part))
    splits = {}
    for split, part in parts.items():
        tokens = _tokenised(part, encode, end_of_text, advance)
        splits[split] = _write_split(folder, split, tokens, len(part), sum(len(d) for d in part))
    return Corpus(folder, cfg.name, cfg.tokenizer, tokenizer.vocab_size(cfg.tokenizer), "", **splits)


def _chain(cfg: Synthetic, folder: Path, progress: Progress | None) -> Corpus:
    advance = counter(progress, sum(synthetic.length(cfg, split) for split in ("train", "val")))
    splits = {}
    for split in ("train", "val"):
        tokens = _counted(synthetic.walk(cfg, split), advance)
        splits[split] = _write_split(folder, split, tokens, 1, None)
    return Corpus(folder, cfg.name, cfg.tokenizer, cfg.states, "", **splits)


def _write_split(folder: Path, split: str, tokens: Tokens, count: int, text_bytes: int | None) -> Split:
    """Training shards count from 1; validation is shard 0, and one as long as its header can count."""
    first, limit = (1, SHARD_TOKENS) if split == "train" else (0, shards.MAX_TOKENS)
    written = []
    for number, parts in groupby(_numbered(tokens, limit), key=lambda numbered: numbered[0]):
        file = f"{split}_{first + number:06d}.bin"
        written.append(Shard(file, *shards.write(folder / file, (part for _, part in parts))))
    return Split(sum(shard.tokens for shard in written), count, text_bytes, tuple(written))


def _numbered(tokens: Tokens, limit: int) -> Iterator[tuple[int, NDArray[np.uint16]]]:
    """The stream cut after every `limit` tokens; each piece with the number of the shard it belongs to."""
    done = 0
    for block in tokens:
        while len(block):
            piece = block[: limit - done % limit]
            yield done // limit, piece
            done += len(piece)
            block = block[len(piece) :]


def _tokenised(
    part: list[Document],
    encode: Callable[[str], NDArray[np.uint16]],
    end_of_text: int,
    advance: Callable[[int], None],
) -> Tokens:
    for document in part:
        yield np.array([end_of_text], np.uint16)
        for text in document.pieces():
            yield encode(text)
            advance(len(text.encode()))


def _counted(tokens: Tokens, advance: Callable[[int], None]) -> Tokens:
    for block in tokens:
        yield block
        advance(len(block))


def counter(progress: Progress | None, total: int) -> Callable[[int], None]:
    """What is called with every amount done, and tells `progress` the sum and the whole."""
    done = 0

    def advance(amount: int) -> None:
        nonlocal done
        done += amount
        if progress is not None:
            progress(done, total)

    return advance
