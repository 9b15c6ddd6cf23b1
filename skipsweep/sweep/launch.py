"""A launch from end to end: expand -> plan -> freeze -> execute -> table. The same command again continues."""

import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import OverrideType

from skipsweep import provenance, secrecy
from skipsweep.analyze import arms
from skipsweep.config import world_size
from skipsweep.errors import UserError
from skipsweep.exit_status import Exit
from skipsweep.rundir import RunDir
from skipsweep.slurm import squeue, submit
from skipsweep.status import Observation, result
from skipsweep.sweep import grammar, report, show
from skipsweep.sweep import plan as planning
from skipsweep.sweep.estimate import Estimate, estimate, sizes
from skipsweep.sweep.expand import expand, spread
from skipsweep.sweep.fetch import fetch, to_download
from skipsweep.sweep.freeze import freeze
from skipsweep.sweep.local import Pool
from skipsweep.sweep.plan import Plan
from skipsweep.sweep.precision import precision
from skipsweep.sweep.request import GridPoint, LaunchRequest
from skipsweep.sweep.resolve import ComposedPoint
from skipsweep.sweep_file import PlannedPoint

INTERRUPTED = 130


def launch(request: LaunchRequest) -> int:
    """Do what was asked for; returns the exit status: 0 if every run is done, 1 if one failed, 130 if interrupted.

    Raises UserError before anything is started.
    """
    plan = make_plan(request)
    _check_torchrun(plan)
    if on_slurm(request):
        _check_slurm(plan)
        _look_at_queue(plan)
    show_plan(plan, request)
    if request.plan:
        _let_go()
        return 0
    fetch(plan, plan.to_run(request.retry))
    freeze(plan, request.retry)
    _want_again(plan)
    todo = plan.to_run(request.retry)
    if on_slurm(request):
        return _on_slurm(plan, todo, request)
    return _conclude(plan, _execute(plan, todo, request), request)


def on_slurm(request: LaunchRequest) -> bool:
    """Whether runs become jobs."""
    return request.launcher.get("kind") == "slurm"


def _on_slurm(plan: Plan, todo: Sequence[str], request: LaunchRequest) -> int:
    """Submit and wait, or return; the exit status is that of the runs, where it was waited for them."""
    left = bool(todo) and submit.execute(plan, todo, request.launcher)
    if left:
        show.come_back(plan.name, [*plan.configs], "the jobs go on")
        return INTERRUPTED
    if request.launcher["detach"]:
        show.come_back(plan.name, [*plan.configs], "submitted")
        return 0
    return _conclude(plan, False, request)


def _look_at_queue(plan: Plan) -> None:
    """Runs that a job is waiting for are in flight, whatever launcher submitted them."""
    runs = [plan.multirun.run(name) for name in plan.configs]
    seen = squeue.all_refined([plan.observations[run.name] for run in runs], runs)
    plan.observations.update(zip(plan.configs, seen, strict=True))


def _want_again(plan: Plan) -> None:
    """What was cancelled is wanted again."""
    if plan.name is not None:
        plan.multirun.sweep(plan.name).cancelled.unlink(missing_ok=True)
    for run in map(plan.multirun.run, plan.configs):
        run.cancelled.unlink(missing_ok=True)


def _check_slurm(plan: Plan) -> None:
    submit.check_home(plan)
    if _under_torchrun():
        raise UserError("hydra/launcher=slurm starts the processes of every run itself; leave torchrun away")


def make_plan(request: LaunchRequest) -> Plan:
    """Points -> runs, without starting or freezing anything."""
    secrecy.check(request.command)
    points = expand(request.overrides, request.sweep, request.composer.options)
    wanted = [one for point in points for one in _composed(point, request)]
    single = len(wanted) == 1 and not request.multirun and not request.sweep.arms
    return planning.make(wanted, shlex.join(request.command), single, _said_twice(request.overrides))


def _said_twice(overrides: Sequence[str]) -> Iterator[str]:
    """A note on every override that a later one of the same key undoes, as Hydra has it."""
    last: dict[str, str] = {}
    for text in reversed(overrides):
        override = grammar.parse(text)
        if override.type is OverrideType.CHANGE and last.setdefault(override.key_or_group, text) != text:
            yield f"{text} has no effect: {last[override.key_or_group]} comes after it"


def _composed(point: GridPoint, request: LaunchRequest) -> list[ComposedPoint]:
    """A point with its configuration, or those that it stands for in a trunk of such a depth."""
    config = request.config(point)
    found = spread(point, config)
    configs = [config] if found == [point] else map(request.config, found)
    pairs = zip(found, configs, strict=True)
    return [ComposedPoint(one.arm, its, one.overrides, tuple(one.axes), one.block) for one, its in pairs]


def show_plan(plan: Plan, request: LaunchRequest) -> None:
    """Print points, runs and what is to run."""
    todo = plan.to_run(request.retry)
    show.plan(plan, todo, _estimate(plan, todo, request))
    show.precision(precision(plan))
    show.download(to_download(plan, todo))


def document(plan: Plan, request: LaunchRequest) -> dict[str, Any]:
    """The plan as plain data."""
    todo = plan.to_run(request.retry)
    expected = _estimate(plan, todo, request)
    told = precision(plan)
    return {
        "sweep": plan.name,
        "baseline": plan.baseline,
        "confounds": plan.confounds,
        "rankings": plan.rankings,
        "notes": plan.notes,
        "points": [_point(plan, point) for point in plan.points],
        "runs": len(plan.configs),
        "to_run": todo,
        "seconds": expected and expected.seconds,
        "gpu_hours": expected and expected.gpu_hours,
        "speed": expected and ("recorded" if expected.recorded else "measured"),
        "sizes": {run: asdict(sizes(config)) for run, config in plan.configs.items()},
        "to_download": to_download(plan, todo),
        "precision": told and asdict(told),
    }


def _point(plan: Plan, point: PlannedPoint) -> dict[str, Any]:
    named = {"arm": point.arm, "seed": point.seed, "replicate": point.replicate}
    return {**named, **point.to_dict(), "drawn": point.arm in plan.drawn, "state": plan.observations[point.run].state}


def _estimate(plan: Plan, todo: Sequence[str], request: LaunchRequest) -> Estimate | None:
    return estimate(plan, todo, _at_a_time(request, len(todo)))


def _at_a_time(request: LaunchRequest, runs: int) -> int:
    """How many runs will be executed side by side, as far as is known here."""
    if not on_slurm(request):
        return _parallel(request)
    packed = submit.PACK if request.launcher["pack"] else 1
    return max(1, min(runs, request.launcher["array_parallelism"] * packed))


def _parallel(request: LaunchRequest) -> int:
    return int(request.launcher.get("parallel", 1))


def _execute(plan: Plan, todo: Sequence[str], request: LaunchRequest) -> bool:
    """Run what is to run; returns whether it was interrupted."""
    runs = [plan.multirun.run(name) for name in todo]
    if not runs:
        _let_go()
        return False
    if _under_torchrun():
        return _execute_under_torchrun(runs[0])
    timeout_s = 60 * float(request.launcher.get("timeout_min", 0.0))
    if plan.name is None:
        return _execute_single(runs[0], timeout_s)
    return _execute_sweep(plan, runs, _parallel(request), timeout_s)


def _execute_single(run: RunDir, timeout_s: float) -> bool:
    pool = Pool([run], 1, None, show=True, timeout_s=timeout_s)
    pool.execute(lambda: None)
    return pool.stopping


def _execute_sweep(plan: Plan, runs: Sequence[RunDir], parallel: int, timeout_s: float) -> bool:
    pool = Pool(runs, parallel, _frozen_code(plan), show=False, timeout_s=timeout_s)
    with show.Watch(runs, plan.observations) as watch:
        pool.execute(watch.tick)
    return pool.stopping


def _frozen_code(plan: Plan) -> Path:
    assert plan.name is not None
    folder = plan.multirun.sweep(plan.name).code
    folder.mkdir(parents=True, exist_ok=True)
    return provenance.freeze_code(folder)


def _conclude(plan: Plan, interrupted: bool, request: LaunchRequest) -> int:
    """The table at the end, and the exit status."""
    plan.observe()
    if on_slurm(request):
        _look_at_queue(plan)  # a job that died before Python could not write it down
    runs = [plan.multirun.run(name) for name in plan.configs]
    if plan.name is None:
        _show_single(runs[0], plan.observations[runs[0].name])
    else:
        show.arms(arms.of_sweep(plan.multirun, plan.name))
        show.place("sweep", plan.multirun.sweep(plan.name).path)
        if request.sweep.report and not interrupted:
            report.at_end(plan.multirun, plan.name)
    failed = [seen for seen in plan.observations.values() if seen.state == "failed"]
    if failed and plan.name is not None:
        show.console.print(show.runs(failed))
    if interrupted:
        show.console.print(f"interrupted; to continue: {shlex.join(request.command)}", soft_wrap=True)
        return INTERRUPTED
    return 0 if all(seen.state == "done" for seen in plan.observations.values()) else 1


def _show_single(run: RunDir, seen: Observation) -> None:
    found = result(run)
    if seen.state == "done" and found:
        show.result(run, found)
    else:
        show.console.print(show.runs([seen]))
        show.place("run", run.path)


# ------------------------------------------------------------------------------------------------------- under torchrun


def _started() -> int:
    """Processes that torchrun has started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _under_torchrun() -> bool:
    return _started() > 1


def _check_torchrun(plan: Plan) -> None:
    """Raise UserError where torchrun's processes do not fit the plan."""
    if not _under_torchrun():
        return
    if len(plan.configs) > 1:
        raise UserError(
            "torchrun starts the processes of one run; start a sweep without it (compute.processes, compute.gpus)"
        )
    asked = world_size(next(iter(plan.configs.values())).compute)
    if asked != _started():
        raise UserError(
            f"torchrun has started {_started()} processes, but compute.nodes, compute.gpus and compute.processes ask "
            f"for {asked}; make them agree"
        )


def _let_go() -> None:
    """Nothing is to run: torchrun's other ranks, if there are any, wait for being told."""
    if _under_torchrun():
        _execute_under_torchrun(None)


def _execute_under_torchrun(run: RunDir | None) -> bool:
    """Execute a run together with torchrun's other ranks, or tell them that there is none; returns whether it was
    interrupted."""
    from skipsweep import torchrun  # imports torch, which plans do without

    return torchrun.execute_as_leader(run) == Exit.PREEMPTED
