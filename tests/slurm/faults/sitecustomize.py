"""Makes runs fall ill by their seed, fork children and wait. Python imports this before anything else.

CHILDREN: file in which two children of every rank note that they are there, with the handlers that they inherit, as
data loaders have them. GATE: file for which rank 0 waits after three steps of every attempt, or for a signal.
"""

import os
import signal
import sys
import time
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import PathFinder
from typing import Any

BAD = 7
"""The update in which it happens."""


def nan_loss(trainer: Any, _: Any) -> None:
    poison(trainer, float("nan"))


def infinite_gradient(trainer: Any, _: Any) -> None:
    poison(trainer, float("inf"))


def poison(trainer: Any, value: float) -> None:
    """What a step too large leaves: the next loss is none."""
    next(iter(trainer._parameters.values())).data.fill_(value)


def diverges(trainer: Any, _: Any) -> None:
    for parameter in trainer._parameters.values():
        parameter.data.mul_(1e30)


def out_of_memory(*_: Any) -> None:
    import torch

    torch.empty(1 << 50, dtype=torch.uint8)


def out_of_python_memory(*_: Any) -> None:
    bytearray(1 << 60)


def exit_at_once(*_: Any) -> None:
    os._exit(9)


def be_killed(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def segfault(*_: Any) -> None:
    import ctypes

    ctypes.string_at(0)


def hang(*_: Any) -> None:
    while True:
        time.sleep(1)


def full_disk(*_: Any) -> None:
    from skipsweep import files

    def append(path: Any, row: Any) -> None:
        with open("/dev/full", "wb") as f:
            f.write(repr(row).encode())

    files.append_row = append


def nothing_more(*_: Any) -> None:
    raise AssertionError("never reached: the damaged shard is refused before")


SICK = {
    11: (nan_loss, "nan"),
    12: (infinite_gradient, "nan"),
    13: (diverges, "nan"),
    14: (out_of_memory, "oom"),
    15: (out_of_python_memory, "oom"),
    16: (exit_at_once, "exception"),
    17: (exit_at_once, "exception"),
    18: (be_killed, "killed"),
    19: (be_killed, "killed"),
    20: (segfault, "killed"),
    21: (hang, "timeout"),
    22: (full_disk, "disk"),
    23: (nothing_more, "data"),
}
"""Seed -> what happens to it, and the cause that has to be told."""


def infect_training(train: Any) -> None:
    update = train.Trainer._update

    def sick(self: Any) -> Any:
        illness = SICK.get(self.config.seed)
        if illness and self.step == BAD:
            illness[0](self, None)
        return update(self)

    train.Trainer._update = sick


def infect_data(batches: Any) -> None:
    """A corpus of `data.chain_seed` above 0 loses the end of its shard between planning and training."""
    begin = batches.Batches.__init__

    def damaged(self: Any, cfg: Any, root: Any, *args: Any) -> None:
        if getattr(cfg, "chain_seed", 0):
            (shard,) = batches.open_corpus(cfg, root).paths("train")
            os.truncate(shard, shard.stat().st_size - 100)
        begin(self, cfg, root, *args)

    batches.Batches.__init__ = damaged


def infect() -> None:
    """In a process that has them already."""
    from skipsweep import train
    from skipsweep.data import batches

    infect_training(train)
    infect_data(batches)


def fork_children(stop: Any) -> None:
    enter = stop.StopSignal.__enter__

    def entered(self: Any) -> Any:
        signals.append(enter(self))
        for _ in range(2):
            if os.fork() == 0:
                be_a_child()
        return self

    stop.StopSignal.__enter__ = entered


def be_a_child() -> None:
    with open(os.environ["CHILDREN"], "a") as f:
        f.write("one\n")
    while os.getppid() != 1:
        time.sleep(0.05)
    os._exit(0)


signals: list[Any] = []
"""The StopSignal of this process."""


def wait_in_training(train: Any) -> None:
    update, steps = train.Trainer._update, []

    def waits(self: Any) -> Any:
        steps.append(self.step)
        while len(steps) > 3 and signals[0].reason is None and not os.path.exists(os.environ["GATE"]):
            time.sleep(0.02)
        return update(self)

    if os.environ["SLURM_PROCID"] == "0":
        train.Trainer._update = waits


INFECTED = {"skipsweep.train": infect_training, "skipsweep.data.batches": infect_data}
if "GATE" in os.environ:
    INFECTED = {"skipsweep.train": wait_in_training, "skipsweep.stop": fork_children}


class Infected(Loader):
    def __init__(self, inner: Any):
        self._inner = inner

    def create_module(self, spec: Any) -> Any:
        return self._inner.create_module(spec)

    def exec_module(self, module: Any) -> None:
        self._inner.exec_module(module)
        INFECTED[module.__name__](module)


class Finder(MetaPathFinder):
    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name not in INFECTED or "-m" not in sys.orig_argv:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None:
            spec.loader = Infected(spec.loader)
        return spec


sys.meta_path.insert(0, Finder())
