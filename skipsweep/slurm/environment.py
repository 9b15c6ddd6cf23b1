"""What SLURM's environment says about this job and this process."""

import os
import re
import socket
from collections.abc import Mapping

PORTS = range(20000, 32000)
"""Below the range that systems give to outgoing connections."""


def array_index() -> int:
    """This job's place in its array; 0 outside of one."""
    return int(os.environ.get("SLURM_ARRAY_TASK_ID") or 0)


def job_id() -> str:
    """As squeue shows it: `123_4` inside an array."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{array_index()}" if array else os.environ["SLURM_JOB_ID"]


def restarts() -> int:
    """How often this job was requeued."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def rank_environment(environment: Mapping[str, str], alone: bool) -> dict[str, str]:
    """RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT from SLURM's variables.

    `alone`: this task is a run of its own, beside others on the node; it still takes the GPU of its place.
    """
    rank, size = int(environment["SLURM_PROCID"]), int(environment["SLURM_NTASKS"])
    visible = [gpu for gpu in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    bound = len(visible) == 1  # SLURM gave every task its own GPU, or there is only one
    return {
        "RANK": "0" if alone else str(rank),
        "WORLD_SIZE": "1" if alone else str(size),
        "LOCAL_RANK": "0" if bound else environment["SLURM_LOCALID"],
        "MASTER_ADDR": _master(environment),
        "MASTER_PORT": str(_port(environment)),
        "SKIPSWEEP_THREADS": environment.get("SLURM_CPUS_PER_TASK", "1"),
    }


def _master(environment: Mapping[str, str]) -> str:
    """Where rank 0 is."""
    if int(environment.get("SLURM_NNODES", "1")) == 1:
        return "127.0.0.1"
    first = first_host(environment["SLURM_JOB_NODELIST"])
    try:
        socket.getaddrinfo(first, None)
    except OSError:  # a node's name need not be a host's; srun starts from the first node
        return environment.get("SLURM_LAUNCH_NODE_IPADDR", first)
    return first


def first_host(nodes: str) -> str:
    """`n[03-05,9],m1` -> `n03`."""
    match = re.match(r"([^\[,]+)(?:\[([^\]]*)\])?([^,\[]*)", nodes)
    if match is None:
        raise ValueError(f"not a list of nodes: {nodes!r}")
    prefix, numbers, suffix = match.groups()
    return prefix + re.split(r"[,-]", numbers or "")[0] + suffix


def _port(environment: Mapping[str, str]) -> int:
    """The same for all tasks of a job, another one for every job nearby and after a requeue."""
    seed = int(environment["SLURM_JOB_ID"]) + 5003 * int(environment.get("SLURM_RESTART_COUNT") or 0)
    return PORTS[seed % len(PORTS)]
