"""Runs in processes forked from one that has torch loaded: importing it would be most of a long sweep."""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from skipsweep.rundir import RunDir
from skipsweep.sweep import local

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["skipsweep.job", "skipsweep.sweep.local", "pytest"])


def nothing() -> None:
    """What most processes do before they execute their run."""


class Forked:
    """As much of a `Popen` of skipsweep.job as a pool uses: a process with a pid, signals and an exit code."""

    def __init__(self, before: Callable[[], None], command: Sequence[str], env: Mapping[str, str], **how: Any):
        logs = how["stdout"].name, how["stderr"].name
        self._process = context.Process(target=_become, args=(before, command[-1], dict(env), how["cwd"], logs))
        self._process.start()

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self._process.pid or 0, number)


def fork_jobs(
    patch: pytest.MonkeyPatch, before: Callable[[], None] = nothing, popen: Callable[..., Forked] = Forked
) -> None:
    """Have the launcher of this process fork its runs. `before`: of a module; called in each of them first."""
    patch.setattr(local, "subprocess", SimpleNamespace(Popen=partial(popen, before), DEVNULL=subprocess.DEVNULL))


def _become(before: Callable[[], None], run: str, env: dict[str, str], folder: Path, logs: tuple[str, str]) -> NoReturn:
    """In the new process: be what the launcher would have started."""
    from skipsweep import job

    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a fork server ignores it
    del env["SKIPSWEEP_PARENT"]  # the fork server is
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    for number, path in enumerate(logs, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    before()
    sys.exit(job.execute(RunDir(Path(run))))
