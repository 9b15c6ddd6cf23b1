"""What one or several sweeps left on disk, read once: the plan's points and the run folders behind them.

Tolerant: a folder that is missing, half written or damaged is a run without a result, never an error. Everything that
analysis knows comes through here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from skipsweep import files
from skipsweep.errors import UserError
from skipsweep.rundir import Multirun, RunDir, names_a_folder
from skipsweep.status import observe

OUTCOMES = ("done", "failed", "running", "missing")
"""What can have become of a planned run; every run has exactly one."""
INTEGERS = ("attempt", "step", "tokens")
"""Keys of a metric row that count something."""


@dataclass(frozen=True)
class Environment:
    """Where and with what a run's attempts were executed: each distinct value once, in order."""

    hosts: tuple[str, ...] = ()
    gpus: tuple[str, ...] = ()
    commits: tuple[str, ...] = ()
    codes: tuple[str, ...] = ()
    """Hashes of the package's sources."""
    torch: tuple[str, ...] = ()
    world_sizes: tuple[int, ...] = ()
    results_version: int | None = None


@dataclass(frozen=True)
class Run:
    """One run folder."""

    name: str
    state: str
    """As `skipsweep status` says it: a state of status.json, `interrupted`, or `new` without a folder."""
    cause: str | None = None
    """Of a failure; or which of its files is damaged."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """identity.json's complete recipe, nested as in config.yaml; empty where the run was imported without one."""
    result: Mapping[str, Any] | None = None
    """result.json, where the run got to its end."""
    env: Environment = Environment()
    imported: bool = False
    """Made from somebody's log, not trained here."""
    folder: RunDir | None = None

    @property
    def outcome(self) -> str:
        """One of `OUTCOMES`."""
        if self.result is not None:
            return "done"
        return self.state if self.state in ("failed", "running") else "missing"

    @property
    def val_loss(self) -> float | None:
        """Final validation loss in nats per token; None unless the run is done."""
        return None if self.result is None else float(self.result["val_loss"])

    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl, one per step in order of steps: of a step written twice the last attempt's, torn
        lines skipped. Read when first asked for, then kept."""
        table = self._table
        steps = len(table.get("step", ()))
        found: list[dict[str, Any]] = [{} for _ in range(steps)]
        for key, column in table.items():
            convert = int if key in INTEGERS else float
            for i in np.flatnonzero(~np.isnan(column)):
                found[i][key] = convert(column[i])
        return found

    def series(self, key: str) -> np.ndarray:
        """(rows with `key`, 3) float64: step, training time in seconds (nan where unknown), value."""
        table = self._table
        if key not in table:
            return np.empty((0, 3))
        columns = [table["step"], table.get("train_time_s", np.full_like(table["step"], np.nan)), table[key]]
        return np.stack(columns, axis=1)[~np.isnan(table[key])]

    def keys(self) -> list[str]:
        """What was recorded at any step: `val/loss`, `lambda/skip/5`, `lr/head`, ..."""
        return list(self._table)

    def mixed_shares(self) -> list[tuple[int, str, float]]:
        """(layer, term, norm-corrected weight) of what every block's input is a sum of; empty unless the weights have
        been read (`skipsweep inspect`, `record.inspect=true`)."""
        sums = _document(self.folder.inspection_json).get("shares") if self.folder else None
        try:
            return [
                (int(one["layer"]), str(term["name"]), float(term["share"]))
                for one in sums or ()
                if one["mechanism"] == "mix"
                for term in one["terms"]
                if term["share"] is not None
            ]
        except (KeyError, TypeError, ValueError):
            return []

    @cached_property
    def _table(self) -> dict[str, np.ndarray]:
        """Key -> one float64 per row, nan where the row has no number: a tenth of what dicts would take."""
        try:
            rows = self.folder.read_metrics() if self.folder else []
        except (OSError, TypeError):
            return {}
        columns: dict[str, np.ndarray] = {}
        for i, row in enumerate(rows):
            for key, value in row.items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    if key not in columns:
                        columns[key] = np.full(len(rows), np.nan)
                    columns[key][i] = value
        return columns


@dataclass(frozen=True)
class Point:
    """One choice on a sweep's axes; several points may be served by the same run."""

    arm: str
    seed: int
    replicate: int
    run: str
    sources: tuple[Any, ...] = ()
    ordering: tuple[int, ...] | None = None
    """The selection method's ordering as frozen when planned, where `topN` was asked for."""
    tags: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    sweep: str = ""


@dataclass(frozen=True)
class Evidence:
    """Everything a report is made from."""

    names: tuple[str, ...]
    """The sweeps asked for."""
    question: str | None
    source: str | None
    """Where the question comes from."""
    baseline: str | None
    """The arm that others are compared with."""
    target: float | None
    """Validation loss to reach."""
    may_differ: tuple[str, ...] | None
    published: Mapping[str, Any]
    """Arm -> published figures (mean, n, sd, ...)."""
    confounds: Mapping[str, Sequence[str]]
    """Arm -> keys in which it differs from the baseline besides the one in question."""
    paired: bool
    """Whether the experiment declared, before it ran, that runs of equal seed are to be compared in pairs."""
    commands: tuple[str, ...]
    points: tuple[Point, ...]
    runs: Mapping[str, Run]

    def arms(self) -> dict[str, list[Point]]:
        """Arm -> its points in order of seeds; the baseline first, the others as planned."""
        grouped: dict[str, list[Point]] = {}
        for point in self.points:
            grouped.setdefault(point.arm, []).append(point)
        order = sorted(grouped, key=lambda arm: arm != self.baseline)
        return {arm: sorted(grouped[arm], key=lambda p: (p.seed, p.replicate, p.run)) for arm in order}

    def of_arm(self, arm: str) -> list[Run]:
        """The runs that serve an arm, each once, in order of seeds."""
        return [self.runs[name] for name in dict.fromkeys(point.run for point in self.arms()[arm])]


def read(multirun: Multirun, names: Sequence[str]) -> Evidence:
    """Read sweeps and their runs; several sweeps are united: the first one's question, baseline and target hold.

    Raises UserError for a sweep that does not exist or whose plan cannot be read.
    """
    names = list(dict.fromkeys(names))
    if not names:
        raise UserError("no sweep named; `skipsweep status` lists them")
    plans = {name: read_plan(multirun, name) for name in names}
    wanted = [point for name, plan in plans.items() for point in _points(name, plan)]
    runs = {run: read_run(multirun.run(run)) for run in dict.fromkeys(point.run for point in wanted)}
    points, baseline = _unite(wanted, runs), plans[names[0]].get("baseline")
    return Evidence(
        names=tuple(names),
        question=_first(plans, "question"),
        source=_first(plans, "source"),
        baseline=baseline if any(point.arm == baseline for point in points) else None,
        target=as_number(_first(plans, "target")),
        may_differ=None if (keys := _first(plans, "may_differ")) is None else tuple(keys),
        published=_mapping(plans, "published"),
        confounds=_mapping(plans, "confounds"),
        paired=all(plan.get("paired") is True for plan in plans.values()),
        commands=tuple(dict.fromkeys(c for plan in plans.values() for c in plan.get("commands", []))),
        points=tuple(points),
        runs=runs,
    )


def read_plan(multirun: Multirun, name: str) -> dict[str, Any]:
    """plan.json of a sweep. Raises UserError where there is none, or it cannot be read."""
    folder = multirun.sweep(name)
    try:
        found = files.read_json(folder.plan) if names_a_folder(name) else None
    except (ValueError, OSError) as problem:
        raise UserError(
            f"{folder.plan} cannot be read ({problem}); the launch that made it writes it anew"
        ) from problem
    if found is None:
        known = ", ".join(sweep.name for sweep in multirun.all_sweeps()) or "none yet"
        raise UserError(f"no sweep {name} below {multirun.sweeps}; there are: {known}")
    if not isinstance(found, dict) or not isinstance(found.get("points"), list):
        raise UserError(f"{folder.plan} is no plan of a sweep: it has no list of points")
    return found


def _points(sweep: str, plan: Mapping[str, Any]) -> list[Point]:
    try:
        return [_point(sweep, point) for point in plan["points"]]
    except (KeyError, TypeError, ValueError) as problem:
        raise UserError(f"plan.json of sweep {sweep} has a point that cannot be read: {problem!r}") from problem


def _point(sweep: str, point: Mapping[str, Any]) -> Point:
    arm, seed, replicate = point["key"]
    order = point.get("ordering")
    return Point(
        arm=arm,
        seed=seed,
        replicate=replicate,
        run=point["run"],
        sources=tuple(point.get("sources") or ()),
        ordering=None if order is None else tuple(order),
        tags=tuple(point.get("tags") or ()),
        overrides=tuple(point.get("overrides") or ()),
        sweep=sweep,
    )


def _first(plans: Mapping[str, Mapping[str, Any]], key: str) -> Any:
    return next((plan[key] for plan in plans.values() if plan.get(key) is not None), None)


def _mapping(plans: Mapping[str, Mapping[str, Any]], key: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for plan in reversed(list(plans.values())):
        found |= plan.get(key) or {}
    return found


def as_number(value: Any) -> float | None:
    """A number from somebody's file; None for anything else, true and false among it."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


# ---------------------------------------------------------------------------------------------------- several sweeps


def _unite(points: Sequence[Point], runs: Mapping[str, Run]) -> list[Point]:
    """Arms of one name from several sweeps are one arm where they mean the same settings; else the later one's name
    gets its sweep's in front. A run counts once per arm."""
    meaning: dict[str, tuple[str, Any]] = {}
    united: dict[tuple[str, str], Point] = {}
    for point in points:
        sweep, settings = meaning.setdefault(point.arm, (point.sweep, _settings(runs[point.run])))
        if sweep != point.sweep and (not settings or _settings(runs[point.run]) != settings):
            point = Point(**{**vars(point), "arm": f"{point.sweep}/{point.arm}"})
        united.setdefault((point.arm, point.run), point)
    return list(united.values())


def _settings(run: Run) -> dict[str, Any]:
    return {key: value for key, value in run.recipe.items() if key not in ("seed", "replicate")}


# ------------------------------------------------------------------------------------------------------- one folder


def read_run(folder: RunDir) -> Run:
    """Read a run's small files; whatever cannot be read is left out, and named in `cause` where it was the result."""
    state, cause = _state(folder)
    result, damage = _result(folder)
    identity, env = _document(folder.identity), _document(folder.env)
    recipe = identity.get("recipe")
    return Run(
        name=folder.name,
        state=state,
        cause=damage or cause,
        recipe=nested(recipe) if isinstance(recipe, dict) else {},
        result=result,
        env=_environment(env, identity),
        imported=bool(identity.get("imported") or _document(folder.status).get("imported")),
        folder=folder,
    )


def _state(folder: RunDir) -> tuple[str, str | None]:
    try:
        seen = observe(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "damaged", "status.json or lease damaged"
    return seen.state, seen.cause


def _result(folder: RunDir) -> tuple[dict[str, Any] | None, str | None]:
    """(result.json, what is wrong with it): one without a finite validation loss is none."""
    try:
        found = files.read_json(folder.result)
    except (OSError, ValueError):
        return None, "result.json damaged"
    if found is None:
        return None, None
    loss = found.get("val_loss") if isinstance(found, dict) else None
    if not isinstance(loss, int | float) or isinstance(loss, bool) or not np.isfinite(loss):
        return None, "result.json without a finite val_loss"
    return found, None


def _document(path: Any) -> dict[str, Any]:
    try:
        found = files.read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _environment(env: Mapping[str, Any], identity: Mapping[str, Any]) -> Environment:
    attempts = [entry for entry in env.values() if isinstance(entry, dict)]

    def distinct(key: str) -> tuple[Any, ...]:
        return tuple(dict.fromkeys(entry[key] for entry in attempts if isinstance(entry.get(key), str | int)))

    gpus = dict.fromkeys(
        g for entry in attempts if isinstance(entry.get("gpus"), list) for g in map(str, entry["gpus"])
    )
    version = identity.get("results_version")
    return Environment(
        hosts=distinct("host"),
        gpus=tuple(gpus),
        commits=distinct("commit"),
        codes=distinct("code"),
        torch=distinct("torch"),
        world_sizes=distinct("world_size"),
        results_version=version if isinstance(version, int) else None,
    )


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """`{"model.dim": 128}` -> `{"model": {"dim": 128}}`."""
    found: dict[str, Any] = {}
    for path, value in flat.items():
        *groups, leaf = path.split(".")
        node = found
        for group in groups:
            inner = node.setdefault(group, {})
            if not isinstance(inner, dict):
                break  # a damaged recipe: `a` and `a.b` at once
            node = inner
        else:
            node[leaf] = value
    return found
