"""One run in processes that torchrun has started: rank 0 plans, the other ranks wait to be told what to execute."""

import contextlib
import datetime
import os
from pathlib import Path

from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from skipsweep.exit_status import Exit
from skipsweep.job import execute
from skipsweep.rundir import RunDir

_KEY = "skipsweep/run"
DAY_S = 86400.0
"""Rank 0 may first download the corpus; should it die, torchrun ends the others."""
END_S = 10.0


def execute_as_leader(run: RunDir | None) -> Exit:
    """Rank 0: name the run to the other ranks (None: nothing is left to do), then execute it."""
    _store().set(_KEY, str(run.path) if run else "")
    return execute(run) if run else Exit.DONE


def execute_as_worker() -> Exit:
    """Other ranks: wait for rank 0's plan, then execute the run that it names."""
    path = _store().get(_KEY).decode()
    return execute(RunDir(Path(path))) if path else Exit.DONE


def let_go() -> None:
    """Rank 0 ends: tell the other ranks that there is nothing to execute, unless they have been told something."""
    with contextlib.suppress(RuntimeError):  # torchrun is gone, and they with it
        store = _store(END_S)
        if not store.check([_KEY]):
            store.set(_KEY, "")


def _store(seconds: float = DAY_S) -> TCPStore:
    """The key-value store that torchrun's agent keeps for its processes. `seconds`: longest wait for it, and in it."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(address, port, is_master=False, timeout=datetime.timedelta(seconds=seconds))
