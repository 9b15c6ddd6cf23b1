"""A real sweep of 24 runs, 13 of which fall ill: 11 right results, 13 right causes, in bounded time, anywhere."""

from pathlib import Path

import pytest
from cluster import Cluster
from commands import Done, Place
from faults.sitecustomize import SICK, infect
from forked import fork_jobs
from runs import result
from sweeps import FAULTS, SlurmPlace

from skipsweep import files
from skipsweep.rundir import RunDir
from skipsweep.sweep import local

HEALTHY = range(11)


def private(folder: Path, chain: int) -> list[str]:
    """An experiment of 24 points; the last has a corpus of its own, for its shard will be damaged."""
    (folder / "experiment").mkdir(parents=True)
    (folder / "experiment" / "sick.yaml").write_text(
        "# @package _global_\nsweep:\n  name: sick\n  arms:\n"
        "    hung: {seed: 21}\n"  # first, so that the others need not wait for it
        '    all: {seed: "0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,22"}\n'
        f"    shard: {{seed: 23, data.chain_seed: {chain}}}\n"
    )
    return ["experiment=sick", f"hydra.searchpath=[file://{folder}]"]


def check(place: Place, done: Done, well: list[float]) -> None:
    """Every run as it has to be, and nothing left open."""
    assert done.status == 1, done.err
    points = files.read_json(place.multirun.sweep("sick").plan)["points"]
    runs = {point["key"][1]: place.multirun.run(point["run"]) for point in points}
    assert len(runs) == 24
    told = {seed: cause(run) for seed, run in runs.items()}
    assert told == {**dict.fromkeys(HEALTHY, "done"), **{seed: expected for seed, (_, expected) in SICK.items()}}
    assert [result(runs[seed])["val_loss"] for seed in HEALTHY] == well
    for seed in SICK:
        assert Path(runs[seed].read_status()["log"]).parent == runs[seed].path / "log"
        assert runs[seed].read_status()["message"]


def cause(run: RunDir) -> str:
    status = run.read_status()
    return status["state"] if status["state"] != "failed" else status["cause"]


@pytest.fixture(scope="module")
def well(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> list[float]:
    """Final losses of the healthy seeds, where nobody is ill."""
    place = Place(tmp_path_factory.mktemp("well") / "runs", data_root)
    with pytest.MonkeyPatch.context() as patch:
        fork_jobs(patch)
        assert place.here("-m", "seed=range(0,11)", "sweep.name=well", "hydra.launcher.parallel=3").status == 0
    return [result(place.run_of("well", "run", seed))["val_loss"] for seed in HEALTHY]


def test_on_this_machine(tmp_path: Path, data_root: Path, well: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    fork_jobs(monkeypatch, infect)
    monkeypatch.setattr(local, "GRACE_S", 3.0)  # what hangs is deaf to its time limit as well
    place = Place(tmp_path / "runs", data_root)
    limit = ("hydra.launcher.parallel=3", "hydra.launcher.timeout_min=0.2")
    check(place, place.here("-m", *private(tmp_path / "conf", 5), *limit), well)


@pytest.mark.nightly
def test_as_a_command(tmp_path: Path, data_root: Path, well: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", FAULTS["PYTHONPATH"])
    place = Place(tmp_path / "runs", data_root)
    limit = ("hydra.launcher.parallel=3", "hydra.launcher.timeout_min=0.7")
    check(place, place.launch("-m", *private(tmp_path / "conf", 8), *limit), well)


@pytest.mark.nightly
def test_on_slurm(any_cluster: Cluster, tmp_path: Path, data_root: Path, well: list[float]) -> None:
    place = SlurmPlace(tmp_path / "runs", data_root, any_cluster, FAULTS)
    limit = ("hydra.launcher.timeout_min=3", "hydra.launcher.signal_delay_s=60", "hydra.launcher.array_parallelism=3")
    done = place.launch("-m", *private(tmp_path / "conf", 7 if any_cluster.accounting else 6), *limit)
    check(place, done, well)
    any_cluster.until(lambda: not any_cluster.call("squeue", "--noheader"), "an empty queue")
