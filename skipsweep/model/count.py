"""Parameters and floating-point operations of a recipe's model, by group, without building it and without torch.

Conventions of the operation count: a multiply-add is 2 operations; the backward pass costs twice the forward pass; only
matrix products count (norms, rotary, softmax, activations and lambdas are linear in width, looking up an embedding is
free). Attention counts the keys that a query sees by causality and window, averaged over the run's steps: about half of
the full T x T square without a window. Document masks, which depend on the text, are not counted off, nor is what is
recomputed to save memory.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

from skipsweep.config import Gated, Recipe
from skipsweep.model.heads import has_embedding, head_inputs, matrices, readout_kind
from skipsweep.model.shape import (
    LLAMA,
    attention_layers,
    gate_channels,
    head_rows,
    kv_heads,
    norm_weights,
    scalars,
    table_rows,
    token_embeddings,
)
from skipsweep.model.wiring import mlp_hidden
from skipsweep.optim.schedule import short_window_blocks, window_blocks, windows

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
        "blocks.mlp": _mlps(recipe) * _mlp(recipe),
        "readout": _readout(recipe),
        "head": head_rows(recipe) * head_inputs(recipe),
        "gates": _gates(recipe) * (model.dim + 1),
        "norms": norm_weights(recipe),
        "scalars": len(scalars(recipe)),
    }


def flops_per_token(recipe: Recipe) -> dict[str, int]:
    """Group -> operations of one training pass (forward and backward) per token, the mean over the run.

    `blocks.attention` is the projections, `blocks.attention.scores` the two products with keys and values.
    """
    model, per_multiply_add = recipe.model, 2 * FORWARD_AND_BACKWARD
    return {
        "embed": per_multiply_add * _smear(recipe),
        "blocks.attention": per_multiply_add * len(attention_layers(model)) * _attention(recipe),
        # two products of dim multiply-adds with each key
        "blocks.attention.scores": round(per_multiply_add * 2 * model.dim * _keys(recipe)),
        "blocks.mlp": per_multiply_add * _mlps(recipe) * _mlp(recipe),
        "gates": per_multiply_add * _gates(recipe) * model.dim,
        "readout": per_multiply_add * _readout(recipe),
        "head": per_multiply_add * head_rows(recipe) * head_inputs(recipe),
    }


def inference_flops_per_token(recipe: Recipe, closed: Sequence[float] = ()) -> dict[str, float]:
    """Group -> operations of one forward pass per token with the last step's window, closed tokens left out.

    `closed`: per layer the share of tokens that its block is closed to (measured, or as targets say); none: no layer is
    skipped. A block computes its open tokens alone, which see each other; where they lie is taken as random. Training
    computes every block for every token, whatever its gates say: that is `flops_per_token`.
    """
    model, opened = recipe.model, [1 - share for share in closed] or [1.0] * recipe.model.layers
    mlps = set(range(model.layers - readout_kind(recipe).owns_last_mlp)) - set(model.no_mlp)
    long = window_blocks(model, recipe.schedule, recipe.schedule.steps)
    forward = {group: operations / FORWARD_AND_BACKWARD for group, operations in flops_per_token(recipe).items()}
    return forward | {
        "blocks.attention": 2 * _attention(recipe) * sum(opened[i] for i in attention_layers(model)),
        "blocks.attention.scores": 2
        * 2
        * model.dim
        * sum(_open_keys(opened[i], _keys_of_layer(recipe, i, long)) for i in attention_layers(model)),
        "blocks.mlp": 2 * _mlp(recipe) * sum(opened[i] for i in mlps),
    }


def _open_keys(opened: float, keys: float) -> float:
    """Keys that a token sees if it is open, itself and the open ones of the others, times its chance to be so."""
    return opened * (1 + opened * (keys - 1))


def total(counts: Mapping[str, int]) -> int:
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


def _mlps(recipe: Recipe) -> int:
    """Blocks that have an MLP."""
    return recipe.model.layers - len(recipe.model.no_mlp) - readout_kind(recipe).owns_last_mlp


def _gates(recipe: Recipe) -> int:
    """Gates of a token: one for two layers."""
    return recipe.model.layers // 2 if isinstance(recipe.gate_targets, Gated) else 0


def _readout(recipe: Recipe) -> int:
    """Weights of the readout's matrices."""
    return sum(rows * columns for rows, columns in matrices(recipe).values())


def _keys(recipe: Recipe) -> float:
    """Keys that a query sees, summed over layers, averaged over positions and steps."""
    layers = attention_layers(recipe.model)
    mean = 0.0
    for window, steps in windows(recipe.model, recipe.schedule).items():
        mean += steps / recipe.schedule.steps * sum(_keys_of_layer(recipe, layer, window) for layer in layers)
    return mean


def _keys_of_layer(recipe: Recipe, layer: int, window: int) -> float:
    """Keys that a query of a layer sees, averaged over positions; `window` of the layers with the long one."""
    mine = window if layer in recipe.model.long_window else short_window_blocks(window)
    return _mean_keys(recipe.data.seq_len, mine, recipe.model.window_block)


@lru_cache(maxsize=1024)
def _mean_keys(seq_len: int, window: int, block: int) -> float:
    """Keys that a query sees, its own included, averaged over a sequence; `window` in blocks, 0: no limit."""
    if not window:
        return (seq_len + 1) / 2
    hidden = sum(
        max(first // block - window + 1, 0) * block * min(block, seq_len - first) for first in range(0, seq_len, block)
    )
    return (seq_len + 1) / 2 - hidden / seq_len
