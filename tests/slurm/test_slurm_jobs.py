"""Real sweeps as SLURM jobs: what was planned is what runs, and being preempted changes nothing."""

import getpass
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from cluster import Cluster
from commands import CHECKOUT, Done, Place, until
from forked import fork_jobs
from runs import result, rows
from sweeps import FAULTS, LOGGED, SlurmPlace, job_of, played, restarts, stand_in

from skipsweep import checkpoint, files
from skipsweep.rundir import RunDir

DETACHED = ("-m", "hydra.launcher.detach=true")


def weights(run: RunDir) -> list[str]:
    """Checksums of a finished run's parameters."""
    (path,) = checkpoint.steps(run.checkpoints)
    return [entry["sha256"] for entry in files.read_json(path / "manifest.json")["files"].values()]


def assert_equal_runs(a: RunDir, b: RunDir) -> None:
    """In every bit: rows, final loss and weights."""
    assert rows(a) == rows(b)
    assert result(a)["val_loss"] == result(b)["val_loss"]
    assert weights(a) == weights(b)


def finished(runs: list[RunDir], seconds: float = 240) -> None:
    until(lambda: all(run.read_status()["state"] in ("done", "failed") for run in runs), seconds)
    assert [run.read_status()["state"] for run in runs] == ["done"] * len(runs), [run.read_status() for run in runs]


def figures(done: Done) -> dict[str, dict[str, str]]:
    """A launch's table of results, without how long it took."""
    return {arm: {key: cell for key, cell in row.items() if key != "time"} for arm, row in done.table().items()}


def test_a_sweep_from_end_to_end(any_cluster: Cluster, tmp_path: Path, data_root: Path) -> None:
    """Bit for bit what the same sweep gives on this machine; the same command again executes nothing."""
    place = SlurmPlace(tmp_path / "slurm", data_root, any_cluster)
    local = SlurmPlace(tmp_path / "local", data_root, any_cluster)
    here = local.launch("-m", "hydra/launcher=local", "seed=0,1", "sweep.name=s")
    done = place.launch("-m", "seed=0,1", "sweep.name=s")
    assert (done.status, done.err) == (0, "")
    assert figures(done) == figures(here)
    for ours, theirs in zip(place.runs_of("s"), local.runs_of("s"), strict=True):
        assert_equal_runs(ours, theirs)
        any_cluster.until(lambda run=ours: any_cluster.job(job_of(run))["JobState"] == "COMPLETED", "end of the job")
        assert ours.read_status()["job"]
    before = place.stamps()
    again = place.launch("-m", "seed=0,1", "sweep.name=s")
    assert again.status == 0
    assert "2 finished, 0 to run" in again.out
    assert place.stamps() == before


# ----------------------------------------------------------------------------------------------------------- preemption


def preempt(place: SlurmPlace, _: RunDir) -> None:
    """Somebody with higher priority needs both nodes for a moment."""
    place.cluster.call(
        "sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 0.5"
    )


def requeue(place: SlurmPlace, run: RunDir) -> None:
    """An administrator does it, with no more warning than SIGTERM."""
    place.cluster.call("scontrol", "requeue", job_of(run))


def lose_node(place: SlurmPlace, run: RunDir) -> None:
    cluster = place.cluster
    node = cluster.job(job_of(run))["NodeList"]
    cluster.fail_node(node)
    cluster.until(lambda: cluster.job(job_of(run))["JobState"] in ("PENDING", "RUNNING"), "requeue")
    cluster.resume_node(node)


def warn(place: SlurmPlace, run: RunDir) -> None:
    """As SLURM does before the time limit; to every process of the step."""
    place.cluster.call("scancel", "--signal=USR2", job_of(run))


def hold(place: SlurmPlace, run: RunDir) -> None:
    """An administrator sends it back to the queue and keeps it there; `skipsweep status` names it."""
    job = job_of(run)
    place.cluster.call("scontrol", "requeuehold", job)
    until(lambda: f"job {job} is held" in (place.status("s")["runs"][run.name]["stuck"] or ""), 60)
    place.cluster.call("scontrol", "release", job)


def use_up_time(_place: SlurmPlace, _run: RunDir) -> None:
    """Nothing has to be done: SLURM warns by itself."""


EVENTS: dict[str, tuple[Callable[[SlurmPlace, RunDir], None], list[str]]] = {
    "preempted": (preempt, ["preempted"]),
    "warned": (warn, ["preempted"]),
    "requeued by an administrator": (requeue, []),
    "node lost": (lose_node, []),
    "held": (hold, []),
    "time limit": (use_up_time, ["timeout"]),
}
"""Event -> what does it, and the requeues that are ours."""
LIMITS = ["hydra.launcher.timeout_min=3", "hydra.launcher.signal_delay_s=119", "hydra.launcher.max_num_timeout=5"]
"""SLURM warns in the first minute of every attempt."""


def in_random_order() -> Iterator[tuple[list[str], int]]:
    """What may happen on a cluster, 40 times; each case some of it in a row, and for how many ranks."""
    counts = {"preempted": 20, "requeued by an administrator": 10, "node lost": 5, "held": 3, "warned": 2}
    events = [event for event, count in counts.items() for _ in range(count)]
    random.Random(43).shuffle(events)
    for case, first in enumerate(range(0, len(events), 5)):
        yield events[first : first + 5], 1 + case % 2


CASES = [
    pytest.param(["preempted"], 1, id="preempted, 2 jobs of an array"),
    pytest.param(["warned"], 2, id="warned, 2 ranks"),
    pytest.param(["requeued by an administrator"], 1, id="requeued by an administrator"),
    pytest.param(["node lost"], 1, id="node lost"),
    *(
        pytest.param(events, ranks, id=f"case {case} in random order", marks=pytest.mark.nightly)
        for case, (events, ranks) in enumerate(in_random_order())
    ),
    *(
        pytest.param(["time limit"] * times, ranks, id=f"time limit {times} times", marks=pytest.mark.nightly)
        for times, ranks in ((3, 2), (2, 1))
    ),
]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Callable[[int, str], RunDir]:
    """A run that nothing happened to, by number of ranks and of steps (an override)."""

    @cache
    def get(ranks: int, steps: str) -> RunDir:
        place = Place(tmp_path_factory.mktemp("straight") / "runs", data_root)
        with pytest.MonkeyPatch.context() as patch:
            fork_jobs(patch)
            done = place.here("-m", *LOGGED, steps, f"compute.processes={ranks}", "sweep.name=s")
        assert done.status == 0, done.err
        return place.run_of("s", "run")

    return get


def trained(run: RunDir, attempt: int) -> list[int]:
    """The steps of which an attempt has noted rows."""
    return [row["step"] for row in files.read_rows(run.metrics) if row["attempt"] == attempt]


@pytest.mark.parametrize(("events", "ranks"), CASES)
def test_an_interrupted_run_ends_as_if_nothing_had_happened(
    events: list[str], ranks: int, place: SlurmPlace, straight: Callable[[int, str], RunDir], tmp_path: Path
) -> None:
    """One checkpoint and one requeue for every event, and the same bits in the end."""
    told = {"CHILDREN": str(tmp_path / "children"), "GATE": str(tmp_path / "gate")}
    place = replace(place, variables=FAULTS | told)
    seeds = "seed=0,1" if ranks == 1 else "seed=0"  # an array of two, or one job of two ranks
    limits = LIMITS if "time limit" in events else []
    steps = f"schedule.steps={20 if len(events) == 1 else 30}"  # an attempt gets four further, the last to the end
    command = [*DETACHED, *LOGGED, steps, *limits, f"compute.processes={ranks}", seeds, "sweep.name=s"]
    submitted = place.launch(*command)
    assert submitted.status == 0, submitted.err
    runs = place.runs_of("s")
    for time, event in enumerate(events, 1):
        until(lambda: len(set(trained(runs[0], time))) >= 3)  # noqa: B023 - called at once
        EVENTS[event][0](place, runs[0])
        until(lambda: place.cluster.job(job_of(runs[0]))["Restarts"] == str(time))  # noqa: B023
    (tmp_path / "gate").touch()
    finished(runs)
    assert len((tmp_path / "children").read_text().split()) >= 2 * ranks * (len(events) + 1)
    assert restarts(runs[0]) == [why for event in events for why in EVENTS[event][1]]
    assert place.cluster.job(job_of(runs[0]))["Restarts"] == str(len(events))
    assert_equal_runs(runs[0], straight(ranks, steps))
    attempts = [trained(runs[0], attempt) for attempt in range(1, len(events) + 2)]
    assert all(attempts)
    for event, before, after in zip(events, attempts, attempts[1:], strict=False):
        if EVENTS[event][1]:
            assert max(before) < min(after), f"{event}: a step that was saved was trained again"


def test_a_job_of_ten_minutes_is_requeued_as_well(place: SlurmPlace, tmp_path: Path) -> None:
    """And not taken for one that has used up its time."""
    play = "work() if (run.path / 'played').exists() else work(600)"
    command = stand_in(tmp_path / "play", {0: play})
    short = ("hydra.launcher.timeout_min=10", "hydra.launcher.max_num_timeout=0")
    assert place.launch(*DETACHED, *command, *short, "seed=0", "sweep.name=s").status == 0
    (run,) = place.runs_of("s")
    until(lambda: run.read_status()["state"] == "running")
    warn(place, run)
    finished([run])
    assert restarts(run) == ["preempted"]


# ------------------------------------------------------------------------------------------------ what was planned runs


def test_what_runs_is_what_was_planned(place: SlurmPlace, tmp_path: Path) -> None:
    """Code and configuration are edited while the job is held in the queue."""
    copy = tmp_path / "checkout"
    for name in ("skipsweep", "hydra_plugins", "conf"):
        shutil.copytree(CHECKOUT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(CHECKOUT / "launch.py", copy / "launch.py")
    hold = ("hydra.launcher.additional_parameters={hold:true}", "seed=3", "sweep.name=s")
    env = {**place.environment, "PYTHONPATH": str(copy)}
    command = [sys.executable, str(copy / "launch.py"), *place.arguments(*DETACHED, *hold)]
    subprocess.run(command, env=env, check=True)
    (run,) = place.runs_of("s")
    seen = place.status("s")["runs"][run.name]
    assert seen["state"] == "submitted"
    assert "held" in seen["stuck"]
    (copy / "skipsweep" / "job.py").write_text("raise SystemExit('edited code')")
    (copy / "skipsweep" / "slurm" / "batch_step.py").write_text("raise SystemExit('edited code')")
    (copy / "conf" / "schedule" / "trapezoid.yaml").write_text("broken: [")
    place.cluster.call("scontrol", "release", job_of(run))
    finished([run])
    env_json = files.read_json(run.env)["1"]
    assert env_json["code"] == files.read_json(place.multirun.sweep("s").plan)["code"]


# ---------------------------------------------------------------------------------------------------------------- ranks


def test_two_nodes_share_a_run(place: SlurmPlace) -> None:
    """One task per process, on both nodes, with the ranks that SLURM's environment gives them."""
    done = place.launch("-m", "compute.nodes=2", "compute.processes=2", "seed=0", "sweep.name=s")
    assert done.status == 0, done.out + done.err
    (run,) = place.runs_of("s")
    assert files.read_json(run.env)["1"]["world_size"] == 4
    facts = place.cluster.job(job_of(run))
    assert (facts["NumNodes"], facts["NumTasks"]) == ("2", "4")


def test_a_node_with_eight_gpus_is_the_default(place: SlurmPlace, tmp_path: Path) -> None:
    """Nothing is said of the machine: one task per GPU of an 8xH100 node."""
    command = stand_in(tmp_path / "play", {}, "note(os.environ.get('CUDA_VISIBLE_DEVICES', '')); work()")
    arguments = super(SlurmPlace, place).arguments("hydra/launcher=slurm", *DETACHED, *command, "seed=0")
    arguments += ["sweep.name=s", "hydra.launcher.cpus_per_task=1"]
    subprocess.run([sys.executable, str(CHECKOUT / "launch.py"), *arguments], env=place.environment, check=True)
    (run,) = place.runs_of("s")
    finished([run])
    facts = place.cluster.job(job_of(run))
    assert (facts["NumNodes"], facts["NumTasks"]) == ("1", "8")
    assert facts["TresPerNode"] == "gres:gpu:8"
    assert "0,1,2,3,4,5,6,7" in (run.path / "played").read_text()


def test_jobs_belong_to_us_alone(place: SlurmPlace, tmp_path: Path) -> None:
    place.launch("-m", *stand_in(tmp_path / "play", {}), "seed=0", "sweep.name=s")
    for folder in (place.multirun.sweep("s").path / "slurm", *place.submissions("s")):
        assert folder.stat().st_mode & 0o777 == 0o700
        assert folder.owner() == getpass.getuser()
    assert not list(place.runs.rglob("*.pkl"))
    for script in place.submissions("s")[0].glob("*.sh"):
        assert "#SBATCH --wckey=''\n" in script.read_text(), "many clusters refuse submitit's own"


def test_a_single_run_is_a_job_as_well(place: SlurmPlace, tmp_path: Path) -> None:
    done = place.launch(*stand_in(tmp_path / "play", {}), "seed=4")
    assert (done.status, done.err) == (0, "")
    (run,) = place.multirun.all_runs()
    assert played(run) == ["began", "done"]
    assert f"run: {run.path}" in done.out
    assert (run.path / "slurm").stat().st_mode & 0o777 == 0o700


def test_ctrl_c_leaves_the_jobs_running(place: SlurmPlace, tmp_path: Path) -> None:
    play = stand_in(tmp_path / "play", {}, "work(600)")
    process = place.start("-m", *play, "seed=0,1", "sweep.name=s")
    runs = until(lambda: place.multirun.sweep("s").plan.exists() and place.runs_of("s"))
    until(lambda: all(run.read_status()["state"] == "running" for run in runs))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (130, "")
    assert "the same command again" in out
    waiting = place.start("-m", *play, "seed=0,1", "sweep.name=s")
    told = waiting.stdout
    assert told is not None
    until(lambda: told.readline() == "submitted 0 runs, 2 in flight\n")
    for run in runs:
        (run.path / "go").touch()
    waiting.communicate(timeout=300)
    assert waiting.returncode == 0
    assert place.attempts() == {run.name: 1 for run in runs}
