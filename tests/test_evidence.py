"""What analysis reads from run folders: complete ones, unfinished ones, damaged ones, and several sweeps at once."""

import json
from pathlib import Path

import pytest
from sweep_folders import Made

from skipsweep import files
from skipsweep.analyze import findings, report
from skipsweep.analyze.evidence import nested, read
from skipsweep.analyze.figures import tables
from skipsweep.errors import UserError


def test_a_sweep_comes_back_as_written(tmp_path: Path) -> None:
    made = Made(tmp_path, baseline="none", target=2.92, plan={"confounds": {"5": ["schedule.steps"]}})
    made.arm("5", [2.91, 2.93], sources=[5], lambdas={"lambda/skip/5": -0.3})
    made.arm("none", [2.92, None])
    found = made.read()
    assert list(found.arms()) == ["none", "5"]  # the baseline first
    assert (found.target, found.baseline, found.paired) == (2.92, "none", False)
    assert found.confounds == {"5": ["schedule.steps"]}
    assert [run.val_loss for run in found.of_arm("5")] == [2.91, 2.93]
    assert [run.outcome for run in found.of_arm("none")] == ["done", "failed"]
    run = found.of_arm("5")[0]
    assert run.recipe["skip_layers"]["layers"] == [5]
    assert run.env.hosts == ("node1",)
    assert run.env.results_version == 2
    assert run.series("lambda/skip/5")[-1].tolist() == [100, 10.0, -0.3]
    assert run.series("val/loss")[-1].tolist() == [100, 10.0, 2.91]
    assert run.series("gate/0").shape == (0, 3)


def test_rows_are_what_the_run_folder_says(tmp_path: Path) -> None:
    made = Made(tmp_path)
    [folder] = made.arm("none", [2.5])
    files.append_row(folder.metrics, {"attempt": 2, "step": 100, "val/loss": 2.4})
    with open(folder.metrics, "a") as f:
        f.write('{"attempt": 3, "step": 100, "val/lo')
    [run] = made.read().of_arm("none")
    rows = folder.read_metrics()
    assert set(run.recorded()) == {key for row in rows for key in row}
    for key in run.recorded():
        assert run.series(key)[:, [0, 2]].tolist() == [[row["step"], row[key]] for row in rows if key in row]
    assert run.series("val/loss")[-1, [0, 2]].tolist() == [100, 2.4]


@pytest.mark.parametrize("name", ["result.json", "status.json", "identity.json", "env.json", "metrics.jsonl"])
@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"val_loss": NaN, "state": 3}', b"\xff\xfe", b"[" * 100_000], ids=repr
)
def test_damaged_files_are_missing_values(tmp_path: Path, name: str, content: bytes) -> None:
    made = Made(tmp_path)
    [folder, _] = made.arm("none", [2.5, 2.6])
    (folder.path / name).write_bytes(content)
    run = made.read().of_arm("none")[0]
    assert run.outcome == ("missing" if name == "result.json" else "done")
    if name == "result.json" and content != b"null":
        assert "result.json" in (run.cause or "")
        assert run.damaged == ("result.json",)
    run.recorded()


HUGE = 10**400


def test_values_of_another_type_are_missing_and_their_file_is_named(tmp_path: Path) -> None:
    made = Made(tmp_path)
    [folder] = made.arm("none", [2.5], lambdas={"lambda/x": 0.5})
    sums = {"dense": {"a": 3, "b": None}, "estimated": {"a": 3.0}, "measured": 7}
    odd = {"steps": "100", "lambdas": {"lambda/x": 0.5, "lambda/y": HUGE}, "inference_flops_per_token": sums}
    files.write_json(folder.result, files.read_json(folder.result) | odd)
    files.write_json(folder.env, {"1": {"host": 3, "gpus": 4, "world_size": "x"}})
    files.append_row(folder.metrics, {"attempt": "x", "step": 100, "val/loss": HUGE})
    files.append_row(folder.metrics, {"attempt": 1, "step": HUGE, "val/loss": 2.0})
    files.write_json(folder.identity, {"recipe": {"model": 3, "head_type": [1]}})
    evidence = made.read()
    [run] = evidence.of_arm("none")
    assert run.result is not None
    assert (run.val_loss, run.result["steps"], run.result["lambdas"]) == (2.5, None, {"lambda/x": 0.5})
    assert run.result["inference_flops_per_token"] == {"estimated": {"a": 3.0}}
    assert (run.env.hosts, run.env.world_sizes, run.damaged) == ((), (), ("result.json",))
    assert run.series("val/loss")[-1].tolist() == [100, 10.0, 2.5]
    assert tables.of(evidence)["runs"][0]["loss"] == 2.5
    [told] = [text for text in findings.find(evidence).warnings if "damaged" in text]
    assert told == f"damaged files, of which only what can be read counts: {folder.name}/result.json"


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("published", [1], "published is not a mapping"),
        ("confounds", {"5": "schedule.steps"}, "confounds is not a mapping of arms to lists of strings"),
        ("may_differ", 3, "may_differ is not a list of strings"),
        ("commands", [None], "commands is not a list of strings"),
        ("target", HUGE, "target is not a number"),
    ],
)
def test_a_plan_with_another_type_is_told_and_null_is_nothing(
    tmp_path: Path, key: str, value: object, says: str
) -> None:
    made = Made(tmp_path, plan={key: value})
    made.arm("none", [2.5])
    with pytest.raises(UserError, match=f"plan.json cannot be read: {says}; the launch that made it"):
        made.read()
    made.plan[key] = None
    assert findings.find(made.read()).answer


def test_a_run_without_a_folder_is_missing(tmp_path: Path) -> None:
    made = Made(tmp_path)
    made.point("none", 0, "never-made-0123")
    [run] = made.read().of_arm("none")
    assert (run.state, run.outcome, run.recorded()) == ("new", "missing", [])


def test_an_unknown_sweep_and_a_torn_plan_are_told(tmp_path: Path) -> None:
    made = Made(tmp_path)
    made.arm("none", [2.5])
    multirun = made.write()
    with pytest.raises(UserError, match=r"no sweep other .* there are: question"):
        read(multirun, ["other"])
    multirun.sweep("question").plan.write_text('{"points": [')
    with pytest.raises(UserError, match=r"plan.json cannot be read"):
        read(multirun, ["question"])
    multirun.sweep("question").plan.write_text('{"points": [{"key": ["none", 0]}]}')
    for key in ('["none", 0]', '["none", null, 0]', "[7, 0, 0]"):
        multirun.sweep("question").plan.write_text(f'{{"points": [{{"key": {key}, "run": "a-1"}}]}}')
        with pytest.raises(UserError, match="a point that cannot be read"):
            read(multirun, ["question"])


def test_several_sweeps_are_united(tmp_path: Path) -> None:
    one, two = Made(tmp_path, name="one"), Made(tmp_path, name="two", question="Second?", target=3.0)
    runs = one.arm("none", [2.5, 2.6])
    two.arm("none", [2.5, 2.6], same_runs_as=runs)
    two.arm("none", [2.4], first_seed=2)
    one.arm("5", [2.3], sources=[5])
    two.arm("5", [2.2], sources=[5], recipe={"model.dim": 256})  # the same name for something else
    one.write()
    found = read(two.write(), ["one", "two", "one"])
    assert found.names == ("one", "two")
    assert (found.question, found.target) == ("Does it help?", 3.0)
    assert {arm: len(points) for arm, points in found.arms().items()} == {"none": 3, "5": 1, "two/5": 1}


def test_dotted_keys_become_a_tree() -> None:
    assert nested({"a.b": 1, "a.c.d": 2, "seed": 0}) == {"a": {"b": 1, "c": {"d": 2}}, "seed": 0}
    assert nested({"a": 1, "a.b": 2}) == {"a": 1}
    json.dumps(nested({"a.b": [1]}))


# ----------------------------------------------------------------------------------------------------------- confounds

OTHER_TRUNK = {"model.layers": 6, "model.dim": 64}
ASKED = {"may_differ": ["skip_layers", "head_type"]}


@pytest.mark.parametrize("plan", [{}, ASKED], ids=["nothing declared", "declared"])
def test_several_sweeps_are_compared_with_the_first_ones_baseline_or_marked(tmp_path: Path, plan: dict) -> None:
    """Trunks that no sweep compares are no part of its question; sources are."""
    one, two = Made(tmp_path, name="one", plan=plan), Made(tmp_path, name="two", plan=plan)
    one.arm("none", [2.5, 2.6])
    one.arm("5", [2.4, 2.5], sources=[5])
    two.arm("none", [2.9, 2.8], recipe=OTHER_TRUNK)
    two.arm("7", [2.7, 2.8], sources=[7], recipe=OTHER_TRUNK)
    one.write()
    found = read(two.write(), ["one", "two"])
    assert found.confounds == {arm: ["model.dim", "model.layers"] for arm in ("two/none", "7")}
    [told] = [text for text in findings.find(found).warnings if "in more than the question" in text]
    assert told.endswith(": two/none (model.dim, model.layers), 7 (model.dim, model.layers)")
    assert read(two.multirun, ["two"]).confounds == {}


def test_another_baseline_has_other_confounds(tmp_path: Path) -> None:
    """Every arm differs from one that was marked, which does not differ from itself."""
    made = Made(tmp_path, baseline="none", plan={**ASKED, "confounds": {"wide": ["model.dim"]}})
    made.arm("none", [2.5, 2.6])
    made.arm("5", [2.4, 2.5], sources=[5])
    made.arm("wide", [2.3, 2.4], recipe={"model.dim": 256})
    assert made.read().confounds == {"wide": ["model.dim"]}
    made_of = report.make(made.write(), [made.name], "wide", tmp_path / "out").evidence
    assert made_of.confounds == {"none": ["model.dim"], "5": ["model.dim"]}


def test_a_setting_that_has_been_added_since_is_no_difference(tmp_path: Path) -> None:
    """Its neutral value stands in recipes from then on, and never in settings."""
    made = Made(tmp_path, baseline="none", plan=ASKED)
    made.arm("none", [2.5])
    [run] = made.arm("5", [2.4], sources=[5])
    identity = files.read_json(run.identity)
    files.write_json(run.identity, identity | {"recipe": {**identity["recipe"], "optim.new": 0.0}})
    assert made.read().confounds == {}


def test_layers_that_seeds_draw_are_one_arm_in_several_sweeps(tmp_path: Path) -> None:
    one, two = Made(tmp_path, name="one", baseline="none"), Made(tmp_path, name="two", baseline="none")
    runs = [one.run("random", seed, 2.5, sources=[seed]) for seed in (0, 1)]
    for made in (one, two):
        for seed, run in enumerate(runs):
            made.point("random", seed, run.name, [seed])
    one.write()
    assert {arm: len(found) for arm, found in read(two.write(), ["one", "two"]).arms().items()} == {"random": 2}


# ------------------------------------------------------------------------------------------------ chosen after looking


def test_an_arm_that_was_chosen_on_its_own_runs_is_named(tmp_path: Path) -> None:
    """Not one whose runs are others, nor one that reads no ranking."""
    made = Made(tmp_path, baseline="none")
    made.arm("none", [2.5, 2.6])
    ranked = made.arm("top1", [2.3, 2.4], sources=[5])
    made.arm("top2", [2.3, 2.4], sources=[5, 6])
    for point in made.points[2:]:
        point["overrides"].append("selection_method.ranking=[5,6]")
    made.arm("late", [2.3], sources=[5], same_runs_as=ranked)
    assert made.read().chosen_on == {}
    made.plan["ranked_by"] = {"single": [run.name for run in ranked]}
    found = made.read()
    assert found.chosen_on == {"top1": "single"}
    assert any("these very runs: top1 (ranked by single); " in text for text in findings.find(found).warnings)
