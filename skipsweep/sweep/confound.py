"""In what do arms differ besides what is in question? A comparison with a second difference answers nothing."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from skipsweep.analyze.confounds import FOLLOWS, REPETITION, Settings, differing
from skipsweep.errors import UserError
from skipsweep.model import readout_specs

Key = tuple[str, int, int]
"""Arm, seed, replicate."""

DRAWN = ("skip_layers", *(f"lambda_init.{name}" for name in readout_specs.PER_SOURCE))
"""What a seed decides where it draws the layers."""


@dataclass(frozen=True)
class Confound:
    """A difference that nobody has declared."""

    arm: str
    key: str
    told: str
    """One line for whoever is to decide about it."""


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
    for key, run in points.now.items():
        own, base = points.settings(run), points.settings(points.partner(baseline, key))
        for setting in differing(own, base, allowed):
            told = (
                f"arm {key[0]} differs from the baseline {baseline} in {_shown(setting, base, own)}; "
                f"sweep.may_differ={list(may_differ)} does not allow that (sweep.allow_confound=true marks it instead)"
            )
            yield Confound(key[0], setting, told)


def within_arms(points: Points) -> Iterator[Confound]:
    """Every point of this launch against the one its arm was begun with."""
    for key, run in points.now.items():
        first, its = next(iter(points.by_arm[key[0]].items()))
        own, begun = points.settings(run), points.settings(its)
        allowed = (*REPETITION, *(DRAWN if key[0] in points.drawn else ()))
        for setting in differing(own, begun, allowed):
            told = (
                f"arm {key[0]}: seed {key[1]} differs from seed {first[1]} in {_shown(setting, begun, own)}; seeds of "
                "an arm differ in the seed alone; choose another sweep.name (sweep.allow_confound=true marks it)"
            )
            yield Confound(key[0], setting, told)


def _shown(key: str, before: Settings, now: Settings) -> str:
    return f"{key} ({before.get(key)} -> {now.get(key)})"
