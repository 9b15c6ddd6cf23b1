"""`python launch.py` as a user lives with it: sweeps, extensions, failures, interruptions, torchrun."""

import errno
import io
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Done, Place, request, result, until

from skipsweep import files, torchrun
from skipsweep.analyze import statistics
from skipsweep.errors import UserError
from skipsweep.rundir import Multirun, RunDir
from skipsweep.status import Observation
from skipsweep.sweep import launch as launching
from skipsweep.sweep import local, show
from skipsweep.sweep.plan import Plan

SWEEP = ("-m", "skip_layers=none,0,[0,1]")
ARMS = ["skip_layers=none", "skip_layers=0", "skip_layers=[0,1]"]
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Place:
    return Place(tmp_path_factory.mktemp("launch") / "runs", data_root)


@pytest.fixture(scope="module")
def swept(place: Place) -> Done:
    """The first sweep of all."""
    return place.launch(*SWEEP)


@pytest.fixture(scope="module")
def extended(place: Place, swept: Done) -> Done:
    """Two of its arms with one more seed, two runs at a time."""
    return place.launch("-m", "skip_layers=none,0", "seed=0,1", "hydra.launcher.parallel=2")


@pytest.fixture(scope="module")
def twice(place: Place) -> list[Done]:
    """One run, launched twice at once."""
    both = [place.start("skip_layers=0", "seed=7") for _ in range(2)]
    ends = [process.communicate(timeout=600) for process in both]
    return [Done(process.returncode, out, err) for process, (out, err) in zip(both, ends, strict=True)]


@pytest.fixture(scope="module")
def single(twice: list[Done]) -> Done:
    """The launch that executed the run."""
    return max(twice, key=lambda done: "step 12/12" in done.out)


@pytest.fixture
def plan(place: Place, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plan]:
    """What launch.py would plan, in this process."""
    monkeypatch.setenv("SKIPSWEEP_DATA", str(place.data))
    return lambda *arguments: launching.make_plan(request(place.arguments(*arguments)))


@pytest.fixture
def launch(place: Place, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """launch.py in this process, where nothing is left to train."""
    monkeypatch.setattr(local, "start", None)  # whatever trains nevertheless fails
    return place.here


# ------------------------------------------------------------------------------------------------------------ sweeps


def test_a_sweep_from_end_to_end(place: Place, swept: Done) -> None:
    assert (swept.status, swept.err) == (0, "")
    assert swept.line("3 points") == "3 points, 3 runs: 0 finished, 3 to run; time unknown until measured"
    table = swept.table()
    assert list(table) == ARMS
    losses = {arm: result(place.run_of(swept.sweep, arm))["val_loss"] for arm in ARMS}
    assert {arm: row["val loss"] for arm, row in table.items()} == {arm: f"{x:.4f}" for arm, x in losses.items()}
    assert table[ARMS[0]]["vs baseline"] == "baseline"
    assert table[ARMS[2]]["vs baseline"] == f"{losses[ARMS[2]] - losses[ARMS[0]]:+.4f}"
    assert {row["runs"] for row in table.values()} == {"1/1"}
    assert {row["steps"] for row in table.values()} == {"12"}


def test_a_single_seed_is_said_to_prove_nothing(swept: Done, extended: Done) -> None:
    assert "one seed per arm: differences cannot be distinguished from noise" in swept.out
    assert "one seed per arm" not in extended.out


def test_every_change_of_a_run_is_told(place: Place, swept: Done) -> None:
    for run in place.multirun.all_runs():
        if run.name in swept.out:
            assert told(swept, run) in (["running", "done"], ["done"])


def told(done: Done, run: RunDir) -> list[str]:
    """States of a run, in the order in which they were printed; a short one may have ended before anybody looked."""
    return [line.split(": ")[1] for line in done.out.splitlines() if line.startswith(f"{run.name}: ")]


def test_runs_execute_the_code_that_was_frozen(place: Place, swept: Done) -> None:
    (frozen,) = place.multirun.sweep(swept.sweep).code.iterdir()
    assert (frozen / "skipsweep" / "job.py").exists()
    assert (frozen / "conf" / "config.yaml").exists()
    assert files.read_json(place.run_of(swept.sweep, ARMS[1]).env)["1"]["code"] == frozen.name


def test_a_single_run_executes_the_code_of_its_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not that of another checkout, which may be the one that is installed."""
    monkeypatch.setenv("PYTHONPATH", "/mine")
    assert local._environment(None, 1)["PYTHONPATH"] == f"{Path(launching.__file__).parents[2]}:/mine"
    assert local._environment(tmp_path, 1)["PYTHONPATH"] == f"{tmp_path}:/mine"


def test_the_same_command_again_executes_nothing(place: Place, swept: Done) -> None:
    attempts, stamps = place.attempts(), place.stamps()
    again = place.launch(*SWEEP)
    assert (again.status, again.err) == (0, "")
    assert again.line("3 points") == "3 points, 3 runs: 3 finished, 0 to run"
    assert again.table() == swept.table()
    assert place.attempts() == attempts
    assert place.stamps() == stamps


def test_one_more_seed_runs_only_what_is_new(place: Place, swept: Done, extended: Done) -> None:
    assert (extended.status, extended.err) == (0, "")
    assert extended.line("4 points").startswith("4 points, 4 runs: 2 finished, 2 to run; about ")
    assert set(place.attempts().values()) == {1}
    losses = [[result(place.run_of(extended.sweep, arm, seed))["val_loss"] for seed in (0, 1)] for arm in ARMS[:2]]
    row = extended.table()[ARMS[1]]
    assert (row["runs"], row["same seeds"]) == ("2/2", "all")
    assert row["val loss"] == f"{sum(losses[1]) / 2:.4f}"
    assert row["sd"] == f"{abs(losses[1][0] - losses[1][1]) / 2**0.5:.4f}"
    assert row["vs baseline"] == f"{sum(losses[1]) / 2 - sum(losses[0]) / 2:+.4f}"


@pytest.mark.parametrize(("parallel", "met"), [(2, True), (1, False)])
def test_runs_side_by_side(parallel: int, met: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of two processes says that it is there, then waits for the other; one by one they wait in vain."""
    runs = [Multirun(tmp_path).run(name) for name in ("one", "two")]
    patience = 600 if met else 2  # tenths of a second

    def start(run: RunDir, *_: object) -> local.Execution:
        run.path.mkdir(parents=True)
        other = next(one for one in runs if one != run).path / "here"
        wait = f"touch here; for i in $(seq {patience}); do [ -e {other} ] && exec touch met; sleep 0.1; done"
        process = subprocess.Popen(["sh", "-c", wait], cwd=run.path)
        return local.Execution(run, 1, [process], None, {}, tempfile.TemporaryDirectory())

    monkeypatch.setattr(local, "start", start)
    monkeypatch.setattr(local.Pool, "_threads", lambda *_: 1)
    local.Pool(runs, parallel, None).execute(lambda: None)
    assert [(run.path / "met").exists() for run in runs] == ([True, True] if met else [False, True])


def test_sweeps_share_runs(place: Place, swept: Done, launch: Callable[..., Done]) -> None:
    attempts = place.attempts()
    other = launch("-m", "skip_layers=0,[0,1]")
    assert (other.status, other.sweep != swept.sweep, place.attempts()) == (0, True, attempts)
    assert list(other.table()) == ARMS[1:]
    shared = files.read_json(place.run_of(other.sweep, ARMS[1]).serves)
    assert {swept.sweep, other.sweep} <= shared.keys()
    assert shared[other.sweep] == {"arm": ARMS[1], "tags": ["single_layer"]}


def test_equivalent_points_are_one_run(swept: Done, launch: Callable[..., Done]) -> None:
    done = launch("-m", "skip_layers=none", "head_type=add,concat")
    assert done.line("2 points") == "2 points, 1 run: 1 finished, 0 to run"
    assert done.table()["head_type=concat"]["vs baseline"] == "is head_type=add"


@pytest.mark.parametrize(
    ("axes", "points", "runs"),
    [
        (["skip_layers=[0,1],[1,0]"], 2, 1),
        (["skip_layers=top1,top2", "selection_method=early_to_late,late_to_early"], 4, 3),
        (["skip_layers=none,0", "head_type=add,add_renorm,concat", "seed=0,1"], 12, 8),
        (["seed=0,0"], 1, 1),
        (["compute.threads=1,2"], 2, 1),
        (["replicate=0,1"], 2, 2),
    ],
)
def test_points_and_runs(axes: list[str], points: int, runs: int, plan: Callable[..., Plan]) -> None:
    made = plan("-m", *axes)
    assert (len(made.points), len(made.configs)) == (points, runs)


def test_a_plan_writes_no_run(place: Place, launch: Callable[..., Done], tmp_path: Path) -> None:
    shown = launch("-m", "skip_layers=none,1", "plan=true", f"paths.multirun={tmp_path / 'new'}")
    assert shown.status == 0
    assert shown.line("2 points") == "2 points, 2 runs: 0 finished, 2 to run; time unknown until measured"
    assert list(tmp_path.iterdir()) == []


def test_the_estimate_comes_from_measured_speed(swept: Done, launch: Callable[..., Done]) -> None:
    shown = launch("-m", "skip_layers=none,1", "seed=99", "plan=true")
    assert shown.line("2 points").startswith("2 points, 2 runs: 0 finished, 2 to run; about 0:")


def test_brackets_in_names_are_shown(swept: Done, launch: Callable[..., Done]) -> None:
    """`[input,1]` is a list of layers, not a style."""
    shown = launch("-m", "skip_layers=none,[input,1]", "sweep.question='Is [b] or [/b] better?'", "plan=true")
    assert shown.line("skip_layers=[input,1]")
    assert shown.line("sweep ").endswith(": Is [b] or [/b] better?")


# ------------------------------------------------------------------------------------------------------ named sweeps


def test_a_named_sweep_is_extended(place: Place, swept: Done, launch: Callable[..., Done]) -> None:
    asked = ("sweep.name=mine", "sweep.question=Why?", f"sweep.baseline='{ARMS[1]}'", "sweep.may_differ=[skip_layers]")
    launch("-m", "skip_layers=0,[0,1]", *asked)
    united = launch("-m", "skip_layers=0,none", "sweep.name=mine", "sweep.may_differ=[skip_layers,head_type]")
    assert list(united.table()) == [ARMS[1], ARMS[2], ARMS[0]]
    assert united.table()[ARMS[1]]["vs baseline"] == "baseline"
    document = files.read_json(place.multirun.sweep("mine").plan)
    assert [point["key"] for point in document["points"]] == [[arm, 0, 0] for arm in (ARMS[1], ARMS[2], ARMS[0])]
    assert (document["question"], document["baseline"]) == ("Why?", ARMS[1])
    assert document["may_differ"] == ["skip_layers", "head_type"]
    assert len(document["commands"]) == 2
    assert place.run_of("mine", ARMS[2]).name in {run.name for run in place.multirun.all_runs()}


def test_an_extension_is_compared_with_the_baseline_it_was_begun_with(
    place: Place, swept: Done, launch: Callable[..., Done], plan: Callable[..., Plan]
) -> None:
    launch("-m", "skip_layers=none,0", "sweep.name=begun", "sweep.may_differ=[skip_layers,head_type]")
    more = launch("-m", "skip_layers=[0,1],0", "sweep.name=begun")
    assert more.table()[ARMS[0]]["vs baseline"] == "baseline"
    assert more.table()[ARMS[2]]["same seeds"] == "all"
    with pytest.raises(UserError, match=r"differs from the baseline skip_layers=none in optim\.beta1 .*may_differ="):
        plan("-m", "skip_layers=1,input", "optim.beta1=0.5", "sweep.name=begun")
    with pytest.raises(
        UserError, match=r"sweep\.baseline=other is not an arm .*; valid: skip_layers=none, skip_layers=0"
    ):
        plan("-m", "skip_layers=[0,1],0", "sweep.name=begun", "sweep.baseline=other")


def test_an_arm_keeps_its_meaning(place: Place, swept: Done, launch: Callable[..., Done]) -> None:
    launch("-m", "skip_layers=none,0", "sweep.name=kept")
    document, runs = place.multirun.sweep("kept").plan.read_bytes(), place.attempts().keys()
    with pytest.raises(UserError, match=r"kept already has skip_layers=none with seed 0 as run 3x16.*now it would"):
        launch("-m", "skip_layers=none,0", "sweep.name=kept", "optim.lr=0.02")
    assert place.multirun.sweep("kept").plan.read_bytes() == document
    assert place.attempts().keys() == runs


def test_a_name_makes_a_sweep(place: Place, swept: Done, launch: Callable[..., Done]) -> None:
    done = launch("skip_layers=0", "sweep.name=alone")
    assert (done.status, done.sweep, list(done.table())) == (0, "alone", ["run"])


# ------------------------------------------------------------------------------------------------- experiment files

EXPERIMENT = """# @package _global_
sweep:
  name: private
  question: Does a tiny model profit from its first layer?
  source: this test
  arms:
    one: {skip_layers: 0}
    plain: {skip_layers: none}
    %s
  baseline: plain
  seeds: range(0,2)
  target: 2.0
  may_differ: [skip_layers, head_type]
  published: {synthetic: {plain: {mean: 2.5, n: 3}}, fineweb10B: {plain: {mean: 2.92, n: 160}}}
"""


@pytest.fixture
def private(tmp_path: Path) -> Path:
    """A folder with an experiment of one's own."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(EXPERIMENT % "")
    return tmp_path


def test_an_experiment_of_ones_own(place: Place, extended: Done, private: Path) -> None:
    attempts = place.attempts()
    done = place.launch(f"--config-dir={private}", "experiment=mine")
    assert (done.status, done.err) == (0, "")
    assert done.line("sweep private") == "sweep private: Does a tiny model profit from its first layer?"
    assert place.attempts() == attempts
    table, other = done.table(), extended.table()
    assert list(table) == ["plain", "one"]  # the baseline first
    assert table["one"]["vs baseline"] == other[ARMS[1]]["vs baseline"]
    document = files.read_json(place.multirun.sweep("private").plan)
    assert [tuple(point["key"]) for point in document["points"]] == [
        (arm, seed, 0) for arm in ("one", "plain") for seed in (0, 1)
    ]
    assert (document["baseline"], document["source"], document["target"]) == ("plain", "this test", 2.0)
    assert document["published"] == {"plain": {"mean": 2.5, "n": 3}}


def test_an_arm_that_differs_in_more_than_declared(place: Place, private: Path) -> None:
    (private / "experiment" / "mine.yaml").write_text(EXPERIMENT % "warm: {skip_layers: 0, schedule.warmup_steps: 2}")
    before = place.attempts()
    refused = place.launch(f"--config-dir={private}", "experiment=mine", "sweep.name=refused")
    assert refused.status == 2
    assert refused.err == (
        "error: arm warm differs from the baseline plain in schedule.warmup_steps (0 -> 2); "
        "sweep.may_differ=['skip_layers', 'head_type'] does not allow that (sweep.allow_confound=true "
        "marks it instead)\n"
    )
    assert place.attempts() == before
    assert not place.multirun.sweep("refused").path.exists()


# ------------------------------------------------------------------------------------------------------- what fails


def test_a_failing_run_fails_alone(place: Place, swept: Done) -> None:
    command = ("-m", "skip_layers=0", "optim.lr=1e30,0.01")
    first = place.launch(*command)
    assert first.status == 1
    good, bad = (place.run_of(first.sweep, f"optim.lr={lr}") for lr in ("0.01", "1e+30"))
    assert place.attempts()[good.name] == 1  # shared with the first sweep
    status = bad.read_status()
    assert (status["state"], status["cause"]) == ("failed", "nan")
    assert "is not finite at step" in status["message"]
    assert Path(status["log"]).read_text().strip().endswith(status["message"])
    assert first.table()["optim.lr=1e+30"]["runs"] == "0/1, 1 failed"
    assert f"{bad.name}: failed: nan: {status['message']}" in first.out
    assert not bad.result.exists()

    left = place.launch(*command)
    assert left.status == 1
    assert left.line("2 points") == "2 points, 2 runs: 1 finished, 1 failed (again with retry=failed), 0 to run"
    assert f"nan: {status['message']}" in left.out
    assert place.attempts()[bad.name] == 1

    again = place.launch(*command, "retry=failed")
    assert again.status == 1
    assert place.attempts()[bad.name] == 2
    assert place.attempts()[good.name] == 1
    assert told(again, bad) in (["running", "failed"], ["failed"])
    assert bad.read_status()["attempt"] == 2


def test_a_retry_that_dies_at_once_has_a_cause_of_its_own(place: Place, swept: Done, tmp_path: Path) -> None:
    """The status of the failure before is not taken for that of the new attempt."""
    run = place.run_of(swept.sweep, ARMS[0])
    copy = RunDir(tmp_path / run.name)
    copy.path.mkdir()
    copy.config.write_bytes(run.config.read_bytes())
    copy.write_status("failed", cause="nan", message="before", attempt=1)
    execution = local.start(copy, tmp_path, 1, show=False)  # no package there, and none to be found behind it
    for process in execution.processes:
        process.kill()
        process.wait()
    local.conclude(execution, -signal.SIGKILL)
    assert copy.read_status()["cause"] == "killed"


def test_a_terminated_launcher_is_continued(place: Place, swept: Done) -> None:
    command = ("-m", "schedule.steps=500,12", "data.epochs=100", "skip_layers=none")
    process = place.start(*command)
    long_ = until(lambda: next((run for run in place.multirun.all_runs() if steps(run) == 500), None))
    until(long_.metrics.exists)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (130, "")
    assert "interrupted; to continue: " in out
    stopped = Done(130, out, err)
    short = place.run_of(stopped.sweep, "schedule.steps=12")
    assert long_.read_status()["state"] == "preempted"
    assert short.read_status()["state"] == "done"  # of the first sweep

    done = place.launch(*command)
    assert (done.status, done.err) == (0, "")
    assert place.attempts()[long_.name] == 2
    assert place.attempts()[short.name] == 1
    rows = long_.read_metrics()
    assert rows[-1]["step"] == 500
    began_again = min(row["step"] for row in rows if row["attempt"] == 2)
    assert began_again > 1
    assert f"resumed from step {began_again - 1}" in long_.log(2, "out").read_text()


def test_nobody_reads_how_a_sweep_goes(place: Place) -> None:
    """As with `| head`: the runs end well, and the launch says so."""
    process = place.start("-m", "skip_layers=0,1", "seed=11")
    assert process.stdout is not None
    until(lambda: [run for run in place.multirun.all_runs() if run.config.exists() and run.read_config().seed == 11])
    process.stdout.close()
    _, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, "")
    runs = [run for run in place.multirun.all_runs() if run.read_config().seed == 11]
    assert [run.read_status()["state"] for run in runs] == ["done", "done"]


def test_nobody_reads_a_plan(place: Place) -> None:
    process = place.start("-m", "skip_layers=0,1", "plan=true")
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (128 + signal.SIGPIPE, "")


def test_a_look_that_fails_ends_no_launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a file server that does not answer, nor a message that the terminal's encoding has not got."""
    one, other = RunDir(tmp_path / "one"), RunDir(tmp_path / "other")
    answers = {one: Observation("one", "failed", "config", "\N{SNOWMAN}"), other: Observation("other", "done")}
    asked = []

    def look(run: RunDir) -> Observation:
        asked.append(run)
        if len(asked) == 1:
            raise OSError(errno.ESTALE, "Stale file handle")
        return answers[run]

    said = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(said, "ascii"))
    with show.Watch([one, other], {}, look) as watch:
        watch.tick()
    assert asked == [one, one, other]
    assert said.getvalue() == b"other: done\n"


def steps(run: RunDir) -> int | None:
    return run.read_config().schedule.steps if run.status.exists() else None


# ------------------------------------------------------------------------------------------------------- single runs


def test_a_single_run_shows_its_result(place: Place, single: Done) -> None:
    assert (single.status, single.err) == (0, "")
    assert single.line("1 point").startswith("1 point, 1 run: 0 finished, 1 to run; ")
    run = shown_run(single)
    assert run.path.parent == place.multirun.runs
    found = result(run)
    assert single.line("validation loss").split()[2] == f"{found['val_loss']:.4f}"
    assert single.line("unigram entropy").split()[2] == f"{found['unigram_entropy']:.4f}"
    assert found["val_loss"] < found["unigram_entropy"]
    for label in ("lambda/x", "lambda/skip/0"):
        assert single.line(label).split() == [label, f"{found['lambdas'][label]:+.4f}"]
    assert single.line("tokens").split()[1] == "1,536"
    assert "step 12/12 | loss " in single.out
    assert not place.multirun.sweep("single").path.exists()


def shown_run(done: Done) -> RunDir:
    return RunDir(Path(done.line("run: ").removeprefix("run: ")))


def test_two_launchers_of_one_run(place: Place, twice: list[Done]) -> None:
    """One executes it, the other waits for that and says for whom, and both show the result."""
    assert [done.status for done in twice] == [0, 0]
    (run,) = {shown_run(done) for done in twice}
    assert len({row["attempt"] for row in run.read_metrics()}) == 1
    assert ["step 12/12" in done.out for done in twice].count(True) == 1
    other = min(twice, key=lambda done: "step 12/12" in done.out)
    late = place.attempts()[run.name] == 2  # it found the run finished when it was about to train
    assert late or "is being executed by" in other.out + other.err or "1 finished" in other.out
    assert twice[0].line("validation loss") == twice[1].line("validation loss")


def test_torchrun_trains_the_same_run(place: Place, single: Done, tmp_path: Path) -> None:
    other = Place(tmp_path / "runs", place.data)
    done = other.launch("skip_layers=0", "seed=7", "compute.processes=2", runner=TORCHRUN)
    assert done.status == 0, done.err
    (run,) = other.multirun.all_runs()
    plain = shown_run(single)
    assert run.name == plain.name  # how many processes share the work is no part of what a run is
    assert files.read_json(run.env)["1"]["world_size"] == 2
    curves = [[row["val/loss"] for row in result(one)["val_curve"]] for one in (run, plain)]
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)  # float32; test_world.py compares in float64
    assert done.line("validation loss").split()[2] == f"{result(run)['val_loss']:.4f}"


@pytest.mark.parametrize("flag", ["--help", "--cfg=job"])
def test_torchrun_with_nothing_to_launch(flag: str, place: Place) -> None:
    """Hydra answers; the other ranks must not wait for a run."""
    process = place.start(flag, runner=TORCHRUN)
    try:
        out, err = process.communicate(timeout=300)
    finally:
        process.terminate()
    assert process.returncode == 0, err
    assert "skip_layers" in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("-m", "skip_layers=none,0", "compute.processes=2"), "torchrun starts the processes of one run"),
        (("skip_layers=0",), "torchrun has started 2 processes, but .* ask for 1; make them agree"),
    ],
)
def test_torchrun_that_does_not_fit(
    arguments: tuple[str, ...], told: str, launch: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=told):
        launch(*arguments)


def test_torchrun_with_nothing_to_train(
    single: Done, launch: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other ranks wait for rank 0's word: they must get it from a plan, and for a run that is finished."""
    told: list[RunDir | None] = []
    monkeypatch.setattr(torchrun, "execute_as_leader", lambda run: told.append(run) or 0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launch("skip_layers=1", "compute.processes=2", "plan=true").status == 0
    done = launch("skip_layers=0", "seed=7", "compute.processes=2")
    assert (done.status, done.line("validation loss")) == (0, single.line("validation loss"))
    assert told == [None, None]


# ------------------------------------------------------------------------------------------------------- the report


def test_a_report_is_written_when_a_sweep_ends(place: Place, extended: Done, launch: Callable[..., Done]) -> None:
    done = launch("-m", "skip_layers=none,0", "seed=0,1", "sweep.report=true")
    page = place.multirun.sweep(done.sweep).report / "index.html"
    assert (done.status, done.err) == (0, "")
    assert done.line("report: ") == f"report: {page}"
    assert "distinguishable" in done.out or "differ" in done.out
    assert page.exists()


def test_a_report_that_fails_does_not_fail_the_launch(
    extended: Done, launch: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("skipsweep.analyze.report.make", fail)
    done = launch("-m", "skip_layers=none,0", "seed=0,1", "sweep.report=true")
    assert done.status == 0
    assert done.err == (
        f"warning: no report: OSError: [Errno 28] No space left on device; again with: skipsweep report {done.sweep}\n"
    )


def test_a_plan_says_what_its_seeds_can_tell(extended: Done, launch: Callable[..., Done], place: Place) -> None:
    """As soon as an arm has two finished seeds, by the spread that a report goes by."""
    losses = [[result(place.run_of(extended.sweep, arm, seed))["val_loss"] for seed in (0, 1)] for arm in ARMS[:2]]
    sd = (sum((a - b) ** 2 / 2 for a, b in losses) / len(losses)) ** 0.5
    told = launch("-m", "skip_layers=none,0", "seed=range(0,4)", "plan=true").line("With 4 seeds per arm,")
    assert f"differences of about {statistics.detectable(sd, 4):.2g} nats/token or more are detectable" in told
    assert f"sd {sd:.2g} of 4 finished seeds in 2 arms; sd of few runs: could be 4.4 times as large" in told
    assert "seeds per arm," not in launch("-m", "skip_layers=none,0", "plan=true").out


def test_pairs_are_declared_at_first_or_never(place: Place, extended: Done, launch: Callable[..., Done]) -> None:
    sweep = ("-m", "skip_layers=none,0", "seed=0,1")
    for said in (("sweep.paired=true",), ()):  # and stay so where nothing more is said
        launch(*sweep, "sweep.name=pairs", *said)
        assert files.read_json(place.multirun.sweep("pairs").plan)["paired"] is True
    with pytest.raises(UserError, match=r"sweep pairs was first launched with sweep\.paired=true, which cannot change"):
        launch(*sweep, "sweep.name=pairs", "sweep.paired=false")
    launch(*sweep, "sweep.name=alone")
    assert files.read_json(place.multirun.sweep("alone").plan)["paired"] is False
