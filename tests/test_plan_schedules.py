"""`skipsweep plan --schedules`: what is drawn is what the runs will do, said once per distinct schedule."""

import io
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Done, Place
from rich.console import Console
from runs import configuration

from skipsweep import cli
from skipsweep.config import AdamW, Config, Constant, Cosine, Muon, Schedule, Trapezoid
from skipsweep.model.window import short_window_blocks, window_blocks
from skipsweep.optim.schedule import lr_factor, momentum
from skipsweep.sweep import chart, schedules
from skipsweep.sweep import plan as planning
from skipsweep.sweep.resolve import ComposedPoint
from skipsweep.sweep.schedules import Curve, Drawing, drawings

MUON = Muon(
    lr=0.03,
    momentum=0.95,
    momentum_start=0.85,
    momentum_warmup=300,
    newton_schulz=[[3.4445, -4.775, 2.0315]],
    embed_lr=0.3,
    head_lr=0.003125,
    scalar_lr=0.015,
    beta1=0.8,
    beta2=0.95,
    eps=1e-10,
)
ADAMW = AdamW(lr=0.01, embed_lr=0.05, head_lr=0.02, scalar_lr=0.05, beta1=0.9, beta2=0.95, eps=1e-8)
SPEEDRUN = Trapezoid(steps=5590, cooldown=0.7, final=0.01)
GROWING = {"window": 3456, "window_block": 128, "window_growth": "cubic"}


def base(runs: Path = Path("/nowhere"), data_root: Path = Path("/nowhere")) -> Config:
    """12 steps of AdamW without a window, on a corpus that is repeated as often as needed."""
    config = configuration(runs, data_root)
    return replace(
        config,
        optim=ADAMW,
        schedule=Trapezoid(steps=12, cooldown=0.5, final=0.1),
        model=replace(config.model, window=0, window_block=16, window_growth="none"),
        data=replace(config.data, epochs=1000),
    )


@pytest.fixture
def skipsweep(
    tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """`skipsweep plan --schedules ARGUMENTS` of a tiny configuration, in this process."""
    place = Place(tmp_path / "runs", data_root)
    monkeypatch.setenv("SKIPSWEEP_DATA", str(data_root))

    def run(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["skipsweep", "plan", "--schedules", *place.arguments(*arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = capsys.readouterr()
        return Done(int(ended.value.code or 0), told.out, told.err)

    return run


@pytest.fixture
def plan(tmp_path: Path, data_root: Path) -> Callable[..., planning.Plan]:
    """A plan of tiny runs, one arm per set of changed fields."""

    def made(**arms: dict[str, Any]) -> planning.Plan:
        plain = base(tmp_path / "runs", data_root)
        wanted = [
            ComposedPoint(arm, replace(plain, seed=seed, **changes), ())
            for arm, changes in arms.items()
            for seed in (0, 1)
        ]
        return planning.make(wanted, "test", single=False)

    return made


# ----------------------------------------------------------------------------------------------------------------- json

SPEEDRUN_ARGUMENTS = (
    "optim=muon",
    "schedule=speedrun",
    "schedule.steps=5590",
    "optim.lr=0.03",
    "model.window=3456",
    "model.window_block=128",
    "model.window_growth=cubic",
    "data.epochs=1000",
)


def at(curve: dict[str, Any], part: float) -> float:
    """Value at that part of 5,590 steps."""
    return float(np.interp(part * 5590, curve["steps"], curve["values"]))


def test_the_speedruns_schedules(skipsweep: Callable[..., Done]) -> None:
    """Against values worked out by hand from the rules of the medium track."""
    done = skipsweep(*SPEEDRUN_ARGUMENTS, "--json")
    assert (done.status, done.err) == (0, "")
    (drawn,) = json.loads(done.out)["schedules"]
    curves = drawn["curves"]
    assert (drawn["steps"], drawn["arms"]) == (5590, ["run"])

    by_hand = {0: 1, 0.15: 1, 0.3: 1, 0.65: 0.505, 0.86: 0.208}  # 1 - 0.99 * (x - 0.3) / 0.7
    for part, factor in by_hand.items():
        assert at(curves["lr_factor"], part) == pytest.approx(factor)
        peaks = {"embed": 0.3, "matrix": 0.03, "head": 1 / 320, "scalar": 0.015}
        for role, peak in peaks.items():
            assert at(curves[f"lr/{role}"], part) == pytest.approx(peak * factor)
    assert curves["lr_factor"]["steps"] == [0, 1677, 5589]  # the only corner: 0.3 * 5590

    assert curves["momentum"]["steps"] == [0, 300, 5589]
    assert curves["momentum"]["values"] == pytest.approx([0.85, 0.95, 0.95])
    assert at(curves["momentum"], 150 / 5590) == pytest.approx(0.9)

    by_hand = {0: 128, 0.1: 896, 0.2: 1408, 0.3: 1664, 0.5: 1792, 0.7: 1920, 0.8: 2176, 0.9: 2688, 1: 3456}
    for part, tokens in by_hand.items():
        assert at(curves["window/long"], part) == tokens
        assert at(curves["window/short"], part) == max(tokens // 128 // 2, 1) * 128
    assert curves["window/long"]["steps"][-1] == 5590
    assert {curve["unit"] for name, curve in curves.items() if name.startswith("window/")} == {"tokens"}


def test_only_on_request(
    skipsweep: Callable[..., Done], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_them = json.loads(skipsweep("--json").out)
    argv = [argument for argument in sys.argv if argument != "--schedules"]
    without = {key: value for key, value in with_them.items() if key != "schedules"}
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit):
        cli.main()
    assert json.loads(capsys.readouterr().out) == without


# --------------------------------------------------------------------------------------------------------------- curves

KINDS: dict[str, Schedule] = {
    "constant": Constant(steps=40),
    "one step": Constant(steps=1),
    "warm-up": Trapezoid(steps=500, warmup_steps=33, cooldown=0.37, final=0.1),
    "warm-up into the fall": Trapezoid(steps=50, warmup_steps=30, cooldown=0.9, final=0.0),
    "a nearer horizon": Trapezoid(steps=500, horizon=321, window_horizon=123, cooldown=0.5, final=0.2),
    "a further horizon": Trapezoid(steps=500, horizon=700, window_horizon=900, cooldown=0.5, final=0.2),
    "speedrun": SPEEDRUN,
}


def drawn(plan: planning.Plan) -> Drawing:
    (found,) = drawings(plan)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_straight_lines_between_the_points_are_the_schedule(kind: str, plan: Callable[..., planning.Plan]) -> None:
    """At every single step, so that no corner and no jump is left out."""
    schedule = KINDS[kind]
    model = replace(base().model, **GROWING)
    curves = drawn(plan(one={"schedule": schedule, "optim": MUON, "model": model})).curves
    updates, seen = np.arange(schedule.steps), np.arange(schedule.steps + 1)
    long = [window_blocks(model, schedule, step) for step in seen]
    expected = {
        "lr_factor": (updates, [lr_factor(schedule, step) for step in updates]),
        "lr/embed": (updates, [0.3 * lr_factor(schedule, step) for step in updates]),
        "momentum": (updates, [momentum(MUON, step) for step in updates]),
        "window/long": (seen, [128 * blocks for blocks in long]),
        "window/short": (seen, [128 * short_window_blocks(blocks) for blocks in long]),
    }
    assert curves.keys() - expected.keys() == {"lr/matrix", "lr/head", "lr/scalar"}
    for name, (steps, values) in expected.items():
        assert curves[name].at(steps) == pytest.approx(values, rel=1e-8), name
        assert (curves[name].steps[0], curves[name].steps[-1]) == (0, steps[-1])
        assert len(curves[name].steps) <= schedules.MAX_POINTS


def test_a_bent_schedule_is_nearly_met(plan: Callable[..., planning.Plan]) -> None:
    schedule = Cosine(steps=5590, warmup_steps=100, final=0.1)
    curve = drawn(plan(one={"schedule": schedule})).curves["lr_factor"]
    assert len(curve.steps) == schedules.MAX_POINTS
    steps = np.arange(5590)
    assert curve.at(steps) == pytest.approx([lr_factor(schedule, step) for step in steps], abs=1e-4)


def test_what_does_not_exist_is_not_drawn(plan: Callable[..., planning.Plan]) -> None:
    """AdamW has no scheduled momentum, and without a limit there is no window."""
    assert drawn(plan(one={})).curves.keys() == {"lr_factor", "lr/embed", "lr/matrix", "lr/head", "lr/scalar"}


def test_the_short_window_is_half_of_the_long_one() -> None:
    assert [short_window_blocks(long) for long in (0, 1, 2, 3, 27)] == [0, 1, 1, 1, 13]


# ----------------------------------------------------------------------------------------------------------------- arms


def test_arms_with_equal_schedules_are_drawn_once(plan: Callable[..., planning.Plan]) -> None:
    plain = base()
    longer, other = replace(plain.schedule, steps=24), replace(plain.optim, lr=0.5)
    found = drawings(
        plan(
            a={},
            longer={"schedule": longer},
            wider={"model": replace(plain.model, dim=24)},
            decayed={"optim": replace(plain.optim, weight_decay=0.5)},
            faster={"optim": other},
            longer_too={"schedule": longer, "head_type": plain.head_type},
        )
    )
    assert [(one.arms, one.steps) for one in found] == [
        (["a", "wider", "decayed"], 12),
        (["longer", "longer_too"], 24),
        (["faster"], 12),
    ]
    assert found[2].curves["lr/matrix"].values[0] == 0.5
    assert found[2].curves["lr_factor"] == found[0].curves["lr_factor"]


def test_arms_with_other_schedules_get_curves_of_their_own(plan: Callable[..., planning.Plan]) -> None:
    """Also where they share the number of steps."""
    plain = base()
    arms = {
        "first": {"optim": MUON},
        "gentle": {"optim": MUON, "schedule": replace(plain.schedule, final=0.5)},
        "heavy": {"optim": replace(MUON, momentum=0.99)},
        "near": {"optim": MUON, "model": replace(plain.model, window=128)},
        "far": {"optim": MUON, "model": replace(plain.model, window=256)},
    }
    first, gentle, heavy, near, far = (one.curves for one in drawings(plan(**arms)))
    assert first["lr_factor"] != gentle["lr_factor"]
    assert first["momentum"] == gentle["momentum"] != heavy["momentum"]
    assert [one["window/long"].values for one in (near, far)] == [[128.0, 128.0], [256.0, 256.0]]


def test_a_schedule_is_evaluated_once(plan: Callable[..., planning.Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    """However many arms and rates share it: a sweep of a thousand points stays quick to plan."""
    asked: list[int] = []
    monkeypatch.setattr(schedules, "lr_factor", lambda schedule, step: asked.append(step) or lr_factor(schedule, step))
    plain = base()
    found = drawings(plan(**{f"lr{k}": {"optim": replace(plain.optim, lr=0.01 * k)} for k in range(1, 21)}))
    assert len(found) == 20
    assert asked == list(range(12))


# --------------------------------------------------------------------------------------------------------------- charts


def marks(curve: Curve, low: float, high: float, last: int) -> list[str]:
    """Rows of dots, two columns per character and four rows, as `#` and blanks."""
    bits = chart.area(curve, low, high, last)
    rows = []
    for row in range(4 * chart.HEIGHT):
        dots = [bits[row // 4, column // 2] & chart.DOTS[row % 4, column % 2] for column in range(2 * chart.WIDTH)]
        rows.append("".join("#" if dot else " " for dot in dots))
    return rows


def test_a_line_goes_where_its_values_are() -> None:
    rising = marks(Curve("", [0, 100], [0.0, 1.0]), 0.0, 1.0, 100)
    assert rising[0].strip() == "#" * len(rising[0].strip())
    assert rising[0].endswith("#")
    assert rising[-1].startswith("#")
    assert [row.index("#") for row in rising] == sorted((row.index("#") for row in rising), reverse=True)
    assert all(any(row[column] == "#" for row in rising) for column in range(2 * chart.WIDTH))


def test_a_jump_is_joined() -> None:
    half = chart.WIDTH  # one step per column of dots
    rows = marks(Curve("", [0, half - 1, half, 2 * half - 1], [0.0, 0.0, 1.0, 1.0]), 0.0, 1.0, 2 * half - 1)
    assert rows[-1] == "#" * half + " " * half
    assert rows[0] == " " * half + "#" * half
    assert all(row == " " * half + "#" + " " * (half - 1) for row in rows[1:-1])


def test_what_is_drawn_fits_a_terminal(plan: Callable[..., planning.Plan]) -> None:
    """80 columns, nothing cut off; axes with units; values at start, middle and end beside the lines."""
    model = replace(base().model, **GROWING)
    found = drawn(plan(one={"schedule": SPEEDRUN, "optim": MUON, "model": model}))
    console = Console(width=80, file=io.StringIO())
    with console.capture() as captured:
        console.print(chart.figure(found))
    text = captured.get()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    for line in ("factor 1 0.717 0.0103", "embed 0.3 0.215 0.00308", "momentum 0.85 0.95 0.95"):
        assert line in " ".join(text.split())
    for line in ("long 128 1,792 3,456", "short 128 896 1,664"):
        assert line in " ".join(text.split())
    assert "attention window, tokens" in text
    assert "2,795 5,590 steps" in " ".join(text.split())
    assert "  3,456 │" in text
    assert "   0.85 │" in text  # not from 0: all of it would be a line at the top


def test_the_command_draws(skipsweep: Callable[..., Done]) -> None:
    done = skipsweep("-m", "skip_layers=none,0", "schedule.steps=12,24", "model.window=0")
    assert (done.status, done.err) == (0, "")
    heads = [line for line in done.out.splitlines() if " steps: " in line]
    assert heads == [
        "12 steps: schedule.steps=12,skip_layers=none, schedule.steps=12,skip_layers=0",
        "24 steps: schedule.steps=24,skip_layers=none, schedule.steps=24,skip_layers=0",
    ]
    assert done.out.index("4 points, 4 runs") < done.out.index(heads[0])
    assert done.out.count("attention window: no limit") == 2


def test_many_schedules_are_counted_not_drawn(skipsweep: Callable[..., Done]) -> None:
    done = skipsweep("-m", "schedule.steps=range(1,12)")
    assert done.out.count("factor of the peak") == 8
    assert done.out.rstrip().endswith("... and 3 more schedules; all with --json")
