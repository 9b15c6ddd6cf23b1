"""The processes of one run: who this one is, and the few things they tell each other.

Works alike under torchrun, under srun (one task per GPU), and under the local launcher; alone it costs nothing.
"""

import os
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

# Imported later (by the compiler), its default arguments would hold the process group, and with it threads that outlive
# `leave` and abort the process as it exits: now they hold None.
import torch.distributed.nn.functional

from skipsweep.config import Compute, world_size
from skipsweep.errors import UserError


@dataclass(frozen=True)
class World:
    """This process among those of its run."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_leader(self) -> bool:
        """Rank 0 alone writes files."""
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value of a small object."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every process's value of a small object, by rank."""
        if self.size == 1:
            return [value]
        box: list[Any] = [None] * self.size
        dist.all_gather_object(box, value)
        return box


def is_follower() -> bool:
    """Whether this process was started as a rank other than 0 (torchrun, srun)."""
    return int(os.environ.get("RANK", "0")) > 0


def join(compute: Compute) -> World:
    """Become one of the run's processes, as the launcher's environment (RANK, WORLD_SIZE, LOCAL_RANK) says.

    Raises UserError if the device is missing, or the number of processes is not the one that `compute` asks for.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if size != world_size(compute):
        raise UserError(
            f"{size} process(es) were started, but compute.nodes={compute.nodes} with gpus={compute.gpus}, "
            f"processes={compute.processes} asks for {world_size(compute)}"
        )
    device = _device(compute)
    if size > 1 and not dist.is_initialized():
        dist.init_process_group(
            backend="nccl" if device.type == "cuda" else "gloo",
            init_method=os.environ.get("SKIPSWEEP_RENDEZVOUS", "env://"),
            rank=rank,
            world_size=size,
        )
    return World(rank, size, device)


def _device(compute: Compute) -> torch.device:
    if compute.device == "cpu":
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if not torch.cuda.is_available() or local >= torch.cuda.device_count():
        raise UserError(
            f"compute.device=cuda needs GPU {local}, this machine has {torch.cuda.device_count()}; try compute=cpu"
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def leave() -> None:
    """Part from the others."""
    if dist.is_initialized():
        dist.destroy_process_group()
