"""From points to runs: read each point's ranking, resolve its configuration, name its run, merge equal ones.

A choice on the sweep's axes is a GridPoint (`sweep/request.py`) when it is expanded, a ComposedPoint with its
configuration, and a PlannedPoint (`sweep_file.py`) once its run is known.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from skipsweep import provenance
from skipsweep.analyze.descriptive import same_runs
from skipsweep.config import Config, Data, Paths, Random, RunConfig, recipe_of
from skipsweep.data import prepare
from skipsweep.data.corpus import Corpus, open_corpus
from skipsweep.errors import UserError
from skipsweep.rundir import Multirun
from skipsweep.sweep import identity, select
from skipsweep.sweep.canonical import canonical_form
from skipsweep.sweep.ranking import Rankings
from skipsweep.sweep.validate import validate
from skipsweep.sweep_file import GIVEN, RANKING, PlannedPoint, arms

MAX_ALIKE = 5
"""Arms that are named as the same as earlier ones, before the others are only counted."""


@dataclass(frozen=True)
class ComposedPoint:
    """A point as it was asked for, with the configuration that its overrides compose to."""

    arm: str
    config: Config
    overrides: tuple[str, ...]
    """What this point sets, as one would type it."""
    axes: tuple[str, ...] = ()
    """Keys that were swept over."""
    block: str | None = None
    """Name of the block of `sweep.arms` it comes from."""


@dataclass(frozen=True)
class Resolved:
    """The points of a launch, and what serves them."""

    points: list[PlannedPoint]
    configs: dict[str, RunConfig]
    """Run name -> canonical configuration, in order of first mention."""
    rankings: Mapping[str, list[int]]
    """Sweep -> layers from best to worst as it ranks them, where `selection_method.ranking_from` asks for that."""
    ranked_by: Mapping[str, list[str]]
    """Sweep -> the runs whose results rank them, where this launch has read them."""
    drawn: frozenset[str]
    """Arms whose layers are drawn by their seed."""
    notes: list[str]
    """What a user should know, a line each."""


def resolve_points(wanted: Sequence[ComposedPoint], multirun: Multirun, frozen: Mapping[str, list[int]]) -> Resolved:
    """`frozen`: rankings that an earlier launch of this sweep has used. Raises UserError for what cannot be trained."""
    rankings = Rankings(multirun, frozen)
    corpora: dict[Any, tuple[Data, Corpus]] = {}
    configs: dict[str, RunConfig] = {}
    points = []
    ranked = [_ranked(point, rankings) for point in wanted]
    for point in ranked:
        try:
            run = _resolve(point.config, corpora)
        except UserError as error:
            if point.block is not None and any(_fault(other, corpora) != str(error) for other in ranked):
                raise UserError(f"in sweep.arms.{point.block}: {error}") from error
            raise  # whatever the arm
        name = identity.name(recipe_of(run))
        configs.setdefault(name, run)
        points.append(_point(point, run, name))
    points = _merge(points)
    drawn = frozenset(point.arm for point in wanted if _is_drawn(point.config))
    return Resolved(
        points, configs, rankings.used, rankings.ranked_by, drawn, [*rankings.notes, *_served_alike(arms(points))]
    )


def _fault(point: ComposedPoint, corpora: dict[Any, tuple[Data, Corpus]]) -> str | None:
    """What is wrong with a point, if anything is."""
    try:
        _resolve(point.config, corpora)
    except UserError as error:
        return str(error)
    return None


def _ranked(point: ComposedPoint, rankings: Rankings) -> ComposedPoint:
    """The point with its ranking written out, as one would type it too."""
    ranking = rankings.of(point.config)
    if ranking is None:
        return point
    method = replace(point.config.selection_method, ranking=ranking)
    text = f"{RANKING}[{','.join(map(str, ranking))}]"
    return replace(point, config=replace(point.config, selection_method=method), overrides=(*point.overrides, text))


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


def _point(composed: ComposedPoint, run: RunConfig, name: str) -> PlannedPoint:
    config = composed.config
    tops = select.tops(config.skip_layers.layers)
    order = select.ordering(config.selection_method, config.model.layers, config.seed) if tops else None
    sources = run.skip_layers.layers
    return PlannedPoint(
        arm=composed.arm,
        seed=config.seed,
        replicate=config.replicate,
        run=name,
        sources=tuple(sources),
        method=config.selection_method.name if tops and len(sources) > 1 else GIVEN,
        ordering=None if order is None else tuple(order),
        overrides=composed.overrides,
    )


def _is_drawn(config: Config) -> bool:
    """Whether a run's seed draws its layers, so that they differ between the seeds of an arm."""
    method = config.selection_method
    return bool(select.tops(config.skip_layers.layers)) and isinstance(method, Random) and method.seed is None


def _merge(points: list[PlannedPoint]) -> list[PlannedPoint]:
    """Drop repetitions of the very same point (`seed=1,1`)."""
    return list({(*point.key, point.run): point for point in points}.values())


def _served_alike(arms: Mapping[str, Sequence[PlannedPoint]]) -> Iterator[str]:
    """A note on the arms that are served by the very same runs as an earlier one: they differ by exactly 0."""
    same = same_runs({arm: [point.run for point in points] for arm, points in arms.items()})
    alike = [f"{arm} is {original}: the same runs" for arm, original in same.items()]
    yield from alike[:MAX_ALIKE]
    if len(alike) > MAX_ALIKE:
        yield f"... and {len(alike) - MAX_ALIKE} more arms that are the same runs as earlier ones"
