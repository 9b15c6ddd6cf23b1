"""Parts of the SLURM launcher that need no SLURM."""

import os
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from cluster import alive
from commands import until
from hypothesis import given
from hypothesis import strategies as st

from skipsweep import lease, peers, secrecy
from skipsweep.errors import UserError
from skipsweep.rundir import RunDir
from skipsweep.slurm import batch_step, environment, squeue, submission, submit
from skipsweep.slurm import settings as slurm_settings
from skipsweep.slurm.assignment import Assignment
from skipsweep.slurm.batch_step import Death
from skipsweep.slurm.settings import SlurmLauncher
from skipsweep.slurm.squeue import Job, Queue
from skipsweep.status import Observation

TASK = {"SLURM_PROCID": "11", "SLURM_NTASKS": "16", "SLURM_LOCALID": "3", "SLURM_NNODES": "2", "SLURM_JOB_ID": "77"}
TASK |= {"SLURM_JOB_NODELIST": "localhost,other", "SLURM_CPUS_PER_TASK": "8"}

# ---------------------------------------------------------------------------------------------------------------- ranks


def test_ranks_come_from_slurm() -> None:
    found = environment.rank_environment(TASK, alone=False)
    assert {key: found[key] for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "SKIPSWEEP_THREADS")} == {
        "RANK": "11",
        "WORLD_SIZE": "16",
        "LOCAL_RANK": "3",
        "MASTER_ADDR": "localhost",
        "SKIPSWEEP_THREADS": "8",
    }
    assert int(found["MASTER_PORT"]) in environment.PORTS
    requeued = environment.rank_environment(TASK | {"SLURM_RESTART_COUNT": "1"}, alone=False)
    assert requeued["MASTER_PORT"] != found["MASTER_PORT"], "the old one may still be in use"


def test_a_packed_run_is_alone_on_the_gpu_of_its_place() -> None:
    found = environment.rank_environment(TASK, alone=True)
    assert (found["RANK"], found["WORLD_SIZE"], found["LOCAL_RANK"]) == ("0", "1", "3")


def test_a_gpu_that_slurm_has_bound_is_the_first() -> None:
    assert environment.rank_environment(TASK | {"CUDA_VISIBLE_DEVICES": "5"}, alone=False)["LOCAL_RANK"] == "0"
    assert environment.rank_environment(TASK | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, alone=False)["LOCAL_RANK"] == "3"


def test_a_node_without_a_hosts_name_is_reached_where_srun_starts() -> None:
    task = TASK | {"SLURM_JOB_NODELIST": "no-such-host-[1-2]", "SLURM_LAUNCH_NODE_IPADDR": "10.1.2.3"}
    assert environment.rank_environment(task, alone=False)["MASTER_ADDR"] == "10.1.2.3"


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("n1", "n1"), ("n[1-2]", "n1"), ("n[03-05,9],m1", "n03"), ("a-b[7]", "a-b7"), ("x[1-2]y", "x1y")],
)  # fmt: skip
def test_first_host(nodes: str, first: str) -> None:
    assert environment.first_host(nodes) == first


def test_tasks_find_their_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = Assignment([("/runs/a", 1), None, ("/runs/c", 3)], packed=True)
    monkeypatch.setenv(*next(iter(packed.to_environment().items())))
    assert [Assignment.of_environment().slot(task) for task in range(4)] == [("/runs/a", 1), None, ("/runs/c", 3), None]
    assert [Assignment([("/runs/a", 2)], packed=False).slot(task) for task in (0, 7)] == [("/runs/a", 2)] * 2


# --------------------------------------------------------------------------------------------------------- how it ended

SAID: dict[str, tuple[list[str], int, str, str]] = {
    "killed": (
        ["srun: error: n1: task 0: Killed"],
        137,
        "killed",
        "SIGKILL (kill -9, or the system had no memory left)",
    ),
    "segfault": (["srun: error: n1: task 0: Segmentation fault (core dumped)"], 139, "killed", "SIGSEGV"),
    "bus error": (["srun: error: n1: task 0: Bus error (core dumped)"], 135, "data", "SIGBUS"),
    "memory": (["srun: error: n1: task 0: Out Of Memory"], 1, "oom", "memory"),
    "memory, seen by the step": (
        ["slurmstepd: error: Detected 1 oom-kill event(s) in StepId=7.0.", "srun: error: n1: task 0: Killed"],
        137,
        "oom",
        "memory",
    ),
    "node": (["srun: error: Node failure on n2", "srun: error: n1: tasks 0-7: Killed"], 1, "node", "n2"),
    "launch": (["srun: error: Task launch for StepId=7.0 failed on node n2: launch failed"], 1, "node", "n2"),
    "code": (["srun: error: n1: tasks 0-3: Exited with exit code 9"], 9, "exception", "exit code 9"),
    "nothing": ([], 0, "exception", "without a result"),
}


@pytest.mark.parametrize("case", SAID)
def test_causes(case: str) -> None:
    said, code, cause, message = SAID[case]
    death = batch_step._first(batch_step.parse_deaths(said))
    state, told_cause, told_message = batch_step.verdict(death, code, said, False, None)
    assert (state, told_cause) == ("failed", cause)
    assert message in told_message
    assert batch_step.verdict(death, code, said, True, None)[0] == "preempted", "its job was ended, not it"


def test_a_warning_before_anybody_listens_is_no_failure() -> None:
    deaths = batch_step.parse_deaths(["srun: error: n1: tasks 0-1: User defined signal 2"])
    assert deaths == {0: Death(signal="SIGUSR2"), 1: Death(signal="SIGUSR2")}
    assert batch_step.verdict(deaths[0], 140, [], False, None)[0] == "preempted"


def test_the_first_end_is_the_cause_of_the_others() -> None:
    said = ["srun: error: n1: task 3: Exited with exit code 1", "srun: error: n1: tasks 0-2,4-7: Killed"]
    assert batch_step._first(batch_step.parse_deaths(said)) == Death(code=1)
    said = ["srun: error: n1: task 1: Exited with exit code 75", "srun: error: n1: task 0: Killed"]
    assert batch_step._first(batch_step.parse_deaths(said)) == Death(signal="SIGKILL")


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / "multirun" / "runs" / "r-000000000000")
    made.leases.mkdir(parents=True)
    settings: dict[str, Any] = {"nodes": 1, "tasks_per_node": 1, "packed": False, "timeout_min": 5, "signal_delay_s": 9}
    folder, sent = submission.create(
        tmp_path / "s", tasks=[[str(made.path)]], **settings, max_num_timeout=1, python="python", code="code"
    )
    submission.claim(made, folder, sent, 0)
    return made


# ----------------------------------------------------------------------------------------- a controller that is away

SRUN = """#!/bin/sh
[ {code} = 75 ] && echo '{{"state": "preempted", "attempt": 1}}' > {run}/status.json
echo "srun: launcher's own words" >&2
exit {code}
"""
SCONTROL = """#!/bin/sh
echo "$1" >> {calls}
[ $(grep -c -- "$1" {calls}) -le {away} ] && echo "Unable to contact slurm controller (connect failure)" >&2 && exit 1
[ "$1" = requeue ] || echo "{facts}"
[ "{facts}" ] || echo "slurm_load_jobs error: Invalid job id specified" >&2
[ "{facts}" ]
"""
RUNNING = "JobId=7 JobState=RUNNING Restarts=0 PreemptTime=None"
AWAY: dict[str, tuple[int, str, int, int, str]] = {
    "never": (0, RUNNING, 75, 1, "preempted"),
    "for a while": (3, RUNNING, 75, 4, "preempted"),
    "for good": (10**6, RUNNING, 75, batch_step.REQUEUE_TRIES, "preempted"),
    "when a rank had failed": (10**6, RUNNING, 9, 0, "failed"),
    "until the job was cancelled": (3, "JobId=7 JobState=CANCELLED Restarts=0", 75, 0, "preempted"),
    "until the job was forgotten": (3, "", 75, 0, "preempted"),
}
"""How often a command fails; what the controller says then; srun's exit code; requeues asked for; the run's state."""


@pytest.mark.parametrize("case", AWAY)
def test_a_controller_is_away(case: str, run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer is not taken for a job that has ended: what was preempted is requeued as soon as that works."""
    away, facts, code, requeues, state = AWAY[case]
    calls = tmp_path / "calls"
    _program(tmp_path / "srun", SRUN.format(code=code, run=run.path))
    _program(tmp_path / "scontrol", SCONTROL.format(calls=calls, away=away, facts=facts))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(batch_step.time, "sleep", lambda _: None)
    monkeypatch.setattr(batch_step.signal, "signal", lambda *_: None)
    claim = submission.claim_of(run)
    assert claim is not None
    assert batch_step.BatchStep(Path(claim.folder)).run() == (75 if code == 75 else 1)
    assert calls.read_text().splitlines().count("requeue") == requeues
    assert run.read_status()["state"] == state
    if state == "failed":
        assert "launcher's own words" in Path(run.read_status()["log"]).read_text()
        assert run.read_status()["message"] == "srun: launcher's own words"


def test_why_a_rank_failed_is_told_by_itself(run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _program(tmp_path / "srun", SRUN.format(code=1, run=run.path))
    _program(tmp_path / "scontrol", SCONTROL.format(calls=tmp_path / "calls", away=0, facts=RUNNING))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(batch_step.signal, "signal", lambda *_: None)
    (run.path / "log").mkdir()
    peers.note(run, 1, 1, "oom", "MemoryError: none left")
    claim = submission.claim_of(run)
    assert claim is not None
    assert batch_step.BatchStep(Path(claim.folder)).run() == 1
    status = run.read_status()
    assert (status["state"], status["cause"], status["message"]) == ("failed", "oom", "MemoryError: none left")


def _program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


# ---------------------------------------------------------------------------------------------------------------- queue


def queue_of(run: RunDir, state: str, reason: str = "None") -> Queue:
    claim = submission.claim_of(run)
    assert claim is not None
    return Queue({(claim.token, claim.index): Job("7_0", state, reason)})


IN_FLIGHT: dict[str, tuple[str | None, str | None, bool, bool]] = {
    "waits": ("PENDING", None, False, True),
    "runs": ("RUNNING", "7", True, True),
    "has been cancelled, and saves": ("COMPLETING", "7", True, False),
    "has been cancelled": ("COMPLETING", "7", False, False),
    "has ended, and a launcher elsewhere executes it": ("COMPLETING", None, True, True),
    "is gone": (None, "7", False, False),
    "has no job, and a launcher executes it": (None, None, True, True),
}
"""State of its job; job in the newest lease; whether that is held."""


@pytest.mark.parametrize("case", IN_FLIGHT)
def test_what_is_in_flight(case: str, run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    state, job, live, expected = IN_FLIGHT[case]
    monkeypatch.setenv("SLURM_JOB_ID", job) if job else monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    held = lease.acquire(run)
    run.write_status("running", attempt=held.attempt)
    if not live:
        held.release()
    try:
        assert submit.is_in_flight(run, queue_of(run, state) if state else Queue({})) == expected
    finally:
        held.release()


VIEWS: dict[str, tuple[str, tuple[str, str] | None, str, str]] = {
    "waits": ("submitted", ("PENDING", "Resources"), "submitted", "job 7_0 waits: Resources"),
    "starts": ("submitted", ("RUNNING", "None"), "submitted", "job 7_0 is starting"),
    "is held": ("submitted", ("PENDING", "JobHeldUser"), "submitted", "scontrol release 7_0"),
    "is held after a launch failed": (
        "running",
        ("PENDING", "launch failed requeued held"),
        "preempted",
        "release 7_0",
    ),
    "waits to go on": ("preempted", ("PENDING", "BeginTime"), "preempted", "job 7_0 waits: BeginTime"),
    "has lost its node": ("running", ("PENDING", "BeginTime"), "preempted", "job 7_0 waits: BeginTime"),
    "has gone silent": ("running", ("RUNNING", "None"), "running", "has shown no heartbeat for"),
    "is gone": ("running", None, "interrupted", "left the queue without reporting a result"),
    "was never seen": ("submitted", None, "interrupted", "left the queue without reporting a result"),
    "was preempted for good": ("preempted", None, "preempted", "SIGUSR2"),
}


@pytest.mark.parametrize("case", VIEWS)
def test_what_the_queue_adds(case: str, run: RunDir) -> None:
    state, job, expected, message = VIEWS[case]
    queue = queue_of(run, *job) if job else Queue({})
    seen = Observation(run.name, "interrupted" if state == "running" else state, message="SIGUSR2")
    found = squeue.refined(seen, run, queue)
    assert found.state == expected
    assert message in (found.message or "")
    assert bool(found.stuck) == (case in ("is held", "is held after a launch failed", "has gone silent"))


def test_no_job_is_blamed_for_what_a_launcher_executed(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    held = lease.acquire(run)
    held.release()
    found = squeue.refined(Observation(run.name, "interrupted"), run, Queue({}))
    assert found.state == "interrupted"
    assert found.message == f"{lease.describe(held.content)} ended without reporting a result"


def test_what_has_ended_needs_no_queue(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(squeue, "read", lambda: pytest.fail("squeue was called"))
    seen = [Observation("a", "done"), Observation("b", "failed"), Observation("c", "planned")]
    assert squeue.all_refined(seen, [run] * 3) == seen


def test_jobs_that_are_not_ours_are_passed_over() -> None:
    rows = ["7|N/A|RUNNING|None|somebody.elses", "8|3|PENDING|Priority|a.b.0123456789ab", "9|N/A|RUNNING|None|x|y"]
    assert [squeue._parse(row) for row in rows] == [
        None,
        (("0123456789ab", 3), Job("8_3", "PENDING", "Priority")),
        None,
    ]


@given(st.text())
def test_a_jobs_name_always_bears_its_token(given: str) -> None:
    name = submission.name(given, "0123456789ab")
    assert submission.token_of(name) == "0123456789ab"
    assert name.isascii()
    assert name.isprintable()
    assert not set(name) & set(" '\"`$\\|%/")


# ------------------------------------------------------------------------------------------------------------- settings


def settings(**changes: Any) -> dict[str, Any]:
    defaults = SlurmLauncher()
    return {f.name: getattr(defaults, f.name) for f in fields(defaults)} | changes


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "line break": ({"comment": "a\nb"}, "line breaks"),
    "in a list": ({"setup": ["module load x\0"]}, "line breaks"),
    "in additional parameters": ({"additional_parameters": {"reservation": "a\rb"}}, "line breaks"),
    "a key with a blank": ({"additional_parameters": {"x --wrap": "y"}}, "no option of sbatch"),
    "a key with a line break": ({"additional_parameters": {"x\n#SBATCH --wrap": "y"}}, "no option of sbatch"),
    "ours": ({"additional_parameters": {"output": "/etc/x"}}, "set by skipsweep"),
    "ours, otherwise spelt": ({"additional_parameters": {"job_name": "x"}}, "set by skipsweep"),
    "a list": ({"additional_parameters": ["wckey"]}, "write {option:value}"),
    "nodes": ({"nodes": 2}, "compute.nodes"),
    "gpus": ({"gpus_per_node": 4}, "compute.gpus"),
    "no time": ({"timeout_min": 0}, "at least 1"),
    "no time left after the warning": ({"timeout_min": 2, "signal_delay_s": 120}, "all of the 2 min"),
}


@pytest.mark.parametrize("case", BAD)
def test_settings_that_cannot_work(case: str) -> None:
    changes, message = BAD[case]
    with pytest.raises(UserError, match=message) as caught:
        slurm_settings.check(settings(**changes))
    assert "\n" not in str(caught.value)


def test_the_defaults_work() -> None:
    slurm_settings.check(settings())


@pytest.mark.parametrize("key", ["data.batch_tokens", "data.val_tokens", "data.tokenizer", "model.dim", "sweep.name"])
def test_settings_are_no_secrets(key: str) -> None:
    secrecy.check([f"{key}=12345678"], {"PATH": "12345678"})


@pytest.mark.parametrize("key", ["WANDB_API_KEY", "HF_TOKEN", "+a.b.password", "x.secret", "AWS_SECRET_ACCESS_KEY"])
def test_secrets_on_the_command_line_are_refused(key: str) -> None:
    with pytest.raises(UserError, match="holds a secret"):
        secrecy.check([f"{key}=value"], {})
    with pytest.raises(UserError, match="holds a secret"):
        secrecy.check(["sweep.question=is 12345678 it"], {key: "12345678"})


@pytest.mark.parametrize(
    "value",
    [
        "[export WANDB_API_KEY=0123]",
        "['cd /x','export \"HF_TOKEN=0123\"']",
        '["HF_TOKEN=\\"0123\\""]',
        "{export: 'ALL,MY_PASSWORD=0123'}",
        "{HF_TOKEN:0123}",
        "{a: 1, 'HF_TOKEN': '0123'}",
        "=0123 HF_TOKEN=0123",
    ],
)
def test_a_secret_inside_a_setting_is_refused(value: str) -> None:
    with pytest.raises(UserError, match=r"(WANDB_API_KEY|HF_TOKEN|MY_PASSWORD) holds a secret") as caught:
        secrecy.check([f"hydra.launcher.setup={value}"], {})
    assert "0123" not in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        "['export HF_TOKEN=$(cat ~/.token)']",
        "['export WANDB_API_KEY=\"$KEY\"','export A_TOKEN=`cat x`']",
        "['export MAX_TOKENS=4096 TOKENIZERS_PARALLELISM=false']",
        "{comment: 'tokens: 12', reservation: mine}",
        "what does a token cost, which is the secret: more data or HF_TOKEN=",
    ],
)
def test_what_a_shell_looks_up_is_no_secret(value: str) -> None:
    secrecy.check([f"hydra.launcher.setup={value}"], {})


def test_the_warnings_are_what_ranks_listen_to() -> None:
    assert {getattr(signal, name) for name in batch_step._WARNINGS} == {signal.SIGTERM, signal.SIGUSR2, signal.SIGINT}


# ----------------------------------------------------------------------------------------------- the tests' own cluster

STARTS_A_DAEMON = """
import subprocess, sys
from pathlib import Path
from cluster import Cluster
run = Path(sys.argv[1], "run")
run.mkdir(parents=True)
(run / "daemon.pid").write_text(str(subprocess.Popen(["sleep", "600"], start_new_session=True).pid))
Cluster(run.parent).guard()
print("guarded", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("blow", [signal.SIGTERM, signal.SIGKILL])
def test_daemons_end_with_the_session_that_started_them(blow: signal.Signals, tmp_path: Path) -> None:
    """Also where it is given no time to say goodbye."""
    root, environment = tmp_path / "cluster", {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", STARTS_A_DAEMON, str(root)]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as session:
        assert session.stdout is not None
        assert session.stdout.readline() == "guarded\n"
        daemon = int((root / "run" / "daemon.pid").read_text())
        assert alive(daemon)
        session.send_signal(blow)
    until(lambda: not alive(daemon) and not root.exists())
