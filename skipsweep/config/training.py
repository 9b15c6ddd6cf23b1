"""How a model is trained: optimisers and schedules."""

from dataclasses import dataclass, field

from skipsweep.config.base import MISSING


@dataclass
class Optim:
    """The optimiser, and an outer one around it (Snoo): every `outer_every` steps, what they have moved is taken as a
    gradient by SGD with Nesterov momentum (DiLoCo on one worker; medium track, record 12)."""

    name: str = MISSING
    outer_every: int = 0
    """Steps from one outer step to the next; the first is after step 1. 0: no outer optimiser."""
    outer_lr: float = 0.0
    """Learning rate of the outer SGD; not scheduled."""
    outer_momentum: float = 0.0
    """Nesterov momentum of the outer SGD."""


@dataclass
class AdamW(Optim):
    """Decoupled weight decay Adam (Loshchilov & Hutter 2019), with a learning rate per role of parameter."""

    name: str = "adamw"
    lr: float = MISSING
    """Peak learning rate of the blocks' matrices."""
    embed_lr: float = MISSING
    """Peak learning rate of the token embedding."""
    head_lr: float = MISSING
    """Peak learning rate of the output head, and of what else has its role (docs/add-a-mechanism.md)."""
    scalar_lr: float = MISSING
    """Peak learning rate of learned scalars (lambdas)."""
    beta1: float = MISSING
    """Decay of the first moment."""
    beta2: float = MISSING
    """Decay of the second moment."""
    eps: float = MISSING
    """Added to the root of the second moment."""
    weight_decay: float = 0.0
    """Per step, times the learning rate; on matrices of the blocks only."""


@dataclass
class Muon(Optim):
    """Momentum orthogonalised by Newton-Schulz (Jordan et al. 2024) on matrices of the blocks, Adam on the rest."""

    name: str = "muon"
    lr: float = MISSING
    """Peak learning rate of the blocks' matrices, times sqrt(max(1, rows / columns))."""
    momentum: float = MISSING
    """Nesterov momentum m <- mu m + (1 - mu) g after the warm-up."""
    momentum_start: float = MISSING
    """Momentum at the first step."""
    momentum_warmup: int = 0
    """Steps over which it rises linearly."""
    newton_schulz: list[list[float]] = field(default_factory=list)
    """Coefficients (a, b, c) of X <- a X + b (XX')X + c (XX')^2 X, one triple per iteration."""
    smoothing: float = 0.0
    """Decay of an exponential mean over orthogonalised updates (medium track, record 13)."""
    weight_decay: float = 0.0
    """Per step, times the learning rate."""
    mlp_decay_factor: float = 1.0
    """Factor on the weight decay of MLP matrices."""
    embed_lr: float = MISSING
    """Peak learning rate of Adam on embeddings."""
    head_lr: float = MISSING
    """Peak learning rate of Adam on the output head, and on what else has its role (docs/add-a-mechanism.md)."""
    scalar_lr: float = MISSING
    """Peak learning rate of Adam on learned scalars (lambdas)."""
    beta1: float = MISSING
    """Adam's decay of the first moment."""
    beta2: float = MISSING
    """Adam's decay of the second moment."""
    eps: float = MISSING
    """Added to the root of Adam's second moment."""


@dataclass
class Schedule:
    """The learning rate as a pure function of the step, as a factor of the peak."""

    name: str = MISSING
    steps: int = MISSING
    """Optimiser steps of the run."""
    warmup_steps: int = 0
    """Steps over which the factor rises linearly to 1."""
    warmup_start: float = 0.0
    """Factor from which it rises; the first step is 1 / (warmup_steps + 1) of the way."""
    horizon: int = 0
    """Compute the learning rate as if the run had this many steps, and stay at its end in steps beyond; 0: as many as
    it has."""
    window_horizon: int = 0
    """The same for the attention window."""


@dataclass
class Constant(Schedule):
    """Factor 1 after the warm-up."""

    name: str = "constant"


@dataclass
class Trapezoid(Schedule):
    """Factor 1, then a linear fall over the last part (the speedrun's schedule)."""

    name: str = "trapezoid"
    cooldown: float = MISSING
    """Part of all steps that the fall takes, 0 to 1."""
    final: float = MISSING
    """Factor at the end."""


@dataclass
class Cosine(Schedule):
    """Half a cosine from 1 to `final`."""

    name: str = "cosine"
    final: float = MISSING
    """Factor at the end."""
