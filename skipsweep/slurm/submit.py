"""`hydra/launcher=slurm`: submit what is neither finished nor in flight, then wait, or return at once.

submitit writes the batch script and calls sbatch; the job itself reads a file that was written before (`submission`),
so nothing is pickled, and a launcher that dies in between loses nothing.
"""

import contextlib
import io
import itertools
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from skipsweep import files, lease, provenance
from skipsweep.config import Compute
from skipsweep.errors import UserError
from skipsweep.rundir import RunDir
from skipsweep.slurm import squeue, submission
from skipsweep.slurm.squeue import Queue, Unreachable
from skipsweep.slurm.submission import Submission
from skipsweep.slurm.wait import wait
from skipsweep.status import FINAL, observe
from skipsweep.stop import interruptible
from skipsweep.sweep.plan import Plan

PACK = 8
"""Runs on a node, where they are packed."""
CPUS_PER_GPU = 8
ARRAY_SIZE = 1001
"""SLURM's own default for MaxArraySize."""


class Refused(UserError):
    """Nothing was submitted."""


@dataclass(frozen=True)
class Shape:
    """What jobs of one array have in common."""

    nodes: int
    tasks_per_node: int
    gpus_per_node: int
    packed: bool


def submit(plan: Plan, names: Sequence[str], settings: Mapping[str, Any], code: Path) -> tuple[int, list[RunDir]]:
    """Submit those of `names` that are neither finished nor in flight; returns (how many, those that no job but
    somebody else executes).

    Raises UserError where SLURM does not answer or refuses.
    """
    runs = [plan.multirun.run(name) for name in names]
    with files.locked(plan.multirun.path):  # another launcher of the same runs looks only when ours are in the queue
        queue = _queue()
        fresh = [run for run in runs if not is_in_flight(run, queue)]
        _cancel_orphans(home_of(plan), fresh, queue)
        arrays = [
            (shape, part)
            for shape, members in _by_shape(fresh, settings["pack"]).items()
            for part in _cut(_tasks(members, shape), _max_array_size())
        ]
        jobs = sum(len(part) for _, part in arrays)
        for shape, part in arrays:
            share = max(1, settings["array_parallelism"] * len(part) // jobs)
            _submit_array(plan, part, shape, settings, code, share)
        count = len(fresh)
    return count, [run for run in runs if run not in fresh and _has_no_job(run, queue)]


def home_of(plan: Plan) -> Path:
    """Where a launch keeps what it hands to SLURM: the sweep's folder, or that of a single run."""
    if plan.name is not None:
        return plan.multirun.sweep(plan.name).path
    return plan.multirun.run(next(iter(plan.configs))).path


def check_home(plan: Plan) -> None:
    """Raise UserError for a folder that SLURM would understand as another; before anything is written to it."""
    if "%" in str(home_of(plan)):
        raise UserError(f"paths.multirun={plan.multirun.path}: SLURM would replace the % in this path; write another")


def is_in_flight(run: RunDir, queue: Queue) -> bool:
    """Whether somebody executes the run, or a job waits that will. One that is being ended only saves: its successor
    waits for that."""
    seen, job = observe(run), queue.find(run)
    if job is not None and job.is_ending:
        return seen.is_live and not (lease.newest(run) or {}).get("job")
    return seen.is_live or (seen.state not in FINAL and job is not None)


def _has_no_job(run: RunDir, queue: Queue) -> bool:
    job = queue.find(run)
    return job is None or job.is_ending


def _queue() -> Queue:
    try:
        return squeue.read()
    except Unreachable as problem:
        raise UserError(f"SLURM cannot be asked ({problem}); nothing was submitted") from problem


def _cancel_orphans(home: Path, fresh: Sequence[RunDir], queue: Queue) -> None:
    """Take jobs of earlier launches out of the queue that none of their runs would let execute any more."""
    own = {folder.name: folder for folder in (home / submission.FOLDER).glob("*") if (folder / "tasks.json").exists()}
    anew = {run.path for run in fresh}
    for (token, index), job in queue.jobs.items():
        if token not in own or not job.is_pending:
            continue
        runs = [RunDir(Path(path)) for path in submission.read(own[token]).tasks[index]]
        claims = [submission.claim_of(run) for run in runs if run.path not in anew]
        if not any(claim and claim.token == token for claim in claims):
            subprocess.run(["scancel", job.id], capture_output=True)


def _by_shape(runs: Sequence[RunDir], pack: bool) -> dict[Shape, Sequence[RunDir]]:
    by_shape: dict[Shape, list[RunDir]] = {}
    for run in runs:
        by_shape.setdefault(_shape(run.read_config().compute, pack), []).append(run)
    return {own: part for shape, members in by_shape.items() for own, part in _filled(shape, members)}


def _filled(shape: Shape, runs: Sequence[RunDir]) -> Iterator[tuple[Shape, Sequence[RunDir]]]:
    """Nodes that packed runs fill, and for those left over as much of one as they need."""
    full = len(runs) - len(runs) % PACK if shape.packed else len(runs)
    if full:
        yield shape, runs[:full]
    if left := len(runs) - full:
        yield replace(shape, tasks_per_node=left, gpus_per_node=min(left, shape.gpus_per_node)), runs[full:]


def _shape(compute: Compute, pack: bool) -> Shape:
    each = compute.gpus or compute.processes
    if pack and compute.nodes == each == 1:
        return Shape(1, PACK, PACK if compute.gpus else 0, True)
    return Shape(compute.nodes, each, compute.gpus, False)


def _tasks(runs: Sequence[RunDir], shape: Shape) -> list[list[RunDir]]:
    return list(_cut(runs, PACK if shape.packed else 1))


def _cut(items: Sequence[Any], size: int) -> Any:
    return (list(items[i : i + size]) for i in range(0, len(items), size))


def _max_array_size() -> int:
    done = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True)
    for line in done.stdout.splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "MaxArraySize" and value.strip().isdigit():
            return max(1, int(value))
    return ARRAY_SIZE


def _submit_array(
    plan: Plan, tasks: list[list[RunDir]], shape: Shape, settings: Mapping[str, Any], code: Path, parallelism: int
) -> None:
    """Write the intent, then call sbatch, then note the id: after a death in between, the queue tells. Where
    sbatch refuses, the runs are as they were: one that has failed has still failed."""
    python = settings["python"] or sys.executable
    folder, array = submission.create(
        home_of(plan),
        tasks=[[str(run.path) for run in task] for task in tasks],
        nodes=shape.nodes,
        tasks_per_node=shape.tasks_per_node,
        packed=shape.packed,
        timeout_min=settings["timeout_min"],
        signal_delay_s=settings["signal_delay_s"],
        max_num_timeout=settings["max_num_timeout"],
        python=python,
        code=str(code),
        srun_args=list(settings["srun_args"] or []),
    )
    name = submission.name(settings["name"] or plan.name or tasks[0][0].name, array.token)
    with submission.undone(itertools.chain(*tasks), folder, Refused):
        for index, task in enumerate(tasks):
            for run in task:
                submission.claim(run, folder, array, index)
        job = _sbatch(folder, array, name, shape, settings, parallelism)
    submission.note_job(folder, job)


def _sbatch(
    folder: Path, array: Submission, name: str, shape: Shape, settings: Mapping[str, Any], parallelism: int
) -> str:
    """Returns the array's id. Raises Refused with sbatch's own words, UserError where they are no answer."""
    executor = _executor(folder, array.python)
    executor.update_parameters(**_parameters(folder, array, name, shape, settings, parallelism))
    executor.parameters["map_count"] = len(array.tasks)
    command = ["exec", array.python, "-P", "-u", "-m", "skipsweep.slurm.batch_step", str(folder)]
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        with contextlib.redirect_stderr(io.StringIO()):  # submitit prints sbatch's errors, and then raises them
            return executor._submit_command(shlex.join(command)).job_id
    except FailedJobError as problem:
        said = [line for line in str(problem).splitlines() if "sbatch:" in line]
        raise Refused(f"sbatch refused: {'; '.join(said) or problem}") from problem
    except FailedSubmissionError as problem:
        raise UserError(f"sbatch: {problem}; the same command again looks for the job") from problem


def _executor(folder: Path, python: str) -> Any:
    import submitit

    if shutil.which("srun") is None:
        raise Refused("hydra/launcher=slurm: there is no SLURM on this machine (srun is not on the PATH)")
    return submitit.SlurmExecutor(folder, python=shlex.quote(python))


def _parameters(
    folder: Path, array: Submission, name: str, shape: Shape, settings: Mapping[str, Any], parallelism: int
) -> dict[str, Any]:
    """What submitit is told."""
    passed = (
        "partition",
        "qos",
        "account",
        "constraint",
        "exclude",
        "gres",
        "cpus_per_gpu",
        "gpus_per_task",
        "comment",
    )
    passed += ("mem_per_gpu", "mem_per_cpu", "signal_delay_s")
    parameters = {key: settings[key] for key in passed if settings[key] is not None}
    cpus = settings["cpus_per_task"] or (CPUS_PER_GPU if shape.gpus_per_node and not settings["cpus_per_gpu"] else None)
    parameters |= {"cpus_per_task": cpus} if cpus else {}
    parameters |= {"mem": f"{round(1024 * settings['mem_gb'])}MB"} if settings["mem_gb"] else {}
    # gpus_per_task already says how many.
    with_gpus = shape.gpus_per_node and not settings["gpus_per_task"]
    parameters |= {"gpus_per_node": shape.gpus_per_node} if with_gpus else {}
    return parameters | {
        "job_name": name,
        "time": settings["timeout_min"],
        "nodes": shape.nodes,
        "ntasks_per_node": shape.tasks_per_node,
        "array_parallelism": parallelism,
        "use_srun": False,  # the batch step starts it, and outlives it
        "stderr_to_stdout": settings["stderr_to_stdout"],
        "setup": ["set -e", _birth_line(folder), *(settings["setup"] or []), _path_line(array.code)],
        "additional_parameters": {
            "wckey": "",  # submitit's own default is one that many clusters refuse
            **(settings["additional_parameters"] or {}),
            "requeue": True,
            "output": str(folder / "job-%a.out"),
            "error": str(folder / ("job-%a.out" if settings["stderr_to_stdout"] else "job-%a.err")),
        },
    }


def _birth_line(folder: Path) -> str:
    """Creates the marker `submission.unborn`, which the batch step removes."""
    return f': > {shlex.quote(str(folder / "unborn-"))}"$SLURM_ARRAY_TASK_ID"'


def _path_line(code: str) -> str:
    """The frozen sources come first, whatever is installed on the node."""
    return f'export PYTHONPATH={shlex.quote(code)}"${{PYTHONPATH:+:$PYTHONPATH}}"'


def execute(plan: Plan, names: Sequence[str], settings: Mapping[str, Any]) -> bool:
    """Submit and, unless detached, wait; returns whether the user had enough of it.

    Ctrl-C loses nothing at any moment: jobs are found again by their name, and runs without one are submitted by the
    same command.
    """
    try:
        with interruptible():
            _submit_and_wait(plan, names, settings)
    except KeyboardInterrupt:
        return True
    return False


def _submit_and_wait(plan: Plan, names: Sequence[str], settings: Mapping[str, Any]) -> None:
    folder = home_of(plan) / "code"
    folder.mkdir(parents=True, exist_ok=True)
    code = provenance.freeze_code(folder)

    def submit_some(runs: Sequence[RunDir]) -> list[RunDir]:
        count, elsewhere = submit(plan, [run.name for run in runs], settings, code)
        others = len(runs) - count
        print(
            f"submitted {count} run{'' if count == 1 else 's'}" + (f", {others} in flight" if others else ""),
            flush=True,
        )
        return elsewhere

    runs = [plan.multirun.run(name) for name in names]
    elsewhere = submit_some(runs)
    if not settings["detach"]:
        wait(runs, plan.observations, elsewhere, submit_some)
