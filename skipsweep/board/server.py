"""The web server of the board. It answers this machine alone, and with nothing but the files of reports."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote

from skipsweep.board import index
from skipsweep.board.builder import REST_S, Builder
from skipsweep.errors import UserError
from skipsweep.rundir import Multirun, names_a_folder
from skipsweep.stop import interruptible

LOOPBACK = "127.0.0.1"
TYPES = {".svg": "image/svg+xml", ".png": "image/png", ".csv": "text/csv; charset=utf-8"}
_FILE = re.compile(r"(figures|tables)/[A-Za-z0-9_-][A-Za-z0-9_.-]*\.(svg|png|csv)")
_HTML = "text/html; charset=utf-8"
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src data:"
_POLL = """<script>{
const shown = %s;
setInterval(async () => {
  if (document.hidden) return;
  try {
    const found = await (await fetch("version")).json();
    if (found.number !== null && found.number !== shown) location.reload();
    const note = document.getElementById("board-note");
    if (note && found.problem) note.textContent = found.problem;
  } catch { /* the board has stopped: the page stays as it is */ }
}, 3000);
}</script>"""
_WAITING = """<!doctype html><html lang="en"><head><meta charset="utf-8">
<title>%s</title></head><body style="font: 16px/1.5 system-ui, sans-serif; margin: 2rem"><h1>%s</h1>
<p id="board-note">The report is being written; this page shows it when it is there.</p></body></html>"""


class Server(ThreadingHTTPServer):
    """Serves one multirun folder on the loopback interface."""

    daemon_threads = True

    def __init__(self, multirun: Multirun, port: int, make: Callable[[str], object], rest: float = REST_S):
        """`port`: 0 for any free one. `make`, `rest`: as for `Builder`. Raises UserError where the port is taken."""
        self.multirun, self.builder = multirun, Builder(multirun, make, rest)
        try:
            super().__init__((LOOPBACK, port), _Handler)
        except (OSError, OverflowError) as problem:
            raise UserError(f"--port {port} cannot be used ({problem}); --port 0 takes a free one") from problem

    @property
    def address(self) -> str:
        return f"http://{LOOPBACK}:{self.server_port}/"


class _Refused(Exception):
    """Answered with NOT_FOUND: what is not there and what must not be seen look the same."""


@dataclass(frozen=True)
class _Answer:
    kind: str
    """Content type."""
    content: bytes
    has_policy: bool = False
    """Whether it is a page that says itself what it may load and run."""
    status: HTTPStatus = HTTPStatus.OK


class _Handler(BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]
    server_version: ClassVar[str] = "skipsweep"  # pyright: ignore[reportIncompatibleVariableOverride]
    sys_version: ClassVar[str] = ""  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        # A page elsewhere could have its name resolve to this machine and read what we say: its Host gives it away.
        host = (self.headers.get("Host") or "").rsplit(":", 1)[0]
        if host not in (LOOPBACK, "localhost"):
            return self._send(_Answer("text/plain", b"only for its own machine\n", status=HTTPStatus.FORBIDDEN))
        try:
            found = self._answer(unquote(self.path.split("?", 1)[0]))
        except (_Refused, UserError, OSError):
            found = _Answer("text/plain", b"not found\n", status=HTTPStatus.NOT_FOUND)
        self._send(found)

    def _answer(self, path: str) -> _Answer:
        """To a path without its escapes."""
        _, *parts = path.split("/", 3)
        if parts == [""]:
            return _Answer(_HTML, index.html(self.server.multirun).encode())
        if parts == ["favicon.ico"]:
            return _Answer("image/x-icon", b"")  # browsers ask for it unasked, and complain where there is none
        if len(parts) != 3 or not names_a_folder(parts[1]):
            raise _Refused
        kind, name, rest = parts
        if kind == "sweeps" and self.server.multirun.sweep(name).plan.is_file():
            return self._of_sweep(name, rest)
        if kind == "reports":
            return _static(self.server.multirun.reports / name, rest or "index.html")
        raise _Refused

    def _of_sweep(self, name: str, rest: str) -> _Answer:
        folder = self.server.multirun.sweep(name).report
        if rest == "version":
            return _Answer("application/json", json.dumps(vars(self.server.builder.look(name))).encode())
        if rest == "":
            number = self.server.builder.look(name).number
            if number is None:
                return _Answer(_HTML, _polling(_WAITING % ((escape(name),) * 2), number).encode())
            return _Answer(_HTML, _polling((folder / "index.html").read_text(), number).encode(), has_policy=True)
        return _static(folder, rest)

    def _send(self, found: _Answer) -> None:
        self.send_response(found.status)
        self.send_header("Content-Type", found.kind)
        self.send_header("Content-Length", str(len(found.content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        if not found.has_policy:
            self.send_header("Content-Security-Policy", _POLICY)
        self.end_headers()
        self.wfile.write(found.content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal is for the address."""


def _static(folder: Path, rest: str) -> _Answer:
    """A figure or table of a report, or its page; links that lead out of it are not followed."""
    is_page = rest == "index.html"
    if not is_page and not _FILE.fullmatch(rest):
        raise _Refused
    found = (folder / rest).resolve()
    if not found.is_relative_to(folder.resolve()):
        raise _Refused
    return _Answer(_HTML if is_page else TYPES[found.suffix], found.read_bytes(), has_policy=is_page)


def _polling(page: str, number: int | None) -> str:
    """The page with a script that asks for newer ones; its own policy lets it ask this server, and no other."""
    page = page.replace("default-src 'none';", "default-src 'none'; connect-src 'self';", 1)
    head, end, tail = page.rpartition("</body>")
    return head + _POLL % json.dumps(number) + end + tail


def serve(server: Server) -> None:
    """Say where, and serve until Ctrl-C."""
    try:
        with interruptible():
            print(f"{server.address} shows the sweeps of {server.multirun.path}; Ctrl-C stops it", flush=True)
            server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
