"""How the process of a run ended: its exit code, and the cause of failure where it could not name one itself.

Imports no torch: launchers and batch steps, which see processes end, do without.
"""

from enum import IntEnum
from pathlib import Path


class Exit(IntEnum):
    """Exit codes of a job."""

    DONE = 0
    FAILED = 1
    PREEMPTED = 75
    HELD = 76
    """Another process executes the run, or another launch has written its configuration anew meanwhile."""


def cause_of_death(exit_code: int, signal_name: str | None, log_line: str | None) -> tuple[str, str]:
    """(Cause, message) of a process that has ended without a status of its own.

    `signal_name`: what ended it, as `SIGKILL`; `log_line`: the last that it wrote.
    """
    if signal_name == "SIGKILL":
        return "killed", "SIGKILL (kill -9, or the system had no memory left)"
    if signal_name == "SIGBUS":
        return "data", "SIGBUS (a shard was cut short, or its disk failed, while it was read; skipsweep data verify)"
    if signal_name:
        return "killed", signal_name
    if exit_code == Exit.DONE:
        return "exception", "the process ended without a result"
    return "exception", log_line or f"exit code {exit_code}"


def last_line(log: Path) -> str | None:
    """The last line of a log; None where it is empty or cannot be read."""
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
    except OSError:
        return None
    return lines[-1] if lines else None
