"""Parameters and floating-point operations of a recipe's model, by group, without building it and without torch.

Conventions of the operation count: a multiply-add is 2 operations; the backward pass costs twice the forward pass; only
matrix products count (norms, rotary, softmax, activations and lambdas are linear in width, looking up an embedding is
free). Attention counts the keys that a query sees by causality and window, averaged over the run's steps: about half of
the full T x T square without a window. Document masks, which depend on the text, are not counted off, nor is what is
recomputed to save memory. Training computes all blocks whatever their gates; inference may leave out what they close.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from skipsweep.config import Gated, Recipe
from skipsweep.model.readout_specs import gains, has_embedding, head_inputs, matrices, readout_spec
from skipsweep.model.shape import (
    LLAMA,
    attention_layers,
    gate_channels,
    head_rows,
    kv_heads,
    mlp_layers,
    norm_weights,
    scalars,
    table_rows,
    token_embeddings,
)
from skipsweep.model.window import short_window_blocks, window_blocks, windows
from skipsweep.model.wiring import mlp_hidden

FORWARD_AND_BACKWARD = 3
"""Cost of a training pass, in forward passes."""


def parameters(recipe: Recipe) -> dict[str, int]:
    """Group -> number of parameters."""
    model, table = recipe.model, table_rows(recipe) * recipe.model.dim
    return {
        "embed.tokens": len(token_embeddings(recipe)) * table,
        "embed.values": len(recipe.embeddings.value_layers) * table,
        "embed.readout": has_embedding(recipe) * recipe.data.vocab_size * model.dim,
        "embed.smear": _smear(recipe),
        "blocks.attention": len(attention_layers(model)) * _attention(recipe),
        "blocks.mlp": len(_trunk_mlps(recipe)) * _mlp(recipe),
        "readout": _readout(recipe) + sum(length for (length,) in gains(recipe).values()),
        "head": head_rows(recipe) * head_inputs(recipe),
        "gates": _gates(recipe) * (model.dim + 1),
        "norms": norm_weights(recipe),
        "scalars": len(scalars(recipe)),
    }


def flops_per_token(recipe: Recipe) -> dict[str, int]:
    """Group -> operations of one training pass (forward and backward) per token, the mean over the run.

    `blocks.attention` is the projections, `blocks.attention.scores` the two products with keys and values.
    """
    steps, seq_len = recipe.schedule.steps, recipe.data.seq_len
    keys = [0.0] * recipe.model.layers
    for window, count in windows(recipe.model, recipe.schedule).items():
        in_window = _keys(recipe, seq_len, window)
        keys = [total + count / steps * seen for total, seen in zip(keys, in_window, strict=True)]
    return _operations(recipe, 2 * FORWARD_AND_BACKWARD, keys, _whole(recipe))


@dataclass(frozen=True)
class OpenFractions:
    """What gates leave to be computed, layer by layer."""

    tokens: Sequence[float]
    """Fraction of the tokens."""
    products: Sequence[float]
    """Fraction of the products of queries with keys up to their own, whatever the window."""


def inference_flops_per_token(recipe: Recipe, left: OpenFractions | None = None) -> dict[str, int]:
    """Group -> operations of a forward pass per token of a validation sequence, in the last validation's window.

    `left`: what gates leave of every block (None: everything is computed).
    """
    data = recipe.data
    window = window_blocks(recipe.model, recipe.schedule, recipe.schedule.steps)
    keys = _keys(recipe, data.val_seq_len or data.seq_len, window)
    return _operations(recipe, 2, keys, left or _whole(recipe))


def inference_columns(recipe: Recipe, tokens: Sequence[float], products: Sequence[float]) -> dict[str, dict[str, int]]:
    """`inference_flops_per_token` of the whole model (`dense`) and, with gates, of what they left in a validation:
    `estimated` as in the skip-middle paper, where a block costs in proportion to its open tokens; `measured` with the
    products of open queries with open keys as they were counted. `tokens`, `products`: as in `OpenFractions`, by
    layer of the first half.
    """
    columns = {"dense": inference_flops_per_token(recipe)}
    if tokens:
        by_layer = [[*pairs, *reversed(pairs)] for pairs in (list(tokens), list(products))]
        columns["estimated"] = inference_flops_per_token(recipe, OpenFractions(by_layer[0], by_layer[0]))
        columns["measured"] = inference_flops_per_token(recipe, OpenFractions(*by_layer))
    return columns


def _whole(recipe: Recipe) -> OpenFractions:
    return OpenFractions([1.0] * recipe.model.layers, [1.0] * recipe.model.layers)


def _operations(recipe: Recipe, per_multiply_add: int, keys: Sequence[float], left: OpenFractions) -> dict[str, int]:
    """Group -> operations per token; `keys`: how many a query sees, layer by layer."""
    model = recipe.model
    products = sum(seen * part for seen, part in zip(keys, left.products, strict=True))
    return {
        "embed": per_multiply_add * _smear(recipe),
        "blocks.attention": round(per_multiply_add * _attention(recipe) * _sum(left, attention_layers(model))),
        # two products of dim multiply-adds with each key
        "blocks.attention.scores": round(per_multiply_add * 2 * model.dim * products),
        "blocks.mlp": round(per_multiply_add * _mlp(recipe) * _sum(left, _trunk_mlps(recipe))),
        "gates": per_multiply_add * _gates(recipe) * model.dim,
        "readout": per_multiply_add * _readout(recipe),
        "head": per_multiply_add * head_rows(recipe) * head_inputs(recipe),
    }


def _sum(left: OpenFractions, layers: Sequence[int]) -> float:
    """Of the open parts of these layers."""
    return sum(left.tokens[layer] for layer in layers)


def total(counts: dict[str, int]) -> int:
    """Sum over all groups."""
    return sum(counts.values())


def _attention(recipe: Recipe) -> int:
    """Weights of one layer's query, key, value and output projections, and of its gate."""
    model = recipe.model
    shared = kv_heads(model) / model.heads
    return round((2 + 2 * shared) * model.dim**2) + model.attention_gate * model.heads * gate_channels(model)


def _smear(recipe: Recipe) -> int:
    """Weights of the gate on the embedding before."""
    return recipe.model.smeared * gate_channels(recipe.model)


def _mlp(recipe: Recipe) -> int:
    """Weights of one layer's MLP."""
    matrices = 3 if recipe.model.block == LLAMA else 2
    return matrices * recipe.model.dim * mlp_hidden(recipe.model)


def _trunk_mlps(recipe: Recipe) -> list[int]:
    """Layers whose MLP is in the trunk: the last one's may be the readout's."""
    owned = [recipe.model.layers - 1] if readout_spec(recipe).owns_last_mlp else []
    return [layer for layer in mlp_layers(recipe.model) if layer not in owned]


def _gates(recipe: Recipe) -> int:
    """Gates of a token: one for two layers."""
    return recipe.model.layers // 2 if isinstance(recipe.gate_targets, Gated) else 0


def _readout(recipe: Recipe) -> int:
    """Weights of the readout's matrices."""
    return sum(rows * columns for rows, columns in matrices(recipe).values())


def _keys(recipe: Recipe, seq_len: int, window: int) -> list[float]:
    """Keys that a query sees, layer by layer, averaged over a sequence; `window`: blocks of the long one, 0: all."""
    model = recipe.model
    long, short = (_mean_keys(seq_len, w, model.window_block) for w in (window, short_window_blocks(window)))
    each = [long if layer in model.long_window else short for layer in range(model.layers)]
    return [0.0 if layer in model.no_attention else seen for layer, seen in enumerate(each)]


@lru_cache(maxsize=1024)
def _mean_keys(seq_len: int, window: int, block: int) -> float:
    """Keys that a query sees, its own included, averaged over a sequence; `window` in blocks, 0: no limit."""
    if not window:
        return (seq_len + 1) / 2
    hidden = sum(
        max(first // block - window + 1, 0) * block * min(block, seq_len - first) for first in range(0, seq_len, block)
    )
    return (seq_len + 1) / 2 - hidden / seq_len
