"""Files that are replaced as a whole, rows that survive being torn, and a lock that holds."""

import errno
import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from skipsweep import files
from skipsweep.rundir import RunDir

# ---------------------------------------------------------------------------------------------------------- whole files


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.parametrize("place", ["fsync", "replace"])
@pytest.mark.parametrize(
    "problem", [Killed(), OSError(errno.ENOSPC, "No space left on device")], ids=["killed", "full"]
)
def test_a_file_is_replaced_as_a_whole_or_not(
    place: str, problem: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "status.json"
    files.write_json(path, {"state": "running"})

    def failing(*_: Any) -> None:
        raise problem

    with monkeypatch.context() as patch, pytest.raises(type(problem)):
        patch.setattr(os, place, failing)
        files.write_json(path, {"state": "done", "more": "x" * 10_000})
    assert files.read_json(path) == {"state": "running"}
    assert [p.name for p in tmp_path.iterdir()] == ["status.json"]


WRITER = """
import sys
from pathlib import Path
from skipsweep import files
n = 0
while True:
    n += 1
    files.write_json(Path(sys.argv[1]), {"n": n, "filling": ["x" * 1000] * 200, "end": n}, durable=False)
"""


def test_a_reader_never_meets_half_a_file_not_even_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    deadline = time.monotonic() + 60
    for _ in range(2):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)])
        seen = set()
        while len(seen) < 20:
            assert time.monotonic() < deadline
            content = files.read_json(path)
            if content is not None:
                assert content["n"] == content["end"]
                seen.add(content["n"])
        writer.send_signal(signal.SIGKILL)
        writer.wait(30)
        content = files.read_json(path)
        assert content["n"] == content["end"]


def test_values_that_are_no_json_are_refused(tmp_path: Path) -> None:
    """A reader in another language would stumble, and a missing value is null."""
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON compliant"):
            files.write_json(tmp_path / "a.json", {"loss": value})
        with pytest.raises(ValueError, match="JSON compliant"):
            files.append_row(tmp_path / "a.jsonl", {"loss": value})
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_reads_as_none(tmp_path: Path) -> None:
    assert files.read_json(tmp_path / "a.json") is None
    assert list(files.read_rows(tmp_path / "a.jsonl")) == []


def test_creating_exclusively_leaves_the_first_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "1.json"
    assert files.create_exclusively(path, b"first")
    assert not files.create_exclusively(path, b"second")
    assert path.read_bytes() == b"first"

    def failing(self: Path, content: bytes) -> None:
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", failing)
    with pytest.raises(OSError, match="No space"):
        files.create_exclusively(tmp_path / "2.json", b"third")
    assert [p.name for p in tmp_path.iterdir()] == ["1.json"]


def test_a_file_system_without_links_or_locks_is_one_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(code: int) -> Callable[..., None]:
        def refuse(*args: Any) -> None:
            raise OSError(code, os.strerror(code))

        return refuse

    monkeypatch.setattr(os, "link", missing(errno.EPERM))
    assert files.create_exclusively(tmp_path / "1.json", b"first")
    assert not files.create_exclusively(tmp_path / "1.json", b"second")
    assert [p.name for p in tmp_path.iterdir()] == ["1.json"]
    assert (tmp_path / "1.json").read_bytes() == b"first"
    monkeypatch.setattr(fcntl, "flock", missing(errno.ENOSYS))
    with files.locked(tmp_path):
        pass
    monkeypatch.setattr(fcntl, "flock", missing(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"), files.locked(tmp_path):
        pass


# ----------------------------------------------------------------------------------------------------------------- rows


def metric_row(step: int, attempt: int = 1, **more: Any) -> dict[str, Any]:
    return {"attempt": attempt, "step": step, "tokens": step * 128, "train/loss": 5.0 / (step + 1), "näme": "ü", **more}


def run_with(folder: Path, *rows: dict[str, Any]) -> RunDir:
    run = RunDir(folder)
    run.path.mkdir(exist_ok=True)
    for row in rows:
        files.append_row(run.metrics, row)
    return run


def test_a_cut_anywhere_loses_the_torn_row_alone(tmp_path: Path) -> None:
    """Every byte of the last two rows, as a kill or a power cut may leave them; the next attempt appends after it."""
    complete = [metric_row(step) for step in range(5)]
    run = run_with(tmp_path / "run", *complete)
    content = run.metrics.read_bytes()
    ends = [i + 1 for i, byte in enumerate(content) if byte == ord("\n")]
    for cut in range(ends[2], len(content) + 1):
        # Without its newline a row is whole all the same.
        whole = sum(end - 1 <= cut for end in ends)
        for tail in (b"", b"\0" * 50):  # a file system may know the new length, but not the data
            run.metrics.write_bytes(content[:cut] + tail)
            kept = whole if not tail or cut in ends else whole - (cut + 1 in ends)
            assert run.read_metrics() == complete[:kept], (cut, tail)
            files.append_row(run.metrics, metric_row(7, attempt=2))
            files.append_row(run.metrics, metric_row(8, attempt=2))
            assert run.read_metrics() == [*complete[:kept], metric_row(7, 2), metric_row(8, 2)], (cut, tail)


def test_rows_are_valid_lines_again_after_a_torn_one(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", metric_row(0))
    run.metrics.write_bytes(run.metrics.read_bytes() + b'{"step": 1, "tr')
    files.append_row(run.metrics, metric_row(1))
    files.append_row(run.metrics, metric_row(2))
    lines = run.metrics.read_bytes().split(b"\n")
    assert lines[1] == b'{"step": 1, "tr'
    assert [json.loads(line)["step"] for line in (lines[0], lines[2], lines[3])] == [0, 1, 2]
    assert lines[4:] == [b""]


def test_a_row_is_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one longer than any buffer, behind a torn one: another writer could come in between two."""
    run = run_with(tmp_path / "run", metric_row(0))
    run.metrics.write_bytes(run.metrics.read_bytes() + b"torn")
    sizes = []

    class Raw(io.FileIO):
        def write(self, content: Any) -> int:
            sizes.append(len(content))
            return super().write(content)

    monkeypatch.setattr(files, "open", lambda path, _: io.BufferedRandom(Raw(path, "a+")), raising=False)
    for count in (1, 5000):
        sizes.clear()
        files.append_row(run.metrics, metric_row(count, gates=[0.123456789] * count))
        assert len(sizes) == 1
    assert sizes[0] > 50_000
    assert [row["step"] for row in run.read_metrics()] == [0, 1, 5000]


def test_garbage_between_rows_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(b'{"step": 1}\n\xff\xfe\x00\n[1, 2]\n3\nnull\n\n\0\0\0\n{"step": 2}\n"step"\n{"step": 3')
    assert list(files.read_rows(path)) == [{"step": 1}, {"step": 2}]
    run = run_with(tmp_path / "run", {"step": None}, {"loss": 1.0}, {"step": "4"}, {"step": 5})
    assert run.read_metrics() == [{"step": 5}]


def test_there_is_one_row_per_step_that_of_the_last_attempt(tmp_path: Path) -> None:
    """Also when an attempt that was taken for dead wakes and adds a row behind its successor's."""
    rows = [metric_row(0), metric_row(1), metric_row(2), metric_row(1, 2, again=True), metric_row(2, 2, again=True)]
    run = run_with(tmp_path / "run", *rows, metric_row(2, 1), metric_row(3, 2))
    assert run.read_metrics() == [rows[0], rows[3], rows[4], metric_row(3, 2)]


# ----------------------------------------------------------------------------------------------------------------- lock


def count_up(folder: Path, times: int) -> None:
    for _ in range(times):
        with files.locked(folder):
            n = (files.read_json(folder / "n") or {"n": 0})["n"]
            time.sleep(0.0005)  # lets another one in, if it can
            files.write_json(folder / "n", {"n": n + 1}, durable=False)


def test_the_lock_admits_one_at_a_time(tmp_path: Path) -> None:
    threads = [threading.Thread(target=count_up, args=(tmp_path, 20)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert files.read_json(tmp_path / "n") == {"n": 120}


HOLDER = """
import sys, time
from pathlib import Path
from skipsweep import files
with files.locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_killed_holder_leaves_no_lock_behind(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    with holder.stdout:
        assert holder.stdout.readline() == b"held\n"
        waiting = threading.Thread(target=count_up, args=(tmp_path, 1), daemon=True)
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive(), "the lock of another process does not hold"
        holder.kill()
        waiting.join(30)
        assert not waiting.is_alive()
        holder.wait(30)


def test_two_launchers_note_what_a_run_serves(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run")
    noting = [threading.Thread(target=run.note_serves, args=({f"sweep{i}": {"arm": "a"}},)) for i in range(8)]
    for thread in noting:
        thread.start()
    for thread in noting:
        thread.join(60)
    assert files.read_json(run.serves) == {f"sweep{i}": {"arm": "a"} for i in range(8)}
