"""Gates over layers, and what drives them to their targets."""

from dataclasses import dataclass

from skipsweep.config.base import MISSING


@dataclass
class GateTargets:
    """Learned gates over layers (skip-middle paper)."""

    name: str = MISSING


@dataclass
class NoGates(GateTargets):
    name: str = "none"


@dataclass
class Gated(GateTargets):
    """A gate per token and pair of opposite layers l, L - 1 - l; what a closed one skips, its inner ones skip too."""

    init: str = MISSING
    """Where gates start: `normal`: weights of standard deviation .02, bias 0, as released; `open`: the same with the
    negative bias `bias`; `zero`: all gates open, and without gradient: the dense model, which cannot learn to skip."""
    bias: float = 0.0
    """Bias that `init=open` starts from."""
    attention: str = MISSING
    """Where attention sees the gates: `keys` (equation 3), `queries` (the released code: no effect), or `none`."""
    floor: float = MISSING
    """Smallest gate that attention sees while training."""


@dataclass
class Free(Gated):
    """Gates without targets: the cross-entropy alone moves them (skip-middle paper, "no control"), or a control without
    any."""

    name: str = "free"


@dataclass
class Targeted(Gated):
    """Gates with a mean that a control drives them to, per pair of opposite layers."""


@dataclass
class Linear(Targeted):
    """Means in equal steps from the outermost pair, layers 0 and L - 1, to the innermost; both ends included."""

    name: str = "linear"
    start: float = MISSING
    """Mean gate of the outermost pair, 0 to 1."""
    end: float = MISSING
    """Mean gate of the innermost pair, and of the only one where there is one; 0 to 1."""


@dataclass
class Listed(Targeted):
    name: str = "list"
    means: list[float] = MISSING
    """Mean gate of every pair, 0 to 1, from the outermost in: as many as half the layers. `gate_targets=[1,.5,..]`."""


@dataclass
class Control:
    """A loss on the gates, added to the cross-entropy that a run reports without it (skip-middle paper, Table 1).

    Means g_l and variances s2_l are those of a unit's tokens, the loss is the mean over units; `mean` is over layers.
    """

    name: str = MISSING


@dataclass
class InUnits(Control):
    """A control whose loss is not linear in gates, so that it matters over how many of them it is taken."""

    sequences: int | None = None
    """Sequences of a unit; micro-batches are whole numbers of units. null: a micro-batch of the machine that the run is
    planned for, written out then, so that a run's id has it."""


@dataclass
class NoControl(Control):
    name: str = "none"


@dataclass
class Sparsity(Control):
    """mean(alpha g_l)."""

    name: str = "sparsity"
    alpha: float = MISSING
    """Coefficient of the means."""


@dataclass
class SparsityVariance(InUnits):
    """mean(alpha g_l + beta s2_l)."""

    name: str = "sparsity_variance"
    alpha: float = MISSING
    """Coefficient of the means."""
    beta: float = MISSING
    """Coefficient of the variances; below 0 it spreads gates out."""


@dataclass
class TargetControl(InUnits):
    """A control that knows targets: means mu_l (`gate_targets`), variances mu_l (1 - mu_l) + variance_shift, from 0 up:
    those of gates that are either open or closed."""


@dataclass
class SparsityVarianceL2(TargetControl):
    """alpha |g - mu| + beta |s2 - sigma2|, norms of the vectors of all layers, as released; with `squared` the paper's
    mean(alpha (g_l - mu_l)^2 + beta (s2_l - sigma2_l)^2)."""

    name: str = "sparsity_variance_l2"
    alpha: float = MISSING
    """Coefficient of the means' distance."""
    beta: float = MISSING
    """Coefficient of the variances' distance."""
    variance_shift: float = 0.0
    """Added to the variances' targets."""
    squared: bool = False
    """Squares, layer by layer, in place of norms over layers."""


@dataclass
class Adapting(TargetControl):
    """mean(alpha_l g_l + beta_l s2_l), whose coefficients change after every step by how far the whole batch is off its
    targets, d_l = g_l - mu_l, and likewise for variances; where it is off by `delta` at most, they stay."""

    alpha: float = 0.0
    """Where coefficients of the means start."""
    beta: float = 0.0
    """Where coefficients of the variances start."""
    gamma: float = MISSING
    """Rate of the coefficients' changes, per step."""
    delta: float = MISSING
    """Tolerance, in either direction: equation 6 as printed, without the absolute value, could only raise them."""
    variance_shift: float = 0.0
    """Added to the variances' targets."""


@dataclass
class Adaptive(Adapting):
    """alpha_l changes by gamma sign(d_l)."""

    name: str = "adaptive"


@dataclass
class Proportional(Adapting):
    """alpha_l changes by gamma d_l (equation 6)."""

    name: str = "proportional"


@dataclass
class ProportionalDerivative(Adapting):
    """alpha_l changes by gamma d_l where d_l is on the way from its target: farther than its mean over recent steps, on
    the same side (released code; not in the paper)."""

    name: str = "proportional_derivative"
    memory: float = MISSING
    """Steps of the exponential mean that d_l is compared with."""
