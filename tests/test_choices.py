"""Every choice in conf/, found by listing the folder, is planned at full size, built at full size, and trained.

Training is two steps of the same roles at width 64 and 16 tokens, which takes a moment for any depth.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sweep_folders import Made

from skipsweep.config import InUnits, RunConfig, recipe_of
from skipsweep.data.batches import Batches
from skipsweep.distributed import World
from skipsweep.errors import UserError
from skipsweep.model import count, readout_specs
from skipsweep.model.gpt import build
from skipsweep.model.shape import head_rows
from skipsweep.sweep import launch as launching
from skipsweep.sweep.entry import CONF, from_command_line
from skipsweep.sweep.plan import Plan
from skipsweep.sweep.request import LaunchRequest
from skipsweep.train import Trainer

STEPS = 2
WIDTH, HEADS, TOKENS = 64, 2, 16
CHOICES = sorted(
    (folder.name, file.stem)
    for folder in CONF.iterdir()
    if folder.is_dir() and folder.name not in ("hydra", "experiment")
    for file in folder.glob("*.yaml")
)
EXPERIMENTS = sorted(file.stem for file in (CONF / "experiment").glob("*.yaml") if "arms:" in file.read_text())
"""Questions; the other files are single runs of the medium model (test_plan_presets.py)."""
MODELS = [choice for group, choice in CHOICES if group == "model"]

NEEDS: dict[tuple[str, str], list[str]] = {
    ("skip_layers", "record"): ["model=medium"],
    ("head_type", "last"): ["skip_layers=none"],
    ("selection_method", "best_to_worst"): ["skip_layers=top2", "selection_method.ranking=[5,2,0]"],
    ("selection_method", "worst_to_best"): ["skip_layers=top2", "selection_method.ranking=[5,2,0]"],
    ("data", "text"): ["data.path={text}"],
    ("schedule", "speedrun"): ["data.epochs=6"],
    ("schedule", "small_2025_11"): ["data.epochs=3"],
    ("schedule", "cosine_skip_middle"): ["data.epochs=21"],
    ("gate_targets", "linear"): ["control=proportional"],
    ("gate_targets", "list"): ["gate_targets.means=[1,.8,.5,0]", "control=adaptive"],
    ("control", "none"): [],
}
"""What a choice cannot do without."""

FITTING = {
    "selection_method": ["skip_layers=top2"],
    "head_type": ["skip_layers=[2,5]"],
    "lambda_init": ["skip_layers=5"],
    "control": ["gate_targets=linear"],
}
"""Group -> what makes its choices matter."""

Plans = Callable[..., Plan]


@pytest.fixture(scope="module")
def blank() -> LaunchRequest:
    """A request whose composer is used for all, so that Hydra composes every combination of groups once."""
    return from_command_line([])


@pytest.fixture
def plan(blank: LaunchRequest, tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch) -> Plans:
    """The plan of a command line, on a synthetic corpus unless it names another."""
    monkeypatch.setenv("SKIPSWEEP_DATA", str(data_root))

    def made(*arguments: str) -> Plan:
        own = [] if any(a.startswith("data=") for a in arguments) else ["data=synthetic"]
        overrides = [*own, f"paths.multirun={tmp_path / 'runs'}", *arguments]
        return launching.make_plan(replace(blank, overrides=overrides))

    return made


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts enough for the 600 steps that a run has by default."""
    folder = tmp_path_factory.mktemp("texts")
    for n in range(40):
        (folder / f"{n}.txt").write_text(f"{n} is a number like any other, and so is {n + 1}.\n" * 2200)
    return folder


def arguments_of(group: str, choice: str, text: Path) -> list[str]:
    needs = NEEDS.get((group, choice), FITTING.get(group, []))
    return [f"{group}={choice}", *(need.format(text=text) for need in needs)]


def shrunk(run: RunConfig) -> RunConfig:
    """Two steps of it, narrow and short; every other setting stays."""
    model = replace(run.model, dim=min(run.model.dim, WIDTH), heads=HEADS)
    sizes = {"seq_len": TOKENS, "val_seq_len": 0, "batch_tokens": 8 * TOKENS, "val_tokens": 8 * TOKENS}
    data = replace(run.data, epochs=1, **sizes)
    schedule = replace(run.schedule, steps=STEPS, warmup_steps=0)
    control = replace(run.control, sequences=2) if isinstance(run.control, InUnits) else run.control
    compute = replace(run.compute, micro_batch=0)
    return replace(run, model=model, data=data, schedule=schedule, control=control, compute=compute)


def check_trains(run: RunConfig, device: str = "cpu") -> None:
    """From ln(rows of the head), as it starts with zeros, to something else."""
    batches = Batches(run.data, Path(run.paths.data or ""))
    trainer = Trainer(run, batches, World(device=torch.device(device)))
    losses = [float(b.train_loss) for b in trainer.run() if b.train_loss is not None]
    assert len(losses) == STEPS
    # a head that does not start with zeros adds half the variance of its logits
    assert losses[0] == pytest.approx(math.log(head_rows(run)), rel=0.05 if run.model.init_std else 1e-5)
    assert math.isfinite(losses[1])
    assert losses[1] != losses[0]


ELSEWHERE = {
    "compute": ("gpu", "h100x8"),
    "data": ("fineweb10B", "fineweb100B", "finewebedu10B"),
    "scale": ("medium", "small_2025_11", "skip_middle"),
}
"""Choices that need what a test machine has not: GPUs (scales: test_plan_presets.py), a network (test_data_hub.py)."""


@pytest.mark.parametrize(("group", "choice"), [one for one in CHOICES if one[1] not in ELSEWHERE.get(one[0], ())])
def test_every_choice_trains(group: str, choice: str, plan: Plans, text: Path) -> None:
    (run,) = plan(*arguments_of(group, choice, text)).configs.values()
    check_trains(shrunk(run))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_trains(plan: Plans) -> None:
    (run,) = plan("compute=gpu").configs.values()
    check_trains(shrunk(run), "cuda")


def test_a_gpu_can_be_planned(plan: Plans) -> None:
    (run,) = plan("compute=gpu").configs.values()
    assert (run.compute.device, run.compute.gpus) == ("cuda", 1)


# ------------------------------------------------------------------------------------------------------- full size


def check_size(run: RunConfig) -> None:
    """Every parameter has a place and is counted."""
    parameters = dict(build(run, "meta").named_parameters())
    assert all(parameter.is_meta for parameter in parameters.values())
    assert sum(parameter.numel() for parameter in parameters.values()) == sum(count.parameters(recipe_of(run)).values())


@pytest.mark.parametrize("choice", MODELS)
@pytest.mark.parametrize("head", [choice for group, choice in CHOICES if group == "head_type" and choice != "last"])
def test_every_model_is_built_at_full_size(choice: str, head: str, plan: Plans) -> None:
    if choice.startswith("skip_middle") and readout_specs.SPECS[head].owns_last_mlp:
        with pytest.raises(UserError, match=f"head_type={head} has the MLP of model.block=speedrun"):
            plan(f"model={choice}", f"head_type={head}", "skip_layers=[0,1]")
        return
    made = plan(f"model={choice}", f"head_type={head}", "skip_layers=none,[0,1]")
    for run in made.configs.values():
        check_size(run)


def single_layer_results(folder: Path) -> None:
    """What `ranking_from=single_layer` reads of the default model's seven layers below the last."""
    made = Made(folder, name="single_layer", baseline="none")
    for layer in range(7):
        made.arm(f"layer {layer}", [3.0 - layer / 100], sources=[layer])
    made.write()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_is_planned_and_its_first_arm_trained(
    name: str, tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKIPSWEEP_DATA", str(data_root))
    if name == "multi_layer":
        single_layer_results(tmp_path)
    made = launching.make_plan(from_command_line([f"experiment={name}", f"paths.multirun={tmp_path}"]))
    assert made.name == name
    assert set(made.arms()) == {point.arm for point in made.points}
    assert made.baseline in made.arms()
    assert len({(point.key, point.run) for point in made.points}) == len(made.points)
    for points in made.arms().values():
        check_size(made.configs[points[0].run])  # seeds and replicates have the same parameters
    check_trains(shrunk(made.configs[made.points[0].run]))


# ------------------------------------------------------------------------------------------------------------ control


def test_there_are_choices() -> None:
    assert {group for group, _ in CHOICES} >= {
        "model",
        "data",
        "optim",
        "schedule",
        "skip_layers",
        "head_type",
        "compute",
    }
    assert {"demo"} <= set(EXPERIMENTS)
    assert set(NEEDS) <= set(CHOICES)


def test_a_model_that_does_not_learn_is_noticed(plan: Plans, monkeypatch: pytest.MonkeyPatch) -> None:
    (run,) = plan("optim.lr=0", "optim.embed_lr=0", "optim.head_lr=0", "optim.scalar_lr=0").configs.values()
    still = replace(shrunk(run), data=replace(shrunk(run).data, order="sequential"))
    monkeypatch.setattr(Batches, "train", lambda self, step, one=Batches.train: one(self, 0))
    with pytest.raises(AssertionError):
        check_trains(still)
