"""Shared fixtures: one thread, so that bits are reproducible; a data root of the whole session; no wandb account."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, here and in child processes
os.environ.pop("WANDB_API_KEY", None)

from pathlib import Path

import pytest


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this session's corpora are tokenised, once."""
    return tmp_path_factory.mktemp("data")
