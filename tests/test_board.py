"""`skipsweep board`: the index, reports that follow their runs, and nothing else of the machine."""

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sweep_folders import Made

from skipsweep import files
from skipsweep.board.server import LOOPBACK, Server
from skipsweep.errors import UserError
from skipsweep.rundir import Multirun

PAGE = "<!doctype html><html><head><meta content=\"default-src 'none';\"></head><body>%s</body></html>"


class Board:
    """A server over synthetic sweeps, whose reports count how often they were built."""

    def __init__(self, made: Made):
        self.made, self.builds, self.may_build = made, 0, threading.Event()
        self.may_build.set()
        self.server = Server(made.write(), 0, self._make, rest=0.0)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    def _make(self, name: str) -> None:
        assert self.may_build.wait(60)
        if self.builds == 2:
            raise RuntimeError("no figure today")
        self.builds += 1
        folder = self.made.multirun.sweep(name).report
        for path, text in (("index.html", PAGE % f"build {self.builds}"), ("figures/a.svg", "<svg/>"), ("x.html", "x")):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            files.write_bytes(folder / path, text.encode(), durable=False)

    def get(self, path: str, host: str | None = None) -> tuple[int, str]:
        """Status and text. The path is sent as it is."""
        connection = http.client.HTTPConnection(LOOPBACK, self.server.server_port)
        connection.request("GET", path, headers={} if host is None else {"Host": host})
        answer = connection.getresponse()
        found = answer.status, answer.read().decode()
        connection.close()
        return found

    def version(self, name: str) -> dict[str, object]:
        return json.loads(self.get(f"/sweeps/{name}/version")[1])

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    made = Made(tmp_path / "multirun", name="first", question="Is <b> escaped?")
    made.arm("none", [2.9, 2.8])
    made.arm("5", [2.7, None], sources=[5], state="planned")
    board = Board(made)
    yield board
    board.close()


def test_the_index_lists_sweeps_with_question_counts_and_state(board: Board, tmp_path: Path) -> None:
    other = Made(tmp_path / "multirun", name="second", question=None)
    other.arm("none", [2.9])
    other.write()
    damaged = board.made.multirun.sweep("third").plan
    damaged.parent.mkdir()
    damaged.write_text('{"points": [')
    united = board.made.multirun.reports / "first+second"
    united.mkdir(parents=True)
    (united / "index.html").write_text("both")
    status, text = board.get("/")
    assert status == 200
    rows = [row for row in text.split("<tr") if "<td>" in row]
    assert len(rows) == 3
    [first] = [row for row in rows if "sweeps/first/" in row]
    assert "Is &lt;b&gt; escaped?" in first
    assert "<td>2 done, 2 planned of 4</td><td>unfinished</td>" in first
    [second] = [row for row in rows if "sweeps/second/" in row]
    assert "<td>1 done of 1</td><td>finished</td>" in second
    [third] = [row for row in rows if "third" in row]
    assert "cannot be read" in third
    assert "<td>damaged</td>" in third
    assert '<a href="reports/first+second/">' in text
    assert board.get("/reports/first+second/") == (200, "both")


def test_a_report_is_built_when_looked_at_and_again_when_its_runs_have_changed(board: Board) -> None:
    board.may_build.clear()
    assert "is being written" in board.get("/sweeps/first/")[1]
    board.may_build.set()
    board.server.builder.settle()
    status, page = board.get("/sweeps/first/")
    assert (status, "build 1" in page) == (200, True)
    assert "default-src 'none'; connect-src 'self';" in page, "or the page could not ask for a newer one"
    first = board.version("first")
    assert f"shown = {first['number']};" in page
    assert (first["building"], first["problem"]) == (False, None)
    assert board.builds == 1, "nothing has changed"

    run = next(run for run in board.made.multirun.all_runs() if not run.result.exists())
    run.write_status("running")
    assert board.version("first")["building"] is True
    board.server.builder.settle()
    second = board.version("first")
    assert "build 2" in board.get("/sweeps/first/")[1]
    assert int(str(second["number"])) >= int(str(first["number"]))

    run.write_status("failed", cause="nan")
    board.version("first")
    board.server.builder.settle()
    assert board.version("first")["problem"] == "RuntimeError: no figure today"
    assert "build 2" in board.get("/sweeps/first/")[1], "the last one that could be drawn"


def test_a_report_that_is_newer_than_its_runs_is_left_as_it_is(board: Board) -> None:
    board._make("first")
    board.get("/sweeps/first/")
    board.server.builder.settle()
    assert board.builds == 1


def test_figures_are_served_and_nothing_beside_them(board: Board, tmp_path: Path) -> None:
    (tmp_path / "secret.svg").write_text("secret")
    board._make("first")
    report = board.made.multirun.sweep("first").report
    (report / "figures" / "link.svg").symlink_to(tmp_path / "secret.svg")
    (report / "figures" / "plan.svg").mkdir()
    assert board.get("/sweeps/first/figures/a.svg") == (200, "<svg/>")
    for path in (
        "/sweeps/first/figures/link.svg",
        "/sweeps/first/figures/plan.svg",
        "/sweeps/first/figures/../../plan.json",
        "/sweeps/first/figures/..%2f..%2fplan.json",
        "/sweeps/first/figures/%2e%2e/%2e%2e/plan.json",
        "/sweeps/first/x.html",
        "/sweeps/first/../../../secret.svg",
        "/sweeps/..%2f..%2f/secret.svg",
        "/sweeps/../figures/a.svg",
        "/reports/../sweeps/first/report/index.html",
        "/reports/..%2fsweeps%2ffirst%2freport/index.html",
        "/reports/none/",
        f"/sweeps/first/{tmp_path}/secret.svg",
        "//etc/passwd",
        "/sweeps/first/figures/a.svg%00",
        "/sweeps",
        "/runs/first/config.yaml",
    ):
        assert board.get(path) == (404, "not found\n"), path


def test_other_machines_and_other_names_are_refused(board: Board) -> None:
    assert board.server.server_address[0] == LOOPBACK
    assert board.get("/", host="evil.example")[0] == 403
    assert board.get("/", host="localhost:1")[0] == 200


def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind((LOOPBACK, 0))
        taken.listen()
        with pytest.raises(UserError, match="--port 0 takes a free one"):
            Server(Multirun(tmp_path), taken.getsockname()[1], print)


def test_ctrl_c_ends_it_without_a_word(tmp_path: Path) -> None:
    code = "from skipsweep.cli import main; main()"
    command = [sys.executable, "-c", code, "board", "--port", "0", "--multirun", str(tmp_path)]
    # As a shell starts what it runs in the background.
    command = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *command]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(f"http://{LOOPBACK}:")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "", "")
