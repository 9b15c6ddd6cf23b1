"""One run in processes that torchrun has started: rank 0 plans, the other ranks wait to be told what to execute."""

import datetime
import os
from pathlib import Path

from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from skipsweep.exit_status import Exit
from skipsweep.job import execute
from skipsweep.rundir import RunDir

_KEY = "skipsweep/run"


def execute_as_leader(run: RunDir | None) -> Exit:
    """Rank 0: name the run to the other ranks (None: nothing is left to do), then execute it."""
    _store().set(_KEY, str(run.path) if run else "")
    return execute(run) if run else Exit.DONE


def execute_as_worker() -> Exit:
    """Other ranks: wait for rank 0's plan, then execute the run that it names."""
    path = _store().get(_KEY).decode()
    return execute(RunDir(Path(path))) if path else Exit.DONE


def _store() -> TCPStore:
    """The key-value store that torchrun's agent keeps for its processes."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    # Rank 0 may first download the corpus; should it die, torchrun ends the others.
    return TCPStore(address, port, is_master=False, timeout=datetime.timedelta(days=1))
