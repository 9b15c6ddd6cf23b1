"""What several runs are planned and compared by: outside every run's identity."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Relative:
    """Factors on the schedule's lengths and the trunk's depth, worked out when planning: "one percent fewer steps" or
    "half the layers" at any scale. A warm-up keeps its steps."""

    steps: float = 1.0
    """On `schedule.steps`, and on horizons that have no factor of their own."""
    horizon: float | None = None
    """On `schedule.horizon`, or `schedule.steps` where there is none; null: that of `steps`."""
    window_horizon: float | None = None
    """On `schedule.window_horizon`, or `schedule.steps` where there is none; null: that of `steps`."""
    layers: float = 1.0
    """On `model.layers`, to the nearest even number, 2 at least."""


@dataclass
class Sweep:
    """The question that several runs answer. Outside every run's identity."""

    name: str | None = None
    """Folder below multirun/sweeps; null: a slug and a hash of the points."""
    question: str | None = None
    source: str | None = None
    """Where the question comes from."""
    arms: dict[str, Any] = field(default_factory=dict)
    """Name -> overrides. A comma in a value makes a grid inside the block."""
    baseline: str | None = None
    """Name of the arm the others are compared with; null: the first without skip layers, else the first."""
    seeds: Any = None
    """Seeds of every arm: a number, a list or `range(a,b)`; null: the run's `seed`."""
    target: float | None = None
    """Validation loss to reach, whatever the corpus; null: what `targets` says."""
    targets: dict[str, float] = field(default_factory=dict)
    """Choice of `data` -> validation loss to reach there: 2.92 on one corpus says nothing about another."""
    may_differ: list[str] | None = None
    """The only keys in which an arm may differ from the baseline of its seed; null: not checked."""
    allow_confound: bool = False
    """Plan arms that differ in more than they may all the same, and mark them there and in plan.json."""
    published: dict[str, Any] = field(default_factory=dict)
    """Choice of `data` -> arm -> published figures (mean, sd, n, steps) to stand beside ours: as with `targets`, those
    of one corpus say nothing about another."""
    paired: bool | None = None
    """Whether reports compare runs of equal seed in pairs. Decided when the sweep is first launched: later, results
    could decide it. null: as at first, else false."""
    report: bool = True
    """Write the report when the launch has ended (`skipsweep report` does so at any time)."""
