"""A checkpoint is whole or passed over: damage of every kind, a crash or a full disk at every step of saving."""

import errno
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from skipsweep import checkpoint, files

RUN = "0123456789ab"
MODEL, OPTIM, RANDOM = "model.pt", "optim.pt", "random.pt"


def state(step: int) -> dict[str, Any]:
    """What a trainer hands over, in small; every value tells the step it belongs to."""
    return {
        "model": {"embed": torch.full((40, 8), float(step)), "scale": torch.tensor(float(step))},
        "optim": {"embed/exp_avg": torch.full((40, 8), step + 0.5)},
        "random": [{"torch": torch.get_rng_state(), "python": (3, (step, 2), None)}],
        "step": step,
        "train_time_s": step * 1.5,
    }


def save(folder: Path, step: int, identity: str = RUN, keep: int = 2, **more: Any) -> Path:
    return checkpoint.save(folder, state(step), identity, 1, keep, **more)


def newest(folder: Path, said: list[str] | None = None) -> int | None:
    """Step of the newest whole checkpoint, whose content is what was saved at that step."""
    found = checkpoint.load_newest(folder, RUN, (said if said is not None else []).append)
    if found is None:
        return None
    expected = state(found["step"])
    assert found["train_time_s"] == expected["train_time_s"]
    for part in ("model", "optim"):
        assert found[part].keys() == expected[part].keys()
        assert all(torch.equal(found[part][name], expected[part][name]) for name in expected[part])
    return found["step"]


@pytest.fixture(autouse=True)
def _fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here shows whether the disk obeys, and hundreds of real ones take minutes."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two checkpoints: steps 2 and 4."""
    for step in (2, 4):
        save(tmp_path / "checkpoint", step)
    return tmp_path / "checkpoint"


def test_what_was_saved_is_loaded(folder: Path) -> None:
    said: list[str] = []
    assert newest(folder, said) == 4
    assert said == []
    assert checkpoint.load(folder / "step-00000002", RUN, ("model",)).keys() == {"step", "train_time_s", "model"}


def test_a_view_is_saved_without_the_rest_of_its_storage(tmp_path: Path) -> None:
    small = {**state(1), "model": {"view": torch.zeros(100_000)[:4]}}
    path = checkpoint.save(tmp_path, small, RUN, 1, 2)
    assert (path / MODEL).stat().st_size < 10_000


# ------------------------------------------------------------------------------------------------------------- mutants

Mutant = Callable[[Path], None]


def cut(name: str, where: float) -> Mutant:
    """Cut a file: at a fraction of its length, or (negative) so many bytes before the end."""

    def mutate(path: Path) -> None:
        content = (path / name).read_bytes()
        (path / name).write_bytes(content[: int(where) if where < 0 else int(len(content) * where)])

    return mutate


def flip(name: str, where: float) -> Mutant:
    """Flip one bit of the byte at a fraction of a file's length."""

    def mutate(path: Path) -> None:
        content = bytearray((path / name).read_bytes())
        content[int((len(content) - 1) * where)] ^= 0x10
        (path / name).write_bytes(content)

    return mutate


def missing(name: str) -> Mutant:
    return lambda path: (path / name).unlink()


def replaced(name: str, content: bytes) -> Mutant:
    def mutate(path: Path) -> None:
        (path / name).write_bytes(content)

    return mutate


def zero_tail(path: Path) -> None:
    """What a file system leaves that knew the size, but not yet the data."""
    content = (path / MODEL).read_bytes()
    (path / MODEL).write_bytes(content[:-512] + bytes(512))


def longer(path: Path) -> None:
    (path / MODEL).write_bytes((path / MODEL).read_bytes() + b"\0")


def swap(path: Path) -> None:
    (path / MODEL).rename(path / "other")
    (path / OPTIM).rename(path / MODEL)
    (path / "other").rename(path / OPTIM)


def older(name: str) -> Mutant:
    """Take a file from the checkpoint before."""

    def mutate(path: Path) -> None:
        shutil.copy(path.with_name("step-00000002") / name, path / name)

    return mutate


def renamed_over(path: Path) -> None:
    shutil.rmtree(path)
    shutil.copytree(path.with_name("step-00000002"), path)


def of_another_run(path: Path) -> None:
    shutil.rmtree(path)
    save(path.parent, 4, identity="ba9876543210")


def weights_only(path: Path) -> None:
    shutil.rmtree(path)
    save(path.parent, 4, parts=("model",))


def a_folder_for(name: str) -> Mutant:
    def mutate(path: Path) -> None:
        (path / name).unlink()
        (path / name).mkdir()

    return mutate


def emptied(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


def a_file_instead(path: Path) -> None:
    shutil.rmtree(path)
    path.write_bytes(b"")


SIZE, SHA, MANIFEST = "bytes, the manifest says", "another sha256", r"manifest\.json is damaged"

MUTANTS: dict[str, tuple[Mutant, str]] = {
    **{f"{n} cut at {w}": (cut(n, w), f"{n} has .* {SIZE}") for n in (MODEL, OPTIM, RANDOM) for w in (0, 0.3, 0.9, -1)},
    **{f"{n} flipped at {w}": (flip(n, w), f"{n} has {SHA}") for n in (MODEL, OPTIM, RANDOM) for w in (0, 0.5, 1)},
    **{f"manifest cut at {w}": (cut("manifest.json", w), MANIFEST) for w in (0, 0.3, 0.9, -2)},
    **{f"{n} missing": (missing(n), f"{n} cannot be read: No such file") for n in (MODEL, OPTIM, RANDOM)},
    "manifest missing": (missing("manifest.json"), r"no manifest\.json"),
    "zero tail": (zero_tail, f"{MODEL} has {SHA}"),
    "longer": (longer, f"{MODEL} has .* {SIZE}"),
    "swapped files": (swap, f"{MODEL} has "),
    "older model": (older(MODEL), f"{MODEL} has {SHA}"),
    "older manifest": (older("manifest.json"), "speaks of step 2"),
    "older checkpoint, renamed": (renamed_over, "speaks of step 2"),
    "another run's": (of_another_run, "belongs to run ba9876543210, not 0123456789ab"),
    "weights only": (weights_only, f"{OPTIM} is not in the manifest"),
    "manifest a list": (replaced("manifest.json", b"[]"), MANIFEST),
    "manifest null": (replaced("manifest.json", b"null"), r"no manifest\.json"),
    "manifest a number": (replaced("manifest.json", b"4"), MANIFEST),
    "manifest empty": (replaced("manifest.json", b"{}"), MANIFEST),
    "manifest binary": (replaced("manifest.json", b"\xff\xfe\0"), MANIFEST),
    "manifest a folder": (a_folder_for("manifest.json"), MANIFEST),
    "model a folder": (a_folder_for(MODEL), f"{MODEL} "),
    "nothing in it": (emptied, r"no manifest\.json"),
    "a file in its place": (a_file_instead, MANIFEST),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_damage_is_found_named_and_passed_over(mutant: str, folder: Path) -> None:
    mutate, match = MUTANTS[mutant]
    path = folder / "step-00000004"
    mutate(path)
    with pytest.raises(checkpoint.Corrupt, match=match):
        checkpoint.load(path, RUN)
    said: list[str] = []
    assert newest(folder, said) == 2
    assert len(said) == 1
    assert said[0].startswith("checkpoint passed over: step-00000004: ")


def test_no_byte_of_a_manifest_can_change_unnoticed(folder: Path) -> None:
    path = folder / "step-00000004"
    content = (path / "manifest.json").read_bytes()
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        (path / "manifest.json").write_bytes(flipped)
        with pytest.raises(checkpoint.Corrupt):
            checkpoint.load(path, RUN, ())


def test_with_all_damaged_there_is_none(folder: Path) -> None:
    for path in checkpoint.steps(folder):
        cut(MODEL, 0.5)(path)
    said: list[str] = []
    assert newest(folder, said) is None
    assert [line.split(":")[1] for line in said] == [" step-00000004", " step-00000002"]


class Hostile:
    """Unpickling it creates a file."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.canary),)


def test_a_checkpoint_cannot_run_code(folder: Path, tmp_path: Path) -> None:
    """Even one whose manifest is right: whoever can write files could write that as well."""
    canary = tmp_path / "canary"
    checkpoint.save(folder, {**state(6), "model": {"embed": Hostile(canary)}}, RUN, 1, 3)
    with pytest.raises(checkpoint.Corrupt, match=f"{MODEL} cannot be read"):
        checkpoint.load(folder / "step-00000006", RUN)
    assert newest(folder) == 4
    assert not canary.exists()
    torch.load(folder / "step-00000006" / MODEL, weights_only=False)
    assert canary.exists(), "the payload does nothing, so this test would show nothing"


def test_trouble_with_reading_is_no_damage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passing over means losing steps: only what a checkpoint is may lead to that, not how the machine fares."""
    for problem in (MemoryError(), OSError(errno.EACCES, "Permission denied"), OSError(errno.ESTALE, "Stale handle")):

        def failing(*_: Any, problem: BaseException = problem, **__: Any) -> Any:
            raise problem

        for owner, name in ((torch, "load"), (checkpoint, "open")):
            with monkeypatch.context() as patch, pytest.raises(type(problem)):
                patch.setattr(owner, name, failing, raising=False)
                newest(folder)
    assert newest(folder) == 4


# ----------------------------------------------------------------------------------------------------------- retention


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_are_kept(folder: Path) -> None:
    save(folder, 6)
    assert names(folder) == ["step-00000004", "step-00000006"]
    save(folder, 8, keep=3)
    assert names(folder) == ["step-00000004", "step-00000006", "step-00000008"]


def test_what_was_passed_over_does_not_count(folder: Path) -> None:
    """Two damaged ones ahead of the step a run continued from must not cost it the checkpoint it writes."""
    for path in checkpoint.steps(folder):
        cut(MODEL, 0.5)(path)
    save(folder, 1)
    assert newest(folder) == 1
    assert names(folder) == ["step-00000001"]


def test_a_damaged_one_of_the_same_step_makes_way(folder: Path) -> None:
    cut(MODEL, 0.5)(folder / "step-00000004")
    save(folder, 4)
    assert newest(folder) == 4
    assert names(folder) == ["step-00000002", "step-00000004"]


def test_what_others_put_there_is_neither_read_nor_counted_nor_deleted(folder: Path) -> None:
    shutil.copytree(folder / "step-00000004", folder / "step-00000009.bak")
    (folder / "step-notes").mkdir()
    (folder / "README").write_text("mine")
    (folder / "step-00000004" / ".nfs0001").write_text("")
    said: list[str] = []
    assert newest(folder, said) == 4
    save(folder, 6)
    checkpoint.clean(folder)
    assert said == []
    assert names(folder) == ["README", "step-00000004", "step-00000006", "step-00000009.bak", "step-notes"]


def test_a_delete_that_fails_is_no_reason_to_stop(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise OSError(errno.EBUSY, "in use")

    monkeypatch.setattr(os, "rmdir", failing)
    save(folder, 6)
    assert newest(folder) == 6


class Overtaken(Exception):
    pass


@pytest.mark.parametrize("call", [1, 2])
def test_one_that_was_overtaken_while_saving_puts_nothing_there(call: int, folder: Path) -> None:
    """The lease is looked at again after the long write, and before anything is deleted."""
    calls = [0]

    def check() -> None:
        calls[0] += 1
        if calls[0] == call:
            raise Overtaken

    with pytest.raises(Overtaken):
        save(folder, 6, check=check)
    expected = ["step-00000002", "step-00000004"]
    assert names(folder) == (expected if call == 1 else [*expected, "step-00000006"])


# -------------------------------------------------------------------------------------------------------- crash points


class Killed(BaseException):
    """Stands for SIGKILL: from then on nothing reaches the disk any more."""


class Disk:
    """Notes what is asked of the disk, and fails at the `at`-th request (from 1): once (it is full), or for good."""

    REQUESTS = ((os, "mkdir"), (os, "fsync"), (os, "rename"), (os, "replace"), (os, "unlink"), (shutil, "rmtree"))

    def __init__(self, patch: pytest.MonkeyPatch, at: int = 0, dead: bool = False):
        self.trace: list[tuple[str, str]] = []
        self.at, self.dead = at, dead
        for owner, name in self.REQUESTS:
            patch.setattr(owner, name, self._watched(name, getattr(owner, name)))
        for module in (checkpoint, files):
            patch.setattr(module, "open", self._open, raising=False)

    def request(self, name: str, target: Any) -> None:
        """Note a request; raise if it is the one, or comes after the end."""
        self.trace.append((name, os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else str(target)))
        if self.at and (len(self.trace) == self.at or (self.dead and len(self.trace) > self.at)):
            raise Killed if self.dead else OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _watched(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def watched(target: Any, *args: Any, **kwargs: Any) -> Any:
            self.request(name, target)
            return original(target, *args, **kwargs)

        return watched

    def _open(self, path: Path, mode: str) -> "File":
        self.request("open", path)
        return File(self, open(path, mode))


class File:
    """A file of which half a write arrives when the disk fails."""

    def __init__(self, disk: Disk, inner: Any):
        self._disk, self._inner = disk, inner

    def __enter__(self) -> "File":
        return self

    def __exit__(self, *_: object) -> None:
        self._inner.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def write(self, content: bytes) -> int:
        try:
            self._disk.request("write", self._inner.name)
        except BaseException:
            self._inner.write(content[: len(content) // 2])
            raise
        return self._inner.write(content)


def requests_of(save_once: Callable[[], Any]) -> list[tuple[str, str]]:
    """What a save asks of the disk when nothing fails."""
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch)
        save_once()
    return disk.trace


SCENES: dict[str, Callable[[Path], None]] = {
    "a new step": lambda folder: None,
    "one of this step is there": lambda folder: save(folder, 6, keep=3) and None,
}


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("dead", [True, False], ids=["killed", "disk full"])
def test_whenever_saving_ends_there_is_a_whole_checkpoint(dead: bool, scene: str, folder: Path, tmp_path: Path) -> None:
    SCENES[scene](folder)
    rehearsal = shutil.copytree(folder, tmp_path / "rehearsal")
    count = len(requests_of(lambda: save(rehearsal, 6)))
    assert count > 30
    found = set()
    original = folder
    for at in range(1, count + 1):
        folder = shutil.copytree(original, tmp_path / str(at))
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, at, dead)
            try:
                save(folder, 6)
            except OSError as problem:
                assert not dead, disk.trace[-1]
                assert problem.errno == errno.ENOSPC
            except Killed:
                assert dead, disk.trace[-1]
        found.add(newest(folder))
        assert newest(folder) in (4, 6), disk.trace[at - 1]
        save(folder, 8)
        assert newest(folder) == 8, disk.trace[at - 1]
        checkpoint.clean(folder)
        assert not [name for name in names(folder) if name.startswith(".")], disk.trace[at - 1]
    assert found == {4, 6}


def test_a_power_cut_cannot_leave_a_name_without_its_content(folder: Path) -> None:
    """Every file and its folder's list of names reach the disk before the rename, and the rename before old ones go."""
    trace = requests_of(lambda: save(folder, 6))
    rename = next(i for i, (name, _) in enumerate(trace) if name == "rename")
    tmp = trace[rename][1]
    for file in (MODEL, OPTIM, RANDOM):
        writes = [i for i, (name, path) in enumerate(trace) if name == "write" and path == f"{tmp}/{file}"]
        assert writes[-1] < trace.index(("fsync", f"{tmp}/{file}")) < rename
    placed = next(i for i, (name, path) in enumerate(trace) if name == "replace")
    manifest = trace[placed][1]
    assert trace.index(("write", manifest)) < trace.index(("fsync", manifest)) < placed
    assert placed < trace.index(("fsync", tmp)) < rename
    deleted = trace.index(("rmtree", str(folder / "step-00000002")))
    assert rename < trace.index(("fsync", str(folder))) < deleted


@pytest.fixture
def file_size_limit() -> Iterator[Callable[[int], None]]:
    """Set the longest file (bytes) that this process may write: the kernel's own refusal, as with a quota."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_the_systems_refusal_is_told_as_such(folder: Path, file_size_limit: Callable[[int], None]) -> None:
    """Not as what the serialiser makes of a short file."""
    large = {**state(6), "model": {"embed": torch.zeros(50_000)}}
    file_size_limit(100_000)
    with pytest.raises(OSError, match="File too large"):
        checkpoint.save(folder, large, RUN, 1, 2)
    file_size_limit(resource.RLIM_INFINITY)
    assert names(folder) == ["step-00000002", "step-00000004"]
    assert newest(folder) == 4


def test_a_manifest_lists_what_it_stands_for(folder: Path) -> None:
    manifest = json.loads((folder / "step-00000004" / "manifest.json").read_text())
    assert manifest["files"].keys() == {MODEL, OPTIM, RANDOM}
    assert (manifest["step"], manifest["identity"], manifest["attempt"], manifest["world_size"]) == (4, RUN, 1, 1)
