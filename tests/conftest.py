"""Shared fixtures: one thread, so that bits are reproducible; a data root of the whole session; no wandb account."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, here and in child processes
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # tests start hundreds of processes
os.environ.pop("WANDB_API_KEY", None)

from pathlib import Path

import pytest
from hub_server import lay_out

from skipsweep.config import Data, HubShards, choices

LONGEST = [
    "slurm_jobs",
    "slurm_faults",
    "scoreboard",
    "launch",
    "world",
    "add_a_mechanism",
    "layer_experiments",
    "agreement",
    "chaos",
    "faults",
]
"""Files that begin first, so that no worker is left alone with one in the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One more than there are cores: tests of SLURM and of launchers wait for others most of their time."""
    return (os.cpu_count() or 1) + 1


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
