"""Every file name of a run and of a sweep, and the code that writes them (multirun/README.md documents both).

    multirun/runs/<slug>-<id>/     config.yaml identity.json status.json lease/ env.json metrics.jsonl result.json
                                   checkpoint/ log/ wandb/ inspect/
    multirun/sweeps/<name>/        plan.json code/ report/
    multirun/reports/<a>+<b>/      the report of several sweeps together
    multirun/speed.jsonl           measured throughputs, for estimates

Imports no torch: planning and reports read through here on a login node.
"""

import hashlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from skipsweep import files
from skipsweep.config import MISSING, RunConfig, from_dict, leaves, to_dict
from skipsweep.errors import UserError

STATES = ("planned", "submitted", "running", "preempted", "done", "failed")
"""States of a run. `done` and `failed` are final until somebody asks for a retry."""
SINGLE = "single"
"""What a run serves that was launched by itself."""
RESERVE_BYTES = 1 << 16


@dataclass(frozen=True)
class RunDir:
    """The folder of one run."""

    path: Path

    @property
    def name(self) -> str:
        """`<slug>-<id>`."""
        return self.path.name

    @property
    def id(self) -> str:
        """The identity's hash, the last part of the name."""
        return self.path.name.rsplit("-", 1)[-1]

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def identity(self) -> Path:
        return self.path / "identity.json"

    @property
    def status(self) -> Path:
        return self.path / "status.json"

    @property
    def serves(self) -> Path:
        return self.path / "serves.json"

    @property
    def submission(self) -> Path:
        """Which SLURM job may execute it."""
        return self.path / "submission.json"

    @property
    def cancelled(self) -> Path:
        """There while nobody is to go on with it; the next launch removes it."""
        return self.path / "cancelled"

    @property
    def leases(self) -> Path:
        return self.path / "lease"

    @property
    def env(self) -> Path:
        return self.path / "env.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoint"

    @property
    def mirror(self) -> Path:
        return self.path / "wandb"

    @property
    def inspection(self) -> Path:
        """What `skipsweep inspect` found in its weights."""
        return self.path / "inspect"

    @property
    def inspection_json(self) -> Path:
        """The readings among it."""
        return self.inspection / "inspection.json"

    @property
    def reserve(self) -> Path:
        return self.path / ".reserve"

    def log(self, attempt: int, stream: str) -> Path:
        """Log file of an attempt; `stream` is `out` or `err`."""
        return self.path / "log" / f"attempt-{attempt}.{stream}"

    def failure(self, attempt: int, rank: int) -> Path:
        """Why a rank other than 0 has ended an attempt."""
        return self.path / "log" / f"attempt-{attempt}.rank-{rank}.json"

    def failures(self, attempt: int) -> list[Path]:
        """Those that there are."""
        return sorted((self.path / "log").glob(f"attempt-{attempt}.rank-*.json"))

    def freeze(self, config: RunConfig, identity: dict[str, Any]) -> None:
        """Create the folder with what the job will execute. Safe to repeat, and to run twice at once."""
        for folder in (self.path, self.leases, self.checkpoints, self.path / "log"):
            folder.mkdir(parents=True, exist_ok=True)
        files.write_yaml(self.config, to_dict(config), durable=False)
        files.write_json(self.identity, identity, durable=False)
        if not self.status.exists():
            self.write_status("planned", durable=False)

    def read_config(self) -> RunConfig:
        """The frozen configuration. Raises UserError where the file is damaged."""
        try:
            values = files.read_yaml(self.config)
            if not isinstance(values, dict):
                raise UserError("it holds no settings")
            config = from_dict(RunConfig, values)
            if cut_off := [key for key, value in leaves(config).items() if value == MISSING]:
                raise UserError(f"it does not say {cut_off[0]}")
            return config
        except (yaml.YAMLError, UserError, ValueError, TypeError, AttributeError) as problem:
            why = " ".join(str(problem).split())
            raise UserError(
                f"{self.config} cannot be read ({why}); restore it, or remove the run's folder and launch it again"
            ) from problem

    def config_digest(self) -> str:
        """Tells one config.yaml from another: launches that differ in what changes no result share a run."""
        return hashlib.sha256(self.config.read_bytes()).hexdigest()

    def write_status(self, state: str, durable: bool = True, **details: Any) -> None:
        """Replace status.json. `details`: cause, message, attempt, host, pid, log, started, ended.

        A running run sets some space aside, so that a full disk can be told as the cause of its end.
        """
        if state not in STATES:
            raise ValueError(f"no such state: {state}")
        if state == "running":
            files.write_bytes(self.reserve, bytes(RESERVE_BYTES), durable=False)
        else:
            self.reserve.unlink(missing_ok=True)
        files.write_json(self.status, {"state": state, "time": time.time(), **details}, durable)

    def read_status(self) -> dict[str, Any]:
        """status.json, or `{"state": "planned"}` where it is missing, torn by a power cut, or says no state."""
        try:
            found = files.read_json(self.status)
        except ValueError:
            found = None
        return found if isinstance(found, dict) and found.get("state") in STATES else {"state": "planned"}

    def read_serves(self) -> dict[str, Any]:
        """serves.json: sweep -> arm and tags; empty where it is missing, or torn by a power cut."""
        try:
            found = files.read_json(self.serves)
        except ValueError:
            found = None
        return found if isinstance(found, dict) else {}

    def note_serves(self, points: dict[str, Any]) -> None:
        """Note which points of which sweeps this run serves, beside what other sweeps noted: serves.json.

        `points`: `{"<sweep name, or SINGLE>": {"arm": "skip", "tags": ["multi_layer/best_to_worst/N=5"]}}`.
        """
        with files.locked(self.path):
            noted = self.read_serves()
            if {**noted, **points} != noted:
                files.write_json(self.serves, {**noted, **points}, durable=False)

    def forget_serves(self, name: str) -> None:
        """Undo what `note_serves` noted of a sweep."""
        with files.locked(self.path):
            noted = self.read_serves()
            if noted.pop(name, None) is not None:
                files.write_json(self.serves, noted, durable=False)

    def read_metrics(self) -> list[dict[str, Any]]:
        """One row per step, in order of steps: of rows that a later attempt wrote again, its own count."""
        latest: dict[int, dict[str, Any]] = {}
        for row in files.read_rows(self.metrics):
            step = row.get("step")
            if isinstance(step, int) and _attempt(row) >= _attempt(latest.get(step, {})):
                latest[step] = row
        return [latest[step] for step in sorted(latest)]


def _attempt(row: dict[str, Any]) -> int:
    attempt = row.get("attempt")
    return attempt if isinstance(attempt, int) else 0


_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=,-]{0,99}")


def names_a_folder(name: str) -> bool:
    """Whether a sweep may be called so: nothing that leaves multirun/sweeps, or that a shell would read otherwise."""
    return _FOLDER.fullmatch(name) is not None


@dataclass(frozen=True)
class SweepDir:
    """The folder of one sweep."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def code(self) -> Path:
        return self.path / "code"

    @property
    def cancelled(self) -> Path:
        """There while nobody waits for its runs; the next launch removes it."""
        return self.path / "cancelled"

    @property
    def report(self) -> Path:
        return self.path / "report"


@dataclass(frozen=True)
class Multirun:
    """The folder that holds all runs and sweeps."""

    path: Path

    @property
    def runs(self) -> Path:
        return self.path / "runs"

    @property
    def sweeps(self) -> Path:
        return self.path / "sweeps"

    @property
    def reports(self) -> Path:
        """Reports of several sweeps together; that of one sweep lies in its own folder."""
        return self.path / "reports"

    @property
    def speeds(self) -> Path:
        return self.path / "speed.jsonl"

    def run(self, name: str) -> RunDir:
        """The run called `<slug>-<id>`."""
        return RunDir(self.runs / name)

    def sweep(self, name: str) -> SweepDir:
        """The folder of a sweep; of a name that a user gave, see `names_a_folder`."""
        return SweepDir(self.sweeps / name)

    def name_of(self, text: str) -> str:
        """What a user calls a run or a sweep by: a path of its folder, as launches print it, stands for its name."""
        path = Path(text).resolve() if "/" in text else None
        return path.name if path and path.parent in (self.runs.resolve(), self.sweeps.resolve()) else text

    def find_run(self, text: str) -> RunDir:
        """The run that `text` names: its folder's name or path, its id, or the unambiguous beginning of name or id.

        Raises UserError.
        """
        text = self.name_of(text)
        runs = list(self.all_runs())
        hits = [run for run in runs if text in (run.name, run.id)]
        hits = hits or [run for run in runs if run.name.startswith(text) or run.id.startswith(text)]
        if len(hits) == 1:
            return hits[0]
        if hits:
            raise UserError(
                f"{text} is the beginning of {len(hits)} runs, e.g. {hits[0].name} and {hits[1].name}; say more"
            )
        raise UserError(f"no run {text} below {self.runs}; `skipsweep list` shows them")

    def all_runs(self) -> Iterator[RunDir]:
        """Every run, by name."""
        yield from map(RunDir, _folders(self.runs))

    def all_sweeps(self) -> Iterator[SweepDir]:
        """Every sweep, by name."""
        yield from map(SweepDir, _folders(self.sweeps))


def _folders(path: Path) -> list[Path]:
    """Folders in a folder, by name; what a file manager or an editor left there is none of ours."""
    try:
        with os.scandir(path) as entries:
            return sorted(path / e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []
