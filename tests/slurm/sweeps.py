"""Sweeps on the private cluster: `python launch.py hydra/launcher=slurm`, with real jobs and with stand-ins."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster import Cluster
from commands import CHECKOUT, Place, until

from skipsweep import files
from skipsweep.rundir import RunDir
from skipsweep.slurm import submission

HERE = Path(__file__).parent
FAULTS = {"PYTHONPATH": str(HERE / "faults")}
"""Has runs fall ill by their seed, and stop for us."""
LOGGED = ["record.val_every=4", "record.log_every=1", "record.checkpoint_every=0"]
"""A row of every step, and no checkpoint that nothing asks for."""


@dataclass(frozen=True)
class SlurmPlace(Place):
    """A folder of runs whose launcher is SLURM."""

    cluster: Cluster
    variables: Mapping[str, str] = field(default_factory=dict)
    checkout: Path = CHECKOUT

    @property
    def environment(self) -> dict[str, str]:
        own = {key: self.cluster.environment[key] for key in ("SLURM_CONF", "PATH")}
        cleared = {k: v for k, v in super().environment.items() if not k.startswith(("SLURM_", "SBATCH_"))}
        return cleared | own | dict(self.variables)

    def arguments(self, *arguments: str) -> list[str]:
        """On the cluster's CPUs, unless the arguments say otherwise."""
        if any(argument.startswith("hydra/launcher=") for argument in arguments):
            return super().arguments(*arguments)
        machine = [] if any(a.startswith("compute=") for a in arguments) else ["compute=cpu"]
        return super().arguments("hydra/launcher=slurm", *machine, *arguments)

    def runs_of(self, sweep: str) -> list[RunDir]:
        """A sweep's runs, by seed."""
        points = files.read_json(self.multirun.sweep(sweep).plan)["points"]
        return [self.multirun.run(point["run"]) for point in sorted(points, key=lambda p: p["key"][1])]

    def submissions(self, sweep: str) -> list[Path]:
        return sorted((self.multirun.sweep(sweep).path / "slurm").iterdir(), key=lambda p: p.stat().st_ctime_ns)

    def skipsweep(self, *arguments: str) -> str:
        """What the command prints."""
        command = [str(Path(sys.executable).with_name("skipsweep")), *arguments, "--multirun", str(self.runs)]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def status(self, sweep: str) -> dict[str, Any]:
        """`skipsweep status SWEEP --json`, runs by name."""
        found = json.loads(self.skipsweep("status", sweep, "--json"))
        return {**found, "runs": {run["run"]: run for run in found["runs"]}}


def job_of(run: RunDir) -> str:
    """Id of the job that may execute a run."""
    claim = submission.claim_of(run)
    assert claim is not None
    noted = Path(claim.folder) / "job.json"
    return f"{until(lambda: files.read_json(noted))['job']}_{claim.index}"


def restarts(run: RunDir) -> list[str]:
    """Why its job was requeued, each time."""
    claim = submission.claim_of(run)
    assert claim is not None
    return [row["why"] for row in submission.restarts(Path(claim.folder), claim.index)]


# --------------------------------------------------------------------------------------------------- stand-ins for jobs

STAND_IN = HERE / "stand_in.py"


def stand_in(folder: Path, plays: Mapping[int, str], default: str = "work()") -> list[str]:
    """Arguments with which runs play, by seed, a line of Python each instead of training; they never load torch."""
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "plays.json"
    table.write_text(json.dumps({"default": default, **{str(seed): play for seed, play in plays.items()}}))
    python = folder / "python"
    python.write_text(
        "#!/bin/sh\n"
        f"export SKIPSWEEP_PLAYS={table}\n"
        f'[ "$4" = skipsweep.slurm.task ] && exec {sys.executable} -P -u {STAND_IN}\n'
        f'exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    return [f"hydra.launcher.python={python}"]


def played(run: RunDir) -> list[str]:
    """What the stand-ins of a run noted, in order."""
    path = run.path / "played"
    return path.read_text().splitlines() if path.exists() else []
