"""What a run leaves behind: metric rows, checkpoints, the result. Rank 0 alone records."""

import math
import time
from pathlib import Path
from typing import Any

from skipsweep import checkpoint, files
from skipsweep.config import RunConfig
from skipsweep.lease import Lease
from skipsweep.optim.schedule import lr_factor
from skipsweep.progress import Progress
from skipsweep.rundir import RunDir
from skipsweep.train import Boundary, Trainer

MAX_ROWS = 500
"""Metric rows of a run whose `record.log_every` is 0, validations aside."""

MIN_INTERVAL = 20
"""Checkpoints by time are at least this many times as far apart as one takes: large models save less often."""


class Recorder:
    """Turns boundaries into rows of metrics.jsonl, and states into checkpoints."""

    def __init__(self, run: RunDir, config: RunConfig, lease: Lease, progress: Progress):
        self.run, self.config, self.lease, self.progress = run, config, lease, progress
        self._log_every = config.record.log_every or math.ceil(config.schedule.steps / MAX_ROWS)
        self._saved_step, self._saved_at, self._save_took = 0, time.monotonic(), 0.0
        self._from: tuple[int, float] | None = None  # step and training time at this attempt's first boundary
        self._now: dict[str, Any] = {"steps": config.schedule.steps, "loss": None, "val_loss": None}

    # ------------------------------------------------------------------------------------------------------- boundaries

    def record(self, trainer: Trainer, boundary: Boundary) -> None:
        """Write the row that is due at this boundary, and show where the run stands."""
        last = boundary.step == self.config.schedule.steps
        due = boundary.step % self._log_every == 0 or boundary.val_loss is not None or last
        if due and not trainer.halted:  # a step that was not applied has no row
            self.lease.check()
            row = self._row(trainer, boundary)
            files.append_row(self.run.metrics, row)
            self._now.update(loss=row.get("train/loss", self._now["loss"]))
            self._now.update(val_loss=row.get("val/loss", self._now["val_loss"]))
        self._show(boundary.step, trainer.clock.seconds)

    def _row(self, trainer: Trainer, boundary: Boundary) -> dict[str, Any]:
        row: dict[str, Any] = {
            "attempt": self.lease.attempt,
            "step": boundary.step,
            "tokens": boundary.step * self.config.data.batch_tokens,
            "time": round(time.time(), 3),
            "train_time_s": round(trainer.clock.seconds, 3),
        }
        if boundary.train_loss is not None and boundary.grad_norm is not None:
            row["train/loss"] = boundary.train_loss.item()
            row["grad_norm"] = boundary.grad_norm.item()
            if boundary.control_loss is not None:
                row["train/control_loss"] = boundary.control_loss.item()
            row |= trainer.optimiser.learning_rates(lr_factor(self.config.schedule, boundary.step - 1))
        if boundary.val_loss is not None:
            row["val/loss"] = boundary.val_loss
            row |= trainer.lambdas() | trainer.gates()
        return row

    def _show(self, step: int, seconds: float) -> None:
        if self._from is None:
            self._from = step, seconds
        done, took = step - self._from[0], seconds - self._from[1]
        speed = done * self.config.data.batch_tokens / took if done and took else None
        left = (self.config.schedule.steps - step) * took / done if done else None
        self._now.update(step=step, tokens_per_s=speed, left_s=left)
        self.lease.progress.update(self._now)
        self.progress.update(self._now)

    # ------------------------------------------------------------------------------------------------------ checkpoints

    def checkpoint_due(self, step: int) -> bool:
        """Whether a checkpoint should be written at this boundary."""
        every, seconds = self.config.record.checkpoint_every, self.config.record.checkpoint_seconds
        if step in (self._saved_step, self.config.schedule.steps):
            return False
        interval = max(seconds, MIN_INTERVAL * self._save_took)
        by_step = bool(every) and step % every == 0
        return by_step or (bool(seconds) and time.monotonic() - self._saved_at >= interval)

    def resumed(self, step: int) -> None:
        """Tell that the run goes on from the checkpoint of `step`."""
        self._saved_step = step

    def save(self, state: dict[str, Any]) -> None:
        """Write a checkpoint that the run can continue from."""
        self.lease.check()
        started = time.monotonic()
        if self.run.metrics.exists():
            files.fsync(self.run.metrics)  # the next attempt writes none of the rows up to here again
        self._save(state, self._keep, checkpoint.PARTS)
        self._saved_step, self._saved_at = state["step"], time.monotonic()
        self._save_took = self._saved_at - started

    @property
    def _keep(self) -> int:
        return max(2, self.config.record.keep)

    def _save(self, state: dict[str, Any], keep: int, parts: tuple[str, ...]) -> Path:
        attempt, check = self.lease.attempt, self.lease.check
        return checkpoint.save(self.run.checkpoints, state, self.run.id, attempt, keep, parts, check)

    # ---------------------------------------------------------------------------------------------------------- the end

    def finish(self, trainer: Trainer, state: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
        """Write the final weights and result.json; returns the result."""
        self.lease.check()
        # Until the result stands, the run may have to go on from an earlier checkpoint, which is whole.
        weights = self._save(state, self._keep + 1, ("model",))
        curve = [
            {key: row[key] for key in ("step", "tokens", "train_time_s", "val/loss")}
            for row in self.run.read_metrics()
            if "val/loss" in row
        ]
        result = {
            "id": self.run.id,
            "attempt": self.lease.attempt,
            "val_loss": curve[-1]["val/loss"],
            "steps": trainer.step,
            "tokens": trainer.step * self.config.data.batch_tokens,
            "train_time_s": round(trainer.clock.seconds, 3),
            **facts,
            "lambdas": trainer.lambdas(),
            "gates": trainer.gates(),
            "val_curve": curve,
        }
        self.lease.check()
        files.write_json(self.run.result, result)
        checkpoint.prune(self.run.checkpoints, weights, keep=1)
        return result
