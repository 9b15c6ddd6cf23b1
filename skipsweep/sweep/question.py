"""What a sweep asks: its baseline, its target, what others published, and whether it asks one thing only.

A sweep may be launched again, to extend it. What an earlier launch said of it, `before`, is its plan.json.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from skipsweep import sweep_file
from skipsweep.config import Data, Sweep, choices, leaves, recipe_of
from skipsweep.errors import UserError
from skipsweep.rundir import Multirun
from skipsweep.sweep import confound
from skipsweep.sweep.history import check_extension, known_points
from skipsweep.sweep.resolve import Resolved
from skipsweep.sweep_file import PlannedPoint


@dataclass(frozen=True)
class Question:
    """What the runs of a sweep are compared with."""

    baseline: str
    """The arm that others are compared with."""
    target: float | None
    """Validation loss to reach on the corpus of these runs."""
    published: Mapping[str, Any]
    """Arm -> published figures on the corpus of these runs."""
    paired: bool
    """Whether runs of equal seed are compared in pairs."""
    confounds: Mapping[str, list[str]]
    """Arm -> keys in which it differs besides what it may."""


def settled(
    name: str | None, sweep: Sweep, before: Mapping[str, Any], resolved: Resolved, multirun: Multirun
) -> Question:
    """The question that these runs answer. Raises UserError where it is not the one that the sweep began with."""
    baseline = _baseline(sweep, before, resolved.points)
    target = _target(sweep, before, resolved)
    published = _of_corpus(sweep, resolved, "published") or before.get("published", {})
    paired = _paired(name, sweep, before)
    check_extension(name, before, resolved.points, resolved.configs, multirun)
    return Question(baseline, target, published, paired, _confounds(sweep, before, resolved, multirun, baseline))


def said(sweep: Sweep, before: Mapping[str, Any], key: str) -> Any:
    """What this launch says of its sweep, else what an earlier one said."""
    value = getattr(sweep, key)
    return before.get(key, value) if value in (None, {}) else value


def _baseline(sweep: Sweep, before: Mapping[str, Any], points: Sequence[PlannedPoint]) -> str:
    """The declared arm, else the one the sweep was begun with, else the first without sources, else the first."""
    arms = sweep_file.arms(points)
    declared = sweep.baseline or before.get("baseline")
    if declared is not None:
        valid = dict.fromkeys([*(arm for arm, *_ in known_points(before)), *arms])
        if declared not in valid:
            raise UserError(f"sweep.baseline={declared} is not an arm of this sweep; valid: {', '.join(valid)}")
        return declared
    return next((arm for arm, points in arms.items() if not points[0].sources), next(iter(arms)))


def _target(sweep: Sweep, before: Mapping[str, Any], resolved: Resolved) -> float | None:
    """The target that was said outright, or that of the corpus, where all runs have the same one."""
    of_corpus = _of_corpus(sweep, resolved, "targets")
    if sweep.target is not None:
        return sweep.target
    return before.get("target") if of_corpus is None else of_corpus


def _of_corpus(sweep: Sweep, resolved: Resolved, key: str) -> Any:
    """What the sweep's `key` says of the corpus that all runs have; None where they have several.

    Raises UserError for a corpus that does not exist.
    """
    given = getattr(sweep, key)
    for corpus in given:
        if corpus not in choices(Data):
            raise UserError(f"sweep.{key}: {corpus} is no choice of data; valid: {', '.join(sorted(choices(Data)))}")
    corpora = {config.data.name for config in resolved.configs.values()}
    return given.get(corpora.pop()) if len(corpora) == 1 else None


def _paired(name: str | None, sweep: Sweep, before: Mapping[str, Any]) -> bool:
    """As first launched. Raises UserError where pairs are declared, or revoked, after the fact."""
    asked, earlier = sweep.paired, bool(before.get("paired", False))
    if before and asked is not None and asked != earlier:
        raise UserError(
            f"sweep {name} was first launched with sweep.paired={str(earlier).lower()}, which cannot change once "
            "there may be results; choose another sweep.name"
        )
    return earlier if before else bool(asked)


def _confounds(
    sweep: Sweep, before: Mapping[str, Any], resolved: Resolved, multirun: Multirun, baseline: str
) -> dict[str, list[str]]:
    """Arm -> keys in which it differs besides what it may, those of earlier launches included.

    Raises UserError for those of this launch unless `sweep.allow_confound`.
    """

    @cache
    def settings(run: str) -> dict[str, Any]:
        return leaves(recipe_of(resolved.configs.get(run) or multirun.run(run).read_config()))

    points = confound.Points(
        now={point.key: point.run for point in resolved.points},
        before={
            key: known.run for key, known in known_points(before).items() if multirun.run(known.run).config.exists()
        },
        drawn=resolved.drawn,
        settings=settings,
    )
    may_differ = said(sweep, before, "may_differ")
    confound.check_keys(sweep.may_differ or ())
    found = list(confound.within_arms(points))
    if may_differ is not None:
        found += confound.against_baseline(points, baseline, may_differ)
    if found and not sweep.allow_confound:
        raise UserError(confound.told(found))
    keys = {arm: set(keys) for arm, keys in before.get("confounds", {}).items()}
    for one in found:
        keys.setdefault(one.arm, set()).add(one.key)
    return {arm: sorted(of_arm) for arm, of_arm in keys.items()}
