"""Batches as a pure function of (step, rank, world size).

`sequential`: whole batches as they stand in each shard, one after the other, of which every process takes its
contiguous part; what is left at a shard's end is dropped, as in the speedrun. `shuffled`: a split is a row of
sequences, T + 1 tokens each (T inputs, and the same shifted by one as targets), at stride T inside each shard, and a
batch is the next of them in the order of the epoch. When an epoch is used up, the next one begins.

Shapes: B sequences in a batch over all processes, W processes, T tokens per sequence.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from skipsweep.config import Data
from skipsweep.data import shards
from skipsweep.data.corpus import Corpus, batches_in, open_corpus
from skipsweep.errors import DataError, UserError

ORDERS = ("sequential", "shuffled")

_LOWEST = {"seq_len": 1, "val_seq_len": 0, "batch_tokens": 1, "val_tokens": 1, "epochs": 1, "order_seed": 0}

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
        train, val = _Shards(corpus, "train"), _Shards(corpus, "val")
        self._train = _Whole(train, cfg) if cfg.order == "sequential" else _Shuffled(train, cfg)
        self._val = _Sequences(val, val_seq_len(cfg))
        if not self._train.count or self._val.count * val_seq_len(cfg) < cfg.val_tokens:
            raise DataError(
                f"{corpus.folder.name} is too short: {self._train.count} training {self._train.UNIT} and"
                f" {self._val.count} validation sequences with data.seq_len={cfg.seq_len},"
                f" data.batch_tokens={cfg.batch_tokens}, data.val_tokens={cfg.val_tokens}"
            )

    def train(self, step: int) -> Pair:
        """This process's share of the batch of `step` (the first is 0): inputs and targets, (B / W, T) each.

        The shares of all ranks, one after the other, are the batch of a single process. Raises DataError for a shard
        that is missing or damaged.
        """
        return self._train.share(step, self.rank, self.world_size)

    @property
    def val_sequences(self) -> int:
        """Validation sequences of this process: rank r of W has r, r + W, ... of the first val_tokens / T."""
        return len(range(self.rank, self.cfg.val_tokens // val_seq_len(self.cfg), self.world_size))

    def val(self, start: int, stop: int) -> Pair:
        """Validation sequences `start` to `stop` of this process's, fewer at the end: inputs and targets, (n, T).

        T is `data.val_seq_len` here. Raises DataError for a shard that is missing or damaged.
        """
        own = np.arange(start, min(stop, self.val_sequences))
        return _pair(self._val.rows(self.rank + own * self.world_size))


def val_seq_len(cfg: Data) -> int:
    """Tokens per sequence in validation."""
    return cfg.val_seq_len or cfg.seq_len


def check(cfg: Data) -> None:
    """Raise DataError for sizes that cannot be, or an order that does not exist."""
    if cfg.order not in ORDERS:
        raise DataError(f"data.order={cfg.order}; valid: {', '.join(ORDERS)}")
    for name, low in _LOWEST.items():
        value = getattr(cfg, name)
        if not isinstance(value, int) or not low <= value < 2**63:
            raise DataError(f"data.{name}={value}; valid: a whole number from {low} on")
    _check_multiple(cfg, "batch_tokens", "seq_len")
    _check_multiple(cfg, "val_tokens", "val_seq_len" if cfg.val_seq_len else "seq_len")


def _check_multiple(cfg: Data, name: str, of: str) -> None:
    value, unit = getattr(cfg, name), getattr(cfg, of)
    if value % unit:
        below = value // unit * unit
        near = f"{below} or {below + unit}" if below else unit
        raise DataError(f"data.{name}={value} is no multiple of data.{of}={unit}; valid: {near}")


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


class _Shards:
    """The shards of a split, each mapped when it is first read: a run needs only those that it reads."""

    def __init__(self, corpus: Corpus, split: str) -> None:
        self.paths = corpus.paths(split)
        self.sizes = [shard.tokens for shard in (corpus.train if split == "train" else corpus.val).shards]
        self._mapped: dict[int, NDArray[np.uint16]] = {}

    def tokens(self, number: int) -> NDArray[np.uint16]:
        """All tokens (T,) of a shard, read-only."""
        if number not in self._mapped:
            tokens = np.asarray(shards.read(self.paths[number]))
            if len(tokens) != self.sizes[number]:
                raise DataError(f"{self.paths[number]}: {len(tokens)} tokens; the corpus says {self.sizes[number]}")
            self._mapped[number] = tokens
        return self._mapped[number]


class _Whole:
    """Whole batches as they stand in the shards."""

    UNIT = "batches"

    def __init__(self, split: _Shards, cfg: Data) -> None:
        self.split, self.seq_len, self.batch_tokens = split, cfg.seq_len, cfg.batch_tokens
        self._ends = np.cumsum([batches_in(size, cfg.batch_tokens) for size in split.sizes])
        self.count = int(self._ends[-1])

    def share(self, step: int, rank: int, world_size: int) -> Pair:
        """A rank's contiguous part of a step's batch."""
        number = step % self.count
        shard = int(np.searchsorted(self._ends, number, side="right"))
        number -= int(self._ends[shard - 1]) if shard else 0
        length = self.batch_tokens // world_size
        first = number * self.batch_tokens + rank * length
        part = self.split.tokens(shard)[first : first + length + 1].astype(np.int64)
        return part[:-1].reshape(-1, self.seq_len).copy(), part[1:].reshape(-1, self.seq_len).copy()


class _Sequences:
    """The sequences of a split, as overlapping windows on its shards."""

    def __init__(self, split: _Shards, seq_len: int) -> None:
        self.split, self.seq_len = split, seq_len
        self._ends = np.cumsum([(size - 1) // seq_len for size in split.sizes])
        self.count = int(self._ends[-1])

    def rows(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of the sequences at `places` (n,): (n, T + 1)."""
        out = np.empty((len(places), self.seq_len + 1), np.int64)
        where = np.searchsorted(self._ends, places, side="right")
        for shard in np.unique(where):
            chosen = where == shard
            windows = sliding_window_view(self.split.tokens(shard), self.seq_len + 1)[:: self.seq_len]
            out[chosen] = windows[places[chosen] - (self._ends[shard] - len(windows))]
        return out


class _Shuffled:
    """All training sequences, in another order every epoch."""

    UNIT = "sequences"

    def __init__(self, split: _Shards, cfg: Data) -> None:
        self._sequences = _Sequences(split, cfg.seq_len)
        self.count, self.seed = self._sequences.count, cfg.order_seed
        self.per_step = cfg.batch_tokens // cfg.seq_len

    def share(self, step: int, rank: int, world_size: int) -> Pair:
        """A rank's part of a step's batch."""
        own = self.per_step // world_size
        first = step * self.per_step + rank * own
        return _pair(self._sequences.rows(self._places(np.arange(first, first + own))))

    def _places(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers of sequences since the run began (n,) -> their places in the split (n,)."""
        epochs, places = np.divmod(numbers, self.count)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            chosen = epochs == epoch
            places[chosen] = permutation(self.seed, epoch, self.count)[places[chosen]]
        return places


def _pair(rows: NDArray[np.int64]) -> Pair:
    return np.ascontiguousarray(rows[:, :-1]), np.ascontiguousarray(rows[:, 1:])
