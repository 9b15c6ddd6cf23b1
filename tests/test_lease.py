"""At most one attempt executes a run at a time, whatever becomes of the one that does."""

import contextlib
import errno
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from runs import Quiet, configuration, frozen

from skipsweep import checkpoint, files, job, lease, metadata
from skipsweep.exit_status import Exit
from skipsweep.rundir import RunDir
from skipsweep.status import observe
from skipsweep.train import Trainer


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    folder = RunDir(tmp_path / "run")
    folder.leases.mkdir(parents=True)
    return folder


@contextlib.contextmanager
def acquired(run: RunDir) -> Iterator[lease.Lease]:
    """The lease of `run`, released at the end."""
    held = lease.acquire(run)
    try:
        yield held
    finally:
        held.release()


# ------------------------------------------------------------------------------------------------------ claiming a run

CLAIMANT = """
import sys
from pathlib import Path
from skipsweep import lease
from skipsweep.rundir import RunDir
print("ready", flush=True)
sys.stdin.readline()
won = []
for folder in sorted(Path(sys.argv[1]).iterdir()):
    try:
        won.append(lease.acquire(RunDir(folder)).run.name)
    except lease.Held:
        pass
print(*won, flush=True)
sys.stdin.readline()  # a holder that ended could rightly be succeeded
"""


def test_of_eight_processes_one_gets_each_run(tmp_path: Path) -> None:
    names = [f"run{i:02d}" for i in range(40)]
    for name in names:
        (tmp_path / name).mkdir()
    pipe = subprocess.PIPE
    claimants = [
        subprocess.Popen([sys.executable, "-c", CLAIMANT, str(tmp_path)], stdin=pipe, stdout=pipe, text=True)
        for _ in range(8)
    ]
    try:
        for claimant in claimants:
            assert claimant.stdout is not None
            assert claimant.stdout.readline() == "ready\n"
        for claimant in claimants:
            assert claimant.stdin is not None
            claimant.stdin.write("go\n")
            claimant.stdin.flush()
        won = [claimant.stdout.readline().split() for claimant in claimants if claimant.stdout]
    finally:
        for claimant in claimants:
            claimant.communicate("end\n", timeout=300)
    assert sorted(name for names in won for name in names) == names
    assert all(lease.next_attempt(RunDir(tmp_path / name)) == 2 for name in names)


def test_a_lease_tells_who_holds_it(run: RunDir) -> None:
    with acquired(run) as held:
        assert held.attempt == 1
        with pytest.raises(lease.Held, match=rf"{socket.gethostname()} pid {os.getpid()} \(attempt 1\)"):
            lease.acquire(run)
    with acquired(run) as held:
        assert held.attempt == 2


# ------------------------------------------------------------------------------------------------- is the holder alive?


def ended_pid() -> int:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait(300)
    return ended.pid


STALE_S = lease.EXPIRY_S + 1
MINUTES_5 = 300.0

# what the lease says, how long ago its file was written, whether its holder counts as alive
HOLDERS: dict[str, tuple[Callable[[], dict[str, Any]], float, bool]] = {
    "this process": (lambda: {}, 0, True),
    "released": (lambda: {"released": True}, 0, False),
    "dead": (lambda: {"pid": ended_pid()}, 0, False),
    "dead, and its pid reused": (lambda: {"pid_start": "1"}, 0, False),
    "asleep": (lambda: {"beat": time.time() - STALE_S}, STALE_S, False),
    "dead, and told by an older version": (
        lambda: {"pid": ended_pid(), "boot": None, "pid_namespace": None},
        0,
        False,
    ),
    "in another container": (lambda: {"pid": ended_pid(), "pid_namespace": "pid:[1]"}, 0, True),
    "in another container, gone": (lambda: {"pid_namespace": "pid:[1]"}, STALE_S, False),
    "on another machine of this name": (lambda: {"pid": ended_pid(), "boot": "another"}, 0, True),
    "elsewhere": (lambda: {"host": "elsewhere"}, 0, True),
    "elsewhere, with a pid that is not here": (lambda: {"host": "elsewhere", "pid": ended_pid()}, 0, True),
    "elsewhere, almost expired": (lambda: {"host": "elsewhere"}, lease.EXPIRY_S - 20, True),
    "elsewhere, gone": (lambda: {"host": "elsewhere"}, STALE_S, False),
    "elsewhere, its clock behind": (lambda: {"host": "elsewhere", "beat": time.time() - MINUTES_5}, 0, True),
    "elsewhere, its clock ahead": (lambda: {"host": "elsewhere", "beat": time.time() + MINUTES_5}, 0, True),
    "gone, its clock was ahead": (lambda: {"host": "elsewhere", "beat": time.time() + MINUTES_5}, STALE_S, False),
}


def write_lease(run: RunDir, changes: dict[str, Any], age_s: float = 0) -> None:
    path = run.leases / "1.json"
    written = time.time() - age_s
    path.write_text(json.dumps({**lease._claim(1), "beat": written, **changes}))
    os.utime(path, (written, written))


@pytest.mark.parametrize("holder", HOLDERS)
def test_a_run_is_taken_over_from_the_dead_alone(holder: str, run: RunDir) -> None:
    changes, age_s, alive = HOLDERS[holder]
    write_lease(run, changes(), age_s)
    run.write_status("running")
    assert observe(run).state == ("running" if alive else "interrupted")
    assert observe(run).is_live == alive
    if alive:
        with pytest.raises(lease.Held):
            lease.acquire(run)
        assert lease.next_attempt(run) == 2
    else:
        with acquired(run) as held:
            assert held.attempt == 2
    assert [p.name for p in run.leases.iterdir() if not p.name.endswith(".json")] == []


def test_one_that_ended_unnoticed_is_dead(run: RunDir) -> None:
    """Its pid is still listed where nobody asks for its exit code, as with a killed launcher in a container."""
    zombie = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        write_lease(run, {"pid": zombie.pid, "pid_start": lease._pid_start(zombie.pid)})
        assert lease.is_live(run, lease.newest(run))
        zombie.kill()
        os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
        assert not lease.is_live(run, lease.newest(run))
    finally:
        zombie.communicate()


def test_who_may_only_read_sees_it_too(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(self: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "touch", forbidden)
    for age_s, alive in ((0, True), (STALE_S, False)):
        write_lease(run, {"host": "elsewhere"}, age_s)
        assert lease.is_live(run, lease.newest(run)) == alive


def test_looking_at_a_fresh_one_writes_nothing(run: RunDir) -> None:
    write_lease(run, {"host": "elsewhere"})
    before = run.leases.stat().st_mtime_ns
    assert lease.is_live(run, lease.newest(run))
    assert run.leases.stat().st_mtime_ns == before


def test_a_torn_lease_counts_as_released(run: RunDir) -> None:
    content = json.dumps(lease._claim(1)).encode()
    for torn in (b"", content[:1], content[: len(content) // 2], content[:-1], bytes(len(content)), content + b"\0"):
        (run.leases / "1.json").write_bytes(torn)
        assert not lease.is_live(run, lease.newest(run))
        run.write_status("running")
        assert observe(run).state == "interrupted"
    with acquired(run) as held:
        assert held.attempt == 2


def test_what_else_lies_there_is_no_lease(run: RunDir) -> None:
    for name in (".1.json.abc.tmp", ".clock-1", "notes.json", "7.json.bak", "-3.json"):
        (run.leases / name).write_text("{}")
    assert lease.newest(run) is None
    assert lease.next_attempt(run) == 1


# ------------------------------------------------------------------------------------------------------------ heartbeat


def until(condition: Callable[[], bool], seconds: float = 240) -> None:
    """Wait for something that must become true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def test_the_heart_beats_on_when_the_disk_does_not(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the launcher is still watched meanwhile."""
    monkeypatch.setattr(lease, "BEAT_S", 0.005)
    beats = []
    with acquired(run) as held:
        held.on_beat = lambda: beats.append(1)
        until(lambda: len(beats) > 3)

        def full(*_: Any, **__: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(files, "write_json", full)
            seen = len(beats)
            until(lambda: len(beats) > seen + 3)
        held.progress["step"] = 7
        until(lambda: (lease.newest(run) or {})["progress"] == {"step": 7})


def test_the_heart_beats_on_when_the_file_server_refuses(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked with every beat, as whether the run was cancelled, is asked again with the next."""
    monkeypatch.setattr(lease, "BEAT_S", 0.005)
    refused = []

    def refuse() -> None:
        refused.append(1)
        raise OSError(errno.ESTALE, "Stale file handle")

    with acquired(run) as held:
        held.on_beat = refuse
        until(lambda: len(refused) > 3)
        held.progress["step"] = 7
        until(lambda: (lease.newest(run) or {})["progress"] == {"step": 7})


def test_the_heart_stops_when_the_run_was_taken_over(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 0.005)
    held = lease.acquire(run)
    assert files.create_exclusively(run.leases / "2.json", json.dumps(lease._claim(2)).encode())
    assert held._thread is not None
    held._thread.join(30)
    assert not held._thread.is_alive()
    with pytest.raises(lease.LeaseLost, match="attempt 1 of run was taken over"):
        held.check()


# ---------------------------------------------------------------------------------------- one that wakes up too late


def contents(run: RunDir) -> dict[str, bytes]:
    """Every file of a run but the leases, and the logs that each attempt has of its own."""
    own = (run.leases, run.path / "log")
    found = (p for p in run.path.rglob("*") if p.is_file() and p.parent not in own)
    return {str(p.relative_to(run.path)): p.read_bytes() for p in found}


def boom(*_: Any) -> None:
    raise RuntimeError("boom")


# Where it fell asleep, in which call, and what it does when it wakes (None: goes on).
SLEEPS: dict[str, tuple[object, str, int, Callable[..., None] | None]] = {
    "in a step": (Trainer, "_update", 6, None),
    "in a step that fails": (Trainer, "_update", 6, boom),
    "while writing a checkpoint": (checkpoint, "_write", 5, None),
    "at the end": (metadata, "sizes", 1, None),
    "while writing the last weights": (checkpoint, "_write", 10, None),
}


@pytest.mark.parametrize("place", SLEEPS)
def test_one_that_slept_past_its_lease_writes_nothing_any_more(
    place: str, tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attempt 2 takes over while attempt 1 sleeps; attempt 1 finds out when it wakes, before it writes."""
    owner, name, at, then = SLEEPS[place]
    run = frozen(configuration(tmp_path, data_root))
    monkeypatch.setattr(lease, "BEAT_S", 600.0)
    original, calls = getattr(owner, name), [0]
    before: dict[str, bytes] = {}
    successor: list[lease.Lease] = []

    def sleeping(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == at:
            before.update(contents(run))
            content = json.loads((run.leases / "1.json").read_text())
            (run.leases / "1.json").write_text(json.dumps({**content, "beat": time.time() - STALE_S}))
            successor.append(lease.acquire(run))
            if then:
                then()
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, sleeping)
    code = job.execute(run, Quiet())
    after = contents(run)
    assert code == Exit.HELD
    assert len(before) > 3
    tmp = [path for path in before if ".tmp" in path]
    assert after == {path: content for path, content in before.items() if path not in tmp}
    assert [held.attempt for held in successor] == [2]
    successor[0].release()
