"""The keys of `hydra/launcher=slurm`: those of hydra-submitit-launcher, with defaults for preemptible runs of hours."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from skipsweep.errors import UserError


@dataclass
class SlurmLauncher:
    """`hydra/launcher=slurm`: every run is a job of an array. GPUs and nodes are said once, in `compute`."""

    name: str | None = None
    """Name of the jobs; null: the sweep's."""
    timeout_min: int = 240
    """Time limit of a job, in minutes. A run that needs longer goes on in the same job, requeued."""
    max_num_timeout: int = 20
    """How often a run may reach its time limit and go on; then it has failed (timeout)."""
    signal_delay_s: int = 120
    """Seconds before the time limit at which SLURM warns: more than a step and a checkpoint take."""
    array_parallelism: int = 256
    """Jobs that may run at a time."""
    partition: str | None = None
    qos: str | None = None
    account: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    """Nodes to avoid."""
    gres: str | None = None
    """Generic resources beside those that compute.gpus asks for."""
    cpus_per_task: int | None = None
    """null: 8 per GPU; on CPU as SLURM has it."""
    cpus_per_gpu: int | None = None
    gpus_per_task: int | None = None
    mem_gb: float | None = None
    """Memory per node."""
    mem_per_gpu: str | None = None
    mem_per_cpu: str | None = None
    comment: str | None = None
    additional_parameters: Any = None
    """Other options of sbatch: {reservation: name}. wckey is empty unless it is set here: many clusters refuse one."""
    setup: list[str] | None = None
    """Lines of shell before the run starts: module load, source. The job stops at the first that fails."""
    srun_args: list[str] | None = None
    python: str | None = None
    """Interpreter on the nodes; null: the one that submits."""
    stderr_to_stdout: bool = False
    """Write the batch script's errors into its .out file."""
    pack: bool = False
    """Put runs of one process 8 to a node, into one job."""
    detach: bool = False
    """Return after submitting."""
    nodes: int | None = None
    """null: compute.nodes, where it is said."""
    tasks_per_node: int | None = None
    """null: one per GPU."""
    gpus_per_node: int | None = None
    """null: compute.gpus, where it is said."""
    submitit_folder: str | None = None
    """null: slurm/ in the sweep's folder, where jobs and status look."""


OURS = ("array", "job-name", "output", "error", "open-mode", "requeue", "no-requeue", "signal", "nodes", "ntasks")
OURS += ("ntasks-per-node", "time", "wrap", "export", "export-file", "chdir", "parsable", "wait", "test-only")
"""Options of sbatch that our way of working depends on."""
SAID_IN_COMPUTE = {"nodes": "compute.nodes", "gpus_per_node": "compute.gpus", "tasks_per_node": "compute.gpus"}


def check(settings: Mapping[str, Any]) -> None:
    """Raise UserError for settings that cannot work, or would end in the batch script as something else."""
    for key, said in SAID_IN_COMPUTE.items():
        if settings[key] is not None:
            raise UserError(f"hydra.launcher.{key}: GPUs and nodes are said once, for the run; write {said}=...")
    if settings["submitit_folder"] is not None:
        raise UserError(
            "hydra.launcher.submitit_folder: batch scripts and their logs lie in the sweep's folder, slurm/"
        )
    for key in ("timeout_min", "array_parallelism", "signal_delay_s"):
        if settings[key] < 1:
            raise UserError(f"hydra.launcher.{key}={settings[key]}: at least 1")
    if settings["max_num_timeout"] < 0:
        raise UserError(f"hydra.launcher.max_num_timeout={settings['max_num_timeout']}: at least 0")
    if settings["signal_delay_s"] >= settings["timeout_min"] * 60:
        raise UserError(
            f"hydra.launcher.signal_delay_s={settings['signal_delay_s']} is all of the "
            f"{settings['timeout_min']} min that hydra.launcher.timeout_min allows"
        )
    for key, text in _texts(settings):
        if any(not character.isprintable() for character in text):
            raise UserError(f"hydra.launcher.{key}={text!r}: line breaks and control characters cannot be passed on")
        if len(text) > 1000:
            raise UserError(f"hydra.launcher.{key}: longer than 1000 characters")
    _check_additional(settings["additional_parameters"] or {})


def _texts(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in settings.items():
        items = value if isinstance(value, list) else list(value.values()) if isinstance(value, dict) else [value]
        yield from ((key, item) for item in items if isinstance(item, str))


def _check_additional(parameters: Any) -> None:
    if not isinstance(parameters, dict):
        raise UserError(f"hydra.launcher.additional_parameters={parameters}: write {{option:value}}")
    for key, value in parameters.items():
        if not re.fullmatch(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*", str(key)):
            raise UserError(f"hydra.launcher.additional_parameters: {key!r} is no option of sbatch")
        if key.replace("_", "-") in OURS:
            raise UserError(f"hydra.launcher.additional_parameters.{key}: set by skipsweep; it cannot be another")
        if not isinstance(value, str | int | float | bool):
            raise UserError(f"hydra.launcher.additional_parameters.{key}={value}: text, a number or true")
