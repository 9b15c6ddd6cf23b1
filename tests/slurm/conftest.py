"""The private cluster, once per session; tests that need it say so when its daemons are not installed."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, missing
from sweeps import SlurmPlace

REQUIRED = "SKIPSWEEP_NEEDS_SLURM"
"""Set by `make test-slurm`: then it is a failure that they are not there."""
KINDS = {"without sacct": False, "with sacct": True}


def _start(accounting: bool) -> Iterator[Cluster]:
    lacking = missing(accounting)
    if lacking:
        told = f"no SLURM for tests ({', '.join(lacking)} not installed); `make test-slurm` installs it"
        pytest.fail(told) if os.environ.get(REQUIRED) else pytest.skip(told)
    # Sockets lie below; their paths may not be long.
    with tempfile.TemporaryDirectory(prefix="sl-", ignore_cleanup_errors=True) as root:
        Path(root).chmod(0o755)
        with Cluster(Path(root), accounting) as cluster:
            yield cluster


@pytest.fixture(scope="session")
def _plain() -> Iterator[Cluster]:
    yield from _start(False)


@pytest.fixture(scope="session")
def _accounted() -> Iterator[Cluster]:
    yield from _start(True)


@pytest.fixture
def cluster(_plain: Cluster) -> Iterator[Cluster]:
    """Both nodes idle, nothing in the queue."""
    yield _plain
    _plain.empty()


@pytest.fixture(params=KINDS)
def any_cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """The same with and without accounting."""
    found: Cluster = request.getfixturevalue("_accounted" if KINDS[request.param] else "_plain")
    yield found
    found.empty()


@pytest.fixture
def place(cluster: Cluster, tmp_path: Path, data_root: Path) -> SlurmPlace:
    return SlurmPlace(tmp_path / "runs", data_root, cluster)
