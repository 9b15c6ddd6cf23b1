"""The shard format, and every way in which a file can fail to be one."""

import struct

import numpy as np
import pytest

from skipsweep.data import shards
from skipsweep.errors import DataError

TOKENS = np.arange(100, dtype=np.uint16)


def header(*fields: int) -> bytes:
    return struct.pack(f"<{len(fields)}i", *fields).ljust(1024, b"\0")


GOOD = header(20240520, 1, 100) + TOKENS.astype("<u2").tobytes()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a shard.bin"


def test_a_shard_is_header_and_tokens_byte_for_byte(path):
    count, sha256 = shards.write(path, [TOKENS[:30], TOKENS[30:].astype(np.int64)])
    assert path.read_bytes() == GOOD
    assert count == shards.verify(path, 100, sha256) == 100
    assert isinstance(shards.read(path), np.memmap)
    assert np.array_equal(shards.read(path), TOKENS)


BAD = {
    "empty file": (b"", r"byte 0: empty file; .* header of 1024 bytes"),
    "short header": (GOOD[:700], r"byte 700: the header ends here, after 700 of 1024 bytes"),
    "magic": (header(20240521, 1, 100) + GOOD[1024:], r"byte 0: magic number 20240521, not 20240520"),
    "version": (header(20240520, 2, 100) + GOOD[1024:], r"byte 4: format version 2, not 1"),
    "no tokens": (header(20240520, 1, 0), r"byte 8: the header promises 0 tokens"),
    "negative tokens": (header(20240520, 1, -5) + GOOD[1024:], r"byte 8: the header promises -5 tokens"),
    "half a token": (GOOD[:-1], r"byte 1222: half a token at the end"),
    "half a token more": (GOOD + b"\0", r"byte 1224: half a token at the end"),
    "too short": (GOOD[:-20], r"byte 1204: the file ends after 90 of the 100 tokens"),
    "only a header": (GOOD[:1024], r"byte 1024: the file ends after 0 of the 100 tokens"),
    "too long": (GOOD + b"\0\0", r"byte 1224: 2 bytes follow the 100 tokens"),
    "outside the vocabulary": (GOOD[:1030] + b"\x64\0" + GOOD[1032:], r"byte 1030: token 3 is 100, .* ends at 99"),
    "other tokens": (GOOD[:1030] + b"\x00\0" + GOOD[1032:], r"byte 1024: the tokens are not those once written"),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD)
def test_bad_shard_is_named_with_file_and_offset(path, content, message):
    path.write_bytes(content)
    _, sha256 = shards.write(path.with_name("good.bin"), [TOKENS])
    with pytest.raises(DataError, match=message) as caught:
        shards.verify(path, 100, sha256)
    assert str(caught.value).startswith(f"{path}: byte ")
    assert "\n" not in str(caught.value)


def test_missing_shard(path):
    with pytest.raises(DataError, match=r"a shard\.bin: no such shard"):
        shards.verify(path, 100)


def test_unreadable_shard(path):
    path.mkdir()
    with pytest.raises(DataError, match=r"a shard\.bin: cannot be read \(Is a directory\)"):
        shards.verify(path, 100)


def test_first_offender_is_found_in_any_block(path, monkeypatch):
    monkeypatch.setattr(shards, "_BLOCK", 7)
    shards.write(path, [TOKENS])
    for vocab in (1, 50, 63, 64, 99):
        with pytest.raises(DataError, match=f"byte {1024 + 2 * vocab}: token {vocab} is {vocab}, "):
            shards.verify(path, vocab)


def test_verify_tells_how_far_it_is(path, monkeypatch):
    monkeypatch.setattr(shards, "_BLOCK", 30)
    shards.write(path, [TOKENS])
    done = []
    shards.verify(path, 100, advance=done.append)
    assert done == [60, 60, 60, 20]


def test_read_refuses_a_wrong_size_without_reading_tokens(path):
    path.write_bytes(GOOD[:-20])
    with pytest.raises(DataError, match="ends after 90 of the 100"):
        shards.read(path)


def test_an_interrupted_write_leaves_the_old_shard_and_nothing_else(path):
    shards.write(path, [TOKENS])

    def parts():
        yield TOKENS
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shards.write(path, parts())
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert path.read_bytes() == GOOD


@pytest.mark.parametrize("tokens", [np.array([], np.uint16), np.array([65536]), np.array([3, -1])])
def test_what_no_shard_can_hold_is_not_written(path, tokens):
    with pytest.raises(ValueError, match=r"a shard holds|do not fit"):
        shards.write(path, [tokens])
    assert list(path.parent.iterdir()) == []
