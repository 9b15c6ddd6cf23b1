"""A plan: what a launch is about to do, and whether it can be done. Imports no torch.

A *point* is one choice on the sweep's axes; several points may be the same run. An *arm* is the points that differ only
in their seed.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from skipsweep import files, sweep_file
from skipsweep.config import Config, RunConfig, Sweep
from skipsweep.errors import UserError
from skipsweep.rundir import SINGLE, Multirun, names_a_folder
from skipsweep.status import Observation, observe
from skipsweep.sweep import history, identity, question
from skipsweep.sweep.history import History
from skipsweep.sweep.resolve import ComposedPoint, resolve_folder, resolve_points
from skipsweep.sweep_file import PlannedPoint


@dataclass(frozen=True)
class Plan:
    """What a launch is about to do. The runs' states alone change while it does."""

    multirun: Multirun
    sweep: Sweep
    name: str | None
    """The sweep's folder; None for a single run."""
    points: list[PlannedPoint]
    configs: dict[str, RunConfig]
    """Run name -> frozen configuration, in order of first mention."""
    baseline: str | None
    command: str
    target: float | None = None
    """Validation loss to reach on the corpus of these runs."""
    published: Mapping[str, Any] = field(default_factory=dict)
    """Arm -> published figures on the corpus of these runs."""
    paired: bool = False
    """Whether runs of equal seed are to be compared in pairs, as the sweep was first launched."""
    rankings: Mapping[str, list[int]] = field(default_factory=dict)
    """Sweep -> layers from best to worst as it ranks them, where `selection_method.ranking_from` asks for that."""
    ranked_by: Mapping[str, list[str]] = field(default_factory=dict)
    """Sweep -> the runs whose results rank them, where this launch has read them."""
    confounds: Mapping[str, list[str]] = field(default_factory=dict)
    """Arm -> keys in which it differs besides what it may."""
    history: History | None = None
    """What was decided after results existed."""
    drawn: frozenset[str] = frozenset()
    """Arms whose layers are drawn by their seed, so that they differ between the seeds."""
    notes: Sequence[str] = ()
    """What a user should know before this is launched, a line each."""
    observations: dict[str, Observation] = field(default_factory=dict)
    """Run name -> where it stands, as it was last seen."""

    def to_run(self, retry: str) -> list[str]:
        """Runs that are neither finished nor, unless asked for with `retry=failed`, failed."""
        skip = {"done"} if retry == "failed" else {"done", "failed"}
        return [run for run in self.configs if self.observations[run].state not in skip]

    def arms(self) -> dict[str, list[PlannedPoint]]:
        """Arm -> its points, in order of first mention."""
        return sweep_file.arms(self.points)

    def observe(self) -> None:
        """Look at all runs anew."""
        self.observations.update({name: observe(self.multirun.run(name)) for name in self.configs})


def make(wanted: Sequence[ComposedPoint], command: str, single: bool, notes: Iterable[str] = ()) -> Plan:
    """Resolve points to runs. `notes`: what a user should know besides.

    Raises UserError for whatever cannot be trained, before anything is written but the tokenised corpus.
    """
    if not wanted:
        raise UserError("the sweep has no points")
    _check_axes(wanted)
    first = wanted[0].config
    sweep, multirun = first.sweep, _multirun(first)
    given = _given_name(sweep)
    before = _before(multirun, given)
    resolved = resolve_points(wanted, multirun, before.get("rankings", {}))
    name = given or (None if single else _own_name(resolved.points, wanted))
    if name != given:
        before = _before(multirun, name)
    with accessible(multirun):
        _check_runs(multirun, resolved.configs)
        asked = question.settled(name, sweep, before, resolved, multirun)
        past = history.of(name, sweep, before, resolved.points, asked.baseline, multirun)
        plan = Plan(
            multirun=multirun,
            sweep=sweep,
            name=name,
            command=command,
            points=resolved.points,
            configs=resolved.configs,
            rankings=resolved.rankings,
            ranked_by=resolved.ranked_by,
            drawn=resolved.drawn,
            history=past,
            notes=[*resolved.notes, *past.notes, *notes],
            baseline=asked.baseline,
            target=asked.target,
            published=asked.published,
            paired=asked.paired,
            confounds=asked.confounds,
        )
        plan.observe()
    return plan


def _multirun(config: Config) -> Multirun:
    """Raises UserError for a folder in which no frozen code can be found: Python is pointed to it by PYTHONPATH."""
    path = resolve_folder(config.paths.multirun)
    if os.pathsep in str(path):
        raise UserError(f"paths.multirun={path}: PYTHONPATH would split this at {os.pathsep!r}; choose another path")
    return Multirun(path)


@contextmanager
def accessible(multirun: Multirun) -> Iterator[None]:
    """Raise UserError where the folder of runs cannot be read or written."""
    try:
        yield
    except OSError as problem:
        where = problem.filename or multirun.path
        raise UserError(f"cannot use {where}: {problem.strerror}; set paths.multirun to another folder") from problem


def _before(multirun: Multirun, name: str | None) -> Mapping[str, Any]:
    """plan.json of an earlier launch of this sweep; empty where there was none."""
    if name is None:
        return {}
    with accessible(multirun):
        before = files.read_json(multirun.sweep(name).plan) or {}
    if before.get("imported"):
        raise UserError(f"sweep {name} was imported and cannot be launched; choose another sweep.name")
    return before


def _check_axes(wanted: Sequence[ComposedPoint]) -> None:
    """Raise UserError for a sweep over what belongs to the whole sweep."""
    for key in dict.fromkeys(key for point in wanted for key in point.axes):
        if key in ("plan", "retry") or key.startswith(("sweep.", "paths.")):
            raise UserError(f"{key} cannot be swept over: it belongs to the whole sweep")


def _own_name(points: list[PlannedPoint], wanted: Sequence[ComposedPoint]) -> str:
    """A slug and a hash of the points."""
    keys = dict.fromkeys(key for point in wanted for key in point.axes)
    slug = re.sub(r"[^A-Za-z0-9_-]+", "-", "-".join(keys))[:60].strip("-_")
    digest = identity.digest(sorted((*point.key, point.run) for point in points))
    return f"{slug or 'sweep'}-{digest}"


def _given_name(sweep: Sweep) -> str | None:
    """Raises UserError for a name that would leave multirun/sweeps, or means something else."""
    if sweep.name == SINGLE:
        raise UserError(f"sweep.name={SINGLE} stands for runs that are launched by themselves; valid: any other name")
    if sweep.name is not None and not names_a_folder(sweep.name):
        raise UserError(
            f"sweep.name={sweep.name!r} cannot name a folder; valid: up to 100 letters, digits and ._+=,- , "
            "beginning with a letter or digit"
        )
    return sweep.name


def _check_runs(multirun: Multirun, configs: Mapping[str, RunConfig]) -> None:
    """Raise UserError where a run on disk was made with a default that has moved since."""
    for name, config in configs.items():
        try:
            frozen = files.read_json(multirun.run(name).identity)
        except ValueError:
            continue  # torn by a power cut: freezing writes it anew
        if frozen is not None:
            identity.check_drift(name, frozen, config)
