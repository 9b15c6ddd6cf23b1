"""plan.json's points: what is written is read back, older files are still read, and damage is one line."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from skipsweep import files, sweep_file
from skipsweep.cli import app
from skipsweep.errors import UserError
from skipsweep.rundir import Multirun
from skipsweep.sweep_file import GIVEN, PlannedPoint

TOP2 = PlannedPoint("top2", 3, 1, "a-1", (4, "input"), "late_to_early", (5, 4, 3), ("skip_layers=top2", "seed=3"))


@pytest.mark.parametrize(
    "point", [TOP2, PlannedPoint("none", 0, 0, "b-2", method=GIVEN), PlannedPoint("log", 0, 0, "c")]
)
def test_a_point_is_read_as_it_was_written(point: PlannedPoint) -> None:
    assert PlannedPoint.from_dict(json.loads(json.dumps(point.to_dict()))) == point


TAGS: dict[str, tuple[list[Any], str | None, str | None]] = {
    "multi_layer/best_to_worst/N=2": ([1, 2], "best_to_worst", "multi_layer/best_to_worst"),
    "multi_layer/given/N=2": ([1, 2], GIVEN, "multi_layer/given"),
    "single_layer": ([1], GIVEN, "single_layer"),
    "none": ([], GIVEN, "none"),
}


@pytest.mark.parametrize("tag", TAGS)
def test_a_file_from_before_methods_were_noted_is_read(tag: str) -> None:
    sources, method, kind = TAGS[tag]
    point = PlannedPoint.from_dict({"key": ["a", 0, 0], "run": "r-1", "sources": sources, "tags": [tag]})
    assert (point.method, point.kind, point.tag) == (method, kind, tag)


def test_nothing_is_said_of_sources_that_a_log_does_not_tell() -> None:
    point = PlannedPoint.from_dict({"key": ["a", 0, 0], "run": "r-1", "sources": [], "tags": []})
    assert (point.method, point.kind, point.tag, point.to_dict()["tags"]) == (None, None, None, [])


def test_runs_and_arms_come_in_the_order_of_the_file() -> None:
    points = [PlannedPoint(arm, seed, 0, run) for arm, seed, run in (("b", 0, "x"), ("a", 0, "y"), ("b", 1, "x"))]
    assert sweep_file.runs(points) == ["x", "y"]
    assert sweep_file.arms(points) == {"b": [points[0], points[2]], "a": [points[1]]}


DAMAGED: dict[str, Any] = {
    "no run": {"key": ["a", 0, 0]},
    "half a key": {"key": ["a", 0], "run": "r-1"},
    "a tag that is none": {"key": ["a", 0, 0], "run": "r-1", "tags": [5]},
    "a method that is none": {"key": ["a", 0, 0], "run": "r-1", "method": [5]},
    "no point": 7,
}


@pytest.mark.parametrize("command", ["status", "sync", "dashboard", "cancel"])
@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_one_line_for_every_reader(case: str, command: str, tmp_path: Path) -> None:
    folder = Multirun(tmp_path).sweep("mine")
    folder.path.mkdir(parents=True)
    files.write_json(folder.plan, {"points": [DAMAGED[case]]})
    done = CliRunner().invoke(app, [command, "mine", "--multirun", str(tmp_path)])
    assert isinstance(done.exception, UserError), done.exception
    assert str(done.exception).startswith("plan.json of sweep mine has a point that cannot be read: ")
