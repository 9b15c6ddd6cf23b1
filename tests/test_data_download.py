"""One file, from a source that misbehaves, to a disk that others use as well."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from skipsweep.data import download
from skipsweep.data.hub import Transient
from skipsweep.errors import DataError

CONTENT = bytes(range(100))


class Source:
    """Gives CONTENT from a place on, in pieces of 10 bytes; notes the places."""

    def __init__(self) -> None:
        self.starts: list[int] = []

    @contextmanager
    def __call__(self, start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
        self.starts.append(start)
        yield start, (CONTENT[i : i + 10] for i in range(start, 100, 10))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shard.bin"


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made, without making them."""
    made: list[float] = []
    monkeypatch.setattr(download.time, "sleep", made.append)
    return made


def check(path: Path) -> None:
    if path.read_bytes() != CONTENT:
        raise DataError(f"{path}: not it")


def test_a_file_is_under_its_name_only_once_it_is_whole_and_approved(path: Path) -> None:
    seen = []

    def look(partial: Path) -> None:
        seen.append((partial.read_bytes(), path.exists()))

    arrived: list[int] = []
    download.fetch(Source(), path, 100, look, arrived.append)
    assert seen == [(CONTENT, False)]
    assert path.read_bytes() == CONTENT
    assert sum(arrived) == 100
    assert list(path.parent.iterdir()) == [path]


def test_a_body_without_end_is_not_taken_to_the_disk(path: Path) -> None:
    taken = []

    @contextmanager
    def endless(start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
        yield start, (taken.append(i) or b"0123456789" for i in range(1000))

    with pytest.raises(DataError, match=r"fetched twice, and both times not what the hub lists: .*: not it"):
        download.fetch(endless, path, 100, check, lambda amount: None)
    assert len(taken) == 2 * 11
    assert not path.exists()
    assert download.partial_bytes(path) == 0


def test_a_rival_that_finishes_while_the_lock_is_taken_wins(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was opened then has the final name: writing to it would harm the finished file."""

    def late(f) -> bool:
        partial = path.with_name(".shard.bin.partial")
        partial.write_bytes(CONTENT)
        os.replace(partial, path)
        return True

    monkeypatch.setattr(download, "_locked", late)
    source, arrived = Source(), []
    download.fetch(source, path, 100, check, arrived.append)
    assert source.starts == []
    assert path.read_bytes() == CONTENT
    assert sum(arrived) == 100


def test_a_rival_that_finishes_before_the_file_is_opened_wins(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_locked", lambda f: path.write_bytes(CONTENT) > 0)
    source, arrived = Source(), []
    download.fetch(source, path, 100, check, arrived.append)
    assert source.starts == []
    assert list(path.parent.iterdir()) == [path]
    assert sum(arrived) == 100


@pytest.mark.parametrize("finishes", [True, False])
def test_who_waits_counts_what_another_gets(path: Path, monkeypatch: pytest.MonkeyPatch, finishes: bool) -> None:
    """It gets 40 bytes, and then the rest, or dies."""
    partial = path.with_name(".shard.bin.partial")
    looks = iter(range(9))

    def another(f) -> bool:
        look = next(looks)
        if look == 2:
            partial.write_bytes(CONTENT[:40])
        if look == 3 and finishes:
            partial.write_bytes(CONTENT)
            os.replace(partial, path)
        return look > 3

    monkeypatch.setattr(download, "_locked", another)
    source, arrived = Source(), []
    download.fetch(source, path, 100, check, arrived.append)
    assert path.read_bytes() == CONTENT
    assert source.starts == ([] if finishes else [40])
    assert arrived[0] == 40
    assert sum(arrived) == 100


def test_pauses_grow_and_begin_anew_with_what_comes_in(path: Path, waits: list[float]) -> None:
    """Three failures, a piece, three failures, and so to the end; a server may ask for a longer pause."""
    turn = iter(range(1000))

    @contextmanager
    def weak(start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
        if next(turn) % 4:
            raise Transient("no", 3.0 if start == 20 else 0.0)
        yield start, iter([CONTENT[start : start + 10]])

    download.fetch(weak, path, 100, check, lambda amount: None)
    assert waits[:4] == [1.0, 1.0, 2.0, 4.0]  # the body that ended early, then three failures
    assert waits[4:8] == [1.0, 3.0, 3.0, 4.0]
    assert len(waits) == 4 * 9


def test_patience_ends(waits: list[float]) -> None:
    def fail() -> None:
        raise Transient("no answer")

    with pytest.raises(DataError, match=r"^no answer, 3 times in a row; try again when the network is there$"):
        download.patiently(fail, (1.0, 2.0))
    assert waits == [1.0, 2.0]
