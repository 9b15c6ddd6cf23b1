"""What a user asked for, as planning and launching see it. Knows no Hydra."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

from skipsweep.config import Config, Sweep
from skipsweep.errors import MissingValue, UserError
from skipsweep.slurm import settings as slurm_settings
from skipsweep.slurm.settings import SlurmLauncher
from skipsweep.sweep import relative


@dataclass
class LocalLauncher:
    """`hydra/launcher=local`: every run in a process of its own, on this machine."""

    name: str = "local"
    parallel: int = 1
    """Runs at a time; they share the machine's cores."""
    timeout_min: float = 0.0
    """Minutes after which a run is stopped and has failed (timeout); 0: never."""


LAUNCHERS: dict[str, type] = {"local": LocalLauncher, "slurm": SlurmLauncher}
"""Choices of `hydra/launcher`."""


@dataclass(frozen=True)
class GridPoint:
    """One choice on the sweep's axes, not yet composed."""

    block: str | None
    """Name of the block of `sweep.arms` it comes from; None: the command line alone."""
    overrides: tuple[str, ...]
    """In the order in which they apply."""
    axes: dict[str, str] = field(default_factory=dict)
    """Key -> value, as text, of whatever was swept over here, `seed` and `replicate` apart."""
    seed: int | None = None
    """None where neither command line nor experiment names one: the run's default."""

    @property
    def arm(self) -> str:
        """`block`, with `/key=value,...` where it is a grid; `key=value,...` without blocks; `run` without axes."""
        axes = ",".join(f"{key}={value}" for key, value in self.axes.items())
        return "/".join(part for part in (self.block, axes) if part) or "run"


class Composes(Protocol):
    """Turns overrides into configurations (`sweep.compose.Composer`)."""

    def __call__(self, overrides: Sequence[str]) -> Config:
        """The run that `overrides` describe. Raises UserError."""
        ...

    def options(self, group: str) -> list[str]:
        """Names of the choices of a group; empty where there is no such group."""
        ...


@dataclass(frozen=True)
class LaunchRequest:
    """One invocation of launch.py, before anything is planned."""

    command: list[str]
    """As typed, shorthands included."""
    overrides: list[str]
    """Of the run, sweeps unexpanded; nothing of Hydra's own."""
    composer: Composes
    launcher: dict[str, Any]
    """Settings of the chosen launcher; `kind` says which."""
    sweep: Sweep
    """The question, as composed from the command line without its axes."""
    plan: bool = False
    """Show the plan and stop."""
    retry: str = "none"
    """`failed`: start failed runs again."""
    multirun: bool = False
    """Asked for as a sweep (`-m`). A single run with an experiment's arms is one as well."""

    def config(self, point: GridPoint) -> Config:
        """The run that a point stands for. Raises UserError, naming the block at fault."""
        try:
            return relative.resolved(self.composer(point.overrides))
        except UserError as error:
            if point.block is None:
                raise
            block, alone = f"sweep.arms.{point.block}", ""
            if isinstance(error, MissingValue):
                alone = f"; for this arm alone: '+{block}={{{error.keys[0]}: ...}}'"
            raise UserError(f"in {block}: {error}{alone}") from error


def check_launcher(choice: str, settings: dict[str, Any]) -> dict[str, Any]:
    """`settings`, if they are those of a launcher of ours, with its name as `kind`. Raises UserError else."""
    if choice not in LAUNCHERS:
        raise UserError(f"hydra/launcher={choice}: not a launcher of skipsweep; valid: {', '.join(sorted(LAUNCHERS))}")
    known = [f.name for f in fields(LAUNCHERS[choice])]
    for key in settings:
        if key not in known:
            raise UserError(f"hydra.launcher.{key}: unknown key of hydra/launcher={choice}; valid: {', '.join(known)}")
    if choice == "slurm":
        slurm_settings.check(settings)
    elif settings["name"] != choice:
        raise UserError(f"hydra.launcher.name={settings['name']}: write hydra/launcher={settings['name']}")
    if settings.get("parallel", 1) < 1:
        raise UserError(f"hydra.launcher.parallel={settings['parallel']}: at least 1")
    if choice == "local" and settings["timeout_min"] < 0:
        raise UserError(f"hydra.launcher.timeout_min={settings['timeout_min']}: at least 0")
    return {"kind": choice, **settings}
