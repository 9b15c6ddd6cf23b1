"""Which earlier outputs the head sees, how they reach it, and where learned weights start."""

from dataclasses import dataclass, field
from typing import Any

from skipsweep.config.base import MISSING


@dataclass
class SkipLayers:
    """Which earlier outputs the head sees besides the last layer's (multi-output article)."""

    layers: Any = field(default_factory=list)
    """`none`, a layer (`11`), a list (`[11, 10]`), `topN` (the first N of the selection method's ordering), `input`
    (the normed token embedding), `extra` (a token embedding of the readout's own, normed, used nowhere else), `last`
    (concat heads only). Layers are 0-based; neutral: none. Two words are an arm per value, as many as the trunk is
    deep: `each` (every layer below the last) and `top2..top5` or `top2..topN` (up to all of them)."""


@dataclass
class SelectionMethod:
    """The ordering of layers that `topN` takes its first N from. Resolved when planning, so never part of an identity:
    what counts is the set of layers it gave."""

    name: str = MISSING
    ranking_from: str | None = None
    """Sweep whose single-layer arms rank the layers, by mean final validation loss, where `ranking` is not given.
    Orderings that need no ranking take no notice."""


@dataclass
class BestToWorst(SelectionMethod):
    name: str = "best_to_worst"
    ranking: list[int] = field(default_factory=list)
    """Layers from best to worst, as found by single-layer runs."""


@dataclass
class WorstToBest(SelectionMethod):
    name: str = "worst_to_best"
    ranking: list[int] = field(default_factory=list)
    """Layers from best to worst; taken from its end."""


@dataclass
class EarlyToLate(SelectionMethod):
    name: str = "early_to_late"


@dataclass
class LateToEarly(SelectionMethod):
    name: str = "late_to_early"


@dataclass
class Random(SelectionMethod):
    name: str = "random"
    seed: int | None = None
    """Seed of the draw; null: the run's own seed, so that every seed of an arm draws anew."""


@dataclass
class HeadType:
    """How the chosen outputs reach the head."""

    name: str = MISSING


@dataclass
class Last(HeadType):
    """The final norm of the last layer's output, nothing else: the baseline."""

    name: str = "last"


@dataclass
class Add(HeadType):
    """norm(x) * x_lambda + sum_k norm(h_k) * skip_lambda_k (record 15 of the medium track, multi-output article)."""

    name: str = "add"


@dataclass
class AddRenorm(HeadType):
    """`add`, normed once more after the sum (multi-output article, "norm after sum")."""

    name: str = "add_renorm"


@dataclass
class AddUnnormed(HeadType):
    """norm(x) * x_lambda + sum_k h_k * skip_lambda_k; `input` and `extra` stay normed (multi-output article)."""

    name: str = "add_unnormed"


@dataclass
class AddDetached(HeadType):
    """`add`, but no gradient flows back through the skipped outputs (multi-output article)."""

    name: str = "add_detached"


@dataclass
class AddFixedX(HeadType):
    """norm(x) + sum_k norm(h_k) * skip_lambda_k: the last layer's weight is 1 and not learned (multi-output
    article)."""

    name: str = "add_fixed_x"


@dataclass
class AddRelu(HeadType):
    """norm(x) * x_lambda + sum_k norm(relu(h_k)) * skip_lambda_k (multi-output article)."""

    name: str = "add_relu"


@dataclass
class AddTanh(HeadType):
    """norm(x) * x_lambda + sum_k norm(tanh(h_k)) * skip_lambda_k (multi-output article)."""

    name: str = "add_tanh"


@dataclass
class AddReluLinear(HeadType):
    """norm(x) * x_lambda + sum_k norm(W_k relu(h_k)) * skip_lambda_k, each W_k dim x dim and trained as the head is
    (multi-output article)."""

    name: str = "add_relu_linear"


@dataclass
class Concat(HeadType):
    """[norm(x), norm(h_1), ..., norm(h_N)] into a head of (N + 1) * dim inputs (multi-output article)."""

    name: str = "concat"


@dataclass
class ConcatMLP(HeadType):
    """The last block's MLP sees [x, h_1, ..., h_N], where x has passed the last attention (multi-output article)."""

    name: str = "concat_mlp"
    widen_head: bool = False
    """The stream stays (N + 1) * dim wide after the MLP, and so is the head; else the MLP leads back to dim."""
    norm_each: bool = False
    """Norm x and every source by itself; else all that lies side by side at once, where the longest outweighs."""
    hidden: int = 0
    """Hidden channels of the MLP; 0: as many as a block's MLP has parameters for, to the nearest multiple of 8."""


@dataclass
class ConcatMLPNarrow(HeadType):
    """The last block's MLP sees [x, P_1 h_1, ..., P_N h_N], each source projected to `width` channels by a matrix that
    is trained as the head is (multi-output article)."""

    name: str = "concat_mlp_narrow"
    width: int = MISSING
    """Channels of each projected source."""
    widen_head: bool = False
    """The stream stays dim + N * width wide after the MLP, and so is the head; else the MLP leads back to dim."""
    norm_each: bool = False
    """Norm x and every projected source by itself; else all at once."""
    hidden: int = 0
    """Hidden channels of the MLP; 0: so many that it and the projections have the parameters of a block's MLP, to the
    nearest multiple of 8."""


@dataclass
class Backout(HeadType):
    """norm(x - sum_k h_k * backout_k), nothing normed before (the small track's record 40)."""

    name: str = "backout"


@dataclass
class LambdaInit:
    """Where the learned scalars start. Neutral: what is there already counts 1, what a mechanism adds counts 0."""

    x_lambda: float = 1.0
    """Weight of the last layer's output in the add heads."""
    skip_lambda: Any = 0.0
    """Weight of the skipped outputs: one number, or a list with one per source in the order of `skip_layers`."""
    backout: Any = 0.0
    """Weight of the outputs that `head_type=backout` subtracts: one number, or a list like `skip_lambda`'s."""
    block_x: Any = 1.0
    """Weight of the residual stream in every block's weighted sum (`embeddings.mix`). This and all below: one number,
    or a list with one per place, ascending by layer; here one per layer."""
    block_x00: Any = 0.0
    """Weight of the token embedding x00 in that sum."""
    block_extra: Any = 0.0
    """Weight of each further token embedding (x01, x02, ...) in that sum."""
    unet: Any = 0.0
    """Weight of the U-net skips (`residual.unet`), before the logistic function where there is one; a list goes by
    target, then source."""
    rolling_x: Any = 1.0
    """Weight of the stream where the output two layers before is added (`residual.rolling`)."""
    rolling: Any = 0.0
    """Weight of that output."""
    tail: Any = 1.0
    """Weight of the output of each of k parallel layers (`residual.parallel_tail`), in units of 1 / k."""
    value: Any = 1.0
    """Weight of a layer's own values (`model.value_lambda`), in layers with attention."""
    value_embedding: Any = 0.0
    """Weight of the value embedding in layers that have one (`embeddings.value_layers`)."""
    smear: float = 0.0
    """Weight of the embedding before (`model.smeared`)."""
