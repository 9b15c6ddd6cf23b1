"""A hub on loopback: one dataset, and breaks on demand."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from skipsweep import files
from skipsweep.config import FineWeb10B
from skipsweep.data import shards
from skipsweep.data.corpus import Corpus, Origin, Shard, Split, folder_of, write_meta
from skipsweep.provenance import CHECKOUT

CONF = CHECKOUT / "conf"

REPO = "someone/small-gpt2"
VAL = "fineweb_val_000000.bin"
TOKENS = 1000
"""In each shard."""
FULL = 100_000_000
"""In each shard of a corpus at full size."""


def train(number: int) -> str:
    return f"fineweb_train_{number:06}.bin"


def shard(folder: Path, number: int, tokens: int = TOKENS) -> bytes:
    """Tokens that count up from one shard to the next; validation is number 0."""
    path = folder / "shard.bin"
    shards.write(path, [np.arange(tokens) + TOKENS * number])
    return path.read_bytes()


def content(folder: Path, count: int = 3) -> dict[str, bytes]:
    """The files of a dataset with so many training shards."""
    found = {train(n): shard(folder, n) for n in range(1, count + 1)}
    return {"README.md": b"# Small", **found, VAL: shard(folder, 0)}


def data(**changes: Any) -> FineWeb10B:
    """15 batches of 64 tokens in a shard."""
    sizes = {"seq_len": 16, "batch_tokens": 64, "val_seq_len": 32, "val_tokens": 128}
    return FineWeb10B(**{"repo": REPO, "tokenizer": "gpt2", **sizes, **changes})


@dataclass
class Break:
    """What goes wrong once with the file `name`, or with the listing (`listing`)."""

    name: str
    kind: str
    """`cut` (the connection breaks), `short` (the body ends early, as if that were all), `wrong` (a byte differs),
    `long` (a byte too many), `whole` (Range is ignored), or a status."""
    after: int = 0
    """Bytes sent before."""


@dataclass
class Hub:
    """What is there, what will go wrong, and what was asked for."""

    files: dict[str, bytes]
    commit: str = "a" * 40
    older: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Files at earlier commits."""
    breaks: list[Break] = field(default_factory=list)
    lfs: bool = True
    elsewhere: str | None = None
    """Address that file requests are sent on to."""
    asked: list[tuple[str, Mapping[str, str]]] = field(default_factory=list)
    """Path, or the file's name, and headers."""
    url: str = ""

    def names(self) -> list[str]:
        return [name for name, _ in self.asked]

    def ranges(self, name: str) -> list[str | None]:
        """The Range of every request for a file."""
        return [headers.get("Range") for asked, headers in self.asked if asked == name]

    def move(self, **files: bytes) -> None:
        """A new commit, with other files."""
        self.older[self.commit] = self.files
        self.commit, self.files = "b" * 40, {**self.files, **{f"{name}.bin": body for name, body in files.items()}}

    def tree(self, revision: str) -> dict[str, bytes] | None:
        return self.files if revision in ("main", self.commit) else self.older.get(revision)

    def listing(self, revision: str = "main") -> dict[str, Any]:
        commit = self.commit if revision == "main" else revision
        siblings = [self._sibling(name, body) for name, body in (self.tree(revision) or {}).items()]
        return {"id": REPO, "sha": commit, "siblings": siblings}

    def _sibling(self, name: str, body: bytes) -> dict[str, Any]:
        found: dict[str, Any] = {"rfilename": name, "size": len(body), "blobId": git_hash(body)}
        if self.lfs and name.endswith(".bin"):
            found["blobId"] = git_hash(b"a pointer to " + name.encode())
            found["lfs"] = {"sha256": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 134}
        return found

    def next_break(self, name: str) -> Break | None:
        found = next((one for one in self.breaks if one.name == name), None)
        if found is not None:
            self.breaks.remove(found)
        return found


def lay_out(root: Path, name: str) -> None:
    """As if the hub had listed a corpus of conf/data at full size: one training shard and validation are there, most of
    their tokens being holes that take no space."""
    cfg: Any = files.read_yaml(CONF / "data" / f"{name}.yaml")
    listed = [Shard(train(n), FULL, file_hash=f"sha256:{n:064}") for n in range(1, 31)]
    parts = (Split(sum(s.tokens for s in part), None, None, tuple(part)) for part in (listed, [Shard(VAL, FULL)]))
    place = folder_of(root, name, f"{name:0>16}")
    place.mkdir()
    made = Corpus(place, name, "gpt2", 50257, f"{name:0>16}", *parts, Origin(cfg["repo"], "main", "a" * 40))
    write_meta(made)
    for file in (VAL, train(1)):
        shards.write(place / file, [np.arange(50_000)])
        with open(place / file, "r+b") as f:
            f.seek(8)
            f.write(FULL.to_bytes(4, "little"))
            f.truncate(shards.HEADER_BYTES + 2 * FULL)


def git_hash(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer waits 40 ms

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        file = re.fullmatch(rf"/datasets/{REPO}/resolve/([^/]+)/(.+)", path)
        name = file[2] if file else path
        self.hub.asked.append((name, dict(self.headers)))
        listing = re.fullmatch(rf"/api/datasets/{REPO}/revision/(.+)", path)
        if listing and self.hub.tree(listing[1]) is not None:
            return self._listing(listing[1])
        if not file or not (tree := self.hub.tree(file[1])):
            return self._refuse(404, "RevisionNotFound" if file or listing else "RepoNotFound")
        if name not in tree:
            return self._refuse(404, "EntryNotFound")
        self._file(name, tree[name])

    def _listing(self, revision: str) -> None:
        fault = self.hub.next_break("listing")
        if fault is not None and fault.kind == "page":
            return self._send(200, b"<html>Please log in</html>")
        if fault is not None:
            return self._refuse(int(fault.kind))
        self._send(200, json.dumps(self.hub.listing(revision)).encode())

    def _file(self, name: str, body: bytes) -> None:
        if self.hub.elsewhere is not None:
            return self._send(302, b"", Location=self.hub.elsewhere + self.path)
        fault = self.hub.next_break(name) or Break(name, "none")
        if fault.kind.isdigit():
            return self._refuse(int(fault.kind))
        first = 0
        if "Range" in self.headers and fault.kind != "whole":
            first = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        self._body(body[first:], fault, 206 if first else 200, f"bytes {first}-{len(body) - 1}/{len(body)}")

    def _body(self, body: bytes, fault: Break, status: int, where: str) -> None:
        headers = {"Content-Range": where} if status == 206 else {}
        if fault.kind == "short":
            return self._send(status, body[: fault.after], **headers)
        if fault.kind == "long":
            body += b"\0"
        if fault.kind == "wrong":
            body = body[:2000] + bytes([body[2000] ^ 1]) + body[2001:]
        if fault.kind != "cut" and not (fault.kind == "whole" and fault.after):
            return self._send(status, body, **headers)
        self._head(status, len(body), headers)
        self.wfile.write(body[: fault.after])
        self.close_connection = True

    def _refuse(self, status: int, code: str = "") -> None:
        self._send(status, b"{}", **({"X-Error-Code": code} if code else {}))

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        self._head(status, len(body), headers)
        self.wfile.write(body)

    def _head(self, status: int, length: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(length), "X-HF-Warning": "hub; please upgrade"}.items():
            self.send_header(key, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """`hub` at `hub.url`, until the body ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
