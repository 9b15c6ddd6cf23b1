"""What a launch changes about results that there are already, of the sweep that it extends or of others.

Whatever was decided after looking is written down in plan.json: a p-value means what it says only for what was decided
before. `before` is the plan.json of an earlier launch of the sweep, empty where there was none.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from skipsweep import files, sweep_file
from skipsweep.analyze.confounds import differing
from skipsweep.analyze.descriptive import named
from skipsweep.config import RunConfig, Sweep, leaves, recipe_of
from skipsweep.errors import UserError
from skipsweep.rundir import SINGLE, Multirun
from skipsweep.sweep import identity
from skipsweep.sweep.confound import Key
from skipsweep.sweep_file import PlannedPoint

PAIRING, BASELINE = "pairing", "baseline"


@dataclass(frozen=True)
class History:
    """What was decided after results existed."""

    seeds_added: Mapping[str, list[int]]
    """Arm -> seeds that were planned for it when the sweep could be tested already."""
    declared_late: Sequence[str]
    """`PAIRING`, `BASELINE`: how to compare, said when runs to be compared had finished."""
    notes: Sequence[str]
    """What changes about an earlier launch without being refused, a line each."""


def of(
    name: str | None,
    sweep: Sweep,
    before: Mapping[str, Any],
    points: Sequence[PlannedPoint],
    baseline: str,
    multirun: Multirun,
) -> History:
    """Of a launch of `points`, compared with `baseline`."""
    known = known_points(before)
    done = _Done(multirun)
    seeds = {arm: list(added) for arm, added in before.get("seeds_added", {}).items()}
    if any(done.seeds(of_arm) > 1 for of_arm in sweep_file.arms(known.values()).values()):
        begun, had = {arm for arm, *_ in known}, {(arm, seed) for arm, seed, _ in known}
        for point in points:
            is_new = point.arm in begun and (point.arm, point.seed) not in had
            added = seeds.setdefault(point.arm, []) if is_new else None
            if added is not None and point.seed not in added:
                added.append(point.seed)
    late = dict.fromkeys(before.get("declared_late", ()))
    if before:
        if before.get("baseline") not in (None, baseline) and done.of(known.values()):
            late[BASELINE] = None
    elif name is not None:
        arms = sweep_file.arms(points)
        finished = {arm: done.of(of_arm) for arm, of_arm in arms.items()}
        several = sum(map(bool, finished.values())) > 1
        if several and sweep.paired and any(not done.paired(run) for runs in finished.values() for run in runs):
            late[PAIRING] = None
        if several and any(done.compared_with_another(run) for run in finished.get(baseline, ())):
            late[BASELINE] = None
    return History(seeds, list(late), list(_notes(name, sweep, before, points)))


class _Done:
    """Finished runs, and the sweeps that they have served."""

    def __init__(self, multirun: Multirun):
        self._multirun = multirun

    def of(self, points: Iterable[PlannedPoint]) -> list[str]:
        return [run for run in sweep_file.runs(points) if self._multirun.run(run).result.exists()]

    def seeds(self, points: Iterable[PlannedPoint]) -> int:
        """How many seeds have finished: a repetition is no further one."""
        return len({point.seed for point in points if self._multirun.run(point.run).result.exists()})

    def paired(self, run: str) -> bool:
        """Whether every sweep that it has served was compared in pairs."""
        return all(plan.get("paired") is True for _, plan in self._served(run))

    def compared_with_another(self, run: str) -> bool:
        """Whether it has served a sweep as another arm than the baseline."""
        return any(plan.get("baseline") not in (None, arm) for arm, plan in self._served(run))

    def _served(self, run: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """(arm, plan.json) of every sweep."""
        for sweep, served in self._multirun.run(run).read_serves().items():
            try:
                plan = {} if sweep == SINGLE else files.read_json(self._multirun.sweep(sweep).plan)
            except ValueError:
                continue
            yield served.get("arm"), plan or {}


def _notes(name: str | None, sweep: Sweep, before: Mapping[str, Any], points: Sequence[PlannedPoint]) -> Iterator[str]:
    left = dict.fromkeys(arm for arm, *_ in known_points(before))
    for point in points:
        left.pop(point.arm, None)
    if left:
        arms, them = ("arm", "it") if len(left) == 1 else ("arms", "them")
        yield (
            f"sweep {name} also has {arms} {named(list(left))} from earlier launches (another sweep.name leaves {them} "
            "out)"
        )
    asked = before.get("question")
    if asked is not None and sweep.question not in (None, asked):
        yield f"sweep {name}: its question was {asked!r}"


# ------------------------------------------------------------------------------------------------------- earlier points


def known_points(before: Mapping[str, Any]) -> dict[Key, PlannedPoint]:
    """Key -> point of an earlier launch. Raises UserError where one cannot be read."""
    return {point.key: point for point in sweep_file.points(before["name"], before)} if before else {}


def check_extension(
    name: str | None,
    before: Mapping[str, Any],
    points: Sequence[PlannedPoint],
    configs: Mapping[str, RunConfig],
    multirun: Multirun,
) -> None:
    """Raise UserError where a sweep of this name has the same point as another run: an arm keeps its meaning."""
    known = known_points(before)
    for point in points:
        run = known.get(point.key, point).run
        if run != point.run:
            changes = _changes(multirun, run, configs[point.run])
            raise UserError(
                f"sweep {name} already has {point.arm} with seed {point.seed} as run {run}, now it would be "
                f"{point.run}{changes}; choose another sweep.name, or the settings it was begun with"
            )


def _changes(multirun: Multirun, run: str, config: RunConfig) -> str:
    """`: schedule.steps 20 -> 100`; nothing where the earlier run does not say what it was."""
    try:
        frozen = files.read_json(multirun.run(run).identity) or {}
    except ValueError:
        return ""
    then, now = frozen.get("recipe"), leaves(recipe_of(config))
    if not isinstance(then, dict) or not isinstance(frozen.get("settings"), dict):
        return ""
    keys = differing(frozen["settings"], identity.settings(recipe_of(config)))
    changes = [f"{key} {then.get(key)} -> {now.get(key)}" for key in keys]
    return f": {named(changes)}" if changes else ""
