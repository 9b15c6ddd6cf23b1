"""Batches are a pure function of (step, rank, world size), and cover the corpus as promised."""

import hashlib
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skipsweep.config import Data
from skipsweep.data import batches, shards
from skipsweep.data.batches import Batches
from skipsweep.data.corpus import Corpus, Shard, Split, batches_in, write_meta
from skipsweep.errors import DataError, UserError

T = 8
SHARDS = (8 * 20 + 1, 5, 8, 8 * 7 + 8, 8 * 9 + 3)
"""Tokens of the training shards: an exact fit, two too short for a sequence, one token short of another, a tail."""
SEQUENCES = 20 + 0 + 0 + 7 + 9
VAL = 8 * 13 + 4


def write_split(folder: Path, split: str, lengths: tuple[int, ...]) -> Split:
    """Tokens count up through all shards, so that a token says where it stands."""
    start, written = 0, []
    for number, length in enumerate(lengths):
        file = f"{split}_{number:06d}.bin"
        written.append(Shard(file, *shards.write(folder / file, [np.arange(start, start + length)])))
        start += length
    return Split(start, 1, None, tuple(written))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data root")
    folder = root / "text-0123456789abcdef"
    folder.mkdir()
    train, val = write_split(folder, "train", SHARDS), write_split(folder, "val", (VAL,))
    write_meta(Corpus(folder, "text", "bytes", 400, "0123456789abcdef", train, val))
    return root


def data(**changes) -> Data:
    values = {"name": "text", "tokenizer": "bytes", "seq_len": T, "batch_tokens": 6 * T, "val_tokens": 11 * T}
    return Data(**{**values, "fingerprint": "0123456789abcdef", **changes})


@cache
def every_sequence() -> list[tuple[int, ...]]:
    """All T + 1 tokens long, at stride T within each shard: what the format promises, said the slow way."""
    found, start = [], 0
    for length in SHARDS:
        found += [tuple(range(start + i, start + i + T + 1)) for i in range(0, length - T, T)]
        start += length
    return found


@cache
def every_batch(batch: int) -> list[tuple[int, ...]]:
    """The sequences of whole batches of so many tokens, as the speedrun's loader goes through the shards."""
    found, start = [], 0
    for length in SHARDS:
        pos = 0
        while pos + batch + 1 < length:
            found += [tuple(range(start + i, start + i + T + 1)) for i in range(pos, pos + batch, T)]
            pos += batch
        start += length
    return found


def walk(root: Path, cfg: Data, count: int, **where) -> list[tuple[int, ...]]:
    """The first `count` sequences that a process reads."""
    own = Batches(cfg, root, **where)
    rows = []
    for step in range(-(-count // own.sequences)):
        inputs, targets = own.train(step)
        rows += [(*i, t[-1]) for i, t in zip(inputs.tolist(), targets.tolist(), strict=True)]
    return rows[:count]


def test_there_are_as_many_sequences_as_counted():
    assert len(every_sequence()) == SEQUENCES


def test_shapes_types_and_shift(root):
    inputs, targets = Batches(data(), root).train(3)
    assert inputs.shape == targets.shape == (6, T)
    assert inputs.dtype == targets.dtype == np.int64
    assert inputs.flags.c_contiguous
    assert targets.flags.c_contiguous
    assert np.array_equal(inputs[:, 1:], targets[:, :-1])
    assert np.array_equal(targets, inputs + 1)


@pytest.mark.parametrize("sequences", [1, 4, 6, 9, 19])
def test_sequential_takes_whole_batches_of_each_shard_again_and_again(root, sequences):
    once = every_batch(sequences * T)
    assert walk(root, data(batch_tokens=sequences * T), 3 * len(once)) == 3 * once


def test_a_shard_that_ends_with_a_batch_does_not_give_it():
    """The speedrun asks for one token more than a batch takes."""
    assert [batches_in(tokens, 64) for tokens in (0, 1, 65, 66, 129, 130, 100_000_000)] == [0, 0, 0, 1, 1, 2, 1_562_499]
    assert batches_in(100_000_000, 524_288) == 190
    assert Split(0, None, None, tuple(Shard("", tokens) for tokens in (66, 65, 130))).batches(64) == 3


def test_sequences_of_validation_have_their_own_length(root):
    own = Batches(data(val_seq_len=4 * T, val_tokens=12 * T), root)
    inputs, targets = own.val(0, 9)
    assert own.val_sequences == 3
    assert np.array_equal(inputs, inputs[0, 0] + np.arange(12 * T).reshape(3, 4 * T))
    assert np.array_equal(targets, inputs + 1)
    assert own.train(0)[0].shape == (6, T)


def test_shards_are_opened_when_they_are_read(root, tmp_path):
    folder = tmp_path / "text-0123456789abcdef"
    shutil.copytree(root / folder.name, folder)
    for number in (1, 2, 3, 4):
        (folder / f"train_{number:06}.bin").unlink()
    own = Batches(data(), tmp_path)
    for step in range(3):
        own.train(step)
    with pytest.raises(DataError, match=r"train_000003\.bin: no such shard"):
        own.train(3)
    shutil.copy(folder / "train_000000.bin", folder / "train_000003.bin")
    with pytest.raises(DataError, match=r"train_000003\.bin: 161 tokens; the corpus says 64"):
        own.train(3)


def test_shuffled_has_every_sequence_once_per_epoch(root):
    read = walk(root, data(order="shuffled"), 4 * SEQUENCES)
    epochs = [read[i : i + SEQUENCES] for i in range(0, len(read), SEQUENCES)]
    assert all(sorted(epoch) == every_sequence() for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert every_sequence() not in epochs


def test_the_order_is_its_own_seeds(root):
    orders = [walk(root, data(order="shuffled", order_seed=seed), SEQUENCES) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


def test_a_batch_larger_than_the_corpus_takes_several_epochs(root):
    cfg = data(batch_tokens=100 * T, order="shuffled")
    assert walk(root, cfg, 100) == walk(root, data(order="shuffled"), 100)


@settings(max_examples=60, deadline=None)
@given(
    step=st.integers(0, 10_000),
    world=st.sampled_from([1, 2, 3, 6]),
    order=st.sampled_from(batches.ORDERS),
    before=st.lists(st.integers(0, 50), max_size=3),
)
def test_ranks_share_the_batch_of_one_process_whatever_was_read_before(root, step, world, order, before):
    cfg = data(order=order)
    alone = Batches(cfg, root).train(step)
    shares = []
    for rank in range(world):
        own = Batches(cfg, root, rank, world)
        for other in before:
            own.train(other)
            own.val(0, 1)
        shares.append(own.train(step))
    for part in (0, 1):
        assert np.array_equal(np.concatenate([share[part] for share in shares]), alone[part])


@settings(deadline=None)
@given(step=st.integers(0, 1000), batch=st.sampled_from([1, 2, 3, 6, 7]))
def test_batch_sizes_cut_the_same_shuffled_walk(root, step, batch):
    """Sequence n of a run does not depend on how many form a step."""
    inputs, _ = Batches(data(order="shuffled", batch_tokens=batch * T), root).train(step)
    singles = Batches(data(order="shuffled", batch_tokens=T), root)
    assert np.array_equal(inputs, np.concatenate([singles.train(step * batch + i)[0] for i in range(batch)]))


def test_what_is_returned_may_be_written_to(root):
    own = Batches(data(), root)
    inputs, _ = own.train(0)
    kept = inputs.copy()
    inputs[:] = 0
    assert np.array_equal(own.train(0)[0], kept)


@pytest.mark.parametrize("world", [1, 2, 3, 6])
@pytest.mark.parametrize("size", [1, 4, 100])
def test_validation_is_the_first_tokens_of_the_split_for_every_world_size(root, world, size):
    firsts = []
    for rank in range(world):
        own = Batches(data(), root, rank, world)
        mine = []
        for start in range(0, own.val_sequences, size):
            inputs, targets = own.val(start, start + size)
            assert np.array_equal(targets, inputs + 1)
            assert inputs.shape[1] == T
            mine += inputs[:, 0].tolist()
        assert mine == list(range(rank * T, 11 * T, world * T))
        firsts += mine
    assert sorted(firsts) == list(range(0, 11 * T, T))


def test_a_rank_may_have_nothing_to_validate(root):
    own = Batches(data(val_tokens=T), root, 1, 2)
    assert own.val_sequences == 0
    assert own.val(0, 4)[0].shape == (0, T)


def test_the_order_is_the_same_on_every_machine():
    """Runs name their order by its seed: what that gives must never move."""
    order = batches.permutation(7, 3, 1000)
    assert sorted(order) == list(range(1000))
    assert hashlib.sha256(order.astype("<i8").tobytes()).hexdigest()[:16] == "158cd891ddfebf4b"


def test_a_batch_that_processes_cannot_share(root):
    with pytest.raises(UserError, match=r"batch_tokens=48 is 6 sequences, which 4 processes .* a multiple of 32"):
        Batches(data(), root, 0, 4)
    with pytest.raises(UserError, match=r"batch_tokens=48 is 6 sequences, which 12 processes .* a multiple of 96"):
        Batches(data(), root, 0, 12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_tokens": 50}, r"data\.batch_tokens=50 is no multiple of data\.seq_len=8; valid: 48 or 56"),
        ({"batch_tokens": 5}, r"data\.batch_tokens=5 is no multiple of data\.seq_len=8; valid: 8"),
        ({"val_tokens": 81}, r"data\.val_tokens=81 is no multiple of data\.seq_len=8; valid: 80 or 88"),
        ({"val_tokens": 0}, r"data\.val_tokens=0; valid: a whole number from 1 on"),
        ({"seq_len": 0}, r"data\.seq_len=0; valid: a whole number from 1 on"),
        ({"epochs": 0}, r"data\.epochs=0; valid: a whole number from 1 on"),
        ({"order_seed": -1}, r"data\.order_seed=-1; valid: a whole number from 0 on"),
        ({"order": "random"}, r"data\.order=random; valid: sequential, shuffled"),
        ({"val_seq_len": 3 * T}, r"data\.val_tokens=88 is no multiple of data\.val_seq_len=24; valid: 72 or 96"),
        ({"val_seq_len": -1}, r"data\.val_seq_len=-1; valid: a whole number from 0 on"),
        ({"val_tokens": 14 * T}, r"too short: 5 training batches and 13 validation sequences .* data\.val_tokens=112"),
        ({"seq_len": 512, "batch_tokens": 512, "val_tokens": 512}, r"too short: 0 training batches and 0 validation"),
        ({"batch_tokens": 20 * T}, r"too short: 0 training batches and 13 validation sequences"),
        ({"order_seed": 2**63}, r"data\.order_seed=9223372036854775808; valid: a whole number from 0 on"),
        ({"fingerprint": "f" * 16}, r"text-f+: no such corpus; make it with: skipsweep data prepare"),
        ({"fingerprint": ""}, r"data=text has no fingerprint yet"),
    ],
)
def test_what_cannot_be_read_is_refused(root, changes, message):
    with pytest.raises(DataError, match=message):
        Batches(replace(data(), **changes), root)
