"""The whole: what a run executes, and what Hydra composes."""

from dataclasses import dataclass, field, fields

from skipsweep.config.base import MISSING
from skipsweep.config.data import Data
from skipsweep.config.execution import Compute, Logger, Paths, Record
from skipsweep.config.gates import Control, GateTargets
from skipsweep.config.readout import HeadType, LambdaInit, SelectionMethod, SkipLayers
from skipsweep.config.sweep import Relative, Sweep
from skipsweep.config.training import Optim, Schedule
from skipsweep.config.trunk import Embeddings, Model, Residual


@dataclass
class Recipe:
    """Everything that changes the result: a run's identity is made of exactly this."""

    skip_layers: SkipLayers = field(default_factory=SkipLayers)
    head_type: HeadType = MISSING
    lambda_init: LambdaInit = field(default_factory=LambdaInit)
    gate_targets: GateTargets = MISSING
    control: Control = MISSING
    model: Model = field(default_factory=Model)
    embeddings: Embeddings = field(default_factory=Embeddings)
    residual: Residual = field(default_factory=Residual)
    data: Data = MISSING
    optim: Optim = MISSING
    schedule: Schedule = MISSING
    seed: int = 0
    """Seed of the initialisation. 0 is a seed like any other."""
    replicate: int = 0
    """Number of a deliberate repetition of the very same run, e.g. to time it again."""


@dataclass
class Setup:
    """Where and how a run is executed and recorded."""

    compute: Compute = field(default_factory=Compute)
    record: Record = field(default_factory=Record)
    logger: Logger = MISSING
    paths: Paths = field(default_factory=Paths)


@dataclass
class RunConfig(Setup, Recipe):
    """What a run executes, frozen in its config.yaml: resolved, nothing left to choose."""


@dataclass
class Config(RunConfig):
    """What Hydra composes and a user overrides: a run, and how to choose and plan it."""

    selection_method: SelectionMethod = MISSING
    relative: Relative = field(default_factory=Relative)
    sweep: Sweep = field(default_factory=Sweep)
    plan: bool = False
    """Show the plan and stop."""
    retry: str = "none"
    """`failed`: start failed runs again; `none`: leave them as they are."""


NEUTRAL_CHOICE: dict[str, str] = {"head_type": "last", "gate_targets": "none", "control": "none"}
"""Groups that have a choice meaning "off"; it leaves no trace in an identity."""

UNIONS: tuple[type, ...] = (SelectionMethod, HeadType, GateTargets, Control, Data, Optim, Schedule, Logger)


def recipe_of(config: RunConfig) -> Recipe:
    """The part of a configuration that makes its identity."""
    return Recipe(**{f.name: getattr(config, f.name) for f in fields(Recipe)})
