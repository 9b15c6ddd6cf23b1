"""Shared fixtures: one thread, so that bits are reproducible; a data root of the whole session; no wandb account."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, here and in child processes
os.environ.pop("WANDB_API_KEY", None)

from pathlib import Path

import pytest
from hub_server import lay_out

from skipsweep.config import Data, HubShards, choices


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this session's corpora are tokenised, once; those of the hub lie there already."""
    root = tmp_path_factory.mktemp("data")
    for name, choice in choices(Data).items():
        if issubclass(choice, HubShards):
            lay_out(root, name)
    return root
