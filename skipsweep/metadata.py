"""What is recorded of a run beside its losses: where it was executed and with what, its sizes, its throughput."""

import contextlib
import os
import time
from pathlib import Path
from typing import Any

import torch

from skipsweep import files, provenance
from skipsweep.config import RunConfig, recipe_of
from skipsweep.data.corpus import open_corpus, unigram_entropy
from skipsweep.distributed import World
from skipsweep.model import count
from skipsweep.rundir import Multirun, RunDir
from skipsweep.train import Trainer


def sizes(config: RunConfig, root: Path, trainer: Trainer) -> dict[str, Any]:
    """What a result says of the model and the corpus beside the losses."""
    recipe = recipe_of(config)
    return {
        "unigram_entropy": unigram_entropy(open_corpus(config.data, root), config.data.val_tokens),
        "parameters": count.parameters(recipe),
        "flops_per_token": count.flops_per_token(recipe),
        "inference_flops_per_token": count.inference_columns(recipe, *trainer.open_fractions()),
    }


def process() -> dict[str, Any]:
    """Where a run is being executed."""
    return {"host": provenance.machine()["host"], "pid": os.getpid(), "job": os.environ.get("SLURM_JOB_ID")}


def write_env(run: RunDir, attempt: int, world: World) -> None:
    """Add this attempt to env.json."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    entry = {
        **provenance.machine(),
        "gpus": gpus,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "world_size": world.size,
        "commit": provenance.commit(),
        "code": provenance.code_hash(),
    }
    files.write_json(run.env, {**(files.read_json(run.env) or {}), str(attempt): entry})


def remember_speed(config: RunConfig, world: World, result: dict[str, Any]) -> None:
    """Note the throughput, so that the next plan can say how long it will take."""
    if result["train_time_s"] <= 0:
        return
    flops = sum(result["flops_per_token"].values()) * result["tokens"]
    row = {
        "device": world.device.type,
        "host": provenance.machine()["host"],
        "world_size": world.size,
        "threads": torch.get_num_threads(),
        "model": [config.model.layers, config.model.dim, config.data.seq_len],
        "flops_per_s": flops / result["train_time_s"],
        "time": round(time.time()),
    }
    with contextlib.suppress(OSError):  # an estimate is not worth a run
        files.append_row(Multirun(Path(config.paths.multirun)).speeds, row)
