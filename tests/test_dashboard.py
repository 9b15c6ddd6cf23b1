"""`skipsweep dashboard`: what the workspace refers to is what runs have logged, and a dry run asks nobody."""

import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_wandb import alone, append, frozen
from typer.testing import CliRunner

from skipsweep import config as c
from skipsweep import dashboard, files, mirror
from skipsweep.cli import app
from skipsweep.errors import UserError
from skipsweep.rundir import Multirun

pytestmark = pytest.mark.filterwarnings("ignore:Pydantic V1 style:DeprecationWarning")  # while the library is imported
SWEEP = "v1.2=x"
KEY = "serves.value.v1_2_x."
"""How wandb names a key below `serves`."""
LABELS = {"lambda/x": 1.0, "lambda/unet/3-5": 0.5, "lambda/block/0/x": 1.0, "lambda/value/0/v": 1.0, "gate/0": 0.5}


@pytest.fixture
def multirun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Multirun:
    """A sweep of two orderings with up to two sources; only the run of the first point is there."""
    alone(tmp_path, monkeypatch)
    multirun = Multirun(tmp_path / "multirun")
    points = [
        {"key": [arm, 0, 0], "run": f"{arm}-00000000000{n}", "sources": list(range(n)), "tags": [tag]}
        for arm, n, tag in (
            ("late2", 2, "multi_layer/late_to_early/N=2"),
            ("early2", 2, "multi_layer/early_to_late/N=2"),
            ("one", 1, "single_layer"),
        )
    ]
    run = multirun.run(points[0]["run"])
    run.freeze(frozen(c.Wandb(mode="offline", project="mine")), {})
    files.write_yaml(run.config, files.read_yaml(run.config) | {"skip_layers": {"layers": [0, 1]}})
    append(run, 0)
    files.append_row(run.metrics, {"step": 1, "attempt": 1, **LABELS})
    run.note_serves({SWEEP: {"arm": "late2", "tags": points[0]["tags"]}})
    files.write_json(run.result, {"val_loss": 2.9, "train_time_s": 5.0})
    run.write_status("done", attempt=1)
    multirun.sweep(SWEEP).path.mkdir(parents=True)
    files.write_json(multirun.sweep(SWEEP).plan, {"question": "Which order?", "points": points})
    return multirun


def invoke(multirun: Multirun, *more: str) -> Any:
    return CliRunner().invoke(app, ["dashboard", SWEEP, "--multirun", str(multirun.path), *more])


def panels(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for section in document["spec"]["section"]["panelBankConfig"]["sections"]:
        yield from (panel["config"] for panel in section["panels"])


def logged(folder: Path) -> tuple[dict[str, Any], dict[str, Any], set[str]]:
    """(configuration, summary, keys of the history) in wandb's own file, read by wandb's own tool."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", str(next(folder.glob("*.wandb"))), "--json"]
    summary, lines = (
        subprocess.run([*command, *how], check=True, capture_output=True, text=True).stdout
        for how in (("--summary",), ())
    )
    found = json.loads(summary)
    records = [json.loads(line) for line in lines.splitlines()]
    keys = {key for record in records if record["type"] == "history" for key in record["history"]["item"]}
    return found["config"], found, keys


def test_a_dry_run_asks_nobody_and_refers_to_what_runs_have_logged(
    multirun: Multirun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: Any) -> None:
        raise AssertionError("a dry run needs no network")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    done = invoke(multirun, "--dry-run", "--entity", "us")
    monkeypatch.undo()
    assert done.exit_code == 0, done.exception
    document = json.loads(done.output)
    assert (document["entity"], document["project"]) == ("us", "mine")
    assert document["displayName"] == "v1.2 x: Which order?"
    [runs] = document["spec"]["section"]["runSets"]
    [tags] = runs["filters"]["filters"]
    assert tags["value"] == ["sweep/v1_2_x"]
    assert [key["name"] for key in runs["grouping"]] == [KEY + "ordering", KEY + "N"]
    pinned = [key for key, shown in runs["runFeed"]["columnPinned"].items() if shown]
    assert pinned[1:] == ["summary:result/val_loss", *(f"config:{KEY}{name}" for name in ("arm", "ordering", "N"))]
    drawn = list(panels(document))
    groupings = {panel["groupBy"] for panel in drawn if "groupBy" in panel}
    assert groupings == {KEY + name for name in ("arm", "ordering", "N")}
    assert {panel.get("xAxis") for panel in drawn} == {None, "step", "train_time_s", "config:" + KEY + "N"}

    run = multirun.run("late2-000000000002")
    assert mirror.sync(run) is None
    config, summary, history = logged(next(run.mirror.glob("offline-run-*")))
    assert tags["value"][0] in summary["tags"]
    assert config["serves"]["v1_2_x"] == {"arm": "late2", "ordering": "late_to_early", "N": 2}
    for panel in drawn:
        for metric in panel.get("metrics", []):
            place = summary["summary"] if metric.startswith("summary_metrics.") else history
            assert metric.removeprefix("summary_metrics.") in place
        if "metricRegex" in panel:
            assert any(re.fullmatch(panel["metricRegex"], key) for key in history), panel["metricRegex"]


def test_saved_it_tells_its_address_and_what_wandb_says_is_one_line(
    multirun: Multirun, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wandb_workspaces.workspaces import Workspace

    monkeypatch.setattr(Workspace, "save", lambda self: self)
    monkeypatch.setattr(Workspace, "url", property(lambda self: f"https://wandb.ai/{self.entity}/{self.project}?nw=1"))
    assert invoke(multirun, "--entity", "us").output == "https://wandb.ai/us/mine?nw=1\n"

    def fail(self: Workspace) -> None:
        raise RuntimeError("no such\nproject")

    monkeypatch.setattr(Workspace, "save", fail)
    failed = invoke(multirun, "--entity", "us")
    assert (failed.exit_code, failed.output) == (1, "error: wandb: no such project\n")


def test_a_sweep_of_one_kind_is_compared_by_arm_alone(multirun: Multirun) -> None:
    plan = files.read_json(multirun.sweep(SWEEP).plan)
    files.write_json(multirun.sweep(SWEEP).plan, plan | {"points": plan["points"][:1]})
    assert dashboard.read(multirun, SWEEP).groupings == ("arm",)


def test_bad_input_is_refused(multirun: Multirun, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no sweep nobody"):
        dashboard.read(multirun, "nobody")
    other = multirun.run("early2-000000000002")
    other.freeze(frozen(c.Wandb(project="other")), {})
    with pytest.raises(UserError, match=r"log to several places .* say --entity and --project"):
        dashboard.place(multirun, SWEEP, None, None)
    assert dashboard.place(multirun, SWEEP, None, "both") == dashboard.Place(None, "both")
    other.freeze(frozen(c.NoLogger()), {})
    assert dashboard.place(multirun, SWEEP, None, None) == dashboard.Place(None, "mine")
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    with pytest.raises(UserError, match=r"pip install -e '.\[dashboard\]'"):
        dashboard.specification(dashboard.read(multirun, SWEEP), dashboard.Place(None, "mine"))
