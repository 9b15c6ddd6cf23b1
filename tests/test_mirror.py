"""The wandb mirror: what reaches wandb's file, once each, and that nothing wandb does reaches the trainer.

Two tests run the real wandb, offline, and read its file back with wandb's own tool. The others put a module of the same
name in front of it that writes down what it is asked to do, and fails on demand.
"""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_wandb import CANARY, alone, append, frozen, put_before_wandb, row
from hypothesis import given
from hypothesis import strategies as st

from skipsweep import config as c
from skipsweep import files, mirror
from skipsweep.mirror import Mirror, Once, Tail, sync
from skipsweep.rundir import RunDir

OFFLINE = c.Wandb(mode="offline", project="mirror-test")


def until(condition: Callable[[], Any], seconds: float = 240) -> Any:
    """The first true value of `condition`, which must come within `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return value


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A frozen run, in a working directory and a home that must stay empty."""
    alone(tmp_path, monkeypatch)
    for folder in ("home", "cwd"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    run = RunDir(tmp_path / "tiny-skip11-0123456789ab")
    run.freeze(frozen(OFFLINE), {})
    return run


@pytest.fixture
def fake(run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Puts the fake wandb before the real one; set FAKE_WANDB to what shall go wrong."""
    put_before_wandb(tmp_path, monkeypatch)
    return monkeypatch


@pytest.fixture
def start(run: RunDir) -> Iterator[Callable[[], Mirror]]:
    """Starts mirrors; none outlives the test."""
    started: list[Mirror] = []

    def begin(logger: c.Wandb = OFFLINE) -> Mirror:
        began = Mirror.start(run, logger)
        assert began is not None
        started.append(began)
        return began

    yield begin
    for each in started:
        if each.process and each.process.poll() is None:
            each.process.kill()
            each.process.wait()


def folders(run: RunDir, kind: str = "offline-run") -> list[Path]:
    return sorted(run.mirror.glob(f"{kind}-*"))


def steps_of_fake(run: RunDir, kind: str = "offline-run") -> list[list[int]]:
    """The steps in each folder of the fake wandb."""
    return [[row["step"] for row in files.read_rows(folder / "rows.jsonl")] for folder in folders(run, kind)]


# --------------------------------------------------------------------------------------------- the real wandb


def inspect(folder: Path, *how: str) -> str:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", str(next(folder.glob("*.wandb"))), "--json", *how]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def records(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Type -> contents of all records in a folder's file."""
    found: dict[str, list[dict[str, Any]]] = {"exit": []}
    for line in inspect(folder).splitlines():
        record = json.loads(line)
        found.setdefault(record["type"], []).append(record[record["type"]])
    return found


def history(found: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The logged rows, without wandb's own keys."""
    items = [record["item"] for record in found["history"]]
    return [{key: value for key, value in item.items() if not key.startswith("_")} for item in items]


def known(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if value is not None}


def test_wandbs_file_holds_rows_config_labels_summary_and_no_secret(run: RunDir, tmp_path: Path) -> None:
    append(run, *range(12))
    long = "multi_layer/" + "best_to_worst/" * 5
    run.note_serves({"record": {"arm": "skip", "tags": ["record/skip", long + "N=5"]}})
    run.note_serves({"all": {"arm": "11", "tags": ["record/skip", long + "N=6"]}})
    files.write_json(run.result, {"val_loss": 1.25, "lambdas": {"lambda/skip/11": -0.25}, "curve": [[0, 1.5]]})
    run.write_status("done")

    assert sync(run) is None

    (folder,) = folders(run)
    found = records(folder)
    assert history(found) == [known(row(step)) for step in range(12)]
    (opened,) = found["run"]
    assert (opened["run_id"], opened["display_name"]) == ("0123456789ab", "tiny-skip11-0123456789ab")
    assert (opened["project"], opened["run_group"]) == ("mirror-test", "11")
    assert len(opened["tags"]) == 5
    assert {"record/skip", "sweep/record", "sweep/all"} < set(opened["tags"])
    assert "host" not in opened
    summary = json.loads(inspect(folder, "--summary"))
    serves = {"record": {"arm": "skip"}, "all": {"arm": "11"}}
    expected = {sweep: place | {"ordering": "none", "N": 0} for sweep, place in serves.items()}
    assert summary["config"] == files.read_yaml(run.config) | {"serves": expected}
    assert summary["exit_code"] == 0
    assert summary["summary"]["val/loss"] == {"min": 1.0}
    assert summary["summary"]["result/val_loss"] == 1.25
    assert summary["summary"]["result/lambdas/lambda/skip/11"] == -0.25
    steps = {metric["name"]: metric.get("step_metric") for metric in found["metric"] if "name" in metric}
    assert steps == {"step": None, "val/loss": "step"}

    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in written if CANARY.encode() in path.read_bytes()]
    assert not [path for path in written if not path.is_relative_to(run.path)], "wandb wrote outside the run's folder"


TRAINER = """
import os, signal, sys
from pathlib import Path
from skipsweep import files, mirror
from skipsweep.rundir import RunDir
run = RunDir(Path(sys.argv[1]))
mirror.Mirror.start(run, run.read_config().logger)
for line in sys.stdin:
    with open(run.metrics, "a") as f:
        f.write(line)
assert "wandb" not in sys.modules
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_each_step_once_over_a_killed_trainer_and_a_killed_mirror(run: RunDir, start: Callable[[], Mirror]) -> None:
    run.write_status("running", attempt=1)
    rows = "".join(json.dumps(row(step)) + "\n" for step in range(6))
    killed = subprocess.run([sys.executable, "-c", TRAINER, str(run.path)], input=rows, text=True)
    assert killed.returncode == -signal.SIGKILL
    until(lambda: mirror._record(run).get("last_step") == 5)
    (first,) = folders(run)

    append(run, *range(4, 9), attempt=2)
    second = start()
    until(lambda: len(folders(run)) == 2 and list(folders(run)[1].glob("*.wandb")))
    assert second.process is not None
    second.process.kill()
    assert "ended with code -9" in (second.close() or "")

    third = start()
    append(run, *range(7, 12), attempt=3)
    run.write_status("done")
    assert third.close() is None
    assert [folder == first for folder in folders(run)] == [True, False]
    found = [records(folder) for folder in folders(run)]
    assert [[row["step"] for row in history(each)] for each in found] == [[*range(6)], [*range(6, 12)]]
    codes = [each["exit"][0].get("exit_code", 0) for each in found]
    assert codes == [1, 0], "the first mirror saw a run that was not done, the last one a run that was"


# --------------------------------------------------------------------------------------------- following


def test_follows_live_holds_back_a_torn_line_and_ignores_signals(
    run: RunDir, fake: Any, start: Callable[[], Mirror]
) -> None:
    began = start()
    append(run, 0, 1)
    until(lambda: steps_of_fake(run) == [[0, 1]])
    assert began.process is not None
    assert os.getsid(began.process.pid) == began.process.pid, "Ctrl-C in the terminal would reach it"
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        began.process.send_signal(number)
    line = json.dumps(row(2)).encode() + b"\n"
    with open(run.metrics, "ab") as f:
        f.write(line[:20])
    append(run, 3)  # ends the torn line first, as the next attempt would
    until(lambda: steps_of_fake(run) == [[0, 1, 3]])
    append(run, 4)
    with open(run.metrics, "ab") as f:
        f.write(json.dumps(row(5)).encode())
    assert began.close() is None
    assert steps_of_fake(run) == [[0, 1, 3, 4]], "all that was complete at the end, and nothing else"
    assert began.process.returncode == 0


@given(st.lists(st.integers(1, 40), max_size=60))
def test_tail_gives_every_row_once_however_the_file_grows(tmp_path_factory: Any, cuts: list[int]) -> None:
    path = tmp_path_factory.mktemp("tail") / "metrics.jsonl"
    content = b'{"step": 0}\n{"st\n[1]\n{"step": "x"}\n\n' + b"".join(b'{"step": %d}\n' % i for i in range(1, 30))
    tail, seen = Tail(path), []
    for cut in [*cuts, len(content)]:
        with open(path, "ab") as f:
            f.write(content[:cut])
        content = content[cut:]
        seen += tail.read()
    assert [row["step"] for row in seen] == list(range(30))
    assert tail.read() == []


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 8)), min_size=1), st.integers(1, 10))
def test_once_passes_every_step_once_whatever_is_resumed(attempts: list[tuple[int, int]], batch: int) -> None:
    rows, reached = [], 0
    for number, (back, length) in enumerate(attempts):
        begin = max(0, reached - back)
        rows += [row(step, number) for step in range(begin, begin + length)]
        reached = max(reached, begin + length)
    once = Once(0, 0)
    picked = [r["step"] for i in range(0, len(rows), batch) for r in once.pick(rows[i : i + batch])]
    assert picked == list(range(reached))


def test_tail_of_a_file_that_is_not_there_yet(tmp_path: Path) -> None:
    assert Tail(tmp_path / "metrics.jsonl").read() == []


# --------------------------------------------------------------------------------------------- a failing wandb


@pytest.mark.parametrize(
    ("plan", "cause"),
    [
        ("raise in init", r"RuntimeError: no server for \*\*\*;"),
        ("exit in init", "SystemExit: 0;"),
        ("raise in log", "RuntimeError: no log today;"),
        ("hang in init", "did not finish within 1.5 s;"),
        ("hang in finish", "did not finish within 1.5 s;"),
    ],
)
def test_a_sick_wandb_costs_one_warning_and_sync_repairs_it(
    run: RunDir, fake: Any, start: Callable[[], Mirror], plan: str, cause: str
) -> None:
    fake.setenv("FAKE_WANDB", plan)
    append(run, *range(4))
    run.write_status("done")
    began = start()
    if plan != "hang in init":
        until(lambda: folders(run) or (began.process and began.process.poll() is not None))
    warning = began.close(timeout=1.5 if "hang" in plan else 60)
    assert warning is not None
    assert "\n" not in warning
    assert warning.startswith("wandb: ")
    assert re.search(cause, warning)
    assert began.process is not None
    assert began.process.poll() is not None, "left running"
    assert files.read_json(run.mirror / "mirror.json")["failed"] in warning
    assert not [path for path in run.path.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]

    fake.delenv("FAKE_WANDB")
    assert sync(run) is None
    assert steps_of_fake(run) == [[0, 1, 2, 3]]
    assert "failed" not in files.read_json(run.mirror / "mirror.json")


def test_a_failure_is_one_line_in_the_log(run: RunDir, fake: Any, start: Callable[[], Mirror]) -> None:
    fake.setenv("FAKE_WANDB", "raise in init")
    start().close()
    assert len((run.path / "log" / "mirror.log").read_text().splitlines()) == 1


def test_a_mirror_that_cannot_even_start_is_a_warning(run: RunDir, fake: Any, start: Callable[[], Mirror]) -> None:
    fake.setattr(mirror.sys, "executable", str(run.path / "no-python"))
    assert "FileNotFoundError" in (start().close() or "")


def test_an_orphan_that_hangs_ends_itself(run: RunDir, fake: Any) -> None:
    fake.setenv("FAKE_WANDB", "hang in init")
    code = "import sys; from skipsweep import mirror; mirror.LINGER_S = 0.1; mirror.main(sys.argv[1:])"
    command = [sys.executable, "-c", code, str(run.path), "--follow"]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert ended.returncode == mirror.FAILED
    assert "of the end of training" in files.read_json(run.mirror / "mirror.json")["failed"]


# --------------------------------------------------------------------------------------------- replaying, restarting


def test_sync_replaces_all_earlier_folders_and_the_last_of_repeated_rows_counts(run: RunDir, fake: Any) -> None:
    append(run, 0, 1, 2)
    assert sync(run) is None
    append(run, 1, 2, 3, attempt=2)
    assert sync(run) is None
    (folder,) = folders(run)
    assert [row["attempt"] for row in files.read_rows(folder / "rows.jsonl")] == [1, 2, 2, 2]


def test_a_sync_that_fails_half_way_leaves_no_mark_behind(run: RunDir, fake: Any, start: Callable[[], Mirror]) -> None:
    append(run, 0, 1, 2)
    assert sync(run) is None
    fake.setenv("FAKE_WANDB", "raise in log")
    assert sync(run) == "RuntimeError: no log today"
    fake.delenv("FAKE_WANDB")
    assert start().close() is None
    assert steps_of_fake(run) == [[0, 1, 2]]


def test_sync_without_a_logger_of_its_own_goes_where_it_is_told(run: RunDir, fake: Any) -> None:
    settings = files.read_yaml(run.config)
    files.write_yaml(run.config, {**settings, "logger": {"name": "none"}})
    append(run, 0)
    assert sync(run, OFFLINE) is None
    assert steps_of_fake(run) == [[0]]
    assert sync(run) is None
    assert steps_of_fake(run, "run") == [[0]], "wandb's default is online"


def test_sync_gives_way_to_a_mirror_at_work(run: RunDir, fake: Any) -> None:
    run.mirror.mkdir()
    with open(run.mirror / "mirror.lock", "ab") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        assert sync(run) == "another mirror of this run is at work"
    assert folders(run) == []


def test_the_next_attempts_mirror_waits_for_the_last_ones(run: RunDir, fake: Any, start: Callable[[], Mirror]) -> None:
    run.mirror.mkdir()
    append(run, 0)
    with open(run.mirror / "mirror.lock", "ab") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        began = start()
        until(lambda: "waiting" in (run.path / "log" / "mirror.log").read_text())
        with pytest.raises(AssertionError, match="in vain"):
            until(lambda: folders(run), seconds=0.5)
        mirror._note(run, id=run.id, folders=[], last_step=0)
    append(run, 1)
    assert began.close() is None
    assert steps_of_fake(run) == [[1]]


def test_a_restart_from_step_0_is_a_wandb_run_of_its_own(run: RunDir, fake: Any, start: Callable[[], Mirror]) -> None:
    append(run, 0, 1, 2)
    assert sync(run) is None
    run.write_status("running", attempt=2, restart=2)
    began = start()
    append(run, 0, 1, attempt=2)
    assert began.close() is None
    assert [folder.name.rsplit("-", 1)[-1] for folder in folders(run)] == ["0123456789ab", "r2"]
    assert steps_of_fake(run) == [[0, 1, 2], [0, 1]]


def test_online_the_server_says_where_to_go_on_and_offline_folders_have_served(
    run: RunDir, fake: Any, start: Callable[[c.Wandb], Mirror]
) -> None:
    append(run, *range(6))
    assert sync(run) is None
    fake.setenv("FAKE_WANDB_STEP", "4")
    assert start(c.Wandb(mode="online")).close() is None
    assert steps_of_fake(run, "run") == [[4, 5]]
    assert folders(run) == []


class Opened:
    def __init__(self) -> None:
        self.summary: dict[str, Any] = {}
        self.calls: list[Any] = []

    def mark_preempting(self) -> None:
        self.calls.append("preempting")

    def finish(self, exit_code: int) -> None:
        self.calls.append(exit_code)


@pytest.mark.parametrize(
    ("state", "calls"), [("done", [0]), ("failed", [1]), ("running", [1]), ("preempted", ["preempting", 1])]
)
def test_how_the_run_ended(run: RunDir, state: str, calls: list[Any]) -> None:
    run.write_status(state)
    opened = Opened()
    mirror._finish(run, opened)
    assert opened.calls == calls


# --------------------------------------------------------------------------------------------- labels, the rest


def test_group_and_tags_unite_all_sweeps_and_long_tags_stay_apart(run: RunDir) -> None:
    assert mirror._labels(run) == (None, [])
    run.note_serves({"b": {"arm": "skip", "tags": ["x" * 70 + "5", "x" * 70 + "6"]}})
    run.note_serves({"a": {"arm": "same_steps", "tags": ["b"]}})
    run.note_serves({"a": {"arm": "baseline", "tags": ["a"]}})
    group, tags = mirror._labels(run)
    assert group == "baseline"
    assert tags[:4] == ["a", "sweep/a", "sweep/b", tags[3]]
    assert len(tags) == 5
    assert {len(tag) for tag in tags[3:]} == {64}


def test_what_dashboards_group_by(run: RunDir) -> None:
    settings = files.read_yaml(run.config)
    files.write_yaml(run.config, settings | {"skip_layers": {"layers": [2, 5]}})
    tags = ["multi_layer/early_to_late/N=2", "multi_layer/random/N=2"]
    run.note_serves({"v1.2=x": {"arm": "top2", "tags": tags}, "b": {"arm": "two", "tags": ["multi_layer/given/N=2"]}})
    assert mirror._config(run)["serves"] == {
        "v1_2_x": {"arm": "top2", "ordering": "early_to_late+random", "N": 2},
        "b": {"arm": "two", "ordering": "given", "N": 2},
    }


def test_serve_writes_only_what_changes(run: RunDir) -> None:
    points = {"a": {"arm": "skip", "tags": ["t"]}}
    run.note_serves(points)
    before = run.serves.stat().st_ino
    run.note_serves(points)
    assert run.serves.stat().st_ino == before


def test_no_logger_no_mirror(run: RunDir) -> None:
    assert Mirror.start(run, c.NoLogger()) is None


def test_rows_are_logged_at_the_time_they_happened() -> None:
    class Log:
        def log(self, row: dict[str, Any], step: int, commit: bool) -> None:
            self.row = row

    seen = Log()
    mirror._log(seen, row(3))
    assert seen.row["_timestamp"] == row(3)["time"]
    assert "grad_norm" not in seen.row
