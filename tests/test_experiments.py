"""The questions of conf/experiment at the size they were asked at: planned there, and in the documents as planned."""

import re
from pathlib import Path

import pytest

from skipsweep.config import leaves, recipe_of
from skipsweep.sweep import launch
from skipsweep.sweep.entry import CONF, from_command_line
from skipsweep.sweep.estimate import estimate
from skipsweep.sweep.plan import Plan

DOCUMENT = CONF.parent / "docs" / "experiments.md"
FILES = {file.stem: file.read_text() for file in sorted((CONF / "experiment").glob("*.yaml"))}
QUESTIONS = [name for name, text in FILES.items() if "arms:" in text and "ranking_from" not in text]
"""Without single runs, and without those that other results rank the layers for."""
FREE = ("seed", "replicate", "data.epochs")
"""In which runs of a question may differ anyway; epochs follow from steps."""


SKIP_MIDDLE = (("scale=skip_middle", "data.epochs=4"), 12, 768)  # this stand-in for the corpus has fewer shards
ASKED_AT: dict[str, tuple[tuple[str, ...], int, int]] = {
    **{name: SKIP_MIDDLE for name in QUESTIONS if name.startswith("skip_middle")},
    "skip_middle_reach": ((), 8, 64),
}
"""Question -> arguments, layers, width; all others: the medium track."""
MEDIUM = (("scale=medium",), 16, 1024)


@pytest.fixture
def planned(request: pytest.FixtureRequest, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setenv("SKIPSWEEP_DATA", str(data_root))
    scale, *_ = ASKED_AT.get(request.param, MEDIUM)
    arguments = [f"experiment={request.param}", *scale, f"paths.multirun={tmp_path}"]
    return launch.make_plan(from_command_line(arguments))


def differences(plan: Plan, run: str, other: str) -> set[str]:
    one, two = (leaves(recipe_of(plan.configs[name])) for name in (run, other))
    return {key for key in one.keys() | two.keys() if one.get(key) != two.get(key)}


def within(key: str, allowed: list[str]) -> bool:
    return any(key == each or key.startswith(f"{each}.") for each in allowed)


@pytest.mark.parametrize("planned", QUESTIONS, indirect=True)
def test_a_question_at_its_scale(planned: Plan) -> None:
    """Every arm differs from the baseline in what it may, two seeds in the seed; the document has the plan's cost."""
    arms, declared = planned.arms(), planned.sweep.may_differ
    assert planned.baseline in arms
    assert declared is not None
    base = arms[planned.baseline][0].run
    for points in arms.values():
        found = {key for point in points for key in differences(planned, point.run, base)}
        assert [key for key in sorted(found) if not within(key, [*declared, *FREE])] == []
        assert all(differences(planned, point.run, points[0].run) <= set(FREE) for point in points)
    name = planned.sweep.name or ""
    _, *size = ASKED_AT.get(name, MEDIUM)
    sizes = {(run.model.layers, run.model.dim) for run in planned.configs.values()}
    assert max(sizes) == tuple(size)
    assert len(sizes) == 1 or "relative.layers" in FILES[name]
    assert set(planned.sweep.published) <= arms.keys()

    cost = estimate(planned, list(planned.configs), 1)
    hours = f"{cost.gpu_hours:,.0f}" if cost else "-"
    assert f"{len(planned.configs)} | {hours}" in row(name)


def row(name: str) -> str:
    """The document's line about an experiment."""
    found = re.findall(
        rf"^\| \[`{name}`\]\(\.\./conf/experiment/{name}\.yaml\) .*$", DOCUMENT.read_text(), re.MULTILINE
    )
    assert len(found) == 1, name
    return found[0]


@pytest.mark.parametrize("name", FILES)
def test_every_experiment_is_in_the_document(name: str) -> None:
    assert row(name)


def test_settings_of_the_compiler_do_not_share_runs(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is compiled is no part of an identity: without a replicate of its own one finished run would serve all."""
    monkeypatch.setenv("SKIPSWEEP_DATA", str(data_root))
    plan = launch.make_plan(from_command_line(["experiment=compile_flags", f"paths.multirun={tmp_path}"]))
    found: dict[str, set[tuple[bool, bool]]] = {}
    for point in plan.points:
        compute = plan.configs[point.run].compute
        found.setdefault(point.arm, set()).add((compute.compile, compute.tune_kernels))
    assert found == {"eager": {(False, False)}, "compiled": {(True, False)}, "tuned": {(True, True)}}
    assert len(plan.configs) == len(plan.points)
