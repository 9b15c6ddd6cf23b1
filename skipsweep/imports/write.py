"""Runs of parsed logs into run folders and a sweep marked as imported. What a log does not say is left out."""

import dataclasses
import json
import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from skipsweep import files, sweep_file
from skipsweep.errors import UserError
from skipsweep.imports import speedrun_log
from skipsweep.imports.read import Imported, LogRun, read
from skipsweep.rundir import Multirun, RunDir, SweepDir, names_a_folder
from skipsweep.sweep_file import PlannedPoint


def import_logs(
    multirun: Multirun,
    paths: Sequence[Path],
    sweep: str,
    arm: str | None = None,
    baseline: str | None = None,
    target: float | None = None,
) -> Imported:
    """Import files, and *.txt and *.log below folders, into `sweep`, which grows when it is one of imports.

    `arm`: regular expression searched in each path; its group named `arm`, else its first group, names the arm.
    Without it the arm is the name of the file's folder. `target`: nats per token.
    Raises UserError for bad arguments, a sweep that was launched, or when no file is a log.
    """
    if not names_a_folder(sweep):
        raise UserError(f"--sweep {sweep!r} cannot name a folder; valid: up to 100 letters, digits and ._+=,-")
    if target is not None and not math.isfinite(target):
        raise UserError(f"--target {target} is not a loss; valid: a finite number, in nats per token")
    found = Imported()
    folder = multirun.sweep(sweep)
    logs = _beside_earlier(multirun, folder, read(multirun, paths, arm, found))
    _document(folder, logs, baseline, target)  # refuses what is wrong before anything is written
    for log in logs:
        _write_run(log)
    points = _write_sweep(folder, logs, baseline, target)
    for name in (name for log in logs for name in log.replaces):
        _retire(multirun.run(name), sweep)
    found.grown = [log.name for log in logs if log.replaces]
    found.kept = [f"{log.name}: {points[log.run.name]}" for log in logs if points[log.run.name] != log.arm]
    found.runs = [log.run.name for log in logs]
    return found


def _beside_earlier(multirun: Multirun, folder: SweepDir, logs: list[LogRun]) -> list[LogRun]:
    """These runs as the sweep is to have them: one whose log has grown takes the place of what was imported of it, and
    one whose log was cut since stays what it was."""
    earlier: dict[str, list[RunDir]] = {}
    for name in sweep_file.runs(_known(folder)):
        run = multirun.run(name)
        source = (files.read_json(run.identity) or {}).get("imported") or {}
        if isinstance(source, dict) and "from" in source:
            earlier.setdefault(source["from"], []).append(run)
    present = {log.run.name for log in logs}
    return [_beside(log, earlier.get(log.source["from"], []), present) for log in logs]


def _beside(log: LogRun, earlier: list[RunDir], present: set[str]) -> LogRun:
    own, replaced = log.trace.readings, []
    for run in earlier:
        known = speedrun_log.readings(run.read_metrics())
        if len(known) > len(own) and known[: len(own)] == own:
            return dataclasses.replace(log, run=run)
        if run.name not in present and own[: len(known)] == known:
            replaced.append(run.name)
    return dataclasses.replace(log, replaces=tuple(replaced))


def _retire(run: RunDir, sweep: str) -> None:
    """Take a run that has been replaced out of a sweep, and remove it where no other sweep has it."""
    if not run.path.exists():
        return
    run.forget_serves(sweep)
    if not run.read_serves():
        shutil.rmtree(run.path)


def _write_run(found: LogRun) -> None:
    """Write the folder, status last; an earlier import of the same content stands as it is."""
    run, log, source = found.run, found.trace, found.source
    run.path.mkdir(parents=True, exist_ok=True)
    with files.locked(run.path):
        if run.status.exists():
            return
        curve = [row for _, row in sorted(log.rows.items())]
        files.write_json(run.identity, {"id": run.id, "imported": source, "settings": {}, "recipe": {}}, durable=False)
        files.write_json(run.env, {"imported": source, "lines": log.hardware}, durable=False)
        if log.script:
            files.write_bytes(run.path / "script.txt", log.script.encode(), durable=False)
        lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in curve)
        files.write_bytes(run.metrics, lines.encode(), durable=False)
        failure = _failure(log)
        if failure is not None:
            run.write_status("failed", durable=False, imported=source, **failure)
            return
        files.write_json(run.result, _result(run, curve, source), durable=False)
        run.write_status("done", durable=False, imported=source)


def _failure(log: speedrun_log.Trace) -> dict[str, Any] | None:
    """Why the run has no final loss, where it has none."""
    if log.nan_at is not None:
        return {"cause": "nan", "message": f"val_loss is nan at step {log.nan_at}"}
    if not log.steps or log.steps not in log.rows:
        return {
            "cause": "incomplete",
            "message": f"the log ends at step {log.last_step} of {log.steps}, before a last val_loss",
        }
    return None


def _result(run: RunDir, curve: list[dict[str, Any]], source: dict[str, str]) -> dict[str, Any]:
    last = curve[-1]
    return {
        "id": run.id,
        "imported": source,
        "val_loss": last["val/loss"],
        "steps": last["step"],
        "train_time_s": last["train_time_s"],
        "lambdas": {key: value for key, value in last.items() if key.startswith("lambda/")},
        "val_curve": [{key: row[key] for key in ("step", "train_time_s", "val/loss")} for row in curve],
    }


def _write_sweep(folder: SweepDir, logs: list[LogRun], baseline: str | None, target: float | None) -> dict[str, str]:
    """Write plan.json, and to every run which arm it serves; returns run -> arm."""
    folder.path.mkdir(parents=True, exist_ok=True)
    with files.locked(folder.path):
        document = _document(folder, logs, baseline, target)
        files.write_json(folder.plan, document)
        arms = {point.run: point.arm for point in sweep_file.points(folder.name, document)}
        for log in logs:
            log.run.note_serves({folder.name: {"arm": arms[log.run.name], "tags": []}})
    return arms


def _document(folder: SweepDir, logs: list[LogRun], baseline: str | None, target: float | None) -> dict[str, Any]:
    """plan.json with these logs added. Raises UserError for a launched sweep, and a baseline that is not an arm."""
    before = files.read_json(folder.plan) or {}
    if before and not before.get("imported"):
        raise UserError(f"sweep {folder.name} was launched, not imported; choose another --sweep")
    points = _points(_known(folder), logs)
    arms = list(sweep_file.arms(points))
    chosen = baseline or before.get("baseline") or arms[0]
    if chosen not in arms:
        raise UserError(f"--baseline {chosen} is not an arm; valid: {', '.join(arms)}")
    return {
        "name": folder.name,
        "imported": True,
        "question": before.get("question"),
        "source": before.get("source"),
        "target": target if target is not None else before.get("target"),
        "may_differ": None,
        "published": before.get("published", {}),
        "baseline": chosen,
        "points": [point.to_dict() for point in points],
        "commands": before.get("commands", []),
        "created": before.get("created", time.time()),
        "updated": time.time(),
    }


def _known(folder: SweepDir) -> list[PlannedPoint]:
    """The points that the sweep has already."""
    return sweep_file.points(folder.name, {"points": [], **(files.read_json(folder.plan) or {})})


def _points(known: list[PlannedPoint], logs: list[LogRun]) -> list[PlannedPoint]:
    """Those known, replaced runs by what they have become, and of the new the runs not yet among them.

    The seed in a key is the order within the arm and nothing else: speedruns set no seed, so equal ones pair nothing.
    """
    become = {old: log.run.name for log in logs for old in log.replaces}
    runs: dict[str, PlannedPoint] = {}
    for point in known:
        run = become.get(point.run, point.run)
        runs.setdefault(run, dataclasses.replace(point, run=run))
    for log in logs:
        if log.run.name not in runs:
            order = 1 + max((point.seed for point in runs.values() if point.arm == log.arm), default=-1)
            runs[log.run.name] = PlannedPoint(log.arm, order, 0, log.run.name)
    return list(runs.values())
