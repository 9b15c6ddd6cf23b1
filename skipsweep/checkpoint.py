"""Checkpoints that are either whole or not there.

    checkpoint/step-00000100/   model.pt optim.pt random.pt manifest.json

A checkpoint is written into a folder with a temporary name, every file is flushed to disk, the manifest (names, sizes,
sha256, step, identity) is written last, and the folder is renamed. `load_newest` takes the highest step whose files are
exactly those of its manifest, and says why it passed over another.
"""

import errno
import hashlib
import json
import os
import pickle
import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from skipsweep import files

MANIFEST = "manifest.json"
PARTS = ("model", "optim", "random")
_NAME = re.compile(r"step-\d{8,}")


def save(
    folder: Path,
    state: Mapping[str, Any],
    identity: str,
    attempt: int,
    keep: int,
    parts: tuple[str, ...] = PARTS,
    check: Callable[[], None] = lambda: None,
) -> Path:
    """Write `state` (see Trainer.state) as step-N below `folder`, then `prune` to `keep`.

    `check` raises if another has taken over meanwhile: it is asked before anything is put in place or deleted.
    Raises OSError (disk full, unwritable) with the earlier checkpoints intact.
    """
    final = folder / f"step-{state['step']:08d}"
    tmp = folder / f".{final.name}.{uuid.uuid4().hex}.tmp"
    tmp.mkdir(parents=True)
    try:
        written = {f"{part}.pt": _write(tmp / f"{part}.pt", state[part]) for part in parts}
        manifest = {
            "step": state["step"],
            "train_time_s": state["train_time_s"],
            "identity": identity,
            "attempt": attempt,
            "world_size": len(state["random"]),
            "files": written,
        }
        files.write_json(tmp / MANIFEST, {**manifest, "sha256": _digest(manifest)})
        check()
        _put(tmp, final)
    finally:
        shutil.rmtree(tmp, ignore_errors=True)
    files.fsync(folder)
    check()
    prune(folder, final, keep)
    return final


def _write(path: Path, value: Any) -> dict[str, Any]:
    """Write one file through to the disk; returns its entry in the manifest."""
    with open(path, "wb") as f:
        stream = _Hashing(f)
        torch.save(_compact(value), stream)  # type: ignore[arg-type]  # it asks for `write` alone
        if stream.problem:
            raise stream.problem
        f.flush()
        os.fsync(f.fileno())
    return {"size": stream.size, "sha256": stream.sha256.hexdigest()}


class _Hashing:
    """A file that hashes what passes through: the manifest describes what was meant, not what a disk made of it.

    `problem` keeps what a write raised: passing through the serialiser it would come out as another error.
    """

    def __init__(self, f: BinaryIO):
        self._f, self.size, self.sha256 = f, 0, hashlib.sha256()
        self.problem: OSError | None = None

    def write(self, content: bytes) -> int:
        self.sha256.update(content)
        self.size += len(content)
        if not self.problem:
            try:
                self._f.write(content)
            except OSError as problem:
                self.problem = problem
        return len(content)

    def flush(self) -> None:
        """Left to `_write`, which sees what goes wrong."""


def _compact(value: Any) -> Any:
    """Tensors on the host, each with a storage of its own: a view would take its whole storage with it."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        own = value.untyped_storage().nbytes() == value.numel() * value.element_size()
        return value if own else value.clone()
    if isinstance(value, dict):
        return {key: _compact(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_compact(item) for item in value]
    return value


def _put(tmp: Path, final: Path) -> None:
    """Rename into place. An older folder of the same step (corrupt, or of an attempt that was overtaken) makes way."""
    if final.exists():
        aside = final.with_name(f".{final.name}.{uuid.uuid4().hex}.tmp")
        os.rename(final, aside)
        shutil.rmtree(aside, ignore_errors=True)
    os.rename(tmp, final)


def prune(folder: Path, newest: Path, keep: int) -> None:
    """Delete all but `newest` and the `keep` - 1 before it. What lies ahead of it was passed over (it is damaged), and
    must not count in its stead. A failure to delete is no reason to stop."""
    found = steps(folder)
    kept = [path for path in found if path.name <= newest.name][:keep]
    for path in set(found) - set(kept):
        shutil.rmtree(path, ignore_errors=True)


def clean(folder: Path) -> None:
    """Delete what crashes left half-written. Only for the holder of the run's lease."""
    if folder.is_dir():
        for path in folder.glob(".step-*.tmp"):
            shutil.rmtree(path, ignore_errors=True)


def steps(folder: Path) -> list[Path]:
    """Checkpoint folders, newest step first, whole or not."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if _NAME.fullmatch(path.name)), reverse=True)


def load_newest(folder: Path, identity: str, say: Callable[[str], None]) -> dict[str, Any] | None:
    """The state of the newest whole checkpoint of this run, or None. `say` hears about those passed over."""
    for path in steps(folder):
        try:
            return load(path, identity)
        except Corrupt as problem:
            say(f"checkpoint passed over: {path.name}: {problem}")
    return None


class Corrupt(Exception):
    """A checkpoint that is not what its manifest says, or not this run's."""


def load(path: Path, identity: str, parts: tuple[str, ...] = PARTS) -> dict[str, Any]:
    """Read one checkpoint, every byte verified before it is interpreted, and no code run by it.

    Raises Corrupt; and MemoryError, OSError where it could not be looked at, which says nothing against it.
    """
    manifest = _manifest(path, identity)
    state: dict[str, Any] = {"step": manifest["step"], "train_time_s": manifest["train_time_s"]}
    for part in parts:
        file = path / f"{part}.pt"
        _verify(file, manifest["files"].get(file.name))
        try:
            state[part] = torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as problem:
            raise Corrupt(f"{file.name} cannot be read: {problem}") from problem
    return state


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _manifest(path: Path, identity: str) -> dict[str, Any]:
    try:
        manifest = files.read_json(path / MANIFEST)
    except ValueError as problem:
        raise Corrupt(f"{MANIFEST} is damaged") from problem
    except OSError as problem:
        raise _damage(f"{MANIFEST} is damaged", problem) from problem
    if not isinstance(manifest, dict):
        raise Corrupt(f"no {MANIFEST}" if manifest is None else f"{MANIFEST} is damaged")
    if manifest.pop("sha256", None) != _digest(manifest):
        raise Corrupt(f"{MANIFEST} is damaged")
    if manifest["identity"] != identity:
        raise Corrupt(f"it belongs to run {manifest['identity']}, not {identity}")
    if f"step-{manifest['step']:08d}" != path.name:
        raise Corrupt(f"its manifest speaks of step {manifest['step']}")
    return manifest


def _damage(what: str, problem: OSError) -> Corrupt:
    """Corrupt, if `problem` is one of the checkpoint's; raises it again if it is one of the machine's (rights, memory,
    a file server that is away): to pass over a good checkpoint would throw away what it holds."""
    if problem.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO):
        raise problem
    return Corrupt(what)


def _verify(file: Path, entry: Mapping[str, Any] | None) -> None:
    """Raise Corrupt unless `file` is, byte for byte, what was written."""
    if entry is None:
        raise Corrupt(f"{file.name} is not in the manifest")
    try:
        size = file.stat().st_size
        if size != entry["size"]:
            raise Corrupt(f"{file.name} has {size} bytes, the manifest says {entry['size']}")
        with open(file, "rb") as f:
            digest = hashlib.file_digest(f, "sha256").hexdigest()
    except OSError as problem:
        raise _damage(f"{file.name} cannot be read: {problem.strerror}", problem) from problem
    if digest != entry["sha256"]:
        raise Corrupt(f"{file.name} has another sha256 than the manifest says")
