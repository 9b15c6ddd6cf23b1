"""Batches as a pure function of (step, rank, world size).

A split is a row of sequences: T + 1 tokens each (T inputs, and the same shifted by one as targets), at stride T inside
each shard; what is left at a shard's end is dropped. A run walks over all training sequences, in the order of the
epoch, and when they are used up goes on with the next epoch's.

Shapes: B sequences in a batch over all processes, W processes, T tokens per sequence.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from skipsweep.config import Data
from skipsweep.data import shards
from skipsweep.data.corpus import open_corpus
from skipsweep.errors import DataError, UserError

ORDERS = ("sequential", "shuffled")

Pair = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Inputs and targets, int64, (sequences, T) each."""


class Batches:
    """What one process of a run reads. Opens the prepared corpus that `cfg.fingerprint` names below `root`.

    Raises DataError where it is missing or too short for one sequence, UserError where the batch cannot be shared
    among `world_size` processes.
    """

    def __init__(self, cfg: Data, root: Path, rank: int = 0, world_size: int = 1) -> None:
        check(cfg)
        self.cfg, self.rank, self.world_size = cfg, rank, world_size
        self.sequences = cfg.batch_tokens // cfg.seq_len // world_size
        """Sequences of a training batch in this process: B / W."""
        if cfg.batch_tokens != self.sequences * world_size * cfg.seq_len:
            raise UserError(
                f"data.batch_tokens={cfg.batch_tokens} is {cfg.batch_tokens // cfg.seq_len} sequences, which"
                f" {world_size} processes cannot share evenly; valid: a multiple of {world_size * cfg.seq_len}"
            )
        corpus = open_corpus(cfg, root)
        self._train = _Sequences(corpus.paths("train"), cfg.seq_len)
        self._val = _Sequences(corpus.paths("val"), cfg.seq_len)
        if not self._train.count or self._val.count * cfg.seq_len < cfg.val_tokens:
            raise DataError(
                f"{corpus.folder.name} is too short: {self._train.count} training and {self._val.count} validation"
                f" sequences of data.seq_len={cfg.seq_len}; data.val_tokens={cfg.val_tokens}"
            )

    def train(self, step: int) -> Pair:
        """This process's share of the batch of `step` (the first is 0): inputs and targets, (B / W, T) each.

        The shares of all ranks, one after the other, are the batch of a single process.
        """
        first = (step * self.world_size + self.rank) * self.sequences
        return _pair(self._train.rows(self._places(np.arange(first, first + self.sequences))))

    @property
    def val_sequences(self) -> int:
        """Validation sequences of this process: rank r of W has r, r + W, ... of the first val_tokens / T."""
        return len(range(self.rank, self.cfg.val_tokens // self.cfg.seq_len, self.world_size))

    def val(self, start: int, stop: int) -> Pair:
        """Validation sequences `start` to `stop` of this process's, fewer at the end: inputs and targets, (n, T)."""
        own = np.arange(start, min(stop, self.val_sequences))
        return _pair(self._val.rows(self.rank + own * self.world_size))

    def _places(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers of sequences since the run began (n,) -> their places in the split (n,)."""
        epochs, places = np.divmod(numbers, self._train.count)
        if self.cfg.order == "shuffled":
            for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
                chosen = epochs == epoch
                places[chosen] = permutation(self.cfg.order_seed, epoch, self._train.count)[places[chosen]]
        return places


def check(cfg: Data) -> None:
    """Raise DataError for sizes that cannot be, or an order that does not exist."""
    if cfg.order not in ORDERS:
        raise DataError(f"data.order={cfg.order}; valid: {', '.join(ORDERS)}")
    for name, low in (("seq_len", 1), ("batch_tokens", 1), ("val_tokens", 1), ("epochs", 1), ("order_seed", 0)):
        value = getattr(cfg, name)
        if not isinstance(value, int) or value < low:
            raise DataError(f"data.{name}={value}; valid: a whole number from {low} on")
    for name in ("batch_tokens", "val_tokens"):
        value = getattr(cfg, name)
        if value % cfg.seq_len:
            below = value // cfg.seq_len * cfg.seq_len
            near = f"{below} or {below + cfg.seq_len}" if below else cfg.seq_len
            raise DataError(f"data.{name}={value} is no multiple of data.seq_len={cfg.seq_len}; valid: {near}")


@lru_cache(maxsize=2)  # a batch may end one epoch and begin the next
def permutation(order_seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """Order of the sequences in an epoch (count,), read-only: how 64 random bits for each of them are sorted.

    The bits are Philox's, seeded by SeedSequence([order_seed, epoch]): numpy promises that both stay as they are, which
    it does not of its own shuffling.
    """
    bits = np.random.Philox(np.random.SeedSequence([order_seed, epoch])).random_raw(count)
    order = np.argsort(bits, kind="stable")
    order.setflags(write=False)
    return order


class _Sequences:
    """The sequences of a split, as overlapping windows on its mapped shards."""

    def __init__(self, paths: list[Path], seq_len: int) -> None:
        self.seq_len = seq_len
        self._windows = [_windows(path, seq_len) for path in paths]
        self._ends = np.cumsum([len(w) for w in self._windows])
        self.count = int(self._ends[-1])

    def rows(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of the sequences at `places` (n,): (n, T + 1)."""
        out = np.empty((len(places), self.seq_len + 1), np.int64)
        where = np.searchsorted(self._ends, places, side="right")
        for shard in np.unique(where):
            chosen = where == shard
            windows = self._windows[shard]
            out[chosen] = windows[places[chosen] - (self._ends[shard] - len(windows))]
        return out


def _windows(path: Path, seq_len: int) -> NDArray[np.uint16]:
    """Read-only view (n, T + 1) of a shard."""
    tokens = np.asarray(shards.read(path))
    if len(tokens) <= seq_len:
        return np.empty((0, seq_len + 1), np.uint16)
    return sliding_window_view(tokens, seq_len + 1)[::seq_len]


def _pair(rows: NDArray[np.int64]) -> Pair:
    return np.ascontiguousarray(rows[:, :-1]), np.ascontiguousarray(rows[:, 1:])
