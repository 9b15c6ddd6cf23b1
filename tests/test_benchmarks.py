"""The benchmarks of the GPU path and of the trunk run, and notice what they are there to notice; no times."""

import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from gpu_script import bounds, checks, gates, gpu, shipped, skipping, speed, trunk

from skipsweep.model import attention, head
from skipsweep.sweep.entry import from_command_line

THE_COMPILER_LOOKS = "ignore:The .grad attribute of a Tensor that is not a leaf"
"""It reads `grad` of everything; outside of tests it hides this warning itself."""


@pytest.fixture
def report(tmp_path: Path) -> Any:
    return gpu.Report("section", tmp_path / "found.jsonl", quick=True)


def rows(report: Any) -> list[dict[str, str]]:
    return [json.loads(line) for line in report._path.read_text().splitlines()]


def bad(report: Any) -> list[dict[str, str]]:
    return [row for row in rows(report) if row["status"] not in ("ok", "measured")]


# ------------------------------------------------------------------------------------------------------------- recipes


@pytest.mark.parametrize("model", ["tiny", "small", "medium"])
@pytest.mark.parametrize("head", ["last", "add", "add_renorm", "concat"])
def test_configurations_are_those_that_hydra_composes(model: str, head: str) -> None:
    choices = {"model": model, "head_type": head, "data": "fineweb10B", "schedule": "speedrun", "compute": "gpu"}
    request = from_command_line([f"{group}={choice}" for group, choice in choices.items()])
    assert shipped.composed(**choices) == request.composer(request.overrides)


def test_the_benchmarked_step_is_one_micro_batch_of_the_medium_track() -> None:
    run = shipped.run("medium", "add")
    assert (run.data.batch_tokens, run.data.seq_len, run.model.layers, run.model.dim) == (65_536, 65_536, 16, 1024)
    assert run.skip_layers.layers == [11]


def test_random_text_has_documents_and_is_a_function_of_the_step() -> None:
    text = shipped.RandomText(shipped.run("medium"))
    ids, targets = text.train(3)
    assert ids.shape == (1, 65_536)
    assert (ids[:, 1:] == targets[:, :-1]).all()
    assert 40 < (ids == 50_256).sum() < 100
    assert (text.train(3)[0] == ids).all()
    assert (text.train(4)[0] != ids).any()


# -------------------------------------------------------------------------------------------------------------- checks


@pytest.mark.filterwarnings(THE_COMPILER_LOOKS)
@pytest.mark.parametrize("section", ["attention", "loss", "optimiser", "gates"])
def test_checks_pass_on_a_cpu(section: str, report: Any) -> None:
    (checks.SECTIONS | gates.SECTIONS)[section](report, "cpu")
    assert rows(report)
    assert bad(report) == []


def test_resume_and_guard_pass_on_a_cpu(report: Any) -> None:
    checks._resume(report, "cpu", compiled=False)
    checks._guard(report, "cpu", compiled=False)
    assert len(rows(report)) == 4
    assert bad(report) == []


@pytest.mark.filterwarnings(THE_COMPILER_LOOKS)
def test_nothing_is_compiled_again_for_other_windows_and_arms(report: Any) -> None:
    """What a GPU would compile is traced here, FlexAttention included: no kernels, but the same graphs."""
    checks._recompilation(report, "cpu")
    assert len(rows(report)) == 6
    assert bad(report) == []


def test_a_wrong_mask_fails(report: Any) -> None:
    sees = attention.ChunkedMask.sees
    with mock.patch.object(attention.ChunkedMask, "sees", lambda self, q, k: sees(self, q, k - 1)):
        checks.attention(report, "cpu")
    assert {row["status"] for row in rows(report)} == {"FAILED"}


def test_a_wrong_slope_fails(report: Any) -> None:
    def kernel(*operands: Any) -> Any:
        loss, slope = original(*operands)
        return loss, slope * 1.02

    original = head.loss_and_slope
    with mock.patch.dict(head.CURVES, {"root": (head.softcapped, kernel)}):
        assert checks._loss_errors("cpu", torch.float32, False, (640, 16, 300)) > 1e-2


# ---------------------------------------------------------------------------------------------------------- the script


@pytest.mark.parametrize("section", ["medium", "medium_heads"])
def test_measurements_run_on_a_cpu(section: str, report: Any) -> None:
    speed.SECTIONS[section](report, "cpu")
    assert len(rows(report)) >= 8
    assert bad(report) == []


def test_the_cost_of_skipping_is_measured_on_a_cpu(report: Any) -> None:
    gates.SECTIONS["skipping"](report, "cpu")
    said = {row["what"].removeprefix("time of the blocks / dense, "): row["note"] for row in rows(report)}
    assert list(said) == [*(f"skipping {share:g}" for share in skipping.SHARES), "masked 0.5"]
    assert said["skipping 0"] == "ideal 1.000"
    assert "% of the ideal saving" in said["skipping 0.5"]


def test_what_skipping_could_save_at_best() -> None:
    """Half of the weights' products, and little more than a quarter of 1024 tokens' pairs; goals are counted in it."""
    run = skipping.run_of("skip_middle", "none", "cpu", {})
    weights, scores = 4 * 768**2 + 3 * 768 * 3072, 2 * 768 * 1025 / 2
    pairs = 512 * 513 / 2 / (1024 * 1025 / 2)
    expected = (weights / 2 + scores * pairs) / (weights + scores)
    assert skipping.ideal(run, 0.5) == pytest.approx(expected, rel=1e-4)
    times = [{"dense": 2.0, "skipping 0.5": 2 * t, "skipping 0": 2.1} for t in (0.5, 0.6, 0.7)]
    none, half = skipping.lines(run, times)
    assert (none.middle, none.saving) == (1.05, None)
    assert half.saving == pytest.approx((1 - 0.6) / (1 - expected), rel=1e-4)


def test_as_many_tokens_are_closed_as_said() -> None:
    closed = skipping.closed_to(0.25, 3, 40)
    assert closed.shape == (3, 40, 1)
    assert (closed == 0).sum(1).flatten().tolist() == [10, 10, 10]


def test_operations_of_the_medium_step_are_the_published_ones() -> None:
    """6 operations per weight of blocks and head; a full window adds what its scores take."""
    products, every = speed.operations(shipped.run("medium"), window=27)
    assert products == 65_536 * 6 * 248_643_584
    assert every / products == pytest.approx(1.25, abs=0.01)
    assert speed.operations(shipped.run("medium"), window=1)[1] < every


def test_a_section_that_breaks_costs_only_itself(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = ["--device", "cpu", "--quick", "--out", str(tmp_path / "out"), "--sections", "loss", "small"]
    with mock.patch.dict(gpu.SECTIONS, {"loss": 1}):  # it takes longer
        assert gpu.main(command) == 1
    found = json.loads((tmp_path / "out" / "gpu.json").read_text())
    errors = [row for row in found["rows"] if row["status"] == "error"]
    assert [(row["section"], row["value"]) for row in errors] == [("loss", "stopped after 1 s")]
    assert any(row["section"] == "small" and row["what"].startswith("ms per step") for row in found["rows"])
    assert found["facts"]["torch"]
    assert found["facts"]["code"]
    table = (tmp_path / "out" / "gpu.md").read_text()
    assert "| loss | loss | stopped after 1 s |  | error |  |" in table


def test_numbers_that_are_not_finite_fail(report: Any) -> None:
    report.check("a", float("nan"), 1.0)
    report.check("b", 1.0, 1.0)
    with report.guarded("c"):
        raise RuntimeError("broken\nmore")
    assert [row["status"] for row in rows(report)] == ["FAILED", "ok", "error"]
    assert rows(report)[2]["note"] == "broken"


@pytest.mark.parametrize("documents", [False, True])
def test_the_plain_trunk_computes_what_ours_does(documents: bool) -> None:
    """Within float32's rounding, loss and every gradient."""
    assert trunk.difference(*trunk.compared(documents, batch=1, length=256)) < 1e-4


# -------------------------------------------------------------------------------------------------------------- bounds


def test_a_missed_bound_fails(capsys: pytest.CaptureFixture[str]) -> None:
    found = bounds.Bounds()
    found.check("status", 0.9, 1)
    found.end()
    found.check("report", 20.1, 20)
    with pytest.raises(SystemExit, match=r"bounds: report$"):
        found.end()
    assert capsys.readouterr().out == "status: 0.9 s (at most 1)\nreport: 20.1 s (at most 20) MISSED\n"
