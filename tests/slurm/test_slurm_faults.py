"""What can go wrong between a launcher, SLURM and a job. Stand-ins play the jobs: much happens in little time."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cluster import Cluster
from commands import Done, until
from sweeps import SlurmPlace, job_of, played, restarts, stand_in

from skipsweep import files, lease
from skipsweep.errors import UserError
from skipsweep.rundir import RunDir
from skipsweep.slurm import submission

DETACHED = ("-m", "hydra.launcher.detach=true")


def states(runs: list[RunDir]) -> list[str]:
    return [run.read_status()["state"] for run in runs]


# ------------------------------------------------------------------------------------------------------- ways of ending

SICK: dict[str, tuple[str, str, str]] = {
    "said so itself": ("work(state='failed', cause='nan', message='at step 3')", "nan", "at step 3"),
    "killed": ("kill(signal.SIGKILL)", "killed", "SIGKILL"),
    "segfault": ("segfault()", "killed", "SIGSEGV"),
    "abort": ("kill(signal.SIGABRT)", "killed", "SIGABRT"),
    "exit code": ("print('ImportError: no torch', file=sys.stderr); sys.exit(3)", "exception", "ImportError: no torch"),
    "exit code alone": ("os._exit(9)", "exception", "exit code 9"),
    "without a result": ("sys.exit(0)", "exception", "the process ended without a result"),
}


def test_every_way_to_end_is_told_and_harms_no_other(any_cluster: Cluster, tmp_path: Path, data_root: Path) -> None:
    """Also where SLURM keeps no accounts; a failed run never hides, neither from SLURM nor from the shell."""
    place = SlurmPlace(tmp_path / "runs", data_root, any_cluster)
    plays = {3 + place_: play for place_, (play, *_) in enumerate(SICK.values())}
    done = place.launch("-m", *stand_in(tmp_path / "play", plays), f"seed=range(0,{3 + len(SICK)})", "sweep.name=s")
    assert done.status == 1
    runs = place.runs_of("s")
    assert states(runs) == ["done"] * 3 + ["failed"] * len(SICK)
    for run, (_, cause, message) in zip(runs[3:], SICK.values(), strict=True):
        status = run.read_status()
        assert status["cause"] == cause, status
        assert message in status["message"]
        assert f"{run.name}: failed: {cause}: " in done.out
        assert any_cluster.job(job_of(run))["ExitCode"] != "0:0"
    assert not place.status("s")["counts"].keys() - {"done", "failed"}
    retried = place.launch("-m", *stand_in(tmp_path / "play", {}), f"seed=range(0,{3 + len(SICK)})", "sweep.name=s")
    assert retried.status == 1, "a failed run is tried again only if asked for"
    again = place.launch(
        "-m", *stand_in(tmp_path / "play", {}), f"seed=range(0,{3 + len(SICK)})", "sweep.name=s", "retry=failed"
    )
    assert again.status == 0
    assert states(runs) == ["done"] * len(runs)
    assert [played(run).count("began") for run in runs[:3]] == [1, 1, 1]


UNBORN: dict[str, tuple[str, str]] = {
    "setup": ("hydra.launcher.setup=['echo before','ls /nowhere/at/all','echo after']", "/nowhere/at/all"),
    "setup, silent": ("hydra.launcher.setup=['false']", "a line of setup, or the interpreter"),
    "interpreter": ("hydra.launcher.python=/no/python", "/no/python"),
    "another interpreter": ("hydra.launcher.python=/usr/bin/env", "env --help"),
}


@pytest.mark.parametrize("case", UNBORN)
def test_a_job_that_never_begins_has_failed(case: str, place: SlurmPlace, tmp_path: Path) -> None:
    """With its last words; it is not begun again and again."""
    setting, told = UNBORN[case]
    command = ("-m", "seed=0", "sweep.name=s")
    done = place.launch(*command, setting)
    (run,) = place.runs_of("s")
    assert done.status == 1
    seen = place.status("s")["runs"][run.name]
    assert (seen["state"], seen["cause"]) == ("failed", "exception")
    assert told in seen["message"]
    assert Path(seen["log"]).parent == place.submissions("s")[0]
    assert f"{run.name}: failed: exception: " in done.out
    if case == "setup":
        log = place.skipsweep("logs", run.name)
        assert "/nowhere/at/all" in log
        assert "after" not in log
    assert place.launch(*command).status == 1
    assert len(place.submissions("s")) == 1, "it was submitted again, unasked"
    assert place.launch(*command, *stand_in(tmp_path / "play", {}), "retry=failed").status == 0
    assert played(run) == ["began", "done"]


def test_what_srun_refuses_is_told_with_its_log(place: SlurmPlace) -> None:
    """The attempt, which never began, has no log."""
    assert place.launch("-m", "hydra.launcher.srun_args=[--foo]", "seed=0", "sweep.name=s").status == 1
    status = place.runs_of("s")[0].read_status()
    assert (status["state"], status["cause"]) == ("failed", "exception")
    assert "--foo" in status["message"]
    assert "--foo" in Path(status["log"]).read_text()


def test_a_job_cancelled_while_it_sets_up_has_not_failed(place: SlurmPlace, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    setup = f"hydra.launcher.setup=['touch {begun}','sleep 600']"
    assert place.launch(*DETACHED, setup, "seed=0", "sweep.name=s").status == 0
    (run,) = place.runs_of("s")
    until(begun.exists)
    place.cluster.call("scancel", job_of(run))
    place.cluster.until(lambda: not place.cluster.call("squeue", "--noheader"), "an empty queue")
    seen = place.status("s")["runs"][run.name]
    assert seen["state"] == "interrupted", seen
    assert "CANCELLED" in seen["message"]
    assert str(place.submissions("s")[0]) in seen["message"]


def test_a_time_limit_reached_too_often_is_a_failure(place: SlurmPlace, tmp_path: Path) -> None:
    """Minutes long on a cluster; here the batch step is told that its time is over."""
    command = stand_in(tmp_path / "play", {}, "work(600)")
    limits = ("hydra.launcher.timeout_min=3", "hydra.launcher.signal_delay_s=119", "hydra.launcher.max_num_timeout=1")
    assert place.launch(*DETACHED, *command, *limits, "seed=0", "sweep.name=s").status == 0
    (run,) = place.runs_of("s")
    # SLURM itself warns up to a minute early, and is not to be what warns here.
    place.cluster.call("scontrol", "update", f"jobid={job_of(run)}", "timelimit=60")
    for attempt in (1, 2):
        until(lambda: played(run).count("began") == attempt)  # noqa: B023 - called at once
        until(lambda: run.read_status()["state"] == "running")
        time.sleep(1.5)  # 180 - 119 - 60 seconds are over, so that a warning may be that of the limit
        place.cluster.call("scancel", "--signal=USR2", job_of(run))
    until(lambda: run.read_status()["state"] == "failed")
    status = run.read_status()
    assert status["cause"] == "timeout"
    assert "max_num_timeout" in status["message"]
    assert restarts(run) == ["timeout"]
    place.cluster.until(lambda: place.cluster.job(job_of(run))["JobState"] == "FAILED", "failed job")


# --------------------------------------------------------------------------------------------- launching and cancelling

DIES = """#!{python}
import os, signal, subprocess, sys
if "{when}" == "before":
    os.kill(os.getppid(), signal.SIGKILL)
    sys.exit(1)
done = subprocess.run(["{sbatch}", *sys.argv[1:]], capture_output=True, text=True)
if "{when}" == "after":
    os.kill(os.getppid(), signal.SIGKILL)
print(done.stdout, end="")
print(done.stderr, end="", file=sys.stderr)
sys.exit(done.returncode)
"""
"""An sbatch that takes its caller with it, before or after it has submitted."""


def deadly(folder: Path, place: SlurmPlace, when: str) -> SlurmPlace:
    """A place whose launchers die around sbatch."""
    folder.mkdir(exist_ok=True)
    real = shutil.which("sbatch", path=place.environment["PATH"])
    (folder / "sbatch").write_text(DIES.format(python=sys.executable, sbatch=real, when=when))
    (folder / "sbatch").chmod(0o755)
    return SlurmPlace(place.runs, place.data, place.cluster, {"PATH": f"{folder}:{place.environment['PATH']}"})


@pytest.mark.parametrize(("when", "_time"), [("after", 1), ("before", 1), ("after", 2), ("after", 3), ("before", 2)])
def test_a_launcher_that_dies_around_sbatch(when: str, _time: int, place: SlurmPlace, tmp_path: Path) -> None:
    """Its jobs are found again by their name, and no run is executed twice, however often it happens."""
    command = (*DETACHED, *stand_in(tmp_path / "play", {}, "work(600)"), "seed=0,1,2", "sweep.name=s")
    died = deadly(tmp_path / "bin", place, when).launch(*command)
    assert died.status == -signal.SIGKILL
    assert [(folder / "job.json").exists() for folder in place.submissions("s")] == [False]
    again = place.launch(*command)
    assert again.status == 0, again.err
    assert f"submitted {3 if when == 'before' else 0} run" in again.out
    runs = place.runs_of("s")
    until(lambda: states(runs) == ["running"] * 3)
    for run in runs:
        (run.path / "go").touch()
    until(lambda: states(runs) == ["done"] * 3)
    place.cluster.until(lambda: not place.cluster.call("squeue", "--noheader"), "an empty queue")
    assert [played(run) for run in runs] == [["began", "done"]] * 3
    ours = [job for job in place.cluster.jobs() if submission.token_of(job["name"]) in tokens(place, "s")]
    assert len(ours) == 3, "there are jobs that nobody needs"


def test_what_sbatch_refuses_stays_as_it_was(place: SlurmPlace, tmp_path: Path) -> None:
    """A failure is still told, and is tried again only if asked for."""
    command = ("-m", *stand_in(tmp_path / "play", {0: "work(state='failed', cause='nan', message='at step 3')"}))
    assert place.launch(*command, "seed=0", "sweep.name=s").status == 1
    again = ("seed=0,1", "sweep.name=s", "retry=failed", "hydra.launcher.partition=nowhere")
    files_before = {path: path.read_bytes() for path in kept(place)}
    refused = place.launch(*command, *again)
    assert (refused.status, refused.err.count("\n")) == (2, 1)
    assert "sbatch refused" in refused.err
    assert {path: path.read_bytes() for path in kept(place) if path in files_before} == files_before
    run, fresh = place.runs_of("s")
    assert (states([run, fresh]), submission.claim_of(fresh)) == (["failed", "planned"], None)
    assert len(place.submissions("s")) == 1, "a folder of what was refused is left"
    place.launch(*command, *again[:2])
    assert (states([run, fresh]), played(run)) == (["failed", "done"], ["began", "failed"])


def kept(place: SlurmPlace) -> list[Path]:
    """Where runs stand, and who may execute them."""
    return [path for run in place.multirun.all_runs() for path in (run.status, run.submission) if path.exists()]


def tokens(place: SlurmPlace, sweep: str) -> list[str]:
    return [folder.name for folder in place.submissions(sweep)]


def test_a_job_that_was_overlooked_leaves_a_run_alone(place: SlurmPlace, tmp_path: Path) -> None:
    """sbatch was slower than the second launcher: both have submitted, one job executes."""
    play = stand_in(tmp_path / "play", {}, "work(0.5)")
    hold = ("hydra.launcher.additional_parameters={hold:true}",)
    assert place.launch(*DETACHED, *play, *hold, "seed=0", "sweep.name=s").status == 0
    (run,) = place.runs_of("s")
    first = submission.claim_of(run)
    assert first is not None
    job = job_of(run)
    (tmp_path / "blind").mkdir()
    (tmp_path / "blind" / "squeue").write_text("#!/bin/sh\n")  # as if the job had reached the queue a moment later
    (tmp_path / "blind" / "squeue").chmod(0o755)
    path = {"PATH": f"{tmp_path / 'blind'}:{place.environment['PATH']}"}
    blind = SlurmPlace(place.runs, place.data, place.cluster, path)
    assert "submitted 1 run" in blind.launch(*DETACHED, *play, "seed=0", "sweep.name=s").out
    until(lambda: states([run]) == ["done"])
    place.cluster.call("scontrol", "release", job)
    place.cluster.until(lambda: place.cluster.job(job)["JobState"] == "COMPLETED", "end of the first job")
    assert played(run) == ["began", "done"]
    assert (
        "submitted anew since, left alone" in submission.log_of(Path(first.folder), 0).with_suffix(".out").read_text()
    )


def test_a_job_that_nobody_needs_leaves_the_queue(place: SlurmPlace, tmp_path: Path) -> None:
    """A later launch sees that its runs were submitted anew."""
    play = stand_in(tmp_path / "play", {}, "work(0.5)")
    hold = ("hydra.launcher.additional_parameters={hold:true}",)
    assert place.launch(*DETACHED, *play, *hold, "seed=0", "sweep.name=s").status == 0
    (run,) = place.runs_of("s")
    run.submission.unlink()
    assert place.launch("-m", *play, "seed=0", "sweep.name=s").status == 0
    place.cluster.until(lambda: not place.cluster.call("squeue", "--noheader"), "an empty queue")
    assert played(run) == ["began", "done"]


def test_two_launchers_at_once_submit_once(place: SlurmPlace, tmp_path: Path) -> None:
    command = ("-m", *stand_in(tmp_path / "play", {}, "work(1)"), "seed=range(0,6)", "sweep.name=s")
    launchers = [place.start(*command) for _ in range(3)]
    ended = [Done(p.wait(600), *p.communicate()) for p in launchers]
    assert [done.status for done in ended] == [0, 0, 0], [done.err for done in ended]
    assert [played(run) for run in place.runs_of("s")] == [["began", "done"]] * 6
    assert sum("submitted 6 runs" in done.out for done in ended) == 1


def test_cancel_leaves_what_others_wait_for(place: SlurmPlace, tmp_path: Path) -> None:
    """Running runs save; waiting ones never begin; the same command again goes on with both."""
    play = stand_in(tmp_path / "play", {}, "work(600)")
    one = (*DETACHED, *play, "seed=0,1,2", "sweep.name=one", "hydra.launcher.array_parallelism=2")
    two = (*DETACHED, *play, "seed=1", "sweep.name=two")
    assert place.launch(*one).status == 0
    assert "submitted 0 runs, 1 in flight" in place.launch(*two).out
    runs = place.runs_of("one")
    until(lambda: states(runs) == ["running", "running", "submitted"])
    found = json.loads(place.skipsweep("cancel", "one", "--json"))
    assert (found["runs"], found["wanted"]) == ([runs[0].name, runs[2].name], {runs[1].name: ["two"]})
    until(lambda: states(runs) == ["preempted", "running", "preempted"])
    # the job says so last, after its tasks have said that a signal stopped them
    until(lambda: [run.read_status()["cause"] for run in (runs[0], runs[2])] == ["cancelled", "cancelled"])
    assert played(runs[2]) == []
    place.cluster.until(lambda: len(place.cluster.call("squeue", "--noheader").splitlines()) == 1, "one job")
    assert "Restarts=0" in place.cluster.call("scontrol", "--oneliner", "show", "job", job_of(runs[0]))
    for run in runs:
        (run.path / "go").touch()
    again = place.launch(*[argument for argument in one if "detach" not in argument])
    assert again.status == 0, again.out
    assert [played(run).count("began") for run in runs] == [2, 1, 1]
    assert restarts(runs[0]) == []


def test_a_run_that_was_launched_by_itself_is_cancelled_as_such(place: SlurmPlace, tmp_path: Path) -> None:
    """Until then a sweep that needs it as well leaves it alone."""
    play = stand_in(tmp_path / "play", {}, "work(600)")
    alone = place.launch("hydra.launcher.detach=true", *play, "seed=0")
    (run,) = place.multirun.all_runs()
    assert alone.line("to cancel") == f"to cancel: skipsweep cancel {run.name}"
    place.launch(*DETACHED, *play, "seed=0", "sweep.name=s")
    until(lambda: run.read_status()["state"] == "running")
    assert json.loads(place.skipsweep("cancel", "s", "--json"))["wanted"] == {run.name: ["single"]}
    found = json.loads(place.skipsweep("cancel", run.name, "--json"))
    assert (found["sweep"], found["runs"], len(found["jobs"])) == (run.name, [run.name], 1)
    until(lambda: run.read_status().get("cause") == "cancelled")
    assert "wanted by" not in place.skipsweep("cancel", "s")


def test_a_run_whose_launcher_elsewhere_dies_is_submitted(place: SlurmPlace, tmp_path: Path) -> None:
    """Who waits for it takes it over, once."""
    command = ("-m", *stand_in(tmp_path / "play", {}), "seed=0", "sweep.name=s")
    hold = "hydra.launcher.additional_parameters={hold:true}"
    assert place.launch(*command, hold, "hydra.launcher.detach=true").status == 0
    place.skipsweep("cancel", "s")
    (run,) = place.runs_of("s")
    held = lease.acquire(run)
    run.write_status("running", attempt=held.attempt)
    waiting = place.start(*command)
    try:
        assert waiting.stdout is not None
        assert any("submitted 0 runs, 1 in flight" in line for line in waiting.stdout)
    finally:
        held.release()
    out, err = waiting.communicate(timeout=180)
    assert (waiting.returncode, err) == (0, ""), out
    assert "submitted 1 run\n" in out
    assert played(run) == ["began", "done"]


SAVES = """
if (run.path / "played").exists(): work()
held, claimed = hold(), run.submission.read_text()
while run.submission.read_text() == claimed: time.sleep(0.02)
run.write_status("preempted", attempt=held.attempt)
held.release()
sys.exit(75)
"""
"""Saves, once it is told to stop, until the same launch has been typed again; the second attempt is the last."""


def test_a_launch_at_once_goes_on_with_what_was_cancelled(place: SlurmPlace, tmp_path: Path) -> None:
    """Its job is still ending then, and says nothing of the run any more."""
    command = (*DETACHED, *stand_in(tmp_path / "play", {}, SAVES), "seed=0", "sweep.name=s")
    assert place.launch(*command).status == 0
    (run,) = place.runs_of("s")
    until(lambda: run.read_status()["state"] == "running")
    place.skipsweep("cancel", "s")
    assert "submitted 1 run\n" in place.launch(*command).out
    until(lambda: "done" in played(run))
    assert played(run) == ["began", "began", "done"]


def test_a_job_cancelled_by_hand_does_not_come_back(place: SlurmPlace, tmp_path: Path) -> None:
    """SLURM would requeue it, if asked."""
    assert place.launch(*DETACHED, *stand_in(tmp_path / "play", {}, "work(600)"), "seed=0", "sweep.name=s").status == 0
    (run,) = place.runs_of("s")
    until(lambda: run.read_status()["state"] == "running")
    place.cluster.call("scancel", job_of(run))
    place.cluster.until(lambda: not place.cluster.call("squeue", "--noheader"), "an empty queue")
    assert run.read_status()["state"] == "preempted"
    assert place.cluster.job(job_of(run))["JobState"] == "CANCELLED"
    assert restarts(run) == []


# -------------------------------------------------------------------------------------------------------------- packing


def test_small_runs_share_a_node(place: SlurmPlace, tmp_path: Path) -> None:
    """Eight to a job; one fails, one is killed, the others do not notice; a warning requeues the job once."""
    plays = {1: "work(state='failed', cause='nan', message='x')", 2: "kill(signal.SIGKILL)", 3: "work(0.2)"}
    command = stand_in(tmp_path / "play", plays, "note(os.environ['SLURM_LOCALID']); work(600)")
    pack = ("hydra.launcher.pack=true", "seed=range(0,10)", "sweep.name=s")
    assert place.launch(*DETACHED, *command, *pack).status == 0
    runs = place.runs_of("s")
    assert len({job_of(run) for run in runs[:8]}) == 1
    assert place.cluster.job(job_of(runs[0]))["NumTasks"] == "8"
    assert job_of(runs[8]) == job_of(runs[9])
    assert place.cluster.job(job_of(runs[9]))["NumTasks"] == "2", "no more than two runs need"
    until(lambda: states(runs[:4]) == ["running", "failed", "running", "done"])
    until(lambda: [run.read_status()["state"] for run in runs[4:8]] == ["running"] * 4)
    assert sorted(played(run)[0] for run in (runs[0], *runs[4:8])) == ["0", "4", "5", "6", "7"]
    place.cluster.call("scancel", "--signal=USR2", job_of(runs[0]))
    until(lambda: runs[2].read_status()["state"] == "failed")
    assert runs[2].read_status()["cause"] == "killed"
    until(lambda: played(runs[0]).count("began") == 2)
    for run in runs:
        (run.path / "go").touch()
    until(lambda: states(runs).count("done") == 8)
    assert restarts(runs[0]) == ["preempted"]
    assert [played(run).count("began") for run in runs[1:4]] == [1, 1, 1], "what had ended was begun again"
    job = job_of(runs[0])
    place.cluster.until(lambda: place.cluster.job(job)["JobState"] == "FAILED", "failed job")


# ---------------------------------------------------------------------------------------------------------------- scale


def test_large_sweeps_are_cut_into_arrays(place: SlurmPlace, tmp_path: Path) -> None:
    """1,000 runs are frozen and submitted in half a minute, and looked at in a second."""
    hold = "hydra.launcher.additional_parameters={hold:true}"
    command = (*DETACHED, *stand_in(tmp_path / "play", {}), hold, "seed=range(0,1100)", "sweep.name=s")
    started = time.monotonic()
    done = place.launch(*command)
    print(f"froze and submitted 1,100 runs in {time.monotonic() - started:.1f} s")
    assert done.status == 0, done.err
    assert sorted(len(submission.read(folder).tasks) for folder in place.submissions("s")) == [99, 1001]
    started = time.monotonic()
    counts = place.status("s")["counts"]
    print(f"status in {time.monotonic() - started:.1f} s")
    assert counts == {"submitted": 1100}
    throttles = [line for line in place.cluster.call("squeue", "--noheader", "--format=%i").split() if "%" in line]
    assert sum(int(line.split("%")[1].rstrip("]")) for line in throttles) <= 256
    assert "submitted 0 runs, 1100 in flight" in place.launch(*command).out


# --------------------------------------------------------------------------------------------------------------- status


def test_status_asks_slurm_once_and_names_what_is_stuck(place: SlurmPlace, tmp_path: Path) -> None:
    """Also with a queue that does not answer: then files alone are told."""
    (tmp_path / "bin").mkdir()
    counting = tmp_path / "bin" / "squeue"
    real = shutil.which("squeue", path=place.environment["PATH"])
    counting.write_text(f'#!/bin/sh\necho x >> {tmp_path}/calls\nexec {real} "$@"\n')
    counting.chmod(0o755)
    play = stand_in(tmp_path / "play", {0: "work()", 1: "work(600)", 2: "work(600)"}, "work(600)")
    place.launch("-m", *play, "seed=0", "sweep.name=s")
    place.launch(*DETACHED, *play, "seed=0,1", "sweep.name=s")
    hold = "hydra.launcher.additional_parameters={hold:true}"
    place.launch(*DETACHED, *play, hold, "seed=0,1,2", "sweep.name=s")
    runs = place.runs_of("s")
    until(lambda: states(runs) == ["done", "running", "submitted"])
    watched = SlurmPlace(place.runs, place.data, place.cluster, {"PATH": f"{tmp_path}/bin:{place.environment['PATH']}"})
    (tmp_path / "calls").unlink(missing_ok=True)
    found = watched.status("s")["runs"]
    assert (tmp_path / "calls").read_text() == "x\n"
    assert (
        found[runs[2].name]["stuck"]
        == f"job {job_of(runs[2])} is held (JobHeldUser); scontrol release {job_of(runs[2])}"
    )
    assert found[runs[1].name]["job"] == job_of(runs[1])
    assert "stuck: job" in watched.skipsweep("status", "s")
    counting.write_text("#!/bin/sh\necho slurm_load_jobs error: down >&2\nexit 1\n")
    assert watched.status("s")["counts"] == {"done": 1, "running": 1, "submitted": 1}


# --------------------------------------------------------------------------------------------------- secrets, injection


def test_no_secret_is_written_down(place: SlurmPlace, tmp_path: Path) -> None:
    """Keys of the environment reach the job, and nothing else: no file, no command line, no log."""
    canary = {"WANDB_API_KEY": "canary-aaaaaaaa", "HF_TOKEN": "canary-bbbbbbbb", "MY_PASSWORD": "canary-cccccccc"}
    place = SlurmPlace(place.runs, place.data, place.cluster, canary)
    play = (
        "note(str(os.environ['WANDB_API_KEY'] == 'canary-' + 8 * 'a')); note(open('/proc/self/cmdline').read()); work()"
    )
    done = place.launch("-m", *stand_in(tmp_path / "play", {}, play), "seed=0", "sweep.name=s")
    assert done.status == 0, done.err
    (run,) = place.runs_of("s")
    assert played(run)[0] == "True"
    assert hits(place.runs, "canary-") == []
    assert "canary-" not in done.out
    for argument in ("+hydra.job.env_set.WANDB_API_KEY=other", "sweep.question=canary-bbbbbbbb"):
        refused = place.launch("-m", argument, "seed=5")
        assert (refused.status, refused.err.count("\n")) == (2, 1)
        assert "holds a secret" in refused.err
        assert "canary-" not in refused.err
    assert hits(place.runs, "canary-") == []


def hits(folder: Path, text: str) -> list[str]:
    files_ = [path for path in folder.rglob("*") if path.is_file()]
    return [str(path) for path in files_ if text.encode() in path.read_bytes()]


NASTY = ["a'; touch CANARY; '", "$(touch CANARY)", "`touch CANARY`", "x\ntouch CANARY", "--wrap=touch CANARY", "é'\"\\"]
FIELDS = ["name", "comment", "account", "constraint", "qos", "gres"]


def test_settings_cannot_become_commands(place: SlurmPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is passed on as it is, or refused in one line, by us or by sbatch."""
    monkeypatch.chdir(tmp_path)
    arguments = ("-m", "hydra.launcher.detach=true", *stand_in(tmp_path / "play", {}))
    texts = [text.replace("CANARY", str(tmp_path / "canary")) for text in NASTY]
    refused = {}
    for number, (field, text) in enumerate(itertools.product(FIELDS, texts)):
        try:
            assert place.here(*arguments, f"seed={number}", launcher={field: text}).status == 0
        except UserError as error:
            refused[field, text] = str(error)
    assert not any("\n" in told for told in refused.values())
    assert {text for _, text in refused} >= {texts[3]}, "a line break was passed on"
    assert len(refused) < len(FIELDS) * len(texts), "nothing was passed on"
    place.cluster.empty()
    assert not (tmp_path / "canary").exists()
    assert [path.name for path in tmp_path.iterdir() if "touch" in path.name] == []


def test_a_folder_that_others_could_write_to_is_made_private(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "slurm").mkdir(parents=True, mode=0o777)
    os.chmod(home / "slurm", 0o777)
    settings = {"tasks": [], "nodes": 1, "tasks_per_node": 1, "packed": False, "timeout_min": 1, "signal_delay_s": 1}
    submission.create(home, **settings, max_num_timeout=1, python="python", code="code")
    assert (home / "slurm").stat().st_mode & 0o777 == 0o700


def test_looking_runs_no_code_of_a_foreign_folder(place: SlurmPlace, tmp_path: Path) -> None:
    """status reads JSON, whatever else lies in a run's or a sweep's folder."""
    place.launch("-m", *stand_in(tmp_path / "play", {}), "seed=0", "sweep.name=s")
    (run,) = place.runs_of("s")
    bomb = f"open({str(tmp_path / 'canary')!r}, 'w')"
    for folder in (run.path, place.multirun.sweep("s").path, place.submissions("s")[0]):
        (folder / "sitecustomize.py").write_text(bomb)
        (folder / "skipsweep.py").write_text(bomb)
        (folder / "x_submitted.pkl").write_bytes(
            b"cos\nsystem\n(S'touch " + str(tmp_path / "canary").encode() + b"'\ntR."
        )
    config = files.read_yaml(run.config)
    files.write_yaml(run.config, {**config, "_target_": "os.system"})
    done = subprocess.run(
        [str(Path(sys.executable).with_name("skipsweep")), "status", "s", "--multirun", str(place.runs)],
        env=place.environment, cwd=run.path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert "1 done" in done.stdout
    assert not (tmp_path / "canary").exists()
