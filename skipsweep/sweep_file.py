"""plan.json, the file of a sweep: read so that nothing in it can break its readers, and the one form of its points.

Without numpy and torch: `skipsweep list` and `status` read through here, and are to take a moment.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from skipsweep import files
from skipsweep.errors import UserError
from skipsweep.files import as_number
from skipsweep.rundir import Multirun, names_a_folder

GIVEN = "given"
"""The method of layers that were named one by one, and of a single one."""
RANKING = "selection_method.ranking="
"""How a point says that it takes its layers from a ranking, given or read from a sweep."""


@dataclass(frozen=True)
class PlannedPoint:
    """One choice on a sweep's axes; several points may be served by the same run."""

    arm: str
    seed: int
    replicate: int
    run: str
    """Name of the run that serves it."""
    sources: tuple[Any, ...] = ()
    """In canonical order."""
    method: str | None = None
    """The selection method behind several sources, or GIVEN; None where nothing is known of sources (imported)."""
    ordering: tuple[int, ...] | None = None
    """The selection method's ordering where `topN` was asked for: frozen when planned, never ranked anew in silence."""
    overrides: tuple[str, ...] = ()
    """What this point sets, as one would type it."""
    sweep: str = ""
    """The sweep whose file it was read from."""

    @property
    def key(self) -> tuple[str, int, int]:
        """What makes a point of a sweep."""
        return self.arm, self.seed, self.replicate

    @property
    def is_ranked(self) -> bool:
        """Whether its layers were taken from a ranking."""
        return any(text.startswith(RANKING) for text in self.overrides)

    @property
    def kind(self) -> str | None:
        """`none`, `single_layer` or `multi_layer/<method>`; None where nothing is known of sources."""
        if self.method is None:
            return None
        return ("none", "single_layer")[len(self.sources)] if len(self.sources) < 2 else f"multi_layer/{self.method}"

    @property
    def tag(self) -> str | None:
        """What wandb calls it: `multi_layer/best_to_worst/N=5`."""
        return self.kind if self.kind is None or len(self.sources) < 2 else f"{self.kind}/N={len(self.sources)}"

    @property
    def tags(self) -> list[str]:
        """As serves.json and wandb take them."""
        return [] if self.tag is None else [self.tag]

    @classmethod
    def from_dict(cls, point: Mapping[str, Any], sweep: str = "") -> "PlannedPoint":
        """A point of a plan.json, also of one from before `method` was noted.

        Raises AttributeError, KeyError, TypeError or ValueError where it is not one.
        """
        arm, seed, replicate = point["key"]
        run, tags, overrides = point["run"], point.get("tags") or [], point.get("overrides") or []
        method = point.get("method") or (method_of(tags[0]) if tags else None)
        strings = [arm, run, *tags, *overrides, *([] if method is None else [method])]
        if not isinstance(seed, int) or not isinstance(replicate, int) or not _strings(strings):
            raise TypeError(f"{point['key']!r} of {run!r}")
        order = point.get("ordering")
        return cls(
            arm=arm,
            seed=seed,
            replicate=replicate,
            run=run,
            sources=tuple(point.get("sources") or ()),
            method=method,
            ordering=None if order is None else tuple(order),
            overrides=tuple(overrides),
            sweep=sweep,
        )

    def to_dict(self) -> dict[str, Any]:
        """As it stands in plan.json."""
        return {
            "key": list(self.key),
            "run": self.run,
            "overrides": list(self.overrides),
            "sources": list(self.sources),
            "method": self.method,
            "ordering": None if self.ordering is None else list(self.ordering),
            "tags": self.tags,
        }


def method_of(tag: str) -> str:
    """The selection method that a tag names: `multi_layer/best_to_worst/N=5` -> `best_to_worst`."""
    parts = tag.split("/")
    return parts[1] if len(parts) > 2 else GIVEN


def runs(points: Iterable[PlannedPoint]) -> list[str]:
    """The runs that serve them, each once, in order of first mention."""
    return list(dict.fromkeys(point.run for point in points))


def arms(points: Iterable[PlannedPoint]) -> dict[str, list[PlannedPoint]]:
    """Arm -> its points, in order of first mention."""
    grouped: dict[str, list[PlannedPoint]] = {}
    for point in points:
        grouped.setdefault(point.arm, []).append(point)
    return grouped


# ------------------------------------------------------------------------------------------------------------- reading

_STRINGS = "a list of strings"
_PLAN: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "question": ("a string", lambda value: isinstance(value, str)),
    "source": ("a string", lambda value: isinstance(value, str)),
    "baseline": ("a string", lambda value: isinstance(value, str)),
    "target": ("a number", lambda value: as_number(value) is not None),
    "may_differ": (_STRINGS, lambda value: _strings(value)),
    "commands": (_STRINGS, lambda value: _strings(value)),
    "published": ("a mapping", lambda value: isinstance(value, dict)),
    "confounds": ("a mapping of arms to lists of strings", lambda value: _lists(value)),
    "declared_late": (_STRINGS, lambda value: _strings(value)),
    "seeds_added": ("a mapping of arms to lists", lambda value: isinstance(value, dict)),
    "ranked_by": ("a mapping of sweeps to lists of strings", lambda value: _lists(value)),
}
"""Key of plan.json -> what it has to be, and whether it is; each may be null or missing."""


def _strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _lists(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_strings, value.values()))


def read_plan(multirun: Multirun, name: str) -> dict[str, Any]:
    """plan.json of a sweep, without what is null. Raises UserError where there is none, or it cannot be read."""
    folder = multirun.sweep(name)
    again = "the launch that made it writes it anew"
    try:
        found = files.read_json(folder.plan) if names_a_folder(name) else None
    except (ValueError, OSError) as problem:
        raise UserError(f"{folder.plan} cannot be read ({problem}); {again}") from problem
    if found is None:
        known = ", ".join(sweep.name for sweep in multirun.all_sweeps()) or "none yet"
        raise UserError(f"no sweep {name} below {multirun.sweeps}; there are: {known}")
    if not isinstance(found, dict) or not isinstance(found.get("points"), list):
        raise UserError(f"{folder.plan} is not the plan of a sweep: it has no list of points")
    plan = {key: value for key, value in found.items() if value is not None}
    for key, (expected, is_it) in _PLAN.items():
        if key in plan and not is_it(plan[key]):
            raise UserError(f"{folder.plan} cannot be read: {key} is not {expected}; {again}")
    return plan


def points(sweep: str, plan: Mapping[str, Any]) -> list[PlannedPoint]:
    """The points of a plan. Raises UserError where one cannot be read."""
    try:
        return [PlannedPoint.from_dict(point, sweep) for point in plan["points"]]
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise UserError(f"plan.json of sweep {sweep} has a point that cannot be read: {problem!r}") from problem


def read_points(multirun: Multirun, name: str) -> list[PlannedPoint]:
    """The points of a sweep. Raises UserError where there is none, or it cannot be read."""
    return points(name, read_plan(multirun, name))
