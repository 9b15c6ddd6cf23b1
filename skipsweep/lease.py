"""Who executes a run: at most one attempt at a time, also on a shared file system.

Attempt K claims the run by creating `lease/K.json`, which only one process can do; the highest K rules. A holder that
died is succeeded by attempt K + 1. A holder that was only asleep finds K + 1 there and stops before it writes anything
(`check`): no file has to be taken away from anybody, so there is no window in which two hold the same lease.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skipsweep import files
from skipsweep.rundir import RunDir

BEAT_S = 3.0
"""Seconds between heartbeats."""
EXPIRY_S = 60.0
"""Seconds without a heartbeat after which a holder on another machine, or in another container, counts as dead."""


class Held(Exception):
    """Somebody else executes this run now; `holder` is their lease."""

    def __init__(self, holder: dict[str, Any]):
        super().__init__(describe(holder))
        self.holder = holder


class LeaseLost(Exception):
    """A later attempt has taken over; this one must not write any more."""


def describe(holder: dict[str, Any]) -> str:
    """`host pid 123 (attempt 2)`, for messages."""
    job = f", job {holder['job']}" if holder.get("job") else ""
    return f"{holder['host']} pid {holder['pid']}{job} (attempt {holder['attempt']})"


def newest(run: RunDir) -> dict[str, Any] | None:
    """The ruling lease, or None before the first attempt. A torn one (power cut) counts as released."""
    attempt = _newest_attempt(run)
    if not attempt:
        return None
    try:
        return files.read_json(_path(run, attempt))
    except ValueError:
        return {"attempt": attempt, "host": "?", "pid": 0, "released": True, "beat": 0.0}


def next_attempt(run: RunDir) -> int:
    """The number that the next attempt will have."""
    return _newest_attempt(run) + 1


def is_live(run: RunDir, lease: dict[str, Any] | None) -> bool:
    """Whether the holder, as `newest` told, may still be working."""
    if not lease or lease.get("released"):
        return False
    if not _is_from_here(lease):
        # A beat that is recent by our clock suffices; otherwise compare with the file server's clock, which costs a
        # write.
        return 0 <= time.time() - lease["beat"] < EXPIRY_S or _age_s(run, lease["attempt"]) < EXPIRY_S
    return _same_process(lease["pid"], lease.get("pid_start")) and time.time() - lease["beat"] < EXPIRY_S


@dataclass
class Lease:
    """The right to write into a run's folder, kept up by a thread that beats every `BEAT_S` seconds."""

    run: RunDir
    attempt: int
    content: dict[str, Any]
    progress: dict[str, Any] = field(default_factory=dict)
    """Shown to others: step, steps, loss, tokens_per_s, left_s. Replace the values, not the dict."""
    on_beat: Callable[[], None] | None = None
    _stop: threading.Event = field(default_factory=threading.Event)
    _lost: bool = False
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to beat."""
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise LeaseLost if a later attempt exists. Call before every write that others rely on."""
        if self._lost or _newest_attempt(self.run) != self.attempt:
            self._lost = True
            raise LeaseLost(f"attempt {self.attempt} of {self.run.name} was taken over by a later one")

    def release(self) -> None:
        """Stop beating and let the next attempt begin at once."""
        self._stop.set()
        if self._thread:
            self._thread.join()
        self._write(released=True)

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_S):
            # A full or absent file system for a moment is no matter: the beats before it still count.
            try:
                with contextlib.suppress(OSError):
                    self.check()
                    self._write()
            except LeaseLost:
                return
            with contextlib.suppress(OSError):
                if self.on_beat:
                    self.on_beat()

    def _write(self, released: bool = False) -> None:
        content = {**self.content, "beat": time.time(), "progress": dict(self.progress), "released": released}
        files.write_json(_path(self.run, self.attempt), content, durable=False)  # a power cut ends the holder as well


def acquire(run: RunDir, on_beat: Callable[[], None] | None = None) -> Lease:
    """Acquire the lease on `run`. `on_beat`: called with every heartbeat, in the thread that sends them.

    Raises Held if another process holds it, or was faster.
    """
    run.leases.mkdir(parents=True, exist_ok=True)
    holder = newest(run)
    if holder and is_live(run, holder):
        raise Held(holder)
    attempt = (holder["attempt"] if holder else 0) + 1
    content = _claim(attempt)
    if not files.create_exclusively(_path(run, attempt), json.dumps(content).encode()):
        raise Held(newest(run) or content)
    lease = Lease(run, attempt, content, on_beat=on_beat)
    lease.start()
    return lease


def declare_dead(run: RunDir, holder: dict[str, Any]) -> None:
    """Release the lease of a holder whose process is known to have ended."""
    content = {**holder, "released": True}
    files.write_json(_path(run, holder["attempt"]), content, durable=False)


def _claim(attempt: int) -> dict[str, Any]:
    return {
        "attempt": attempt,
        "token": uuid.uuid4().hex,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "pid_start": _pid_start(os.getpid()),
        **_surroundings(),
        "job": os.environ.get("SLURM_JOB_ID"),
        "started": time.time(),
        "beat": time.time(),
        "progress": {},
        "released": False,
    }


def _surroundings() -> dict[str, str | None]:
    """Within what a pid names one process: machines may have one name, and containers share that of theirs. None off
    Linux."""
    found: dict[str, str | None] = {"boot": None, "pid_namespace": None}
    with contextlib.suppress(OSError):
        found["boot"] = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        found["pid_namespace"] = os.readlink("/proc/self/ns/pid")
    return found


def _is_from_here(lease: dict[str, Any]) -> bool:
    """Whether the holder's pid means something to us, as far as its lease tells: older ones have the host alone."""
    here = {"host": socket.gethostname(), **_surroundings()}
    return all(lease.get(key) in (None, value) for key, value in here.items())


def _path(run: RunDir, attempt: int) -> Path:
    return run.leases / f"{attempt}.json"


def _newest_attempt(run: RunDir) -> int:
    try:
        names = os.listdir(run.leases)
    except FileNotFoundError:
        return 0
    return max((int(n[:-5]) for n in names if n.endswith(".json") and n[:-5].isdigit()), default=0)


def _age_s(run: RunDir, attempt: int) -> float:
    """Seconds since the last heartbeat, both ends by the file server's clock: another machine's may be minutes off.

    Without the right to write there, our own clock has to do.
    """
    beat = _path(run, attempt).stat().st_mtime
    probe = run.leases / f".clock-{uuid.uuid4().hex}"
    try:
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink()
    except OSError:
        now = time.time()
    return now - beat


def _pid_start(pid: int) -> str | None:
    """Start time of a process in clock ticks since boot; tells a reused pid from the old one. None off Linux, and for
    one that has ended but is still listed because nobody has asked how (containers often lack who would)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return None if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return None


def _same_process(pid: int, start: str | None) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return start is None or _pid_start(pid) == start
