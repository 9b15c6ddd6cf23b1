"""Preparing corpora: once, whole or not at all, checked, and enough for the run."""

import errno
import json
import math
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from skipsweep.config import Paths, Sotu, Synthetic, Text
from skipsweep.data import build, corpus, documents, prepare, shards, tokenizer
from skipsweep.data.batches import Batches
from skipsweep.data.fingerprint import fingerprint
from skipsweep.errors import DataError, UserError

SIZES = {"seq_len": 32, "batch_tokens": 128, "val_tokens": 64}


@pytest.fixture
def texts(tmp_path):
    """Thirty documents in a folder whose name has spaces."""
    folder = tmp_path / "my texts"
    folder.mkdir()
    for i in range(30):
        (folder / f"{i:02}.txt").write_text(f"document {i}: " + "née words " * (i + 1), "utf-8")
    return folder


@pytest.fixture
def root(tmp_path):
    return tmp_path / "data root"


def text(path: Path, **changes) -> Text:
    return Text(**{"tokenizer": "bytes", "path": str(path), **SIZES} | changes)


def chain(**changes) -> Synthetic:
    values = {"tokenizer": "none", "states": 16, "branching": 2, "train_tokens": 1000, **SIZES}
    return Synthetic(**values | changes)


def tokens_of(made: corpus.Corpus, split: str) -> np.ndarray:
    return np.concatenate([shards.read(path) for path in made.paths(split)])


def visible(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir() if p.name != ".hashes")


# ------------------------------------------------------------------------------------------------------- what is made


def test_tokens_are_the_documents_each_opened_by_end_of_text(texts, root):
    made = prepare.prepare(text(texts), root)
    for split, part in documents.split(documents.find(text(texts))).items():
        expected = [token for d in part for token in [256, *d.path.read_bytes()]]
        assert tokens_of(made, split).tolist() == expected
        figures = getattr(made, split)
        assert (figures.documents, figures.text_bytes) == (len(part), sum(len(d) for d in part))
        assert figures.tokens == len(expected) == figures.documents + figures.text_bytes


def test_gpt2_needs_no_network(texts, root, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("network used")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "nothing here"))
    made = prepare.prepare(text(texts, tokenizer="gpt2"), root)
    decoded = tokenizer.load("gpt2").decode(tokens_of(made, "val").tolist())
    assert decoded.split("<|endoftext|>")[1:] == [(texts / f"{i:02}.txt").read_text() for i in (25, 5)]
    assert made.vocab_size == 50257


def test_shards_are_cut_at_their_limit_and_lose_nothing(texts, root, monkeypatch):
    whole = prepare.prepare(text(texts), root / "a")
    monkeypatch.setattr(build, "SHARD_TOKENS", 1000)
    cut = prepare.prepare(text(texts), root / "b")
    assert np.array_equal(tokens_of(cut, "train"), tokens_of(whole, "train"))
    sizes = [shard.tokens for shard in cut.train.shards]
    assert sizes[:-1] == [1000] * (len(sizes) - 1)
    assert 0 < sizes[-1] <= 1000
    files = [shard.file for shard in cut.train.shards]
    assert files == [f"train_{i + 1:06}.bin" for i in range(len(sizes))]
    assert [shard.file for shard in cut.val.shards] == ["val_000000.bin"]


def test_shards_that_fit_exactly_leave_no_empty_one(root, monkeypatch):
    monkeypatch.setattr(build, "SHARD_TOKENS", 143)
    made = prepare.prepare(chain(), root)  # 1001 = 7 x 143 tokens
    assert [shard.tokens for shard in made.train.shards] == [143] * 7


def test_sotu_is_split_by_document_and_fit_for_a_run(root):
    cfg = Sotu(tokenizer="bytes", seq_len=256, batch_tokens=8192, val_tokens=65536)
    resolved = prepare.resolve(cfg, root)
    made = corpus.open_corpus(resolved, root)
    assert (made.train.documents, made.val.documents) == (236, 13)
    assert 0.04 < made.val.tokens / made.train.tokens < 0.06
    assert resolved.vocab_size == 257
    assert 3.0 < corpus.unigram_entropy(made, 65536) < 3.2
    assert Batches(resolved, root).train(0)[0].shape == (32, 256)


def test_unigram_entropy_is_that_of_the_predicted_tokens(root):
    made = prepare.prepare(chain(states=4, branching=4), root)
    assert corpus.unigram_entropy(made, 50_000) == pytest.approx(math.log(4), abs=1e-3)
    shards.write(made.paths("val")[0], [np.array([9, 0, 0, 1, 1, 5])])
    assert corpus.unigram_entropy(made, 4) == pytest.approx(math.log(2))
    with pytest.raises(DataError, match=r"data\.val_tokens=6; valid: 1 to 5"):
        corpus.unigram_entropy(made, 6)


def test_progress_ends_at_the_whole(texts, root):
    seen = []
    made = prepare.prepare(text(texts), root, lambda done, whole: seen.append((done, whole)))
    whole = (made.train.text_bytes or 0) + (made.val.text_bytes or 0)
    assert seen == sorted(seen)
    assert seen[-1] == (whole, whole)
    assert len(seen) >= 30


# ---------------------------------------------------------------------------------------------------------- fingerprint


def test_fingerprint_is_of_content_not_of_place_or_reading(texts, root, tmp_path):
    one = fingerprint(text(texts))
    elsewhere = tmp_path / "other"
    shutil.copytree(texts, elsewhere)
    changes = {"seq_len": 8, "batch_tokens": 16, "val_tokens": 8, "order": "shuffled", "order_seed": 3, "epochs": 9}
    assert fingerprint(text(elsewhere, **changes)) == one == fingerprint(text(texts), root)
    assert len(one) == 16


def test_fingerprint_changes_with_text_boundaries_and_tokenizer(texts):
    found = [fingerprint(text(texts)), fingerprint(text(texts, tokenizer="gpt2"))]
    (texts / "01.txt").write_text((texts / "01.txt").read_text() + (texts / "02.txt").read_text())
    (texts / "02.txt").unlink()
    found.append(fingerprint(text(texts)))
    (texts / "03.txt").write_text("other")
    found.append(fingerprint(text(texts)))
    assert len(set(found)) == 4


def test_fingerprint_of_a_chain_is_of_its_parameters():
    changes = ({}, {"states": 17}, {"branching": 3}, {"train_tokens": 1001}, {"chain_seed": 1})
    assert len({fingerprint(chain(**change)) for change in changes}) == 5
    assert fingerprint(chain(seq_len=64, order="shuffled")) == fingerprint(chain())


@pytest.mark.parametrize("module", [documents, prepare.fingerprint.__globals__])
def test_fingerprint_changes_with_the_rules(texts, monkeypatch, module):
    before = fingerprint(text(texts))
    if module is documents:
        monkeypatch.setattr(documents, "SPLIT_RULE", documents.SPLIT_RULE + 1)
    else:
        monkeypatch.setitem(module, "FORMAT", module["FORMAT"] + 1)
    assert fingerprint(text(texts)) != before


def test_fingerprint_tells_tails_from_whole_documents(tmp_path, monkeypatch):
    for name, size in (("a.txt", 100), ("b.txt", 900)):
        (tmp_path / name).write_text("x" * size)
    tails = fingerprint(text(tmp_path))
    monkeypatch.setattr(documents, "VAL_MOST", 1)
    assert fingerprint(text(tmp_path)) != tails


def test_the_fingerprint_of_sotu_has_not_moved():
    assert fingerprint(Sotu(tokenizer="bytes")) == "64d2058162869701"


def test_hashes_are_remembered_until_a_file_changes(texts, root, monkeypatch):
    hashed = []
    digest = documents.digest
    monkeypatch.setattr(documents, "digest", lambda paths: hashed.append(1) or digest(paths))
    monkeypatch.setattr("skipsweep.data.fingerprint._RACY_NS", 0)
    first = [fingerprint(text(texts), root) for _ in range(3)]
    assert len(hashed) == 1
    old = os.stat(texts / "03.txt")
    (texts / "03.txt").write_text((texts / "03.txt").read_text().replace("words", "swords", 1)[:-1])
    os.utime(texts / "03.txt", ns=(old.st_atime_ns, old.st_mtime_ns))  # same size, same time of modification
    assert os.stat(texts / "03.txt").st_size == old.st_size
    assert fingerprint(text(texts), root) == fingerprint(text(texts)) != first[0]


def test_a_file_just_written_is_not_taken_on_trust(texts, root):
    (texts / "03.txt").write_text("new")
    fingerprint(text(texts), root)
    assert not (root / ".hashes").exists()


def test_a_damaged_memory_of_hashes_is_made_anew(texts, root, monkeypatch):
    monkeypatch.setattr("skipsweep.data.fingerprint._RACY_NS", 0)
    first = fingerprint(text(texts), root)
    (memory,) = (root / ".hashes").iterdir()
    memory.write_bytes(b"\xff")
    assert fingerprint(text(texts), root) == first
    assert len(memory.read_bytes()) == 64


# -------------------------------------------------------------------------------------------------- planning: resolve


def test_resolve_fills_in_what_planning_needs(texts, root, monkeypatch):
    monkeypatch.chdir(texts.parent)
    resolved = prepare.resolve(text(Path("my texts")), root)
    assert resolved == text(texts, fingerprint=fingerprint(text(texts)), vocab_size=257)
    assert prepare.resolve(resolved, root) == resolved


def test_a_length_of_validation_sequences_that_says_nothing_is_left_out(texts, root):
    assert prepare.resolve(text(texts, val_seq_len=32), root) == prepare.resolve(text(texts), root)
    assert prepare.resolve(text(texts, val_seq_len=16), root).val_seq_len == 16


def test_a_corpus_made_here_has_nothing_to_fetch(texts, root):
    resolved = prepare.resolve(text(texts), root)
    prepare.fetch(resolved, root, 10**9)
    assert prepare.to_download(resolved, root, 1) == 0
    prepare.require(resolved, root, 1)


def test_resolve_prepares_and_verifies_once(texts, root, monkeypatch):
    resolved = prepare.resolve(text(texts), root)

    def refuse(*args):
        raise AssertionError("done before")

    monkeypatch.setattr(prepare, "build", refuse)
    monkeypatch.setattr(shards, "verify", refuse)
    assert prepare.resolve(text(texts), root) == resolved


def damage(path: Path, token: int = 3, value: int = 7) -> None:
    with open(path, "r+b") as f:
        f.seek(1024 + 2 * token)
        f.write(value.to_bytes(2, "little"))
    os.utime(path, (1, 1))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda p: damage(p, 3, 300), r"val_000000\.bin: byte 1030: token 3 is 300, .*; delete the folder text-"),
        (lambda p: damage(p, 3, 7), r"val_000000\.bin: byte 1024: the tokens are not those once written"),
        (lambda p: os.truncate(p, 1500), r"val_000000\.bin: byte 1500: the file ends after 238 of the 379"),
        (lambda p: p.unlink(), r"val_000000\.bin: no such shard"),
    ],
)
def test_a_shard_touched_after_it_was_verified_is_verified_again(texts, root, harm, message):
    resolved = prepare.resolve(text(texts), root)
    harm(corpus.open_corpus(resolved, root).paths("val")[0])
    for _ in range(2):
        with pytest.raises(DataError, match=message):
            prepare.resolve(resolved, root)


def test_what_changed_while_a_run_waited_is_found_before_it_trains(texts, root, monkeypatch):
    resolved = prepare.resolve(text(texts), root)
    train = corpus.open_corpus(resolved, root).paths("train")[0]
    os.utime(train, (2, 2))  # copied anew, say
    prepare.require(resolved, root, 1)
    with monkeypatch.context() as patch:
        patch.setattr(shards, "verify", None)  # a look, no more
        prepare.require(resolved, root, 1)
    damage(train)
    with pytest.raises(DataError, match=r"train_000001\.bin: byte 1024: the tokens are not those once written"):
        prepare.require(resolved, root, 1)


def test_a_corpus_named_by_its_fingerprint_outlives_its_text(texts, root):
    known = prepare.resolve(text(texts), root)
    named = text(texts, fingerprint=known.fingerprint)
    (texts / "00.txt").write_text("another")
    assert prepare.resolve(named, root) == known
    shutil.rmtree(texts)
    assert prepare.resolve(named, root) == known
    with pytest.raises(DataError, match="no text"):
        prepare.resolve(text(texts, fingerprint="0" * 16), root)


def test_a_shard_touched_but_whole_is_good(texts, root):
    resolved = prepare.resolve(text(texts), root)
    os.utime(corpus.open_corpus(resolved, root).paths("val")[0], (1, 1))
    assert prepare.resolve(resolved, root) == resolved
    assert prepare.info(root)[0]["verified"]


@pytest.mark.parametrize("harm", [Path.unlink, lambda p: p.write_text("{"), lambda p: p.write_text('{"format": 0}')])
def test_a_corpus_without_its_description_says_how_to_go_on(texts, root, harm):
    made = prepare.prepare(text(texts), root)
    harm(made.folder / "meta.json")
    with pytest.raises(DataError, match=r"meta\.json: missing, damaged or unreadable; delete the folder"):
        prepare.resolve(text(texts), root)
    shutil.rmtree(made.folder)
    assert prepare.prepare(text(texts), root) == made


def test_another_corpus_than_the_one_named_is_refused(texts, root):
    with pytest.raises(DataError, match=r"data\.fingerprint=beef, but data=text is [0-9a-f]{16} here"):
        prepare.resolve(text(texts, fingerprint="beef"), root)
    with pytest.raises(DataError, match=r"data\.vocab_size=50257, but data=text has 257 token ids"):
        prepare.resolve(text(texts, vocab_size=50257), root)


def test_unknown_tokenizer(texts, root):
    with pytest.raises(UserError, match=r"data\.tokenizer=none is no tokenizer for text; valid: bytes, gpt2"):
        prepare.resolve(text(texts, tokenizer="none"), root)


def test_a_root_that_became_read_only_still_serves(texts, root, monkeypatch):
    prepare.prepare(text(texts), root)

    def refuse(*args):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("skipsweep.files.write_bytes", refuse)
    assert prepare.resolve(text(texts), root).vocab_size == 257


# ------------------------------------------------------------------------------------------- planning: enough tokens


def sized(root: Path, **changes) -> tuple[Synthetic, corpus.Corpus]:
    cfg = chain(train_tokens=42 * 32 - 1, **changes)  # one token short of 42 sequences; validation has 65536
    return cfg, prepare.prepare(cfg, root)


@pytest.mark.parametrize(("steps", "passes"), [(0, 1), (1, 1), (10, 1), (11, 2), (20, 2), (21, 3), (30, 3)])
def test_passes_are_those_that_the_run_begins(root, steps, passes):
    for epochs in (passes, 50):
        cfg, made = sized(root, epochs=epochs)
        assert prepare.check_enough(cfg, steps, made) == passes


def test_passes_are_what_batches_walk(root):
    cfg, made = sized(root, epochs=2, fingerprint="")
    cfg = prepare.resolve(cfg, root)
    own = Batches(cfg, root)
    first = own.train(0)[0][0]
    starts = [row for step in range(20) for row in own.train(step)[0]]
    assert sum(np.array_equal(row, first) for row in starts) == prepare.check_enough(cfg, 20, made) == 2


def test_too_few_tokens_names_what_would_do(root):
    cfg, made = sized(root)
    message = (
        r"schedule\.steps=21 with data\.batch_tokens=128 needs 2688 tokens, data=synthetic has 1280 in whole batches"
        r" \(data\.epochs=1\); set data\.epochs=3 or schedule\.steps<=10$"
    )
    with pytest.raises(DataError, match=message):
        prepare.check_enough(cfg, 21, made)
    with pytest.raises(DataError, match=r"set data\.epochs=3 or schedule\.steps<=20$"):
        prepare.check_enough(replace(cfg, epochs=2), 21, made)
    assert prepare.check_enough(replace(cfg, epochs=3), 21, made) == 3
    assert prepare.check_enough(cfg, 10, made) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_tokens": 64 * 32}, r"batch_tokens=2048 is more than any .*; valid: at most 1312, or data\.order="),
        ({"batch_tokens": 64 * 32, "order": "shuffled"}, r"has 1312 in sequences of 32 .*; set data\.epochs=2$"),
        ({"val_seq_len": 65568, "val_tokens": 65568}, r"valid: none with data\.val_seq_len=65568, which is longer"),
        ({"val_tokens": 65568}, r"data\.val_tokens=65568, data=synthetic has 65537; valid: at most 65536$"),
        ({"batch_tokens": 100}, r"data\.batch_tokens=100 is no multiple of data\.seq_len=32; valid: 96 or 128"),
        ({"seq_len": 2048, "batch_tokens": 2048}, r"data\.seq_len=2048 is longer .*; valid: at most 1342"),
    ],
)
def test_impossible_demands(root, changes, message):
    cfg, made = sized(root)
    cfg = replace(cfg, **{"val_tokens": changes.get("seq_len", 64), **changes})
    with pytest.raises(DataError, match=message):
        prepare.check_enough(cfg, 1, made)


def test_validation_too_short_for_one_sequence(texts, root):
    made = prepare.prepare(text(texts), root)
    cfg = text(texts, seq_len=1024, batch_tokens=1024, val_tokens=1024)
    with pytest.raises(DataError, match=r"valid: none with data\.seq_len=1024, which is longer than the split"):
        prepare.check_enough(cfg, 1, made)


# ---------------------------------------------------------------------------------------- interruptions, rivals, disks


def test_two_that_prepare_at_once_both_get_the_corpus(texts, root):
    """Both are in the middle before either may go on."""
    together = threading.Barrier(2, timeout=30)
    made, failed = [], []

    def work():
        first = iter([True])

        def meet(done: int, whole: int) -> None:
            if next(first, False):
                together.wait()

        try:
            made.append(prepare.prepare(text(texts), root, meet))
        except BaseException as e:
            failed.append(e)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failed == []
    assert made[0] == made[1]
    assert visible(root) == [made[0].folder.name]
    assert all(row["problem"] is None for row in prepare.verify_all(root))


@pytest.mark.parametrize("signal_kind", [KeyboardInterrupt, ValueError])
def test_an_exception_leaves_nothing(texts, root, signal_kind):
    def interrupt(done: int, whole: int) -> None:
        if done > whole // 2:
            raise signal_kind

    with pytest.raises(signal_kind):
        prepare.prepare(text(texts), root, interrupt)
    assert visible(root) == []
    assert prepare.prepare(text(texts), root).train.documents == 28


def test_a_kill_leaves_nothing_that_counts(texts, root, monkeypatch):
    code = f"""
import os, signal
from pathlib import Path
from skipsweep.config import Text
from skipsweep.data import prepare
die = lambda done, whole: done > whole // 2 and os.kill(os.getpid(), signal.SIGKILL)
prepare.prepare(Text(tokenizer="bytes", path={str(texts)!r}), Path({str(root)!r}), die)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    (leftover,) = visible(root)
    assert leftover.startswith(".")
    assert prepare.info(root) == []
    made = prepare.prepare(text(texts), root)
    assert visible(root) == [leftover, made.folder.name]  # it may still be at work elsewhere
    os.utime(root / leftover, (1, 1))
    prepare.prepare(chain(), root)
    assert leftover not in visible(root)


@pytest.mark.parametrize(("name", "content"), [("29.txt", "other"), ("30.txt", "a new one")])
def test_a_text_that_changes_meanwhile_is_refused(texts, root, name, content):
    def meddle(done: int, whole: int) -> None:
        (texts / name).write_text(content)

    with pytest.raises(DataError, match=r"a text changed while it was tokenised|became shorter"):
        prepare.prepare(text(texts), root, meddle)
    assert visible(root) == []


def test_a_text_that_changes_between_hashing_and_reading_is_refused(texts, root, monkeypatch):
    """Else tokens of the new text would stand under the old one's fingerprint."""

    def build_late(*args):
        (texts / "00.txt").write_text("another")
        build.build(*args)

    monkeypatch.setattr(prepare, "build", build_late)
    with pytest.raises(DataError, match="data=text: a text changed while it was tokenised"):
        prepare.prepare(text(texts), root)
    assert visible(root) == []


def test_text_that_is_not_utf8(texts, root):
    (texts / "07.txt").write_bytes(b"abc\xff")
    with pytest.raises(DataError, match=r"07\.txt: byte 3: not UTF-8"):
        prepare.resolve(text(texts), root)
    assert visible(root) == []


def test_a_disk_that_is_full(texts, root, monkeypatch):
    def refuse(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shards, "write", refuse)
    with pytest.raises(DataError, match=r"cannot be written \(No space left on device\); valid for \$SKIPSWEEP_DATA"):
        prepare.prepare(text(texts), root)
    assert visible(root) == []


def test_a_write_that_fails_half_way(root):
    """The kernel's own refusal, in the middle of a shard."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(DataError, match=r"cannot be written \(File too large\)"):
            prepare.prepare(chain(train_tokens=3_000_000), root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert visible(root) == []


def test_a_root_that_cannot_be_written_to(texts, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"file/data: the corpus cannot be written \(Not a directory\)"):
        prepare.prepare(text(texts), tmp_path / "file" / "data")


def test_a_root_without_permission(texts, root):
    root.mkdir(mode=0o500)
    if os.access(root, os.W_OK):
        pytest.skip("whoever runs this may write anywhere")
    with pytest.raises(DataError, match=r"the corpus cannot be written \(Permission denied\)"):
        prepare.prepare(text(texts), root)


# --------------------------------------------------------------------------------------------- root, info and verify


def test_where_corpora_lie(monkeypatch, tmp_path):
    monkeypatch.setenv("SKIPSWEEP_DATA", str(tmp_path / "with space"))
    assert prepare.data_root(Paths()) == tmp_path / "with space"
    assert prepare.data_root(Paths(data=str(tmp_path))) == tmp_path
    checkout = Path(__file__).resolve().parents[1]
    assert prepare.data_root(Paths(data="corpora")) == checkout / "corpora"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert prepare.data_root(Paths(data="~/corpora")) == tmp_path / "corpora"
    monkeypatch.setenv("SKIPSWEEP_DATA", "")
    assert prepare.data_root(Paths()) == tmp_path / ".cache" / "skipsweep"


def test_skipsweep_data_is_where_a_corpus_is_put(texts, root, monkeypatch):
    monkeypatch.setenv("SKIPSWEEP_DATA", str(root))
    resolved = prepare.resolve(text(texts), prepare.data_root(Paths()))
    assert visible(root) == [f"text-{resolved.fingerprint}"]


def test_info_lists_corpora_sound_or_not(texts, root):
    assert prepare.info(root) == []
    one, other = prepare.resolve(text(texts), root), prepare.prepare(chain(), root)
    (root / "text-0123456789abcdef").mkdir()
    (root / "something else").mkdir()
    rows = {row["folder"]: row for row in prepare.info(root)}
    assert json.loads(json.dumps(rows)) == rows
    sound, unverified = rows.pop(str(root / f"text-{one.fingerprint}")), rows.pop(str(other.folder))
    assert (sound["name"], sound["tokenizer"], sound["vocab_size"]) == ("text", "bytes", 257)
    assert sound["train"]["documents"] == 28
    assert sound["disk_bytes"] == sum(p.stat().st_size for p in Path(sound["folder"]).glob("*.bin"))
    assert (sound["verified"], unverified["verified"]) == (True, False)
    ((folder, damaged),) = rows.items()
    assert folder.endswith("text-0123456789abcdef")
    assert "meta.json: missing" in damaged["problem"]


def test_verify_all_looks_at_everything_every_time(texts, root):
    one = prepare.resolve(text(texts), root)
    prepare.prepare(chain(), root)
    rows = prepare.verify_all(root)
    assert [row["problem"] for row in rows] == [None] * 4
    assert {row["shard"] for row in rows} == {"train_000001.bin", "val_000000.bin"}
    shard = corpus.open_corpus(one, root).paths("train")[0]
    stamp = os.stat(shard)
    damage(shard)
    os.utime(shard, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # as if a disk had turned a bit
    assert prepare.resolve(text(texts), root) == one
    problems = [row for row in prepare.verify_all(root) if row["problem"]]
    assert [(row["corpus"], row["shard"]) for row in problems] == [(f"text-{one.fingerprint}", "train_000001.bin")]
    assert prepare.verify_all(root, chain())[0]["problem"] is None
    assert len(prepare.verify_all(root, text(texts))) == 2


def test_verify_all_of_a_corpus_that_was_never_made(root):
    (row,) = prepare.verify_all(root, chain())
    assert "no such corpus" in row["problem"]
