"""The model apart from its head: blocks, token embeddings, skips between blocks."""

from dataclasses import dataclass, field
from typing import Any

from skipsweep.config.base import MISSING


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
    """Hidden width of the MLP, in units of dim (skip-middle paper: ffn_dim_multiplier)."""
    mlp_multiple: int = 1
    """The hidden width is rounded up to a multiple of this (skip-middle paper: multiple_of)."""
    block: str = "speedrun"
    """`speedrun`: norms without weights, normed queries and keys, squared ReLU; `llama`: norms with weights, also
    after the embedding, rotary pairs (2j, 2j + 1), SwiGLU (skip-middle paper)."""
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
    """Token embeddings beside x00, where the residual stream starts (x00-x04 article; medium track, records 9 and
    10)."""

    mix: bool = False
    """Every block starts from a learned sum of the residual stream, x00, and the further embeddings."""
    extra: int = 0
    """Number of further token embeddings x01, x02, ... in that sum."""
    value_layers: Any = field(default_factory=list)
    """Value embeddings: per table the layers whose values it is added to, e.g. [[0, 11], [1, 12]]; a number n: table k
    serves layers k and layers - n + k; `scaled`: as many tables as 5 of 16 layers have."""


@dataclass
class Residual:
    """Skips between blocks (modded-nanogpt #159)."""

    unet: Any = field(default_factory=list)
    """Pairs [source, target]: the output of `source` is added to the stream before block `target`, times a learned
    weight; or a word that scales with depth: `scaled` (6->9, 4->10, 2->11 of 16 layers), `shifted` (the same sources,
    their targets as many layers later as there are skips: 6->12, 4->13, 2->14), `short` (5->6, 4->7, 3->8, 2->9, 1->10
    of 12), `single` (4->7 of 12)."""
    unet_weight: str = "raw"
    """What a U-net skip is multiplied by: `raw`: the learned number; `sigmoid`: its logistic function (small track)."""
    rolling: bool = False
    """Every block from layer 3 on starts from x * r_x + (output two layers before) * r_skip (multi-output article)."""
    parallel_tail: int = 0
    """The last so many layers side by side: all start from the output of the layer before them, and their outputs are
    summed with learned weights (asked in the multi-output article). 0: one after the other."""
