"""The synthetic chain has the entropy it promises, and is the same everywhere."""

import hashlib
import math

import numpy as np
import pytest

from skipsweep.config import Synthetic
from skipsweep.data import synthetic
from skipsweep.errors import DataError


def chain(**changes) -> Synthetic:
    return Synthetic(**{"tokenizer": "none", "states": 50, "branching": 4, "train_tokens": 200_000} | changes)


def tokens_of(cfg: Synthetic, split: str = "train") -> np.ndarray:
    return np.concatenate(list(synthetic.walk(cfg, split)))


def transitions(tokens: np.ndarray, states: int) -> np.ndarray:
    counts = np.zeros((states, states), int)
    np.add.at(counts, (tokens[:-1], tokens[1:]), 1)
    return counts


def test_every_state_has_its_successors_equally_likely():
    counts = transitions(tokens_of(chain()), 50)
    assert ((counts > 0).sum(axis=1) == 4).all()
    assert ((counts > 0).sum(axis=0) == 4).all()
    rows = counts[counts > 0].reshape(50, 4)
    assert np.abs(rows / rows.sum(axis=1, keepdims=True) - 0.25).max() < 0.05  # 4000 draws: sd 0.007


@pytest.mark.parametrize("branching", [1, 2, 8])
def test_entropy_of_the_next_token_is_the_stated_rate(branching):
    cfg = chain(branching=branching)
    counts = transitions(tokens_of(cfg), 50)
    joint = counts[counts > 0] / counts.sum()
    states = counts.sum(axis=1) / counts.sum()
    conditional = -(joint * np.log(joint)).sum() + (states * np.log(states)).sum()
    assert conditional == pytest.approx(synthetic.entropy_rate(cfg), abs=2e-3)
    assert synthetic.entropy_rate(cfg) == math.log(branching)


def test_all_states_are_visited_alike():
    share = np.bincount(tokens_of(chain()), minlength=50) / 200_001
    assert np.abs(share - 1 / 50).max() < 0.003


def test_two_tokens_back_tell_nothing_more():
    """First order: given the present state, the one before it does not change what follows."""
    tokens = tokens_of(chain(states=5, branching=2))
    counts = np.zeros((5, 5, 5), int)
    np.add.at(counts, (tokens[:-2], tokens[1:-1], tokens[2:]), 1)
    seen = counts.sum(axis=2) > 0
    shares = counts[seen] / counts[seen].sum(axis=1, keepdims=True)
    assert np.abs(shares[shares > 0] - 0.5).max() < 0.03  # 20,000 draws each: sd 0.0035


def test_splits_are_different_walks_on_one_chain():
    train, val = tokens_of(chain()), tokens_of(chain(), "val")
    assert (len(train), len(val)) == (200_001, 65_537)
    assert len(tokens_of(chain(train_tokens=1_000_000), "val")) == 100_001
    assert not np.array_equal(train[: len(val)], val)
    assert np.array_equal(transitions(train, 50) > 0, transitions(val, 50) > 0)


def test_the_seed_makes_the_chain():
    same, other = tokens_of(chain()), tokens_of(chain(chain_seed=1))
    assert np.array_equal(tokens_of(chain()), same)
    assert not np.array_equal(transitions(same, 50) > 0, transitions(other, 50) > 0)


def test_a_longer_walk_begins_like_a_shorter_one(monkeypatch):
    short, long = tokens_of(chain(train_tokens=1000)), tokens_of(chain())
    assert np.array_equal(short, long[:1001])
    monkeypatch.setattr(synthetic, "_BLOCK", 77)
    assert np.array_equal(tokens_of(chain(train_tokens=1000)), short)


def test_tokens_are_the_same_on_every_machine():
    """Identities name the chain by its parameters: what those give must never move (else synthetic.FORMAT rises)."""
    tokens = tokens_of(chain(train_tokens=1000)).astype("<u2")
    assert hashlib.sha256(tokens.tobytes()).hexdigest()[:16] == "2bb6bcc069b4727d"


@pytest.mark.parametrize(("states", "branching"), [(1, 1), (2, 2), (65536, 3)])
def test_extremes_work(states, branching):
    tokens = tokens_of(chain(states=states, branching=branching, train_tokens=1000))
    assert tokens.max() < states


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"states": 0}, r"data\.states=0; valid: a whole number from 1 to 65536"),
        ({"states": 65537}, r"data\.states=65537; valid"),
        ({"branching": 0}, r"data\.branching=0; valid: a whole number from 1 to 50"),
        ({"branching": 51}, r"data\.branching=51; valid: a whole number from 1 to 50"),
        ({"train_tokens": 0}, r"data\.train_tokens=0; valid: a whole number from 1 on"),
        ({"chain_seed": -1}, r"data\.chain_seed=-1; valid: a whole number from 0 on"),
        ({"states": "???"}, r"data\.states=\?\?\?; valid"),
        ({"tokenizer": "bytes"}, r"data\.tokenizer=bytes: a synthetic corpus has no text; valid: none"),
    ],
)
def test_an_impossible_chain_is_refused(changes, message):
    with pytest.raises(DataError, match=message):
        synthetic.check(chain(**changes))
