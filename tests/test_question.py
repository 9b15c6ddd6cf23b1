"""What a sweep says of itself and its report rests on: the loss to reach, and whether runs are compared in pairs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import Place, request, result
from sweep_folders import Made

from skipsweep import files
from skipsweep.analyze import arms, evidence
from skipsweep.errors import UserError
from skipsweep.sweep import launch as launching
from skipsweep.sweep import show
from skipsweep.sweep.freeze import freeze
from skipsweep.sweep.plan import Plan

TARGETS = "+sweep.targets={fineweb10B:2.92,synthetic:1.5}"


@pytest.fixture
def plan(tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plan]:
    """What launch.py would plan on a synthetic corpus, below `mine`."""
    monkeypatch.setenv("SKIPSWEEP_DATA", str(data_root))
    place = Place(tmp_path, data_root)
    return lambda *arguments: launching.make_plan(
        request(place.arguments("-m", "skip_layers=none,0", "sweep.name=mine", *arguments))
    )


def test_a_target_belongs_to_a_corpus(plan: Callable[..., Plan]) -> None:
    assert plan(TARGETS).target == 1.5
    assert plan("+sweep.targets={fineweb10B:2.92}").target is None
    assert plan("+sweep.targets={fineweb10B:2.92}", "sweep.target=3.0").target == 3.0
    assert plan("+sweep.targets={fineweb10B:2.92,sotu:3.0}").target is None
    with pytest.raises(
        UserError, match=r"sweep\.targets: fineweb is no choice of data; valid: fineweb100B, fineweb10B"
    ):
        plan("+sweep.targets={fineweb:2.92}")


def test_the_target_is_written_down_and_stays(plan: Callable[..., Plan]) -> None:
    begun = plan(TARGETS)
    freeze(begun, "none")
    assert evidence.read(begun.multirun, ["mine"]).target == 1.5
    assert plan("seed=1").target == 1.5


def test_pairs_are_declared_before_the_first_run(plan: Callable[..., Plan]) -> None:
    begun = plan("sweep.paired=true")
    freeze(begun, "none")
    assert evidence.read(begun.multirun, ["mine"]).paired is True
    freeze(plan("seed=1"), "none")
    assert evidence.read(begun.multirun, ["mine"]).paired is True
    other = plan("sweep.name=other")
    freeze(other, "none")
    assert evidence.read(other.multirun, ["other"]).paired is False
    with pytest.raises(UserError, match=r"sweep other was first launched with sweep\.paired=false"):
        plan("sweep.name=other", "sweep.paired=true")


# --------------------------------------------------------------------------------------------------- pairs in the table


@pytest.mark.parametrize(
    ("own", "base", "expected"),
    [
        ({0: 2.0, 1: 4.0}, {0: 1.0, 1: 2.0}, (1.5, 2)),
        ({0: 2.0, 1: 4.0, 2: 9.0}, {0: 1.0, 1: None}, (1.0, 1)),
        ({0: 2.0, 1: 4.0}, {2: 1.0, 3: 3.0}, (1.0, 0)),
        ({0: 2.0}, {0: None, 1: 3.0}, (None, 0)),  # its pair is still to come: the means would say something else
        ({0: None}, {1: 3.0}, (None, 0)),
    ],
)
def test_arms_are_paired_by_seed_and_else_by_their_means(own: Any, base: Any, expected: Any) -> None:
    assert arms.versus(own, base) == expected


def test_replicates_pair_by_their_seed(tmp_path: Path) -> None:
    made = Made(tmp_path, name="timed", baseline="plain")
    made.arm("plain", [2.0, 3.0])
    for seed, loss in enumerate([2.5, 3.1]):
        made.point("again", seed, made.run("again", seed, loss).name, replicate=1)
    made.arm("elsewhere", [4.0], first_seed=7)
    plain, again, elsewhere = arms.of_sweep(made.write(), "timed")
    assert (plain.difference, again.pairs, again.difference) == (None, 2, pytest.approx(0.3))
    assert (elsewhere.pairs, elsewhere.difference) == (0, pytest.approx(1.5))


def test_what_gates_leave_is_shown_also_where_they_leave_everything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing skipped is another answer than nothing known."""
    made = Made(tmp_path, name="gated", baseline="dense")
    made.arm("dense", [2.0])
    show.arms(arms.of_sweep(made.write(), "gated"))
    assert "estimated" not in capsys.readouterr().out
    (run,) = made.arm("free", [2.0])
    whole = {column: {"head": 3_000_000} for column in ("dense", "estimated", "measured")}
    files.write_json(run.result, {**result(run), "inference_flops_per_token": whole})
    show.arms(arms.of_sweep(made.write(), "gated"))
    assert "inference, estimated  measured" in capsys.readouterr().out


def test_operations_of_inference_are_means_over_seeds_and_those_of_the_whole_model_without_gates() -> None:
    gated = [{"inference_flops_per_token": {"dense": {"a": 9}, "estimated": {"a": n, "b": 1}}} for n in (3, 5)]
    assert arms.inference_flops(gated, "estimated") == 5.0
    assert arms.inference_flops([{"inference_flops_per_token": {"dense": {"a": 9}}}], "estimated") == 9.0
    assert arms.inference_flops([{"val_loss": 2.9}], "measured") is None
