"""Corpora of token shards from the hub: listed once, downloaded shard by shard as runs need them.

The listing becomes the corpus' meta.json: sizes give the number of tokens, hashes the identity. From then on planning
needs no network, and whatever is downloaded later must be what was listed then.
"""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from skipsweep.config import HubShards
from skipsweep.data import corpus, download, hub, shards, tokenizer
from skipsweep.data.build import Progress, counter
from skipsweep.data.corpus import Corpus, Origin, Shard, Split, folder_of, read_meta
from skipsweep.data.fingerprint import of_shards
from skipsweep.errors import DataError

LISTING_WAITS_S = (1.0, 2.0)
"""Pauses between attempts at a listing: who plans does not wait for long."""

_NAME = re.compile(r"(?:[\w.-]+_)?(train|val)_(\d+)\.bin")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def known(cfg: HubShards, root: Path) -> Corpus:
    """The corpus of `cfg`, from what was listed before, else from the hub; downloads no shard.

    Raises DataError where it was not listed before and the hub cannot be asked, and for a listing that is of no use.
    """
    kept = _kept(cfg, root)
    if kept is not None:
        return kept
    listed = _listed(cfg, root)
    try:
        listed.folder.mkdir(parents=True, exist_ok=True)
        corpus.write_meta(listed)
    except OSError as e:
        raise DataError(
            f"{listed.folder}: the listing cannot be written ({e.strerror or e});"
            " valid for $SKIPSWEEP_DATA or paths.data: a folder that can be written to, with space left"
        ) from e
    return listed


def fetch(made: Corpus, wanted: Sequence[Shard], revision: str, progress: Progress | None = None) -> None:
    """Have all of `wanted` in place and verified; what is already there is not downloaded again.

    `revision`: what stands for the corpus on the hub; where that is a commit, nothing can have moved. Raises DataError
    where the hub has other content now than when it was listed, where there is no space, and as `download.fetch`.
    """
    missing = [shard for shard in wanted if not _is_sound(made, shard)]
    if not missing:
        return
    repo, commit = _place(made, missing, revision)
    _check_space(made, missing)
    advance = counter(progress, sum(map(_bytes, missing)))
    for shard in missing:
        _fetch(made, shard, repo, commit, advance)


def missing_bytes(made: Corpus, wanted: Sequence[Shard]) -> int:
    """Bytes of `wanted` that are still to come."""
    absent = [shard for shard in wanted if not (made.folder / shard.file).exists()]
    return sum(_bytes(shard) - download.partial_bytes(made.folder / shard.file) for shard in absent)


def _kept(cfg: HubShards, root: Path) -> Corpus | None:
    """What was listed for this fingerprint, else for this repository and revision."""
    if cfg.fingerprint and folder_of(root, cfg.name, cfg.fingerprint).is_dir():
        return read_meta(folder_of(root, cfg.name, cfg.fingerprint))
    for folder in sorted(root.glob(f"{cfg.name}-*")):
        try:
            made = read_meta(folder)
        except DataError:  # listed anew
            continue
        here = made.origin
        same = here is not None and cfg.revision in (here.revision, here.commit)
        if here is not None and same and (here.repo, made.tokenizer) == (cfg.repo, cfg.tokenizer):
            return made
    return None


def _listed(cfg: HubShards, root: Path) -> Corpus:
    vocabulary = tokenizer.vocab_size(cfg.tokenizer)
    listing = _listing(cfg.repo, cfg.revision)
    parts: dict[str, list[Shard]] = {"train": [], "val": []}
    for file in sorted(listing.files, key=lambda file: file.name):
        match = _NAME.fullmatch(file.name)
        if match:
            parts[match[1]].append(_shard(cfg, file))
    if not all(parts.values()):
        raise DataError(f"data.repo={cfg.repo} has no token shards; valid: a dataset with *train_N.bin and *val_N.bin")
    train, val = parts["train"], parts["val"][:1]  # validation is the beginning of the first, as in the speedrun
    found = of_shards(cfg.tokenizer, [s.file_hash for s in train], [s.file_hash for s in val])
    origin = Origin(cfg.repo, cfg.revision, listing.commit)
    folder = folder_of(root, cfg.name, found)
    return Corpus(folder, cfg.name, cfg.tokenizer, vocabulary, found, _split(train), _split(val), origin)


def _split(part: Sequence[Shard]) -> Split:
    return Split(sum(shard.tokens for shard in part), None, None, tuple(part))


def _listing(repo: str, revision: str) -> hub.Listing:
    return download.patiently(lambda: hub.list_files(repo, revision), LISTING_WAITS_S)


def _shard(cfg: HubShards, file: hub.File) -> Shard:
    tokens, rest = divmod(file.size - shards.HEADER_BYTES, shards.TOKEN.itemsize)
    if rest or not 0 < tokens <= shards.MAX_TOKENS:
        raise DataError(f"data.repo={cfg.repo}: {file.name} has {file.size} bytes, which no token shard has")
    return Shard(file.name, tokens, file_hash=file.hash)


def _bytes(shard: Shard) -> int:
    return shards.HEADER_BYTES + shards.TOKEN.itemsize * shard.tokens


def _is_sound(made: Corpus, shard: Shard) -> bool:
    """Whether a shard need not be downloaded. One put there by other means is checked, a broken one removed."""
    path = made.folder / shard.file
    if corpus.is_verified(made, shard):
        return True
    if not path.exists():
        return False
    try:
        corpus.check_shard(made, path, shard)
    except DataError:
        path.unlink(missing_ok=True)
        return False
    corpus.note_verified(made, shard)
    return True


def _place(made: Corpus, wanted: Sequence[Shard], revision: str) -> tuple[str, str]:
    """Repository and commit to download from: of a branch the newest, if it has `wanted` as they were listed.

    Raises DataError where the revision now stands for other shards. More of them than before do no harm.
    """
    origin = made.origin
    assert origin is not None, "only shards of the hub can be missing"
    if _COMMIT.fullmatch(revision):
        return origin.repo, revision
    listing = _listing(origin.repo, revision)
    now = {file.name: file.hash for file in listing.files}
    for shard in wanted:
        if now.get(shard.file) != shard.file_hash:
            raise DataError(
                f"data.repo={origin.repo}: {shard.file} is not what it was when data.revision={revision} was"
                f" listed; valid: data.revision={origin.commit} for what was listed then, or delete {made.folder} and"
                " plan anew"
            )
    return origin.repo, listing.commit


def _check_space(made: Corpus, wanted: Sequence[Shard]) -> None:
    need, free = missing_bytes(made, wanted), shutil.disk_usage(made.folder).free
    if need > free:
        raise DataError(
            f"{made.folder}: {need / 1e9:.1f} GB to download, {free / 1e9:.1f} GB free; valid for $SKIPSWEEP_DATA or"
            " paths.data: a folder with space left"
        )


def _fetch(made: Corpus, shard: Shard, repo: str, commit: str, advance: download.Advance) -> None:
    download.fetch(
        lambda start: hub.reading(repo, commit, shard.file, start),
        made.folder / shard.file,
        _bytes(shard),
        lambda partial: corpus.check_shard(made, partial, shard),
        advance,
    )
    corpus.note_verified(made, shard)
