"""From points to runs: resolve, validate, name, merge equal ones, find the finished. Imports no torch.

A *point* is one choice on the sweep's axes; several points may be the same run. An *arm* is the points that differ only
in their seed.
"""

import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from skipsweep import files, provenance
from skipsweep.config import Config, Data, Paths, RunConfig, Sweep, leaves, recipe_of, world_size
from skipsweep.data import prepare
from skipsweep.data.corpus import open_corpus
from skipsweep.errors import UserError
from skipsweep.model import count
from skipsweep.rundir import Multirun, RunDir, SweepDir
from skipsweep.status import Observation, observe
from skipsweep.sweep import identity, select
from skipsweep.sweep.validate import validate

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=,-]{0,99}")
STARTUP_S = 6.0
"""Seconds that a run takes besides training: imports, warm-up, validation at the start (measured on 2 cores)."""


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
    corpora: dict[Any, Data] = {}
    configs: dict[str, RunConfig] = {}
    points = []
    for point in wanted:
        run = _resolve(point.config, corpora)
        name = identity.name(recipe_of(run))
        configs.setdefault(name, run)
        points.append(_point(point, run, name))
    points = _merge(points)
    sweep = first.sweep
    name = None if single and sweep.name is None else _sweep_name(sweep, points, wanted)
    plan = Plan(multirun, sweep, name, points, configs, None, command)
    with _accessible(multirun):
        if name is not None:
            plan.before = files.read_json(multirun.sweep(name).plan) or {}
        plan.baseline = _baseline(plan)
        _check_runs(plan)
        _check_extension(plan)
        _check_may_differ(plan)
        plan.observe()
    return plan


@contextmanager
def _accessible(multirun: Multirun) -> Iterator[None]:
    """Raise UserError where the folder of runs cannot be read or written."""
    try:
        yield
    except OSError as problem:
        where = problem.filename or multirun.path
        raise UserError(f"cannot use {where}: {problem.strerror}; set paths.multirun to another folder") from problem


def _check_axes(wanted: Sequence[Wanted]) -> None:
    """Raise UserError for a sweep over what belongs to the whole sweep."""
    for key in dict.fromkeys(key for point in wanted for key in point.axes):
        if key in ("plan", "retry") or key.startswith(("sweep.", "paths.")):
            raise UserError(f"{key} cannot be swept over: it belongs to the whole sweep")


def resolve_folder(path: str) -> Path:
    """An absolute path; relative ones start at the checkout, wherever the command was typed."""
    return (provenance.CHECKOUT / Path(path).expanduser()).resolve()


def _resolve(config: Config, corpora: dict[Any, Data]) -> RunConfig:
    """The canonical configuration of one point. `corpora` remembers what this planning has resolved already."""
    validate(config)
    key = (type(config.data), *vars(config.data).values(), config.paths.data)
    key += (config.schedule.steps,)
    if key not in corpora:
        root = prepare.data_root(config.paths)
        data = prepare.resolve(config.data, root)
        passes = prepare.check_enough(data, config.schedule.steps, open_corpus(data, root))
        corpora[key] = replace(data, epochs=passes)
    run = identity.canonical(config, corpora[key])
    data_root = str(prepare.data_root(config.paths))
    return replace(run, paths=Paths(str(resolve_folder(config.paths.multirun)), data_root))


def _point(wanted: Wanted, run: RunConfig, name: str) -> Point:
    config = wanted.config
    asked = config.skip_layers.layers
    tops = [item for item in (asked if isinstance(asked, list) else [asked]) if str(item).startswith("top")]
    order = select.ordering(config.selection_method, config.model.layers, config.seed) if tops else None
    sources = run.skip_layers.layers
    method = config.selection_method.name if tops else "given"
    kind = "none" if not sources else "single_layer" if len(sources) == 1 else "multi_layer"
    tag = kind if len(sources) < 2 else f"{kind}/{method}/N={len(sources)}"
    return Point(wanted.arm, config.seed, config.replicate, name, wanted.overrides, sources, order, (tag,))


def _merge(points: list[Point]) -> list[Point]:
    """Drop repetitions of the very same point (`seed=1,1`)."""
    return list({(*point.key, point.run): point for point in points}.values())


def _sweep_name(sweep: Sweep, points: list[Point], wanted: Sequence[Wanted]) -> str:
    """The given name, or a slug and a hash of the points.

    Raises UserError for a name that would leave multirun/sweeps.
    """
    if sweep.name is not None:
        if not _NAME.fullmatch(sweep.name):
            raise UserError(
                f"sweep.name={sweep.name!r} cannot name a folder; valid: up to 100 letters, digits and ._+=,- , "
                "beginning with a letter or digit"
            )
        return sweep.name
    keys = dict.fromkeys(key for point in wanted for key in point.axes)
    slug = re.sub(r"[^A-Za-z0-9_-]+", "-", "-".join(keys))[:60].strip("-_")
    digest = identity.digest(sorted((*point.key, point.run) for point in points))
    return f"{slug or 'sweep'}-{digest}"


def _baseline(plan: Plan) -> str | None:
    """The arm that others are compared with: the declared one, else the one the sweep was begun with, else the first
    without sources, else the first."""
    arms = plan.arms()
    declared = plan.sweep.baseline or plan.before.get("baseline")
    if declared is not None:
        valid = dict.fromkeys([*(arm for arm, *_ in _known_points(plan.before)), *arms])
        if declared not in valid:
            raise UserError(f"sweep.baseline={declared} is no arm of this sweep; valid: {', '.join(valid)}")
        return declared
    return next((arm for arm, points in arms.items() if not points[0].sources), next(iter(arms)))


def _check_runs(plan: Plan) -> None:
    """Raise UserError where a run on disk was made with a default that has moved since."""
    for name, config in plan.configs.items():
        try:
            frozen = files.read_json(plan.multirun.run(name).identity)
        except ValueError:
            continue  # torn by a power cut: freezing writes it anew
        if frozen is not None:
            identity.check_drift(name, frozen, config)


def _check_extension(plan: Plan) -> None:
    """Raise UserError where a sweep of this name has the same point as another run: an arm keeps its meaning."""
    known = _known_points(plan.before)
    for point in plan.points:
        run = known.get(point.key, {}).get("run", point.run)
        if run != point.run:
            raise UserError(
                f"sweep {plan.name} already has {point.arm} with seed {point.seed} as run {run}, now it would be "
                f"{point.run}; choose another sweep.name, or the settings it was begun with"
            )


def _known_points(document: Mapping[str, Any]) -> dict[tuple[Any, ...], dict[str, Any]]:
    return {tuple(point["key"]): point for point in document.get("points", [])}


def _check_may_differ(plan: Plan) -> None:
    """Raise UserError where an arm differs from the baseline in more than the sweep declares."""
    declared = _of_sweep(plan, "may_differ")
    if declared is None or plan.baseline is None:
        return
    # The number of epochs that a run begins follows from its steps.
    allowed = [*declared, "seed", "replicate", "data.epochs"]
    base = _settings_of_arm(plan, plan.baseline)
    for arm in plan.arms():
        own = _settings_of_arm(plan, arm)
        for key in sorted(own.keys() | base.keys()):
            if own.get(key) != base.get(key) and not any(key == a or key.startswith(f"{a}.") for a in allowed):
                raise UserError(
                    f"arm {arm} differs from the baseline {plan.baseline} in {key} "
                    f"({base.get(key)} -> {own.get(key)}); sweep.may_differ={declared} does not allow that"
                )


def _settings_of_arm(plan: Plan, arm: str) -> dict[str, Any]:
    """Those of its first point; the arm may be one of an earlier launch."""
    run = next((point.run for point in plan.points if point.arm == arm), None)
    if run is not None:
        return leaves(recipe_of(plan.configs[run]))
    run = next(known["run"] for key, known in _known_points(plan.before).items() if key[0] == arm)
    return leaves(recipe_of(plan.multirun.run(run).read_config()))


def _of_sweep(plan: Plan, key: str) -> Any:
    """What this launch says of its sweep, else what an earlier one said."""
    value = getattr(plan.sweep, key)
    return plan.before.get(key, value) if value in (None, {}) else value


# ------------------------------------------------------------------------------------------------------------- estimate


def flops(config: RunConfig) -> float:
    """Floating-point operations of a whole run."""
    per_token = sum(count.flops_per_token(recipe_of(config)).values())
    return float(per_token) * config.schedule.steps * config.data.batch_tokens


def estimate_seconds(plan: Plan, runs: Sequence[str], parallel: int) -> float | None:
    """Wall time of `runs`, `parallel` at a time, from throughputs measured before; None until there are any."""
    rows = list(files.read_rows(plan.multirun.speeds))
    total = 0.0
    for run in runs:
        speed = _speed(rows, plan.configs[run])
        if speed is None:
            return None
        total += flops(plan.configs[run]) / speed + STARTUP_S
    # Runs side by side share the cores that were measured, unless each has a device of its own.
    on_gpu = all(plan.configs[run].compute.device == "cuda" for run in runs)
    return total / parallel if on_gpu else total


def _speed(rows: Sequence[Mapping[str, Any]], config: RunConfig) -> float | None:
    """FLOP/s of the last run that was most like this one."""
    shape = [config.model.layers, config.model.dim, config.data.seq_len]
    alike = [r for r in rows if r["device"] == config.compute.device and r["world_size"] == world_size(config.compute)]
    same = [r for r in alike if r["model"] == shape]
    return (same or alike)[-1]["flops_per_s"] if alike else None


# --------------------------------------------------------------------------------------------------------------- freeze


def freeze(plan: Plan, retry: str) -> None:
    """Write what the jobs will execute.

    Raises UserError where the disk is full or multirun/ cannot be written, with nothing started.
    """
    with _accessible(plan.multirun):
        _check_space(plan, retry)
        for name in plan.configs:
            if plan.observations[name].state not in ("done", "running") and plan.observations[name].job is None:
                _freeze_run(plan.multirun.run(name), plan.configs[name])
        if plan.name is not None:
            _freeze_sweep(plan, plan.multirun.sweep(plan.name))
        _note_serves(plan)


def _freeze_run(run: RunDir, config: RunConfig) -> None:
    run.freeze(config, identity.document(config))


def _check_space(plan: Plan, retry: str) -> None:
    """Two checkpoints of every run that trains at once would fit at the very least."""
    plan.multirun.path.mkdir(parents=True, exist_ok=True)
    todo = plan.to_run(retry)
    if not todo:
        return
    # Weights and two moments, twice while running, and once more while a third is written.
    need = max(9 * 4 * sum(count.parameters(recipe_of(plan.configs[run])).values()) for run in todo)
    kept = sum(4 * sum(count.parameters(recipe_of(plan.configs[run])).values()) for run in todo)
    free = shutil.disk_usage(plan.multirun.path).free
    if free < need + kept:
        raise UserError(
            f"no space left: {plan.multirun.path} has {free / 1e6:,.1f} MB free, checkpoints of {len(todo)} "
            f"run(s) need {(need + kept) / 1e6:,.1f} MB; free some, or set paths.multirun"
        )


def _freeze_sweep(plan: Plan, folder: SweepDir) -> None:
    """Write plan.json, uniting it with an earlier one of the same name: that is how a sweep is extended."""
    folder.path.mkdir(parents=True, exist_ok=True)
    with files.locked(folder.path):
        plan.before = files.read_json(folder.plan) or {}
        _check_extension(plan)  # once more: another launcher may have been at it since
        files.write_json(folder.plan, _sweep_document(plan))


def _sweep_document(plan: Plan) -> dict[str, Any]:
    before = plan.before
    points = _known_points(before) | {point.key: _point_document(point) for point in plan.points}
    return {
        "name": plan.name,
        **{key: _of_sweep(plan, key) for key in ("question", "source", "target", "may_differ", "published")},
        "baseline": plan.baseline,
        "points": list(points.values()),
        "commands": [*before.get("commands", []), plan.command][-50:],
        "commit": provenance.commit(),
        "code": provenance.code_hash(),
        "created": before.get("created", time.time()),
        "updated": time.time(),
    }


def _point_document(point: Point) -> dict[str, Any]:
    return {
        "key": list(point.key),
        "run": point.run,
        "overrides": list(point.overrides),
        "sources": point.sources,
        "ordering": point.ordering,
        "tags": list(point.tags),
    }


def _note_serves(plan: Plan) -> None:
    """Tell every run which points it serves: runs may be wanted by several sweeps."""
    by_run: dict[str, dict[str, Any]] = {}
    for point in plan.points:
        entry = by_run.setdefault(point.run, {"arm": point.arm, "tags": []})
        entry["tags"] = sorted({*entry["tags"], *point.tags})
    for name, entry in by_run.items():
        plan.multirun.run(name).note_serves({plan.name or "single": entry})
