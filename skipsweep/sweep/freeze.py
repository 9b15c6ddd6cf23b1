"""Writing a plan down: what the jobs will execute, and the sweep's plan.json. Starts nothing."""

import shutil
import time
from collections.abc import Mapping
from typing import Any

from skipsweep import files, provenance
from skipsweep.config import RunConfig, recipe_of
from skipsweep.errors import UserError
from skipsweep.model import count
from skipsweep.rundir import SINGLE, RunDir, SweepDir
from skipsweep.sweep import identity, question
from skipsweep.sweep.history import check_extension, known_points
from skipsweep.sweep.plan import Plan, accessible


def freeze(plan: Plan, retry: str) -> None:
    """Write what the jobs will execute.

    Raises UserError where the disk is full or multirun/ cannot be written, with nothing started.
    """
    with accessible(plan.multirun):
        _check_space(plan, retry)
        for name in plan.configs:
            # one whose job waits in a queue executes what was frozen for it
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
        before = files.read_json(folder.plan) or {}
        # another launcher may have been at it since
        check_extension(plan.name, before, plan.points, plan.configs, plan.multirun)
        files.write_json(folder.plan, _sweep_document(plan, before))


def _sweep_document(plan: Plan, before: Mapping[str, Any]) -> dict[str, Any]:
    points = known_points(before) | {point.key: point for point in plan.points}
    return {
        "name": plan.name,
        **{key: question.said(plan.sweep, before, key) for key in ("question", "source", "may_differ")},
        "published": plan.published,
        "target": plan.target,
        "paired": before.get("paired", False) if before else bool(plan.sweep.paired),
        "baseline": plan.baseline,
        "confounds": plan.confounds,
        "seeds_added": plan.history.seeds_added if plan.history else {},
        "declared_late": plan.history.declared_late if plan.history else [],
        "rankings": {**before.get("rankings", {}), **plan.rankings},
        "ranked_by": {**before.get("ranked_by", {}), **plan.ranked_by},
        "points": [point.to_dict() for point in points.values()],
        "commands": [*before.get("commands", []), plan.command][-50:],
        "commit": provenance.commit(),
        "code": provenance.code_hash(),
        "created": before.get("created", time.time()),
        "updated": time.time(),
    }


def _note_serves(plan: Plan) -> None:
    """Tell every run which points it serves: runs may be wanted by several sweeps."""
    by_run: dict[str, dict[str, Any]] = {}
    for point in plan.points:
        entry = by_run.setdefault(point.run, {"arm": point.arm, "tags": []})
        entry["tags"] = sorted({*entry["tags"], *point.tags})
    for name, entry in by_run.items():
        plan.multirun.run(name).note_serves({plan.name or SINGLE: entry})
