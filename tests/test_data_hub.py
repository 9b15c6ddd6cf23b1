"""Corpora from the hub, against a server on loopback: what is asked for, what survives breaks, what is refused."""

import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import threading
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from hub_server import REPO, VAL, Break, Hub, content, data, serving, shard, train

from skipsweep.config import leaves
from skipsweep.data import corpus, download, hub, prepare, pretokenised
from skipsweep.data.batches import Batches
from skipsweep.errors import DataError
from skipsweep.sweep import launch as launching
from skipsweep.sweep.entry import from_command_line
from skipsweep.sweep.request import LaunchRequest

STEPS = 20
"""Of 15 batches in a shard: two training shards are needed."""
LISTING = f"/api/datasets/{REPO}/revision/main"
TOKEN = "hf_secretsecretsecret"


@pytest.fixture(autouse=True, scope="module")
def _session() -> Iterator[None]:
    yield
    huggingface_hub.close_session()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "WAITS_S", (0.0, 0.0, 0.0))
    monkeypatch.setattr(pretokenised, "LISTING_WAITS_S", (0.0, 0.0))
    monkeypatch.setenv("HF_TOKEN", TOKEN)


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(Hub(content(tmp_path))) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data root"


def folder(root: Path) -> Path:
    (found,) = root.glob("fineweb10B-*")
    return found


def present(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder(root).glob("*.bin"))}


def wanted(there: Hub, *numbers: int) -> dict[str, bytes]:
    return {name: there.files[name] for name in [*map(train, numbers), VAL]}


def fetch(root: Path, steps: int = STEPS, **changes) -> None:
    prepare.fetch(data(**changes), root, steps)


# ----------------------------------------------------------------------------------------------------------- planning


def test_planning_asks_for_one_listing_and_no_shard(there: Hub, root: Path) -> None:
    resolved = prepare.resolve(data(), root)
    assert there.names() == [LISTING]
    assert re.fullmatch("[0-9a-f]{16}", resolved.fingerprint)
    assert resolved.vocab_size == 50257
    made = corpus.open_corpus(resolved, root)
    assert (made.train.tokens, made.val.tokens) == (3000, 1000)
    assert prepare.check_enough(resolved, 45, made) == 1
    assert prepare.to_download(resolved, root, STEPS) == sum(map(len, wanted(there, 1, 2).values()))
    assert present(root) == {}


def test_a_second_plan_and_a_complete_corpus_need_no_network(there: Hub, root: Path, monkeypatch) -> None:
    resolved = prepare.resolve(data(), root)
    fetch(root)
    asked = len(there.asked)

    def refuse(*args, **kwargs):
        raise AssertionError("network used")

    monkeypatch.setattr(socket, "socket", refuse)
    assert prepare.resolve(data(), root) == prepare.resolve(resolved, root) == resolved
    fetch(root)
    fetch(root, revision=there.commit)
    prepare.require(resolved, root, STEPS)
    assert len(there.asked) == asked


def test_the_fingerprint_is_of_content(there: Hub, root: Path, tmp_path: Path) -> None:
    one = prepare.resolve(data(), root / "a").fingerprint
    there.commit, there.files["README.md"] = "b" * 40, b"other words"
    there.files = dict(reversed(there.files.items()))
    assert prepare.resolve(data(seq_len=8), root / "b").fingerprint == one
    there.files[train(3)] = shard(tmp_path, 7)
    assert prepare.resolve(data(), root / "c").fingerprint != one


def test_a_shard_that_came_by_other_means_counts_if_it_is_right(there: Hub, root: Path) -> None:
    prepare.resolve(data(), root)
    (folder(root) / train(1)).write_bytes(there.files[train(1)])
    (folder(root) / train(2)).write_bytes(there.files[train(1)])
    fetch(root)
    assert [name for name in there.names() if name.endswith(".bin")] == [VAL, train(2)]
    assert present(root) == wanted(there, 1, 2)


def test_end_of_data_is_said_when_planning(there: Hub, root: Path) -> None:
    made = corpus.open_corpus(prepare.resolve(data(), root), root)
    message = (
        "schedule.steps=46 with data.batch_tokens=64 needs 2944 tokens, data=fineweb10B has 2880 in whole batches"
        " (data.epochs=1); set data.epochs=2 or schedule.steps<=45"
    )
    with pytest.raises(DataError, match=re.escape(message)):
        prepare.check_enough(data(), 46, made)
    with pytest.raises(DataError, match=r"schedule\.steps=46 .* needs 2944 tokens"):
        fetch(root, 46)
    assert there.names() == [LISTING]


@pytest.mark.parametrize(
    ("steps", "changes", "numbers"),
    [
        (1, {}, [1]),
        (15, {}, [1]),
        (16, {}, [1, 2]),
        (31, {}, [1, 2, 3]),
        (46, {"epochs": 2}, [1, 2, 3]),
        (1, {"order": "shuffled"}, [1, 2, 3]),
    ],
)
def test_as_many_shards_as_the_run_reads(there: Hub, root: Path, steps: int, changes, numbers: list[int]) -> None:
    fetch(root, steps, **changes)
    assert present(root) == wanted(there, *numbers)
    resolved = prepare.resolve(data(**changes), root)
    own = Batches(resolved, root)
    for step in range(steps):
        own.train(step)
    assert own.val(0, 9)[0].shape == (4, 32)
    prepare.require(resolved, root, steps)


def test_a_missing_shard_is_said_before_the_start_and_when_read(there: Hub, root: Path) -> None:
    fetch(root, 15)
    resolved = prepare.resolve(data(), root)
    with pytest.raises(DataError, match=r"fineweb_train_000002\.bin and 1 more not there; .* skipsweep data prepare"):
        prepare.require(resolved, root, 45)
    own = Batches(resolved, root)
    own.train(14)
    with pytest.raises(DataError, match=r"fineweb_train_000002\.bin: no such shard"):
        own.train(15)


# ----------------------------------------------------------------------------------------------------------- downloads


def test_a_cut_connection_is_resumed_where_it_broke(there: Hub, root: Path) -> None:
    there.breaks = [Break(train(1), "cut", 700), Break(train(1), "cut", 500), Break(train(2), "cut", 0)]
    fetch(root)
    assert there.ranges(train(1)) == [None, "bytes=700-", "bytes=1200-"]
    assert there.ranges(train(2)) == [None, None]
    assert present(root) == wanted(there, 1, 2)


@pytest.mark.parametrize("kind", ["503", "429", "500", "408"])
def test_an_overloaded_server_is_asked_again(there: Hub, root: Path, kind: str) -> None:
    there.breaks = [Break("listing", kind), Break("listing", kind), Break(train(1), kind), Break(train(1), kind)]
    fetch(root)
    assert present(root) == wanted(there, 1, 2)


def test_a_truncated_body_is_completed(there: Hub, root: Path) -> None:
    there.breaks = [Break(train(1), "short", 300)]
    fetch(root)
    assert there.ranges(train(1)) == [None, "bytes=300-"]
    assert present(root) == wanted(there, 1, 2)


def test_a_server_without_ranges_sends_all_again(there: Hub, root: Path) -> None:
    there.breaks = [Break(train(1), "cut", 300), Break(train(1), "whole")]
    fetch(root)
    assert there.ranges(train(1)) == [None, "bytes=300-"]
    assert present(root) == wanted(there, 1, 2)


def test_attempts_that_bring_nothing_new_are_bounded(there: Hub, root: Path) -> None:
    there.breaks = [Break(train(1), "cut", 300), *(Break(train(1), "whole", 300) for _ in range(50))]
    with pytest.raises(DataError, match=r"; nothing new in 4 attempts; the same command again goes on from here"):
        fetch(root)
    assert len(there.ranges(train(1))) == 5
    there.breaks = []
    fetch(root)
    assert there.ranges(train(1))[5:] == ["bytes=300-"]
    assert present(root) == wanted(there, 1, 2)


@pytest.mark.parametrize("kind", ["wrong", "long"])
def test_wrong_content_is_fetched_again_once(there: Hub, root: Path, kind: str) -> None:
    there.breaks = [Break(train(1), kind)]
    fetch(root)
    assert there.ranges(train(1)) == [None, None]
    assert present(root) == wanted(there, 1, 2)


def test_content_that_stays_wrong_is_refused(there: Hub, root: Path) -> None:
    there.breaks = [Break(train(1), "wrong"), Break(train(1), "wrong")]
    with pytest.raises(DataError, match=r"twice.*train_000001.*byte 0: the content is not what the hub lists \(sha256"):
        fetch(root)
    assert list(present(root)) == [VAL]
    fetch(root)
    assert there.ranges(train(1)) == [None, None, None]
    assert present(root) == wanted(there, 1, 2)


def test_a_killed_download_goes_on_from_its_end(there: Hub, root: Path) -> None:
    """In another process, with what its predecessor had got."""
    prepare.resolve(data(), root)
    body = there.files[train(1)]
    (folder(root) / f".{train(1)}.partial").write_bytes(body[:1500])
    assert prepare.to_download(prepare.resolve(data(), root), root, STEPS) == 3 * len(body) - 1500
    seen: list[tuple[int, int]] = []
    prepare.fetch(data(), root, STEPS, lambda done, of: seen.append((done, of)))
    assert there.ranges(train(1)) == ["bytes=1500-"]
    assert present(root) == wanted(there, 1, 2)
    whole = sum(map(len, wanted(there, 1, 2).values()))
    assert seen == sorted(seen)
    assert seen[-1] == (whole, whole)


def test_what_a_predecessor_left_broken_is_fetched_anew(there: Hub, root: Path) -> None:
    prepare.resolve(data(), root)
    (folder(root) / f".{train(1)}.partial").write_bytes(bytes(1500))
    (folder(root) / f".{train(2)}.partial").write_bytes(bytes(9000))
    fetch(root)
    assert there.ranges(train(1)) == ["bytes=1500-", None]
    assert there.ranges(train(2)) == [None]
    assert present(root) == wanted(there, 1, 2)


def test_two_at_once_download_once(there: Hub, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is held in the middle of a shard until the other has looked for it."""
    prepare.resolve(data(), root)
    monkeypatch.setattr(download, "POLL_S", 0.01)
    waiting = threading.Event()
    locked = download._locked
    monkeypatch.setattr(download, "_locked", lambda f: locked(f) or waiting.set() or False)
    reading = hub.reading
    monkeypatch.setattr(hub, "reading", lambda *args: waiting.wait(240) and reading(*args))
    ends: list[tuple[int, int]] = []
    failed: list[BaseException] = []

    def work() -> None:
        seen = [(0, 0)]
        try:
            prepare.fetch(data(), root, STEPS, lambda done, of: seen.append((done, of)))
        except BaseException as e:
            failed.append(e)
        ends.append(seen[-1])

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
    assert failed == []
    assert waiting.is_set()
    assert sorted(name for name in there.names() if name.endswith(".bin")) == sorted(wanted(there, 1, 2))
    assert present(root) == wanted(there, 1, 2)
    assert all(done == of for done, of in ends)
    assert [row["problem"] for row in prepare.verify_all(root)] == [None] * 3


def test_a_verified_shard_that_was_touched_is_fetched_again(there: Hub, root: Path) -> None:
    fetch(root)
    path = folder(root) / train(1)
    path.write_bytes(path.read_bytes()[:-2] + b"\1\1")
    os.utime(path, (1, 1))
    fetch(root)
    assert present(root) == wanted(there, 1, 2)


def test_verified_shards_are_not_read_again(there: Hub, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch(root)

    def refuse(*args):
        raise AssertionError("read again")

    monkeypatch.setattr(corpus, "check_shard", refuse)
    fetch(root)


# --------------------------------------------------------------------------------------------------- moved, and refused


def test_a_revision_that_moved_is_refused_and_its_commit_still_valid(there: Hub, root: Path, tmp_path: Path) -> None:
    fetch(root, 15)
    planned = wanted(there, 1, 2)
    there.move(fineweb_train_000002=shard(tmp_path, 7))
    fetch(root, 15)
    message = r"fineweb_train_000002\.bin is not what it was when data\.revision=main was listed; valid: .*=a{40} for"
    with pytest.raises(DataError, match=message):
        fetch(root)
    assert list(present(root)) == [train(1), VAL]
    asked = len(there.asked)
    fetch(root, revision="a" * 40)
    assert present(root) == planned
    assert there.names()[asked:] == [train(2)]
    shutil.rmtree(folder(root))
    fetch(root)
    assert present(root) == wanted(there, 1, 2) != planned


def test_a_revision_that_only_grew_serves(there: Hub, root: Path, tmp_path: Path) -> None:
    one = prepare.resolve(data(), root)
    there.move(fineweb_train_000004=shard(tmp_path, 4))
    there.older.clear()
    fetch(root)
    assert present(root) == wanted(there, 1, 2)
    assert prepare.resolve(data(), root) == one


def test_a_commit_that_is_no_longer_there_is_one_line(there: Hub, root: Path, tmp_path: Path) -> None:
    prepare.resolve(data(revision="a" * 40), root)
    there.move()
    there.older.clear()
    with pytest.raises(DataError, match=r"^fineweb_val_000000\.bin of \S+ at a{12}: no such revision \(HTTP 404"):
        fetch(root, revision="a" * 40)


def test_validation_is_of_the_first_shard(there: Hub, root: Path, tmp_path: Path) -> None:
    there.files["fineweb_val_000001.bin"] = shard(tmp_path, 8)
    assert corpus.open_corpus(prepare.resolve(data(), root), root).val.tokens == 1000
    fetch(root)
    assert present(root) == wanted(there, 1, 2)


def test_another_corpus_than_the_one_named_is_refused(there: Hub, root: Path) -> None:
    with pytest.raises(DataError, match=r"data\.fingerprint=beef, but data=fineweb10B is [0-9a-f]{16} here"):
        prepare.resolve(data(fingerprint="beef"), root)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({}, "404", r"data\.repo=someone/small-gpt2, .*no such dataset that anybody may read; .*HF_TOKEN \(HTTP 404"),
        ({}, "401", r"data\.repo=someone/small-gpt2, .*HF_TOKEN \(HTTP 401 of http://127"),
        ({}, "403", r"access refused; a private or gated dataset needs a token .* \(HTTP 403"),
        ({}, "400", r"refused \(HTTP 400"),
        ({}, "page", r"http://127\S+ does not answer as a Hugging Face hub does"),
        ({"repo": "some/where/else"}, "", r"data\.repo=some/where/else.* no name of a dataset .*; valid: OWNER/NAME"),
        ({"repo": "no/thing"}, "", r"data\.repo=no/thing, data\.revision=main: no such dataset"),
        ({"tokenizer": "none"}, "", r"data\.tokenizer=none is no tokenizer"),
    ],
)
def test_a_refused_listing_is_one_line(there: Hub, root: Path, changes, kind: str, message: str) -> None:
    there.breaks = [Break("listing", kind)] if kind else []
    with pytest.raises(Exception, match=message) as refused:
        prepare.resolve(data(**changes), root)
    assert "\n" not in str(refused.value)
    assert len(there.asked) <= 1
    assert not root.exists()


def test_a_refused_shard_is_one_line(there: Hub, root: Path) -> None:
    there.breaks = [Break(train(1), "403")]
    with pytest.raises(DataError, match=r"^fineweb_train_000001\.bin of someone/small-gpt2 at aaaaaaaaaaaa: access"):
        fetch(root)


@pytest.mark.parametrize("kind", ["503", "429"])
def test_a_server_that_stays_overloaded_is_given_up(there: Hub, root: Path, kind: str) -> None:
    there.breaks = [Break("listing", kind)] * 9
    with pytest.raises(DataError, match=rf"http://127\S+ answers HTTP {kind}, 3 times in a row; try again"):
        prepare.resolve(data(), root)


def test_no_network(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
        with pytest.raises(DataError, match=r"^http://127\S+: .*refused.*, 3 times in a row; try again when"):
            prepare.resolve(data(), root)
    monkeypatch.setenv("HF_ENDPOINT", "the moon")
    with pytest.raises(DataError, match=r"HF_ENDPOINT=the moon is no address"):
        prepare.resolve(data(), root)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"HF_HUB_OFFLINE is set"):
        prepare.resolve(data(), root)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"README.md": b""}, r"data\.repo=someone/small-gpt2 has no token shards; valid: a dataset with"),
        ({VAL: bytes(2000)}, r"has no token shards"),
        ({VAL: bytes(2001)}, r"fineweb_val_000000\.bin has 2001 bytes, which no token shard has"),
        ({VAL: bytes(1024)}, r"fineweb_val_000000\.bin has 1024 bytes"),
        ({f"../{train(1)}": bytes(2000), f"a/{VAL}": bytes(2000)}, r"has no token shards"),
    ],
)
def test_a_dataset_of_other_things_is_refused(there: Hub, root: Path, files: dict[str, bytes], message: str) -> None:
    there.files = files
    with pytest.raises(DataError, match=message):
        prepare.resolve(data(), root)


def test_without_sha256_the_git_hash_is_checked(there: Hub, root: Path) -> None:
    there.lfs = False
    there.breaks = [Break(train(1), "wrong")]
    fetch(root)
    assert there.ranges(train(1)) == [None, None]
    assert present(root) == wanted(there, 1, 2)


def test_without_any_hash_nothing_is_planned(there: Hub, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sibling = Hub._sibling
    monkeypatch.setattr(Hub, "_sibling", lambda self, *of: {**sibling(self, *of), "lfs": None, "blobId": None})
    with pytest.raises(DataError, match=r"lists neither sha256 nor git hash of README\.md|of fineweb"):
        prepare.resolve(data(), root)


def test_a_full_disk_is_said_before_the_download(there: Hub, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(9071))
    with pytest.raises(DataError, match=r"GB to download, 0\.0 GB free; valid for \$SKIPSWEEP_DATA"):
        fetch(root)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(9072))
    fetch(root)  # three shards of 3,024 bytes


def test_a_write_that_fails_half_way_keeps_what_has_arrived(there: Hub, root: Path) -> None:
    """The kernel's own refusal, in the middle of a shard."""
    prepare.resolve(data(), root)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(DataError, match=r"val_000000\.bin: cannot be written \(File too large\); what has"):
            fetch(root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    fetch(root)
    assert there.ranges(VAL) == [None, "bytes=2000-"]
    assert present(root) == wanted(there, 1, 2)


def test_a_root_that_cannot_be_written_to(there: Hub, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"the listing cannot be written \(Not a directory\)"):
        prepare.resolve(data(), tmp_path / "file" / "data")


def test_a_damaged_listing_is_asked_for_again(there: Hub, root: Path) -> None:
    one = prepare.resolve(data(), root)
    (folder(root) / "meta.json").write_text("{")
    assert prepare.resolve(data(), root) == one
    assert there.names() == [LISTING, LISTING]


def test_a_listing_serves_what_it_was_asked_for_only(there: Hub, root: Path) -> None:
    one = prepare.resolve(data(), root)
    for changes in ({"revision": "dev"}, {"repo": "no/thing"}):
        with pytest.raises(DataError, match=r"no such (revision|dataset).* \(HTTP 404"):
            prepare.resolve(data(**changes), root)
    other = prepare.resolve(data(tokenizer="bytes"), root)
    assert (other.vocab_size, other.fingerprint != one.fingerprint) == (257, True)
    assert prepare.resolve(data(), root) == one


# ----------------------------------------------------------------------------------------------------- info and verify


def test_info_and_verify_take_a_part_for_normal(there: Hub, root: Path) -> None:
    prepare.resolve(data(), root)
    (row,) = prepare.info(root)
    assert (row["train"]["shards"], row["train"]["present"], row["verified"]) == (3, 0, False)
    assert prepare.verify_all(root) == []
    fetch(root)
    (row,) = prepare.info(root)
    assert (row["train"]["shards"], row["train"]["present"], row["verified"]) == (3, 2, True)
    assert row["train"]["documents"] is None
    assert row["disk_bytes"] == sum(map(len, wanted(there, 1, 2).values()))
    assert row["origin"] == {"repo": REPO, "revision": "main", "commit": "a" * 40}
    assert [(row["shard"], row["problem"]) for row in prepare.verify_all(root, data())] == [
        (train(1), None),
        (train(2), None),
        (VAL, None),
    ]
    path = folder(root) / train(2)
    path.write_bytes(path.read_bytes()[:-2] + b"\1\1")
    (bad,) = (row for row in prepare.verify_all(root) if row["problem"])
    assert bad["shard"] == train(2)
    assert bad["problem"].endswith("; delete the file, it will be downloaded again")


def test_reading_is_as_the_record_reads(there: Hub, root: Path) -> None:
    """Rank r takes [pos + r * local, + local + 1) of a shard, pos grows by whole batches, and what is left stays."""
    fetch(root, 45)
    cfg = prepare.resolve(data(), root)
    for world in (1, 2, 4):
        local, step = 64 // world, 0
        readers = [Batches(cfg, root, rank, world) for rank in range(world)]
        for number in (1, 2, 3):
            tokens, pos = np.frombuffer(there.files[train(number)], "<u2", offset=1024), 0
            while pos + 64 + 1 < len(tokens):
                for rank, reader in enumerate(readers):
                    part = tokens[pos + rank * local :][: local + 1]
                    inputs, targets = reader.train(step)
                    assert np.array_equal(inputs.ravel(), part[:-1])
                    assert np.array_equal(targets.ravel(), part[1:])
                pos, step = pos + 64, step + 1
        assert step == 45


# ----------------------------------------------------------------------------------------------- what else goes out


def test_nothing_else_is_asked_written_or_sent(there: Hub, root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    there.breaks = [Break(train(1), "cut", 100), Break(VAL, "503")]
    fetch(root)
    assert set(there.names()) == {LISTING, train(1), train(2), VAL}
    agents = {lower(headers)["user-agent"] for _, headers in there.asked}
    assert all("skipsweep" in agent and "torch" not in agent and "agent/" not in agent for agent in agents)
    assert all(lower(headers)["accept-encoding"] == "identity" for name, headers in there.asked if name != LISTING)
    assert capfd.readouterr() == ("", "")


def test_the_token_goes_to_the_hub_alone_and_is_never_told(there: Hub, root: Path, tmp_path: Path) -> None:
    with serving(Hub(there.files)) as elsewhere:
        there.elsewhere = elsewhere.url
        elsewhere.breaks = [Break(train(1), "403")]
        with pytest.raises(DataError) as refused:
            fetch(root)
        fetch(root)
    assert present(root) == wanted(there, 1, 2)
    assert all(lower(headers)["authorization"] == f"Bearer {TOKEN}" for _, headers in there.asked)
    assert elsewhere.asked
    assert not any("authorization" in lower(headers) for _, headers in elsewhere.asked)
    assert TOKEN not in str(refused.value)
    assert not any(TOKEN.encode() in path.read_bytes() for path in root.rglob("*") if path.is_file())


def lower(headers) -> dict[str, str]:
    return {key.lower(): value for key, value in headers.items()}


def test_the_library_is_loaded_for_the_network_only(there: Hub, root: Path, tmp_path: Path) -> None:
    prepare.resolve(data(), root)
    code = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import skipsweep.cli, skipsweep.sweep.launch
from hub_server import data
from skipsweep.data import prepare
prepare.resolve(data(), Path({str(root)!r}))
assert not {{"huggingface_hub", "httpx2", "torch"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_where_content_lies_is_no_part_of_an_identity() -> None:
    assert not {"repo", "revision"} & set(leaves(data()))


# ------------------------------------------------------------------------------------------------------------ commands

SETTINGS = (
    "data=fineweb10B",
    f"data.repo={REPO}",
    "data.seq_len=16",
    "data.batch_tokens=64",
    "data.val_seq_len=32",
    "data.val_tokens=128",
    f"schedule.steps={STEPS}",
)


@pytest.fixture
def request_of(there: Hub, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., LaunchRequest]:
    """A launch with `SETTINGS` and more."""
    monkeypatch.setenv("SKIPSWEEP_DATA", str(root))
    return lambda *more: from_command_line([*SETTINGS, f"paths.multirun={tmp_path / 'runs'}", *more])


def test_a_sweep_is_planned_with_one_listing_and_started_with_its_shards(
    there: Hub, root: Path, request_of: Callable[..., LaunchRequest], monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    request = request_of("seed=0,1,2", "schedule.steps=3,16", "skip_layers=none,2")
    assert launching.document(launching.make_plan(request), request)["to_download"] == 3 * 3024
    assert launching.launch(replace(request, plan=True)) == 0
    assert there.names() == [LISTING]
    assert "to download first: 0.00 GB" in capfd.readouterr().out

    found: list[dict[str, bytes]] = []
    monkeypatch.setattr(launching, "freeze", lambda *args: found.append(present(root)))
    monkeypatch.setattr(launching, "_execute", lambda *args: False)
    monkeypatch.setattr(launching, "_conclude", lambda *args: 0)
    assert launching.launch(request) == 0
    assert found == [wanted(there, 1, 2)]
    assert len(there.ranges(VAL)) == 1
    captured = capfd.readouterr()
    assert "to download" in captured.out
    assert re.search(r"^downloading fineweb10B: 0\.00 of 0\.00 GB, [\d.]+ MB/s, 0:00 left$", captured.err, re.MULTILINE)


def test_a_launch_that_cannot_download_starts_nothing(
    there: Hub, request_of: Callable[..., LaunchRequest], tmp_path: Path
) -> None:
    there.breaks = [Break(train(2), "403")]
    with pytest.raises(DataError, match="access refused"):
        launching.launch(request_of())
    assert not list(tmp_path.glob("runs/runs/*"))


def test_a_run_too_long_for_the_corpus_is_refused_by_its_plan(
    there: Hub, request_of: Callable[..., LaunchRequest]
) -> None:
    with pytest.raises(DataError, match=r"schedule\.steps=46 .* needs 2944 tokens, data=fineweb10B has 2880"):
        launching.make_plan(request_of("schedule.steps=46"))
    assert there.names() == [LISTING]


def test_a_thousand_points_look_for_their_corpus_once(
    there: Hub, request_of: Callable[..., LaunchRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve, calls = prepare.resolve, []
    monkeypatch.setattr(prepare, "resolve", lambda *args: calls.append(args) or resolve(*args))
    launching.make_plan(request_of("seed=range(0,30)", "schedule.steps=3,4,5"))
    assert len(calls) == 1


def test_the_data_commands(there: Hub, root: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "SKIPSWEEP_DATA": str(root)}

    def skipsweep(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "error", "-c", "from skipsweep.cli import main; main()", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, cwd=tmp_path)

    made = skipsweep("data", "prepare", *SETTINGS)
    assert (made.returncode, made.stderr.count("\n")) == (0, made.stderr.count("downloading fineweb10B: "))
    assert re.search(r"fineweb10B-\w+ +gpt2 +50,257 +3,000 +1,000 +- +0\.0 +3 of 4 shards, verified", made.stdout)
    assert present(root) == wanted(there, 1, 2)
    assert "3 of 4 shards, verified" in skipsweep("data", "info").stdout
    checked = skipsweep("data", "verify")
    assert (checked.returncode, checked.stdout.count(" ok")) == (0, 3)
    refused = skipsweep("data", "prepare", *SETTINGS, "data.repo=no/thing")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert re.fullmatch(r"error: data\.repo=no/thing, .*no such dataset.*\n", refused.stderr)
