"""A Markov chain with known entropy, to train on without a corpus.

Behind their random names the states stand on a ring, and a walk moves by one of `branching` different distances, each
as likely. Every state then has `branching` successors and as many predecessors: the entropy rate is ln(branching) nats
and all states are visited equally often (unigram entropy ln(states)). Distance 1 is always among them, so that every
state is reached. A walk is a running sum, which numpy makes in one go; a table of successors would have to be followed
token by token.

Everything is drawn from the raw bits of Philox, which numpy keeps the same in all its versions.
"""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from skipsweep.config import Synthetic
from skipsweep.data.shards import MAX_VOCAB
from skipsweep.errors import DataError

FORMAT = 1
"""Part of every fingerprint: rises whenever the same parameters would give other tokens."""

_BLOCK = 1 << 20  # tokens made together
_CHAIN, _TRAIN, _VAL = range(3)  # streams of random bits


def check(cfg: Synthetic) -> None:
    """Raise DataError for a chain that cannot be made."""
    for name, value, low, high in (
        ("states", cfg.states, 1, MAX_VOCAB),
        ("branching", cfg.branching, 1, cfg.states),
        ("train_tokens", cfg.train_tokens, 1, None),
        ("chain_seed", cfg.chain_seed, 0, None),
    ):
        if not isinstance(value, int) or value < low or (high is not None and value > high):
            raise DataError(f"data.{name}={value}; valid: a whole number from {low}{f' to {high}' if high else ' on'}")
    if cfg.tokenizer != "none":
        raise DataError(f"data.tokenizer={cfg.tokenizer}: a synthetic corpus has no text; valid: none")


def entropy_rate(cfg: Synthetic) -> float:
    """Nats per token that no model can go below: ln(branching)."""
    return math.log(cfg.branching)


def length(cfg: Synthetic, split: str) -> int:
    """Tokens of `train` or `val` (a tenth of it, at least 65,536), and one more: nothing predicts the first."""
    return (cfg.train_tokens if split == "train" else max(cfg.train_tokens // 10, 65_536)) + 1


def walk(cfg: Synthetic, split: str) -> Iterator[NDArray[np.uint16]]:
    """The tokens of `train` or `val`, in blocks (T,): two independent walks on the same chain."""
    names, distances = _chain(cfg)
    bits = _bits(cfg, _TRAIN if split == "train" else _VAL)
    place = int(bits.random_raw() % cfg.states)
    left = length(cfg, split)
    while left:
        count = min(left, _BLOCK)
        steps = distances[bits.random_raw(count) % cfg.branching]
        places = (place + np.cumsum(steps)) % cfg.states
        yield names[places]
        place = int(places[-1])
        left -= count


def _chain(cfg: Synthetic) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
    """Names of the places on the ring (states,), and the distances of the moves (branching,)."""
    bits = _bits(cfg, _CHAIN)
    names = _permutation(bits, cfg.states)
    others = np.delete(np.arange(cfg.states), 1 % cfg.states)
    distances = np.append(1 % cfg.states, others[_permutation(bits, len(others))])[: cfg.branching]
    return names.astype(np.uint16), distances


def _permutation(bits: np.random.Philox, count: int) -> NDArray[np.int64]:
    return np.argsort(bits.random_raw(count), kind="stable")


def _bits(cfg: Synthetic, stream: int) -> np.random.Philox:
    return np.random.Philox(np.random.SeedSequence([cfg.chain_seed, stream]))
