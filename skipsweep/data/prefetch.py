"""The next step's batch, read while the current step computes."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

from skipsweep.data.batches import Pair


class Reader(Protocol):
    """What training asks of the data; see `data.batches.Batches`."""

    @property
    def val_sequences(self) -> int: ...
    def train(self, step: int) -> Pair: ...
    def val(self, start: int, stop: int) -> Pair: ...


class Prefetch:
    """A reader in front of another, with the same answers: behind the caller's back it reads one step ahead.

    `steps` is the length of the run: nothing beyond is read. Whatever reading a step raises comes out when that step is
    asked for. Close it, or use it in a `with`: no thread outlives that.
    """

    def __init__(self, reader: Reader, steps: int | None = None) -> None:
        self._reader, self._steps = reader, steps
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
        self._ahead: tuple[int, Future[Pair]] | None = None

    def train(self, step: int) -> Pair:
        """The reader's `train(step)`. Any step may be asked for; the one after the last was read already."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == step:
            pair = ahead[1].result()
        else:
            if ahead is not None:
                ahead[1].cancel()
            pair = self._reader.train(step)
        if self._steps is None or step + 1 < self._steps:
            self._ahead = step + 1, self._thread.submit(self._reader.train, step + 1)
        return pair

    @property
    def val_sequences(self) -> int:
        """The reader's."""
        return self._reader.val_sequences

    def val(self, start: int, stop: int) -> Pair:
        """The reader's `val(start, stop)`, read when asked for."""
        return self._reader.val(start, stop)

    def close(self) -> None:
        """Wait for what is being read, and end the thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> "Prefetch":
        return self

    def __exit__(self, *exc: Any) -> None:
        self.close()
