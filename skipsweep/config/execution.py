"""Where a run is executed and what it records: no part of its identity."""

from dataclasses import dataclass
from math import gcd

from skipsweep.config.base import MISSING
from skipsweep.config.data import Data

GPU_MICRO_BATCH = 65_536
"""Tokens of a forward pass on a GPU where `compute.micro_batch` says nothing."""


@dataclass
class Compute:
    """The machine a run gets. Changes time and memory, never which tokens a step sees."""

    device: str = "cpu"
    """`cpu` or `cuda`."""
    nodes: int = 1
    """Machines per run."""
    gpus: int = 0
    """GPUs per machine, one process each; 0 on CPU."""
    processes: int = 1
    """Processes per machine on CPU (gloo)."""
    threads: int = 0
    """CPU threads per process; 0: this machine's cores, divided among the processes that run at once."""
    micro_batch: int = 0
    """Sequences per forward pass; smaller ones are accumulated. 0: the process's whole share of the batch, on a GPU at
    most 65,536 tokens of it."""
    compile: bool = False
    """torch.compile blocks, loss and optimiser; all layers and arms share what was compiled."""
    tune_kernels: bool = False
    """With `compile`: try out block sizes for every GPU kernel (torch's coordinate_descent_tuning), which takes minutes
    more of compiling."""
    skip: bool = False
    """With gates, validate by computing in every block only the tokens that it does not skip. Losses are the same up to
    rounding."""


@dataclass
class Record:
    """How often a run writes what."""

    log_every: int = 0
    """Steps between metric rows; 0: so that a run writes at most 500."""
    val_every: int = 0
    """Steps between validations, 0: so that there are ten; there is always one before the first and one after the last
    step."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0: by time alone."""
    checkpoint_seconds: float = 0.0
    """Seconds between checkpoints, or 20 times what one takes if that is more; 0: by steps alone."""
    keep: int = 2
    """Checkpoints kept while running, at least 2."""
    inspect: bool = False
    """Once the result is written, read the weights as `skipsweep inspect` does, into the run's `inspect/`."""


@dataclass
class Logger:
    """Where a run is mirrored to, besides its own files, which are the truth."""

    name: str = MISSING


@dataclass
class NoLogger(Logger):
    name: str = "none"


@dataclass
class Wandb(Logger):
    """Weights & Biases, fed from metrics.jsonl by a process of its own."""

    name: str = "wandb"
    mode: str = "online"
    """`online`, or `offline`: written below the run's folder, uploaded later by `wandb sync`."""
    project: str = "skipsweep"
    entity: str | None = None
    """wandb's team or user; null: the account's default."""
    system_stats: bool = False
    """Also record the machine's CPU, memory and GPU use, every 15 seconds."""


@dataclass
class Paths:
    """Folders. Relative ones start at the checkout."""

    multirun: str = "multirun"
    """Runs and sweeps."""
    data: str | None = None
    """Tokenised corpora; null: $SKIPSWEEP_DATA, else ~/.cache/skipsweep."""


def world_size(compute: Compute) -> int:
    """Processes that a run has on such a machine."""
    return compute.nodes * (compute.gpus or compute.processes)


def micro_batch_tokens(data: Data, asked: int, processes: int, device: str) -> int:
    """Tokens of a forward pass of training; `asked`: `compute.micro_batch`."""
    share = data.batch_tokens // processes
    return asked * data.seq_len or (min(share, GPU_MICRO_BATCH) if device == "cuda" else share)


def whole_sequences(compute: Compute, data: Data) -> int:
    """The largest number of sequences of which every micro-batch on such a machine is a multiple: as many as it has,
    unless the last one of a process's share has fewer."""
    processes = world_size(compute)
    tokens = micro_batch_tokens(data, compute.micro_batch, processes, compute.device)
    share = data.batch_tokens // data.seq_len // processes
    return gcd(min(max(tokens // data.seq_len, 1), share), share)
