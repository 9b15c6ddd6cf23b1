"""A prepared corpus: a folder with token shards, and a meta.json that says what they are.

<data root>/<name>-<fingerprint>/
    train_000001.bin ...   at most 100 million tokens each
    val_000000.bin         the whole validation split
    meta.json              sizes and hashes; its presence means that the corpus is complete
    verified.json          size and modification time of each shard when all its tokens were last checked

Of a corpus from the hub, meta.json is what the hub has listed, and shards come as runs need them
(`data.pretokenised`): that some are not there is its normal state.
"""

import os
from collections.abc import Callable, Iterable, Iterator
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
    sha256: str = ""
    """Of the tokens, without the header; empty where only `file_hash` is known."""
    file_hash: str = ""
    """Of the whole file, as a hub lists it: `sha256:...` or `git:...`."""


@dataclass(frozen=True)
class Split:
    """The training or the validation part."""

    tokens: int
    documents: int | None
    """None where others have made the shards and do not say."""
    text_bytes: int | None
    """Bytes of text behind the tokens, for bits per byte; None where there is no text."""
    shards: tuple[Shard, ...]

    def sequences(self, seq_len: int) -> int:
        """Sequences of `seq_len` tokens, each with the token to predict after its last, that lie within a shard."""
        return sum((shard.tokens - 1) // seq_len for shard in self.shards)

    def batches(self, batch_tokens: int) -> int:
        """Whole batches that lie within a shard, as they are read sequentially."""
        return sum(batches_in(shard.tokens, batch_tokens) for shard in self.shards)


def batches_in(tokens: int, batch_tokens: int) -> int:
    """Batches that a sequential reader takes from a shard.

    The speedrun's loader goes on to the next shard unless position + batch + 1 is less than the tokens there are: one
    token more than inputs and targets take.
    """
    return max(0, (tokens - 2) // batch_tokens)


@dataclass(frozen=True)
class Origin:
    """Where the shards of a corpus come from."""

    repo: str
    """Dataset on the hub."""
    revision: str
    """What was asked for: branch, tag or commit."""
    commit: str
    """What that was when the hub listed it."""


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
    origin: Origin | None = None
    """The hub, for a corpus from there; None for one made here."""

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
        origin = meta.pop("origin", None)
        return Corpus(folder=folder, train=train, val=val, origin=origin and Origin(**origin), **meta)
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


def is_verified(corpus: Corpus, shard: Shard) -> bool:
    """Whether a shard is there and nothing has been written to it since it was found good."""
    stamp = _stamp(corpus.folder / shard.file)
    return stamp is not None and stamp == _verified(corpus).get(shard.file)


def check_changed(corpus: Corpus, wanted: Iterable[Shard]) -> None:
    """Check those shards anew that were found good once and have been written to since.

    Raises DataError for the first fault. Takes a look at each file's size and time, no more, where nothing has changed.
    """
    known = _verified(corpus)
    for shard in wanted:
        path = corpus.folder / shard.file
        if shard.file in known and known[shard.file] != _stamp(path):
            _verify_shard(corpus, path, shard, None)
            note_verified(corpus, shard)


def note_verified(corpus: Corpus, shard: Shard) -> None:
    """Remember that a shard was found good just now, beside what other processes remember."""
    with suppress(OSError), files.locked(corpus.folder):
        known = _verified(corpus) | {shard.file: _stamp(corpus.folder / shard.file)}
        files.write_json(corpus.folder / "verified.json", known)


def check_shard(corpus: Corpus, path: Path, shard: Shard, advance: Callable[[int], None] | None = None) -> None:
    """Check all of `path` against what is known of `shard`. Raises DataError naming file and byte offset."""
    shards.verify(path, corpus.vocab_size, shard.sha256 or None, advance, shard.file_hash or None)


def findings(corpus: Corpus) -> list[dict[str, Any]]:
    """Check all tokens of all shards now; per shard: `corpus`, `shard`, `tokens`, and `problem` (None, or a line).

    Shards that have not been downloaded are left out.
    """
    rows = []
    for path, shard in corpus.all_shards():
        if corpus.origin is not None and not path.exists():
            continue
        problem = None
        try:
            _verify_shard(corpus, path, shard, None)
        except DataError as e:
            problem = str(e)
        rows.append({"corpus": corpus.folder.name, "shard": shard.file, "tokens": shard.tokens, "problem": problem})
    return rows


def summary(corpus: Corpus) -> dict[str, Any]:
    """The corpus in plain figures: sizes per split, vocabulary, where it lies, bytes on disk, whether what there is is
    verified. `present`: shards that are there, of a split's `shards`."""
    row: dict[str, Any] = {key: getattr(corpus, key) for key in ("name", "tokenizer", "vocab_size", "fingerprint")}
    stamps = _stamps(corpus)
    for split, part in (("train", corpus.train), ("val", corpus.val)):
        row[split] = {"tokens": part.tokens, "documents": part.documents, "text_bytes": part.text_bytes}
        row[split] |= {"shards": len(part.shards), "present": sum(stamps[s.file] != ABSENT for s in part.shards)}
    disk = sum(size for size, _ in stamps.values())
    if corpus.origin is not None:
        row["origin"] = asdict(corpus.origin)
        stamps = {file: stamp for file, stamp in stamps.items() if stamp != ABSENT}
    known = _verified(corpus)
    verified = all(known.get(file) == stamp for file, stamp in stamps.items())
    return row | {"folder": str(corpus.folder), "disk_bytes": disk, "verified": verified and disk > 0}


def _split(values: dict[str, Any]) -> Split:
    return Split(**{**values, "shards": tuple(Shard(**shard) for shard in values["shards"])})


def _verify_shard(corpus: Corpus, path: Path, shard: Shard, advance: Callable[[int], None] | None) -> None:
    try:
        check_shard(corpus, path, shard, advance)
    except DataError as e:
        if corpus.origin is not None:
            raise DataError(f"{e}; delete the file, it will be downloaded again") from e
        raise DataError(f"{e}; delete the folder {corpus.folder.name}, it will be made again") from e


ABSENT = [0, 0]
"""Stamp of a file that is not there, which `verify` then finds."""


def _stamps(corpus: Corpus) -> dict[str, list[int]]:
    """File -> its stamp, of every shard."""
    return {shard.file: _stamp(path) or ABSENT for path, shard in corpus.all_shards()}


def _stamp(path: Path) -> list[int] | None:
    """Size and modification time in ns; None where there is no such file."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return [stat.st_size, stat.st_mtime_ns]


def _verified(corpus: Corpus) -> dict[str, Any]:
    try:
        known = files.read_json(corpus.folder / "verified.json")
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
