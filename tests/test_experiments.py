"""The questions of conf/experiment at the size they were asked at: planned there, and in the documents as planned."""

import re
import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from skipsweep.analyze import statistics
from skipsweep.config import Config, leaves, recipe_of
from skipsweep.errors import MissingValue, UserError
from skipsweep.sweep import launch
from skipsweep.sweep.entry import CONF, from_command_line
from skipsweep.sweep.estimate import estimate
from skipsweep.sweep.freeze import freeze
from skipsweep.sweep.plan import Plan
from skipsweep.sweep.precision import precision

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
    assert set(planned.published) <= arms.keys()

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


@pytest.mark.parametrize("trunk", ["scale=medium", "scale=small_2025_11", "model=small"])
def test_gates_are_asked_about_on_other_trunks_too(
    trunk: str, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every model that is shipped has a rate for the controls that adapt."""
    monkeypatch.setenv("SKIPSWEEP_DATA", str(data_root))
    command = ["experiment=skip_middle_control", trunk, f"paths.multirun={tmp_path}", "data.epochs=4"]
    plan = launch.make_plan(from_command_line(command))
    assert {arm for arm in plan.arms() if "proportional" in arm}


def test_a_value_that_an_arm_lacks_is_asked_for_as_it_can_be_given(tmp_path: Path) -> None:
    """Set for the whole sweep it would be no key of the arms without a control."""

    def lacks(_: object) -> Config:
        raise MissingValue(["control.gamma"])

    asked = replace(from_command_line(["experiment=skip_middle_reach"]), composer=lacks)
    point = SimpleNamespace(block="derivative", overrides=[])
    with pytest.raises(UserError) as told:
        asked.config(point)  # type: ignore[arg-type]
    (given,) = re.findall(r"for this arm alone: '(.*)'$", str(told.value))
    value = given.replace("...", "0.2")
    plan = launch.make_plan(from_command_line(["experiment=skip_middle_reach", value, f"paths.multirun={tmp_path}"]))
    gammas = {arm: plan.configs[points[0].run].control for arm, points in plan.arms().items()}
    assert [control.gamma for arm, control in gammas.items() if "derivative" in arm] == [0.2, 0.2]  # type: ignore[attr-defined]


def test_published_figures_are_for_their_corpus(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their spread says what a plan's seeds can tell there, as reports count it, and nothing elsewhere."""
    monkeypatch.setenv("SKIPSWEEP_DATA", str(data_root))
    one = ["experiment=single_layer", "sweep.seeds=range(0,2)", f"paths.multirun={tmp_path}"]
    here, there = (launch.make_plan(from_command_line([*one, *more])) for more in ([], ["scale=medium"]))
    assert (here.published, precision(here)) == ({}, None)
    assert there.published["none"]["n"] == 160
    assert (found := precision(there)) is not None
    assert (found.sd, found.source) == (0.0008, "published for none")
    design = statistics.Design(len(there.arms()))
    assert found.difference == statistics.detectable(0.0008, 2, design)
    assert found.seeds_for_half == statistics.seeds_for(found.difference / 2, 0.0008, design)


def test_published_figures_of_an_unknown_corpus_are_refused(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKIPSWEEP_DATA", str(data_root))
    arguments = ["experiment=demo", "+sweep.published={none: {mean: 2.9}}", f"paths.multirun={tmp_path}"]
    with pytest.raises(UserError, match=r"sweep\.published: none is no choice of data; valid: fineweb100B"):
        launch.make_plan(from_command_line(arguments))


def test_the_documents_first_commands_work_one_after_the_other(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First small, then in earnest: two sweeps."""
    monkeypatch.setenv("SKIPSWEEP_DATA", str(data_root))
    block = DOCUMENT.read_text().split("```")[1]
    shown, small, earnest = (shlex.split(line, comments=True)[2:] for line in block.strip().splitlines())
    plans = []
    for command in (shown, small, earnest):
        plans.append(launch.make_plan(from_command_line([*command, f"paths.multirun={tmp_path}"])))
        if command is small:
            freeze(plans[-1], "none")
    assert [plan.name for plan in plans] == ["record", "record_small", "record"]


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
