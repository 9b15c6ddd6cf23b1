"""Reading ahead changes nothing but when something is read."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from skipsweep.data.batches import Pair
from skipsweep.data.prefetch import Prefetch
from skipsweep.errors import DataError

BROKEN = 7


class Reader:
    """Notes who reads what; reading step `BROKEN` fails."""

    def __init__(self) -> None:
        self.read: list[tuple[int, str]] = []
        self.may_read = threading.Event()
        self.may_read.set()
        self.ahead = threading.Event()

    val_sequences = 5

    def train(self, step: int) -> Pair:
        own = "own" if threading.current_thread() is threading.main_thread() else "ahead"
        self.may_read.wait(20)
        self.read.append((step, own))
        if own == "ahead":
            self.ahead.set()
        if step == BROKEN:
            raise DataError("shard 7 is broken")
        return np.full((2, 3), step), np.full((2, 3), step + 1)

    def val(self, start: int, stop: int) -> Pair:
        return np.arange(start, stop), np.arange(start, stop) + 1


@pytest.fixture
def reader() -> Iterator[Reader]:
    before = set(threading.enumerate())
    yield Reader()
    assert set(threading.enumerate()) <= before


def test_every_step_is_read_once_and_ahead(reader: Reader) -> None:
    with Prefetch(reader, 5) as ahead:
        for step in range(5):
            inputs, targets = ahead.train(step)
            assert np.array_equal(inputs, np.full((2, 3), step))
            assert np.array_equal(targets, inputs + 1)
    assert reader.read == [(0, "own"), *((step, "ahead") for step in range(1, 5))]


def test_nothing_is_read_beyond_the_end(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    submit, asked = ThreadPoolExecutor.submit, []
    monkeypatch.setattr(ThreadPoolExecutor, "submit", lambda self, *of: asked.append(of[1]) or submit(self, *of))
    with Prefetch(reader, 3) as ahead:
        for step in (0, 1, 2, 5):
            ahead.train(step)
    assert asked == [1, 2]


def test_the_next_step_is_read_while_the_caller_computes(reader: Reader) -> None:
    with Prefetch(reader) as ahead:
        ahead.train(0)
        assert reader.ahead.wait(20)
    assert reader.read == [(0, "own"), (1, "ahead")]


def test_any_other_step_is_still_right(reader: Reader) -> None:
    asked = [3, 3, 0, 1, 5, 4, 5, 6, 2]
    with Prefetch(reader, 9) as ahead:
        assert [int(ahead.train(step)[0][0, 0]) for step in asked] == asked


def test_what_reading_raises_comes_out_at_its_step_and_only_there(reader: Reader) -> None:
    with Prefetch(reader) as ahead:
        ahead.train(BROKEN - 1)
        for _ in range(2):
            with pytest.raises(DataError, match="shard 7 is broken"):
                ahead.train(BROKEN)
        assert ahead.train(BROKEN + 1)[0][0, 0] == BROKEN + 1
    with Prefetch(reader, BROKEN) as ahead:
        ahead.train(BROKEN - 1)
    with Prefetch(reader) as ahead:
        ahead.train(BROKEN - 1)
        ahead.train(0)


def test_closing_in_the_middle_of_a_read_waits_for_it(reader: Reader) -> None:
    ahead = Prefetch(reader)
    ahead.train(0)
    reader.may_read.clear()
    closer = threading.Thread(target=ahead.close)
    closer.start()
    reader.may_read.set()
    closer.join(20)
    assert not closer.is_alive()
    ahead.close()


def test_validation_is_the_readers(reader: Reader) -> None:
    with Prefetch(reader) as ahead:
        assert ahead.val_sequences == 5
        assert np.array_equal(ahead.val(1, 4)[1], [2, 3, 4])
    assert reader.read == []
