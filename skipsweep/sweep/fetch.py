"""What a launch downloads before it starts anything: the shards of corpora from the hub that its runs read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from skipsweep import progress
from skipsweep.config import Data, HubShards
from skipsweep.data import prepare
from skipsweep.sweep.plan import Plan


def to_download(plan: Plan, runs: Sequence[str]) -> int:
    """Bytes still to come for `runs`."""
    return sum(prepare.to_download(data, root, steps) for data, root, steps in _wanted(plan, runs))


def fetch(plan: Plan, runs: Sequence[str]) -> None:
    """Download and verify what `runs` read. Raises DataError as `data.prepare.fetch`."""
    for data, root, steps in _wanted(plan, runs):
        with progress.transferring(f"downloading {data.name}") as tell:
            prepare.fetch(data, root, steps, tell)


def _wanted(plan: Plan, runs: Sequence[str]) -> list[tuple[Data, Path, int]]:
    """Every way of reading a corpus from the hub, once: for the longest of the runs that read it so."""
    found: dict[Any, tuple[Data, Path, int]] = {}
    for config in (plan.configs[run] for run in runs):
        if isinstance(config.data, HubShards):
            # longer runs of the same order read all that shorter ones do
            key = *(value for name, value in vars(config.data).items() if name != "epochs"), config.paths.data
            known = found.get(key)
            if known is None or config.schedule.steps > known[2]:
                found[key] = config.data, Path(config.paths.data or ""), config.schedule.steps
    return list(found.values())
