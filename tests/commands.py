"""`python launch.py` as a user types it, on models so small that starting a process takes longer than training them."""

import io
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from skipsweep import files
from skipsweep.rundir import Multirun, RunDir
from skipsweep.sweep import launch as launching
from skipsweep.sweep.entry import from_command_line
from skipsweep.sweep.request import Composes, LaunchRequest, check_launcher

CHECKOUT = Path(__file__).resolve().parents[1]
TINY = """
    model.layers=3 model.dim=16 model.heads=2 model.mlp_ratio=2 model.vocab_multiple=1 data=synthetic data.seq_len=16
    data.batch_tokens=128 data.val_tokens=256 data.order=shuffled data.states=32 data.branching=2
    data.train_tokens=4000 optim=adamw optim.lr=0.01 schedule=trapezoid schedule.steps=12 record.val_every=4
    logger=none compute.threads=1
    """.split()  # noqa: SIM905 - one line each would be twenty
"""12 steps of 7 thousand parameters."""
PRIVATE = ("RANK", "WORLD_SIZE", "COMP_LINE", "HYDRA_FULL_ERROR")
"""Variables of our own surroundings that would change what launch.py does."""


@dataclass(frozen=True)
class Place:
    """A folder of runs and one of corpora, and the command line in between."""

    runs: Path
    data: Path

    @property
    def multirun(self) -> Multirun:
        return Multirun(self.runs)

    @property
    def environment(self) -> dict[str, str]:
        own = {key: value for key, value in os.environ.items() if key not in PRIVATE}
        return own | {"SKIPSWEEP_DATA": str(self.data), "OMP_NUM_THREADS": "1"}

    def arguments(self, *arguments: str) -> list[str]:
        """A tiny configuration below `runs`, then `arguments`."""
        flags = [argument for argument in arguments if argument.startswith("-")]
        place = f"paths.multirun={self.runs}", "sweep.report=false"
        return [*flags, *TINY, *place, *(a for a in arguments if a not in flags)]

    def start(self, *arguments: str, runner: Sequence[str] = (sys.executable,)) -> subprocess.Popen[str]:
        """launch.py, in a process of its own."""
        command = [*runner, str(CHECKOUT / "launch.py"), *self.arguments(*arguments)]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=self.environment, stdout=pipe, stderr=pipe, text=True, cwd=self.data)

    def launch(self, *arguments: str, runner: Sequence[str] = (sys.executable,)) -> "Done":
        """launch.py, to its end."""
        process = self.start(*arguments, runner=runner)
        out, err = process.communicate(timeout=600)
        return Done(process.returncode, out, err)

    def here(self, *arguments: str, launcher: Mapping[str, Any] | None = None) -> "Done":
        """launch.py in this process. `launcher`: settings of it, as they are, without Hydra's quoting.

        Raises UserError, of which launch.py prints the line and ends with 2.
        """
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            for key, value in self.environment.items():
                patch.setenv(key, value)
            asked = request(self.arguments(*arguments))
            choice = asked.launcher.pop("kind")
            asked = replace(asked, launcher=check_launcher(choice, {**asked.launcher, **(launcher or {})}))
            status = launching.launch(asked)
        return Done(status, out.getvalue(), err.getvalue())

    def attempts(self) -> dict[str, int]:
        """Run -> how often it was begun."""
        return {run.name: len(list(run.leases.glob("*.json"))) for run in self.multirun.all_runs()}

    def stamps(self) -> dict[str, int]:
        """Modification times of everything that runs left behind."""
        found = (path for path in self.multirun.runs.rglob("*") if path.is_file())
        return {str(path): path.stat().st_mtime_ns for path in found if path.name not in (".lock", "serves.json")}

    def run_of(self, sweep: str, arm: str, seed: int = 0) -> RunDir:
        """The run that serves a point."""
        points = files.read_json(self.multirun.sweep(sweep).plan)["points"]
        return next(self.multirun.run(p["run"]) for p in points if p["key"] == [arm, seed, 0])


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def sweep(self) -> str:
        """Name of the sweep that was launched."""
        return self.line("sweep ").split()[1].rstrip(":")

    def line(self, start: str) -> str:
        """The first line that begins like this."""
        return next(line for line in self.out.splitlines() if line.startswith(start))

    def table(self) -> dict[str, dict[str, str]]:
        """Arm -> column -> cell of the table of results."""
        lines = self.out.splitlines()
        top = max(i for i, line in enumerate(lines) if re.match(r"arm +runs", line))
        columns = re.split(r" {2,}", lines[top].strip())
        found = {}
        for line in lines[top + 1 :]:
            name, *cells = re.split(r" {2,}", line.strip())
            if len(cells) < len(columns) - 2:  # below the table
                return found
            if cells[3] == "baseline" or cells[3].startswith("is "):
                cells.insert(4, "")  # compared with nothing
            found[name] = dict(zip(columns[1:], cells, strict=True))
        raise AssertionError("the table has no end")


@cache
def _composer() -> Composes:
    return from_command_line([]).composer


def request(arguments: Sequence[str]) -> LaunchRequest:
    """What launch.py would be asked for; one composer serves all tests of our conf/, so that Hydra composes less."""
    own = from_command_line(arguments)
    return own if any("searchpath" in argument for argument in arguments) else replace(own, composer=_composer())


def until(condition: Callable[[], Any], seconds: float = 180.0) -> Any:
    """What `condition` returns once that is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError("did not happen in time")


def result(run: RunDir) -> Mapping[str, Any]:
    found = files.read_json(run.result)
    assert found is not None, run.read_status()
    return found
