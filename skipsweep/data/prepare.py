"""Corpora as planning and `skipsweep data` see them: where they lie, made when needed, checked, enough for a run."""

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from skipsweep.config import Data, Paths, Text
from skipsweep.data import batches, corpus
from skipsweep.data.build import Progress, build
from skipsweep.data.corpus import Corpus, folder_of, read_meta
from skipsweep.data.fingerprint import LENGTH, fingerprint
from skipsweep.errors import DataError
from skipsweep.provenance import CHECKOUT

_FOLDER = re.compile(rf"\w+-[0-9a-f]{{{LENGTH}}}")


def data_root(paths: Paths) -> Path:
    """Where corpora lie: `paths.data` (a relative one starts at the checkout), else $SKIPSWEEP_DATA, else ~/.cache."""
    if paths.data:
        return (CHECKOUT / Path(paths.data).expanduser()).resolve()
    if os.environ.get("SKIPSWEEP_DATA"):
        return Path(os.environ["SKIPSWEEP_DATA"]).expanduser().absolute()
    return Path.home() / ".cache" / "skipsweep"


def prepare(cfg: Data, root: Path, progress: Progress | None = None) -> Corpus:
    """The corpus of `cfg` below `root`, tokenised now unless it is there.

    Raises DataError for texts that cannot be used, a root that cannot be written to, and a `cfg.fingerprint` or
    `cfg.vocab_size` that differs from what is found.
    """
    found = fingerprint(cfg, root)
    if cfg.fingerprint not in ("", found):
        raise DataError(f"data.fingerprint={cfg.fingerprint}, but data={cfg.name} is {found} here: not the same corpus")
    folder = folder_of(root, cfg.name, found)
    if not folder.is_dir():
        build(cfg, found, root, progress)
    made = read_meta(folder)
    if cfg.vocab_size not in (0, made.vocab_size):
        raise DataError(f"data.vocab_size={cfg.vocab_size}, but data={cfg.name} has {made.vocab_size} token ids")
    return made


def resolve(cfg: Data, root: Path, progress: Progress | None = None) -> Data:
    """A copy of `cfg` with fingerprint and vocabulary filled in (and a text's path made absolute), for planning.

    Prepares the corpus where necessary and verifies its shards once. Raises DataError as `prepare`, and for a shard
    that is not sound. How many epochs a run takes is `check_enough`'s answer.
    """
    made = prepare(cfg, root, progress)
    corpus.verify(made)
    known: dict[str, Any] = {"fingerprint": made.fingerprint, "vocab_size": made.vocab_size}
    if isinstance(cfg, Text):
        known["path"] = os.path.abspath(os.path.expanduser(cfg.path))
    return replace(cfg, **known)


def check_enough(cfg: Data, steps: int, made: Corpus) -> int:
    """Passes over the training split that a run of `steps` steps begins: its canonical `epochs`.

    Raises DataError where `cfg.epochs` does not permit them, where validation needs more than there is, or where sizes
    are no multiples of the sequence length.
    """
    batches.check(cfg)
    have, batch = made.train.sequences(cfg.seq_len), cfg.batch_tokens // cfg.seq_len
    if not have:
        longest = max(shard.tokens for shard in made.train.shards) - 1
        raise DataError(f"data.seq_len={cfg.seq_len} is longer than the training split; valid: at most {longest}")
    _check_validation(cfg, made)
    passes = max(1, -(-steps * batch // have))
    if passes > cfg.epochs:
        most = have * cfg.epochs // batch
        raise DataError(
            f"schedule.steps={steps} with data.batch_tokens={cfg.batch_tokens} needs {steps * cfg.batch_tokens} tokens,"
            f" data={cfg.name} has {have * cfg.seq_len} in sequences of {cfg.seq_len} (data.epochs={cfg.epochs});"
            f" set data.epochs={passes}" + (f" or schedule.steps<={most}" if most else "")
        )
    return passes


def info(root: Path) -> list[dict[str, Any]]:
    """Every corpus below `root` in plain figures (`corpus.summary`); `folder` and `problem` of one that is damaged."""
    rows = []
    for folder in _folders(root):
        try:
            rows.append(corpus.summary(read_meta(folder)))
        except DataError as e:
            rows.append({"folder": str(folder), "problem": str(e)})
    return rows


def verify_all(root: Path, cfg: Data | None = None) -> list[dict[str, Any]]:
    """Check all tokens of all shards below `root`, or of the corpus of `cfg`, whatever was checked before.

    A row per shard: `corpus`, `shard`, `tokens`, `problem` (None, or a line that names file and byte offset).
    """
    folders = _folders(root) if cfg is None else [folder_of(root, cfg.name, fingerprint(cfg, root))]
    rows = []
    for folder in folders:
        try:
            rows += corpus.findings(read_meta(folder))
        except DataError as e:
            rows.append({"corpus": folder.name, "shard": None, "tokens": None, "problem": str(e)})
    return rows


def _check_validation(cfg: Data, made: Corpus) -> None:
    have = made.val.sequences(cfg.seq_len) * cfg.seq_len
    if cfg.val_tokens > have:
        valid = f"at most {have}" if have else f"none with data.seq_len={cfg.seq_len}, which is longer than the split"
        raise DataError(f"data.val_tokens={cfg.val_tokens}, data={cfg.name} has {made.val.tokens}; valid: {valid}")


def _folders(root: Path) -> Iterator[Path]:
    if root.is_dir():
        yield from sorted(p for p in root.iterdir() if _FOLDER.fullmatch(p.name))
