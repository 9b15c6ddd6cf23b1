"""In what do arms differ besides what is in question? A comparison with a second difference answers nothing."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache, cached_property
from typing import get_type_hints

from skipsweep.analyze.confounds import FOLLOWS, REPETITION, Settings, differing
from skipsweep.config import UNIONS, Recipe, choices
from skipsweep.errors import UserError
from skipsweep.model import readout_specs
from skipsweep.sweep.explain import suggest

Key = tuple[str, int, int]
"""Arm, seed, replicate."""

DRAWN = ("skip_layers", *(f"lambda_init.{name}" for name in readout_specs.PER_SOURCE))
"""What a seed decides where it draws the layers."""
MOST_TOLD = 5
"""Arms whose differences are told before the others are only counted."""


@dataclass(frozen=True)
class Confound:
    """A difference that nobody has declared."""

    arm: str
    key: str
    between: str
    """Of what from what."""
    values: str
    advice: str
    """For whoever is to decide about it."""


def told(found: Sequence[Confound]) -> str:
    """One line that names every difference, those of several seeds once."""
    grouped: dict[str, dict[str, None]] = {}
    for one in found:
        grouped.setdefault(one.between, {})[f"{one.key} ({one.values})"] = None
    parts = [f"{between} in {', '.join(differences)}" for between, differences in grouped.items()]
    more = [f"{len(parts) - MOST_TOLD} more"] if len(parts) > MOST_TOLD else []
    return "; ".join([*parts[:MOST_TOLD], *more, found[0].advice])


def check_keys(may_differ: Sequence[str]) -> None:
    """Raise UserError for a key that no run has."""
    known = _known_keys()
    for key in may_differ:
        if key not in known:
            group = key.rpartition(".")[0] if key.rpartition(".")[0] in known else ""
            valid = [other for other in known if other.rpartition(".")[0] == group]
            raise UserError(f"sweep.may_differ: {key} is no setting of a run{suggest(key, valid)}")


@cache
def _known_keys() -> frozenset[str]:
    """Dotted path of every group and setting, of all choices."""
    return frozenset(_paths(Recipe))


def _paths(cls: type, prefix: str = "") -> Iterator[str]:
    hints = get_type_hints(cls)
    for name in (field.name for field in fields(cls)):
        yield f"{prefix}{name}"
        hint = hints[name]
        for one in choices(hint).values() if hint in UNIONS else [hint] if is_dataclass(hint) else []:
            yield from _paths(one, f"{prefix}{name}.")  # type: ignore[arg-type]


@dataclass(frozen=True)
class Points:
    """A sweep's points, those of earlier launches included."""

    now: Mapping[Key, str]
    """Of this launch -> name of the run."""
    before: Mapping[Key, str]
    """Of earlier launches, where the run is still there."""
    drawn: Collection[str]
    """Arms whose layers are drawn by their seed."""
    settings: Callable[[str], Settings]
    """Of a run."""

    @cached_property
    def by_arm(self) -> dict[str, dict[Key, str]]:
        """Arm -> key -> run; what was there first comes first."""
        grouped: dict[str, dict[Key, str]] = {}
        for key, run in (dict(self.before) | dict(self.now)).items():
            grouped.setdefault(key[0], {})[key] = run
        return grouped

    def partner(self, baseline: str, key: Key) -> str:
        """The baseline's run that `key` is compared with: of its seed and replicate, of its seed, or the first.

        Raises UserError where none is left.
        """
        runs = self.by_arm.get(baseline)
        if runs is None:
            raise UserError(f"no run of the baseline {baseline} is left to compare with; plan it once more as well")
        same_seed = (run for (_, seed, _), run in runs.items() if seed == key[1])
        return runs.get((baseline, *key[1:])) or next(same_seed, None) or next(iter(runs.values()))


def against_baseline(points: Points, baseline: str, may_differ: Sequence[str]) -> Iterator[Confound]:
    """Every point of this launch against the baseline's of its seed."""
    allowed = (*may_differ, *REPETITION, *FOLLOWS)
    advice = f"sweep.may_differ={list(may_differ)} does not allow that (sweep.allow_confound=true marks it instead)"
    for key, run in points.now.items():
        own, base = points.settings(run), points.settings(points.partner(baseline, key))
        between = f"arm {key[0]} differs from the baseline {baseline}"
        for setting in differing(own, base, allowed):
            yield Confound(key[0], setting, between, f"{base.get(setting)} -> {own.get(setting)}", advice)


def within_arms(points: Points) -> Iterator[Confound]:
    """Every point of this launch against the one its arm was begun with."""
    advice = "seeds of an arm differ in the seed alone; choose another sweep.name (sweep.allow_confound=true marks it)"
    for key, run in points.now.items():
        first, its = next(iter(points.by_arm[key[0]].items()))
        own, begun = points.settings(run), points.settings(its)
        between = f"arm {key[0]}: seed {key[1]} differs from seed {first[1]}"
        allowed = (*REPETITION, *(DRAWN if key[0] in points.drawn else ()))
        for setting in differing(own, begun, allowed):
            yield Confound(key[0], setting, between, f"{begun.get(setting)} -> {own.get(setting)}", advice)
