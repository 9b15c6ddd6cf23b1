"""Whose failure was the first, where a run has several processes: the others only see their connections break."""

import contextlib
import re

from skipsweep import files
from skipsweep.rundir import RunDir

_LOST = re.compile(
    r"(closed|reset) by peer|Broken pipe|Connection refused|remote process exited|got 0 bytes|pair closure|timed out|"
    r"communicator was aborted",
    re.IGNORECASE,
)
"""What collectives say of a peer that is gone."""


def note(run: RunDir, attempt: int, rank: int, cause: str, message: str) -> None:
    """Write down why a rank other than 0 ends, before its peers learn that it does. Rank 0 has status.json."""
    with contextlib.suppress(OSError):
        run.reserve.unlink(missing_ok=True)  # a full disk is told, too
        files.write_json(run.failure(attempt, rank), {"cause": cause, "message": message}, durable=False)


def blamed(run: RunDir, attempt: int, cause: str, message: str) -> tuple[str, str]:
    """(Cause, message) of a failed attempt: those given, of rank 0 or of who saw it end, unless that only lost a peer,
    and the peer has written down why."""
    if cause != "exception" or not _LOST.search(message):
        return cause, message
    return noted(run, attempt) or (cause, message)


def noted(run: RunDir, attempt: int) -> tuple[str, str] | None:
    """(Cause, message) that a rank other than 0 wrote down and which is no lost peer; one of a class first."""
    found = []
    with contextlib.suppress(OSError):
        for path in run.failures(attempt):
            with contextlib.suppress(ValueError, KeyError, TypeError):  # torn
                told = files.read_json(path)
                if not _LOST.search(told["message"]):
                    found.append((told["cause"], told["message"]))
    return min(found, key=lambda one: one[0] == "exception", default=None)
