"""A prepared corpus: a folder with token shards, and a meta.json that says what they are.

<data root>/<name>-<fingerprint>/
    train_000001.bin ...   at most 100 million tokens each
    val_000000.bin         the whole validation split
    meta.json              sizes and hashes; its presence means that the corpus is complete
    verified.json          size and modification time of each shard when all its tokens were last checked
"""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from skipsweep import files
from skipsweep.config import Data
from skipsweep.data import shards
from skipsweep.errors import DataError

FORMAT = 1
"""Layout of meta.json and of the folder."""


@dataclass(frozen=True)
class Shard:
    """One token file of a corpus."""

    file: str
    tokens: int
    sha256: str
    """Of the tokens, without the header."""


@dataclass(frozen=True)
class Split:
    """The training or the validation part."""

    tokens: int
    documents: int
    text_bytes: int | None
    """Bytes of text behind the tokens, for bits per byte; None where there is no text."""
    shards: tuple[Shard, ...]

    def sequences(self, seq_len: int) -> int:
        """Sequences of `seq_len` tokens, each with the token to predict after its last, that lie within a shard."""
        return sum((shard.tokens - 1) // seq_len for shard in self.shards)


@dataclass(frozen=True)
class Corpus:
    """What meta.json says of the corpus in `folder`."""

    folder: Path
    name: str
    tokenizer: str
    vocab_size: int
    fingerprint: str
    train: Split
    val: Split

    def paths(self, split: str) -> list[Path]:
        """The shards of `train` or `val`, in order."""
        part = self.train if split == "train" else self.val
        return [self.folder / shard.file for shard in part.shards]

    def all_shards(self) -> Iterator[tuple[Path, Shard]]:
        """Path and description of every shard."""
        for shard in self.train.shards + self.val.shards:
            yield self.folder / shard.file, shard


def folder_of(root: Path, name: str, fingerprint: str) -> Path:
    """Where the corpus with this fingerprint lies."""
    return root / f"{name}-{fingerprint}"


def write_meta(corpus: Corpus) -> None:
    """Write meta.json into the corpus' folder."""
    values = asdict(corpus)
    del values["folder"]
    files.write_json(corpus.folder / "meta.json", {"format": FORMAT, **values})


def read_meta(folder: Path) -> Corpus:
    """Open the corpus in `folder`. Raises DataError where it is missing or its meta.json damaged."""
    path = folder / "meta.json"
    if not folder.is_dir():
        raise DataError(f"{folder}: no such corpus; make it with: skipsweep data prepare")
    try:
        meta = files.read_json(path)
        if meta.pop("format") != FORMAT:
            raise ValueError
        train, val = _split(meta.pop("train")), _split(meta.pop("val"))
        return Corpus(folder=folder, train=train, val=val, **meta)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise DataError(f"{path}: missing, damaged or unreadable; delete the folder, it will be made again") from e


def open_corpus(cfg: Data, root: Path) -> Corpus:
    """The prepared corpus that a planned run's `data` names. Raises DataError where it is not there."""
    if not cfg.fingerprint:
        raise DataError(f"data={cfg.name} has no fingerprint yet; plan the run first, or: skipsweep data prepare")
    return read_meta(folder_of(root, cfg.name, cfg.fingerprint))


def unigram_entropy(corpus: Corpus, val_tokens: int) -> float:
    """Entropy in nats of the distribution of the first `val_tokens` validation tokens that a model predicts.

    What a model reaches that knows how frequent tokens are, and nothing of their context. Raises DataError where the
    split is shorter.
    """
    tokens = shards.read(corpus.paths("val")[0])
    if not 0 < val_tokens < len(tokens):
        raise DataError(f"data.val_tokens={val_tokens}; valid: 1 to {len(tokens) - 1} ({corpus.folder.name})")
    counts = np.bincount(tokens[1 : val_tokens + 1])
    p = counts[counts > 0] / val_tokens
    return float(-(p * np.log(p)).sum())


def verify(corpus: Corpus, advance: Callable[[int], None] | None = None) -> None:
    """Check all tokens of all shards, unless nothing has been written to them since they were last found good.

    Raises DataError for the first fault.
    """
    seen = _stamps(corpus)
    if seen == _verified(corpus):
        return
    for path, shard in corpus.all_shards():
        _verify_shard(corpus, path, shard, advance)
    with suppress(OSError):  # a read-only data root: they are checked anew next time
        files.write_json(corpus.folder / "verified.json", seen)


def findings(corpus: Corpus) -> list[dict[str, Any]]:
    """Check all tokens of all shards now; per shard: `corpus`, `shard`, `tokens`, and `problem` (None, or a line)."""
    rows = []
    for path, shard in corpus.all_shards():
        problem = None
        try:
            _verify_shard(corpus, path, shard, None)
        except DataError as e:
            problem = str(e)
        rows.append({"corpus": corpus.folder.name, "shard": shard.file, "tokens": shard.tokens, "problem": problem})
    return rows


def summary(corpus: Corpus) -> dict[str, Any]:
    """The corpus in plain figures: sizes per split, vocabulary, where it lies, bytes on disk, whether verified."""
    row: dict[str, Any] = {key: getattr(corpus, key) for key in ("name", "tokenizer", "vocab_size", "fingerprint")}
    for split, part in (("train", corpus.train), ("val", corpus.val)):
        row[split] = {"tokens": part.tokens, "documents": part.documents, "text_bytes": part.text_bytes}
        row[split]["shards"] = len(part.shards)
    stamps = _stamps(corpus)
    disk = sum(size for size, _ in stamps.values())
    return row | {"folder": str(corpus.folder), "disk_bytes": disk, "verified": stamps == _verified(corpus)}


def _split(values: dict[str, Any]) -> Split:
    return Split(**{**values, "shards": tuple(Shard(**shard) for shard in values["shards"])})


def _verify_shard(corpus: Corpus, path: Path, shard: Shard, advance: Callable[[int], None] | None) -> None:
    try:
        shards.verify(path, corpus.vocab_size, shard.sha256, advance)
    except DataError as e:
        raise DataError(f"{e}; delete the folder {corpus.folder.name}, it will be made again") from e


def _stamps(corpus: Corpus) -> dict[str, list[int]]:
    """File -> [size, modification time in ns]; a missing one counts as [0, 0], which `verify` then finds."""
    stamps = {}
    for path, shard in corpus.all_shards():
        try:
            stat = os.stat(path)
        except OSError:
            stamps[shard.file] = [0, 0]
        else:
            stamps[shard.file] = [stat.st_size, stat.st_mtime_ns]
    return stamps


def _verified(corpus: Corpus) -> Any:
    try:
        return files.read_json(corpus.folder / "verified.json")
    except (OSError, ValueError):
        return None
