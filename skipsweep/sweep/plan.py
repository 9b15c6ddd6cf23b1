"""From points to runs: resolve, validate, name, merge equal ones, find the finished. Imports no torch.

A *point* is one choice on the sweep's axes; several points may be the same run. An *arm* is the points that differ only
in their seed.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from skipsweep import files, provenance
from skipsweep.config import Config, Data, Paths, Random, RunConfig, Sweep, choices, leaves, recipe_of
from skipsweep.data import prepare
from skipsweep.data.corpus import Corpus, open_corpus
from skipsweep.errors import UserError
from skipsweep.rundir import SINGLE, Multirun, names_a_folder
from skipsweep.status import Observation, observe
from skipsweep.sweep import confound, identity, select
from skipsweep.sweep.canonical import canonical_form
from skipsweep.sweep.ranking import Rankings
from skipsweep.sweep.validate import validate

MAX_ALIKE = 5
"""Arms that are named as the same as earlier ones, before the others are only counted."""


@dataclass(frozen=True)
class Wanted:
    """A point as it was asked for."""

    arm: str
    config: Config
    overrides: tuple[str, ...]
    """What this point sets, as one would type it."""
    axes: tuple[str, ...] = ()
    """Keys that were swept over."""


@dataclass(frozen=True)
class Point:
    """A point as it was resolved."""

    arm: str
    seed: int
    replicate: int
    run: str
    """Name of the run it is served by."""
    overrides: tuple[str, ...]
    sources: list[select.Source]
    ordering: list[int] | None
    """The selection method's ordering, where `topN` was asked for: frozen here, never ranked anew in silence."""
    tags: tuple[str, ...]
    drawn: bool = False
    """Whether its seed has drawn its layers, so that they differ between the seeds of an arm."""

    @property
    def key(self) -> tuple[str, int, int]:
        """What makes a point of a sweep."""
        return self.arm, self.seed, self.replicate


@dataclass
class Plan:
    """What a launch is about to do."""

    multirun: Multirun
    sweep: Sweep
    name: str | None
    """The sweep's folder; None for a single run."""
    points: list[Point]
    configs: dict[str, RunConfig]
    """Run name -> frozen configuration, in order of first mention."""
    baseline: str | None
    command: str
    before: Mapping[str, Any] = field(default_factory=dict)
    """plan.json as an earlier launch of this sweep left it."""
    target: float | None = None
    """Validation loss to reach on the corpus of these runs."""
    published: Mapping[str, Any] = field(default_factory=dict)
    """Arm -> published figures on the corpus of these runs."""
    rankings: Mapping[str, list[int]] = field(default_factory=dict)
    """Sweep -> layers from best to worst as it ranks them, where `selection_method.ranking_from` asks for that."""
    confounds: Mapping[str, list[str]] = field(default_factory=dict)
    """Arm -> keys in which it differs besides what it may."""
    notes: list[str] = field(default_factory=list)
    """What a user should know before this is launched, a line each."""
    observations: dict[str, Observation] = field(default_factory=dict)

    def to_run(self, retry: str) -> list[str]:
        """Runs that are neither finished nor, unless asked for with `retry=failed`, failed."""
        skip = {"done"} if retry == "failed" else {"done", "failed"}
        return [run for run in self.configs if self.observations[run].state not in skip]

    def arms(self) -> dict[str, list[Point]]:
        """Arm -> its points, in order of first mention."""
        grouped: dict[str, list[Point]] = {}
        for point in self.points:
            grouped.setdefault(point.arm, []).append(point)
        return grouped

    def observe(self) -> None:
        """Look at all runs anew."""
        self.observations = {name: observe(self.multirun.run(name)) for name in self.configs}


def make(wanted: Sequence[Wanted], command: str, single: bool) -> Plan:
    """Resolve points to runs.

    Raises UserError for whatever cannot be trained, before anything is written but the tokenised corpus.
    """
    if not wanted:
        raise UserError("the sweep has no points")
    _check_axes(wanted)
    first = wanted[0].config
    multirun = Multirun(resolve_folder(first.paths.multirun))
    given = _given_name(first.sweep)
    before = _before(multirun, given)
    rankings = Rankings(multirun, before.get("rankings", {}))
    corpora: dict[Any, tuple[Data, Corpus]] = {}
    configs: dict[str, RunConfig] = {}
    points = []
    for point in [_ranked(point, rankings) for point in wanted]:
        run = _resolve(point.config, corpora)
        name = identity.name(recipe_of(run))
        configs.setdefault(name, run)
        points.append(_point(point, run, name))
    points = _merge(points)
    sweep = first.sweep
    name = given or (None if single else _own_name(points, wanted))
    if name != given:
        before = _before(multirun, name)
    plan = Plan(multirun, sweep, name, points, configs, None, command, before)
    plan.rankings, plan.notes = rankings.used, [*rankings.notes, *_served_alike(plan.arms())]
    with accessible(multirun):
        plan.baseline = _baseline(plan)
        plan.target = _target(plan)
        plan.published = _of_corpus(plan, "published") or plan.before.get("published", {})
        _check_paired(plan)
        _check_runs(plan)
        check_extension(plan)
        plan.confounds = _confounds(plan)
        plan.observe()
    return plan


def _served_alike(arms: Mapping[str, Sequence[Point]]) -> Iterator[str]:
    """A note on the arms that are served by the very same runs as an earlier one: their difference is naught."""
    first: dict[tuple[str, ...], str] = {}
    alike = []
    for arm, points in arms.items():
        original = first.setdefault(tuple(sorted(point.run for point in points)), arm)
        if original != arm:
            alike.append(f"{arm} is {original}: the same runs")
    yield from alike[:MAX_ALIKE]
    if len(alike) > MAX_ALIKE:
        yield f"... and {len(alike) - MAX_ALIKE} more arms that are earlier ones"


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


def _ranked(point: Wanted, rankings: Rankings) -> Wanted:
    """The point with its ranking written out, as one would type it too."""
    ranking = rankings.of(point.config)
    if ranking is None:
        return point
    method = replace(point.config.selection_method, ranking=ranking)
    text = f"selection_method.ranking=[{','.join(map(str, ranking))}]"
    return replace(point, config=replace(point.config, selection_method=method), overrides=(*point.overrides, text))


def _check_axes(wanted: Sequence[Wanted]) -> None:
    """Raise UserError for a sweep over what belongs to the whole sweep."""
    for key in dict.fromkeys(key for point in wanted for key in point.axes):
        if key in ("plan", "retry") or key.startswith(("sweep.", "paths.")):
            raise UserError(f"{key} cannot be swept over: it belongs to the whole sweep")


def resolve_folder(path: str) -> Path:
    """An absolute path; relative ones start at the checkout, wherever the command was typed."""
    return (provenance.CHECKOUT / Path(path).expanduser()).resolve()


def _resolve(config: Config, corpora: dict[Any, tuple[Data, Corpus]]) -> RunConfig:
    """The canonical configuration of one point. `corpora` remembers what this planning has resolved already."""
    validate(config)
    root = prepare.data_root(config.paths)
    key = (type(config.data), *vars(config.data).values(), root)
    if key not in corpora:
        data = prepare.resolve(config.data, root)
        corpora[key] = data, open_corpus(data, root)
    data, made = corpora[key]
    passes = prepare.check_enough(data, config.schedule.steps, made)
    run = canonical_form(config, replace(data, epochs=passes))
    return replace(run, paths=Paths(str(resolve_folder(config.paths.multirun)), str(root)))


def _point(wanted: Wanted, run: RunConfig, name: str) -> Point:
    config = wanted.config
    tops = select.tops(config.skip_layers.layers)
    order = select.ordering(config.selection_method, config.model.layers, config.seed) if tops else None
    sources = run.skip_layers.layers
    method = config.selection_method.name if tops else "given"
    kind = "none" if not sources else "single_layer" if len(sources) == 1 else "multi_layer"
    tag = kind if len(sources) < 2 else f"{kind}/{method}/N={len(sources)}"
    drawn = bool(tops) and isinstance(config.selection_method, Random) and config.selection_method.seed is None
    return Point(wanted.arm, config.seed, config.replicate, name, wanted.overrides, sources, order, (tag,), drawn)


def _merge(points: list[Point]) -> list[Point]:
    """Drop repetitions of the very same point (`seed=1,1`)."""
    return list({(*point.key, point.run): point for point in points}.values())


def _own_name(points: list[Point], wanted: Sequence[Wanted]) -> str:
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


def _baseline(plan: Plan) -> str | None:
    """The arm that others are compared with: the declared one, else the one the sweep was begun with, else the first
    without sources, else the first."""
    arms = plan.arms()
    declared = plan.sweep.baseline or plan.before.get("baseline")
    if declared is not None:
        valid = dict.fromkeys([*(arm for arm, *_ in known_points(plan.before)), *arms])
        if declared not in valid:
            raise UserError(f"sweep.baseline={declared} is no arm of this sweep; valid: {', '.join(valid)}")
        return declared
    return next((arm for arm, points in arms.items() if not points[0].sources), next(iter(arms)))


def _target(plan: Plan) -> float | None:
    """The target that was said outright, or that of the corpus, where all runs have the same one."""
    of_corpus = _of_corpus(plan, "targets")
    if plan.sweep.target is not None:
        return plan.sweep.target
    return plan.before.get("target") if of_corpus is None else of_corpus


def _of_corpus(plan: Plan, key: str) -> Any:
    """What the sweep's `key` says of the corpus that all runs have; None where they have several.

    Raises UserError for a corpus that does not exist.
    """
    given = getattr(plan.sweep, key)
    for corpus in given:
        if corpus not in choices(Data):
            raise UserError(f"sweep.{key}: {corpus} is no choice of data; valid: {', '.join(sorted(choices(Data)))}")
    corpora = {config.data.name for config in plan.configs.values()}
    return given.get(corpora.pop()) if len(corpora) == 1 else None


def _check_paired(plan: Plan) -> None:
    """Raise UserError where pairs are declared, or revoked, after the fact."""
    asked, before = plan.sweep.paired, plan.before.get("paired", False)
    if plan.before and asked is not None and asked != before:
        raise UserError(
            f"sweep {plan.name} was first launched with sweep.paired={str(before).lower()}, which cannot change once "
            "there may be results; choose another sweep.name"
        )


def _check_runs(plan: Plan) -> None:
    """Raise UserError where a run on disk was made with a default that has moved since."""
    for name, config in plan.configs.items():
        try:
            frozen = files.read_json(plan.multirun.run(name).identity)
        except ValueError:
            continue  # torn by a power cut: freezing writes it anew
        if frozen is not None:
            identity.check_drift(name, frozen, config)


def check_extension(plan: Plan) -> None:
    """Raise UserError where a sweep of this name has the same point as another run: an arm keeps its meaning."""
    known = known_points(plan.before)
    for point in plan.points:
        run = known.get(point.key, {}).get("run", point.run)
        if run != point.run:
            raise UserError(
                f"sweep {plan.name} already has {point.arm} with seed {point.seed} as run {run}, now it would be "
                f"{point.run}; choose another sweep.name, or the settings it was begun with"
            )


def known_points(document: Mapping[str, Any]) -> dict[tuple[Any, ...], dict[str, Any]]:
    return {tuple(point["key"]): point for point in document.get("points", [])}


def _confounds(plan: Plan) -> dict[str, list[str]]:
    """Arm -> keys in which it differs besides what it may, those of earlier launches included.

    Raises UserError for the first of this launch unless `sweep.allow_confound`.
    """
    points = confound.Points(
        now={point.key: point.run for point in plan.points},
        before={key: run for key, run in _earlier(plan) if plan.multirun.run(run).config.exists()},
        drawn={point.arm for point in plan.points if point.drawn},
        settings=cache(lambda run: _settings(plan, run)),
    )
    may_differ = of_sweep(plan, "may_differ")
    found = list(confound.within_arms(points))
    if may_differ is not None and plan.baseline is not None:
        found += confound.against_baseline(points, plan.baseline, may_differ)
    if found and not plan.sweep.allow_confound:
        raise UserError(found[0].told)
    keys = {arm: set(keys) for arm, keys in plan.before.get("confounds", {}).items()}
    for one in found:
        keys.setdefault(one.arm, set()).add(one.key)
    return {arm: sorted(of_arm) for arm, of_arm in keys.items()}


def _earlier(plan: Plan) -> Iterator[tuple[tuple[Any, ...], str]]:
    """Key and run of every point of earlier launches."""
    return ((key, known["run"]) for key, known in known_points(plan.before).items())


def _settings(plan: Plan, run: str) -> dict[str, Any]:
    """Of a run of this launch, or of an earlier one."""
    config = plan.configs.get(run) or plan.multirun.run(run).read_config()
    return leaves(recipe_of(config))


def of_sweep(plan: Plan, key: str) -> Any:
    """What this launch says of its sweep, else what an earlier one said."""
    value = getattr(plan.sweep, key)
    return plan.before.get(key, value) if value in (None, {}) else value
