"""What one or several sweeps left on disk, read once: the plan's points and the run folders behind them.

Tolerant: a folder that is missing, half written or damaged is a run without a result, never an error. Everything that
analysis knows comes through here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from skipsweep import sweep_file
from skipsweep.analyze import confounds, documents
from skipsweep.analyze.confounds import Settings
from skipsweep.analyze.documents import as_number, document
from skipsweep.errors import UserError
from skipsweep.rundir import STATES, Multirun, RunDir
from skipsweep.sweep_file import PlannedPoint

OUTCOMES = ("done", "failed", "running", "missing")
"""What can have become of a planned run; every run has exactly one."""


@dataclass(frozen=True)
class Environment:
    """Where and with what a run's attempts were executed: each distinct value once, in order."""

    hosts: tuple[str, ...] = ()
    gpus: tuple[str, ...] = ()
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
    """Of a failure; or the first of its damaged files."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """identity.json's complete recipe, nested as in config.yaml; empty where the run was imported without one."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """identity.json's settings, dotted path -> value: what is not neutral, so that runs from before a setting existed
    compare with those from after."""
    result: Mapping[str, Any] | None = None
    """result.json, where the run got to its end."""
    env: Environment = Environment()
    imported: bool = False
    """Made from somebody's log, not trained here."""
    folder: RunDir | None = None
    damaged: tuple[str, ...] = ()
    """Names of its small files that are not what they should be; what can be used of them is used."""

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

    def setting(self, group: str, key: str) -> Any:
        """A value of the recipe; None where it has none."""
        found = self.recipe.get(group)
        return found.get(key) if isinstance(found, Mapping) else None

    def series(self, key: str) -> np.ndarray:
        """(rows with `key`, 3) float64: step, training time in seconds (nan where unknown), value."""
        table = self._table
        if key not in table:
            return np.empty((0, 3))
        columns = [table["step"], table.get("train_time_s", np.full_like(table["step"], np.nan)), table[key]]
        return np.stack(columns, axis=1)[~np.isnan(table[key])]

    def recorded(self) -> list[str]:
        """What was recorded at any step: `val/loss`, `lambda/skip/5`, `lr/head`, ..."""
        return list(self._table)

    def mixed_shares(self) -> list[tuple[int, str, float]]:
        """(layer, term, norm-corrected weight) of what every block's input is a sum of; empty unless the weights have
        been read (`skipsweep inspect`, `record.inspect=true`)."""
        sums = document(self.folder.inspection_json).get("shares") if self.folder else None
        try:
            return [
                (int(one["layer"]), str(term["name"]), share)
                for one in sums or ()
                if one["mechanism"] == "mix"
                for term in one["terms"]
                if (share := as_number(term["share"])) is not None
            ]
        except (KeyError, TypeError, ValueError, OverflowError):
            return []

    @cached_property
    def _table(self) -> dict[str, np.ndarray]:
        """Key -> one float64 per row, nan where the row has no number: a tenth of what dicts would take."""
        try:
            rows = self.folder.read_metrics() if self.folder else []
        except OSError:
            return {}
        rows = [row for row in rows if as_number(row["step"]) is not None]
        columns: dict[str, np.ndarray] = {}
        for i, row in enumerate(rows):
            for key, value in row.items():
                if (number := as_number(value)) is not None:
                    if key not in columns:
                        columns[key] = np.full(len(rows), np.nan)
                    columns[key][i] = number
        return columns


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
    """Arm -> keys in which it differs from the baseline besides those in question."""
    paired: bool
    """Whether the experiment declared, before it ran, that runs of equal seed are to be compared in pairs."""
    chosen_on: Mapping[str, str]
    """Arm -> sweep whose results chose its layers, where some of its runs are among those that did."""
    seeds_added: tuple[str, ...]
    """Arms to which seeds were added when the sweep could be tested already."""
    declared_late: tuple[str, ...]
    """What was chosen when there were results: `pairing`, `baseline`."""
    commands: tuple[str, ...]
    points: tuple[PlannedPoint, ...]
    runs: Mapping[str, Run]

    def arms(self) -> dict[str, list[PlannedPoint]]:
        """Arm -> its points in order of seeds; the baseline first, the others as planned."""
        grouped: dict[str, list[PlannedPoint]] = {}
        for point in self.points:
            grouped.setdefault(point.arm, []).append(point)
        order = sorted(grouped, key=lambda arm: arm != self.baseline)
        return {arm: sorted(grouped[arm], key=lambda p: (p.seed, p.replicate, p.run)) for arm in order}

    def of_arm(self, arm: str) -> list[Run]:
        """The runs that serve an arm, each once, in order of seeds."""
        return [self.runs[name] for name in dict.fromkeys(point.run for point in self.arms()[arm])]


def read(multirun: Multirun, names: Sequence[str]) -> Evidence:
    """Read sweeps and their runs; several sweeps are united: the first one's baseline holds, and the
    first question and target that one of them has.

    Raises UserError for a sweep that does not exist or whose plan cannot be read.
    """
    names = list(dict.fromkeys(names))
    if not names:
        raise UserError("no sweep named; `skipsweep status` lists them")
    plans = {name: sweep_file.read_plan(multirun, name) for name in names}
    first = plans[names[0]]
    wanted = [point for name, plan in plans.items() for point in sweep_file.points(name, plan)]
    runs = {run: read_run(multirun.run(run)) for run in dict.fromkeys(point.run for point in wanted)}
    points, baseline, may_differ = _unite(wanted, runs), first.get("baseline"), first.get("may_differ")
    return _with_confounds(
        Evidence(
            names=tuple(names),
            question=_first(plans, "question"),
            source=_first(plans, "source"),
            baseline=baseline if any(point.arm == baseline for point in points) else None,
            target=as_number(_first(plans, "target")),
            may_differ=None if may_differ is None else tuple(may_differ),
            published=_mapping(plans, "published"),
            confounds=first.get("confounds", {}) if len(names) == 1 else {},
            paired=all(plan.get("paired") is True for plan in plans.values()),
            chosen_on=_chosen_on(points, plans),
            seeds_added=tuple(dict.fromkeys(arm for plan in plans.values() for arm in plan.get("seeds_added", {}))),
            declared_late=_declared_late(list(plans.values())),
            commands=tuple(dict.fromkeys(c for plan in plans.values() for c in plan.get("commands", []))),
            points=tuple(points),
            runs=runs,
        )
    )


def _declared_late(plans: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """What united sweeps have decided after results existed, of what holds for them together."""
    paired = all(plan.get("paired") is True for plan in plans)
    late = {
        "pairing": paired and any("pairing" in plan.get("declared_late", ()) for plan in plans),
        "baseline": "baseline" in plans[0].get("declared_late", ()),
    }
    return tuple(what for what, is_late in late.items() if is_late)


def with_baseline(evidence: Evidence, baseline: str) -> Evidence:
    """The same compared with another arm, which is chosen now, whatever the results are."""
    if baseline == evidence.baseline:
        return evidence
    late = tuple(dict.fromkeys((*evidence.declared_late, "baseline")))
    return _with_confounds(replace(evidence, baseline=baseline, confounds={}, declared_late=late))


def _with_confounds(evidence: Evidence) -> Evidence:
    """What planning has marked of this baseline, and what the runs' settings say now."""

    def settings(run: str) -> Mapping[str, Any]:
        return evidence.runs[run].settings

    marked = {arm: set(keys) for arm, keys in evidence.confounds.items()}
    seen = confounds.found(evidence.points, evidence.baseline, evidence.may_differ, settings)
    for arm, keys in seen.items():
        marked.setdefault(arm, set()).update(keys)
    return replace(evidence, confounds={arm: sorted(keys) for arm, keys in marked.items()})


def _first(plans: Mapping[str, Mapping[str, Any]], key: str) -> Any:
    return next((plan[key] for plan in plans.values() if plan.get(key) is not None), None)


def _mapping(plans: Mapping[str, Mapping[str, Any]], key: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for plan in reversed(list(plans.values())):
        found |= plan.get(key) or {}
    return found


def _chosen_on(points: Sequence[PlannedPoint], plans: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    return {
        point.arm: sweep
        for point in points
        if point.is_ranked
        for sweep, runs in plans[point.sweep].get("ranked_by", {}).items()
        if point.run in runs
    }


# ---------------------------------------------------------------------------------------------------- several sweeps


def _unite(points: Sequence[PlannedPoint], runs: Mapping[str, Run]) -> list[PlannedPoint]:
    """Arms of one name from several sweeps are one arm where they mean the same settings; else the later one's name
    gets its sweep's in front. A run counts once per arm."""
    by_sweep: dict[tuple[str, str], list[PlannedPoint]] = {}
    for point in points:
        by_sweep.setdefault((point.sweep, point.arm), []).append(point)
    meaning: dict[str, list[Settings]] = {}
    united: dict[tuple[str, str], PlannedPoint] = {}
    for (sweep, arm), found in by_sweep.items():
        own = [_settings(runs[point.run]) for point in found]
        name = arm
        while name in meaning and not all(settings and settings in meaning[name] for settings in own):
            name = f"{sweep}/{name}"
        meaning.setdefault(name, own)
        for point in found:
            united.setdefault((name, point.run), replace(point, arm=name))
    return list(united.values())


def _settings(run: Run) -> Settings:
    return {key: value for key, value in run.settings.items() if key not in confounds.REPETITION}


# ------------------------------------------------------------------------------------------------------- one folder


def read_run(folder: RunDir) -> Run:
    """Read a run's small files; whatever cannot be read is left out, and its file named in `damaged`."""
    damaged: list[str] = []
    seen, result = documents.observed(folder), documents.result(folder, damaged)
    identity, env, status = (document(path, damaged) for path in (folder.identity, folder.env, folder.status))
    if status and status.get("state") not in STATES:
        damaged.append(folder.status.name)
    recipe, settings = identity.get("recipe"), identity.get("settings")
    return Run(
        name=folder.name,
        state=seen.state,
        cause=f"{damaged[0]} damaged" if damaged else seen.cause,
        recipe=nested(recipe) if isinstance(recipe, dict) else {},
        settings=settings if isinstance(settings, dict) else {},
        result=result,
        env=_environment(env, identity),
        imported=bool(identity.get("imported") or status.get("imported")),
        folder=folder,
        damaged=tuple(damaged),
    )


def _environment(env: Mapping[str, Any], identity: Mapping[str, Any]) -> Environment:
    attempts = [entry for entry in env.values() if isinstance(entry, dict)]

    def distinct(key: str, kind: type = str) -> tuple[Any, ...]:
        return tuple(dict.fromkeys(entry[key] for entry in attempts if isinstance(entry.get(key), kind)))

    gpus = dict.fromkeys(
        g for entry in attempts if isinstance(entry.get("gpus"), list) for g in map(str, entry["gpus"])
    )
    version = identity.get("results_version")
    return Environment(
        hosts=distinct("host"),
        gpus=tuple(gpus),
        codes=distinct("code"),
        torch=distinct("torch"),
        world_sizes=distinct("world_size", int),
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
