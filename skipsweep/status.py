"""Where runs stand, read from their files alone: no scheduler, no torch, no wandb."""

from dataclasses import dataclass
from typing import Any

from skipsweep import files, lease
from skipsweep.rundir import RunDir

FINAL = ("done", "failed")


@dataclass(frozen=True)
class Observation:
    """One run as its files tell."""

    run: str
    state: str
    """A state of status.json; `interrupted` where that says running but nobody is; `new` without a folder."""
    cause: str | None = None
    message: str | None = None
    log: str | None = None
    holder: str | None = None
    """Who executes it now."""
    progress: dict[str, Any] | None = None
    """step, steps, loss, val_loss, tokens_per_s, left_s of the present or last attempt."""
    attempt: int | None = None
    """The attempt that the state is about; None before the first."""
    job: str | None = None
    """The scheduler's job that executes it or is going to, where its queue was asked."""
    stuck: str | None = None
    """Why it will not go on unless somebody does something."""

    @property
    def is_live(self) -> bool:
        """Whether somebody executes it now."""
        return self.holder is not None


def observe(run: RunDir) -> Observation:
    """Look at one run."""
    if not run.path.exists():
        return Observation(run.name, "new")
    status = run.read_status()
    state = status["state"]
    kinds = {"cause": str, "message": str, "log": str, "attempt": int}
    common = {key: status[key] for key, kind in kinds.items() if isinstance(status.get(key), kind)}
    if state in FINAL:
        return Observation(run.name, state, **common)
    holder = lease.newest(run)
    live, progress = lease.is_live(run, holder), (holder or {}).get("progress")
    if live:
        state = "running"
    elif state == "running":
        state = "interrupted"
    return Observation(
        run.name,
        state,
        **common,
        holder=lease.describe(holder) if live and holder else None,
        progress=progress if isinstance(progress, dict) and progress else None,
    )


def result(run: RunDir) -> dict[str, Any] | None:
    """result.json of a finished run, else None."""
    return files.read_json(run.result)
