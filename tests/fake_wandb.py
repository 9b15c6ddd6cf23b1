"""A module of wandb's name that writes down what it is asked to do, and fails on demand; and runs to show it."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from runs import configuration

from skipsweep import config as c
from skipsweep import files
from skipsweep.rundir import RunDir
from skipsweep.sweep.canonical import canonical_form

CANARY = "c4n4ry" * 7
"""The key of an account."""

FAKE_WANDB = """
import json, os, time
from pathlib import Path

PLAN = os.environ.get("FAKE_WANDB")

class Settings(dict):
    def __init__(self, **settings):
        super().__init__(settings)

class Run:
    def __init__(self, dir, id, mode, **rest):
        kind = "offline-run" if mode == "offline" else "run"
        self.folder = Path(dir, "wandb", f"{kind}-{time.time_ns()}-{id}")
        self.dir = self.folder / "files"
        self.dir.mkdir(parents=True)
        self.starting_step = int(os.environ.get("FAKE_WANDB_STEP", 0))
        self.summary = {}

    def define_metric(self, *args, **kwargs):
        pass

    def log(self, row, step, commit):
        if PLAN == "raise in log" and step == 2:
            raise RuntimeError("no log today")
        with open(self.folder / "rows.jsonl", "a") as f:
            f.write(json.dumps(row) + "\\n")

    def finish(self, exit_code):
        if PLAN == "hang in finish":
            time.sleep(600)
        (self.folder / "exit_code").write_text(str(exit_code))

def init(**arguments):
    if PLAN == "raise in init":
        raise RuntimeError(f"no server\\nfor {os.environ['WANDB_API_KEY']}")
    if PLAN == "exit in init":
        raise SystemExit(0)
    if PLAN == "hang in init":
        time.sleep(600)
    return Run(**arguments)
"""


def row(step: int, attempt: int = 1) -> dict[str, Any]:
    val = {"val/loss": 1 + abs(step - 6) / 8} if step % 3 == 0 else {}
    head = {"step": step, "tokens": 64 * step, "attempt": attempt, "train_time_s": step / 4, "time": 1.7e9 + step}
    return {**head, "train/loss": 3 / (step + 1), **val, "lr/matrix": 0.01, "lambda/skip/11": -0.25, "grad_norm": None}


def append(run: RunDir, *steps: int, attempt: int = 1) -> None:
    for step in steps:
        files.append_row(run.metrics, row(step, attempt))


def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of wandb's but a key, and a home below the test's folder."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name, value in (("HOME", tmp_path / "home"), ("WANDB_API_KEY", CANARY)):
        monkeypatch.setenv(name, str(value))


def put_before_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes started from now on import the fake; set FAKE_WANDB to what shall go wrong."""
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "wandb.py").write_text(FAKE_WANDB)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fake"), prepend=os.pathsep)


def frozen(logger: c.Logger) -> c.RunConfig:
    """A small run's configuration, whole as planning freezes it."""
    config = configuration(Path("/nowhere"), Path("/nowhere"), skip_layers=c.SkipLayers(), logger=logger)
    return canonical_form(config, replace(config.data, fingerprint="f" * 16, vocab_size=32))
