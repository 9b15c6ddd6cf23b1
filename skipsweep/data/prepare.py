"""Corpora as planning and `skipsweep data` see them: where they lie, made when needed, checked, enough for a run."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from skipsweep.config import Data, HubShards, Paths, Text
from skipsweep.data import batches, corpus, documents, pretokenised
from skipsweep.data.build import Progress, build
from skipsweep.data.corpus import Corpus, Shard, Split, folder_of, open_corpus, read_meta
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


def prepare(
    cfg: Data, root: Path, progress: Progress | None = None, tell: Callable[[str], None] | None = None
) -> Corpus:
    """The corpus of `cfg` below `root`, tokenised now unless it is there; of one from the hub, its listing.

    `tell` is called with the remark on a text of one's own that has just been tokenised. Raises DataError for texts
    that cannot be used, a root that cannot be written to, a hub that cannot be asked, and a `cfg.fingerprint` or
    `cfg.vocab_size` that differs from what is found.
    """
    made = pretokenised.known(cfg, root) if isinstance(cfg, HubShards) else _tokenised(cfg, root, progress, tell)
    _check_same(cfg, made.fingerprint)
    if cfg.vocab_size not in (0, made.vocab_size):
        raise DataError(f"data.vocab_size={cfg.vocab_size}, but data={cfg.name} has {made.vocab_size} token ids")
    return made


def resolve(cfg: Data, root: Path, progress: Progress | None = None) -> Data:
    """A copy of `cfg` in canonical form, with fingerprint and vocabulary filled in, for planning.

    Prepares the corpus where necessary (with its remark, on standard error) and verifies its shards once; shards from
    the hub are neither downloaded nor looked at (`fetch`). Raises DataError as `prepare`, and for a shard that is not
    sound. How many epochs a run takes is `check_enough`'s answer.
    """
    made = prepare(cfg, root, progress, lambda remark: print(remark, file=sys.stderr, flush=True))
    if made.origin is None:
        corpus.verify(made)
    known: dict[str, Any] = {"fingerprint": made.fingerprint, "vocab_size": made.vocab_size}
    if cfg.val_seq_len == cfg.seq_len:
        known["val_seq_len"] = 0
    if isinstance(cfg, Text):
        known["path"] = os.path.abspath(os.path.expanduser(cfg.path))
    return replace(cfg, **known)


def fetch(cfg: Data, root: Path, steps: int, progress: Progress | None = None) -> None:
    """Have the shards that a run of `steps` steps reads in place and verified; `cfg` may be resolved or not.

    Downloads what is missing, `progress` being told (bytes there, bytes wanted); nothing to do for a corpus made here.
    Raises DataError as `check_enough` and `pretokenised.fetch`.
    """
    if isinstance(cfg, HubShards):
        made = prepare(cfg, root)
        check_enough(cfg, steps, made)
        pretokenised.fetch(made, needed(cfg, steps, made), cfg.revision, progress)


def to_download(cfg: Data, root: Path, steps: int) -> int:
    """Bytes that `fetch` would download for a planned run."""
    made = open_corpus(cfg, root)
    return 0 if made.origin is None else pretokenised.missing_bytes(made, needed(cfg, steps, made))


def require(cfg: Data, root: Path, steps: int) -> None:
    """Raise DataError where a shard that a planned run of `steps` steps reads is not there, or no longer what it was
    when it was verified: jobs only read, and may have waited in a queue for days."""
    made = open_corpus(cfg, root)
    wanted = needed(cfg, steps, made)
    absent = [shard.file for shard in wanted if not (made.folder / shard.file).exists()]
    if absent:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise DataError(f"{made.folder}: {absent[0]}{more} not there; download first: skipsweep data prepare")
    corpus.check_changed(made, wanted)


def needed(cfg: Data, steps: int, made: Corpus) -> list[Shard]:
    """The shards that a run of `steps` steps reads, validation first."""
    train = [shard for shard in made.train.shards if _units(cfg, Split(0, None, None, (shard,)))]
    if cfg.order == "sequential":
        wanted, ends = [], 0
        for shard in train:
            if ends < steps:
                wanted.append(shard)
            ends += corpus.batches_in(shard.tokens, cfg.batch_tokens)
        train = wanted
    return [*made.val.shards, *train]


def check_enough(cfg: Data, steps: int, made: Corpus) -> int:
    """Passes over the training split that a run of `steps` steps begins: its canonical `epochs`.

    Raises DataError where `cfg.epochs` does not permit them, where validation needs more than there is, or where sizes
    are no multiples of the sequence length.
    """
    batches.check(cfg)
    _check_training(cfg, made)
    _check_validation(cfg, made)
    have, per_step = _units(cfg, made.train), 1 if cfg.order == "sequential" else cfg.batch_tokens // cfg.seq_len
    passes = max(1, -(-steps * per_step // have))
    if passes > cfg.epochs:
        most = have * cfg.epochs // per_step
        unit = "whole batches" if cfg.order == "sequential" else f"sequences of {cfg.seq_len}"
        raise DataError(
            f"schedule.steps={steps} with data.batch_tokens={cfg.batch_tokens} needs {steps * cfg.batch_tokens} tokens,"
            f" data={cfg.name} has {have * cfg.batch_tokens // per_step} in {unit} (data.epochs={cfg.epochs});"
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
    folders = _folders(root) if cfg is None else [_folder(cfg, root)]
    rows = []
    for folder in folders:
        try:
            rows += corpus.findings(read_meta(folder))
        except DataError as e:
            rows.append({"corpus": folder.name, "shard": None, "tokens": None, "problem": str(e)})
    return rows


def _tokenised(cfg: Data, root: Path, progress: Progress | None, tell: Callable[[str], None] | None) -> Corpus:
    if cfg.fingerprint and folder_of(root, cfg.name, cfg.fingerprint).is_dir():
        return read_meta(folder_of(root, cfg.name, cfg.fingerprint))  # its text may have changed since, or gone
    found = fingerprint(cfg, root)
    _check_same(cfg, found)
    folder = folder_of(root, cfg.name, found)
    if not folder.is_dir():
        build(cfg, found, root, progress)
        if tell is not None and isinstance(cfg, Text):
            tell(documents.remark(cfg))
    return read_meta(folder)


def _check_same(cfg: Data, found: str) -> None:
    if cfg.fingerprint not in ("", found):
        raise DataError(f"data.fingerprint={cfg.fingerprint}, but data={cfg.name} is {found} here: not the same corpus")


def _units(cfg: Data, split: Split) -> int:
    """What the training order is made of: whole batches, or sequences."""
    return split.batches(cfg.batch_tokens) if cfg.order == "sequential" else split.sequences(cfg.seq_len)


def _check_training(cfg: Data, made: Corpus) -> None:
    """Raise DataError where there is not one batch, or not one sequence."""
    if _units(cfg, made.train):
        return
    spare = 2 if cfg.order == "sequential" else 1
    longest = max(shard.tokens for shard in made.train.shards) - spare
    if longest < cfg.seq_len:
        raise DataError(f"data.seq_len={cfg.seq_len} is longer than the training split; valid: at most {longest}")
    valid = longest // cfg.seq_len * cfg.seq_len
    raise DataError(
        f"data.batch_tokens={cfg.batch_tokens} is more than any training shard of data={cfg.name} holds; valid: at most"
        f" {valid}, or data.order=shuffled"
    )


def _check_validation(cfg: Data, made: Corpus) -> None:
    length = batches.val_seq_len(cfg)
    have = made.val.sequences(length) * length
    if cfg.val_tokens > have:
        key = "val_seq_len" if cfg.val_seq_len else "seq_len"
        valid = f"at most {have}" if have else f"none with data.{key}={length}, which is longer than the split"
        why = ""
        if isinstance(cfg, Text):
            with suppress(DataError):  # the text may have gone since it was tokenised
                why = f" ({documents.validation(cfg)})"
        raise DataError(f"data.val_tokens={cfg.val_tokens}, data={cfg.name} has {made.val.tokens}{why}; valid: {valid}")


def _folder(cfg: Data, root: Path) -> Path:
    """Where the corpus of `cfg` lies, or would."""
    if isinstance(cfg, HubShards):
        return pretokenised.known(cfg, root).folder
    return folder_of(root, cfg.name, fingerprint(cfg, root))


def _folders(root: Path) -> Iterator[Path]:
    if root.is_dir():
        yield from sorted(p for p in root.iterdir() if _FOLDER.fullmatch(p.name))
