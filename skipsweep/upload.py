"""`skipsweep sync SWEEP`: brings what a cluster without network has recorded to wandb's server.

Every run is replayed from metrics.jsonl by a mirror (mirror.py), which notes when it has finished: an upload that was
cut short goes on where the server stands, one that is finished is not repeated.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from skipsweep import mirror, sweep_file
from skipsweep.config import Wandb
from skipsweep.rundir import Multirun, RunDir
from skipsweep.status import FINAL, observe

MOST_ALIKE = 3
"""Failures in a row with the same cause, after which the others are not tried: without login each takes a while."""


@dataclass(frozen=True)
class Outcome:
    """What became of one run."""

    run: str
    state: str
    """uploaded, already uploaded, not finished, imported, failed, or not tried."""
    message: str | None = None

    @property
    def is_failure(self) -> bool:
        """Whether the server lacks a run that is finished."""
        return self.state in ("failed", "not tried")

    def __str__(self) -> str:
        return f"{self.run}: {self.state}" + (f" ({self.message})" if self.message else "")


def sweep(multirun: Multirun, name: str) -> Iterator[Outcome]:
    """Upload the sweep's runs that have ended and are not yet uploaded, telling of each when it is done.

    Raises UserError for a sweep that does not exist.
    """
    causes: list[str | None] = []
    for run in sweep_file.runs(sweep_file.read_points(multirun, name)):
        if len(causes) == MOST_ALIKE and causes[0] is not None and len(set(causes)) == 1:
            outcome = _unless_needless(multirun.run(run)) or Outcome(run, "not tried", f"{MOST_ALIKE} failed alike")
        else:
            outcome = _unless_needless(multirun.run(run)) or _upload(multirun.run(run))
        if outcome.state in ("uploaded", "failed"):
            causes = [*causes, outcome.message][-MOST_ALIKE:]
        yield outcome


def _unless_needless(run: RunDir) -> Outcome | None:
    """Why a run is not uploaded, where it need not be."""
    state = observe(run).state
    if state not in FINAL:
        return Outcome(run.name, "not finished", state)
    if not run.config.exists():
        return Outcome(run.name, "imported", "such runs are not mirrored")
    return Outcome(run.name, "already uploaded") if mirror.is_uploaded(run) else None


def _upload(run: RunDir) -> Outcome:
    own = run.read_config().logger
    logger = replace(own if isinstance(own, Wandb) else Wandb(), mode="online")
    trouble = mirror.sync(run, logger)
    return Outcome(run.name, "uploaded") if trouble is None else Outcome(run.name, "failed", trouble)
