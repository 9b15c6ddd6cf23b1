"""Parameters and floating-point operations of a recipe's model, by group, without building it and without torch.

Conventions of the operation count: a multiply-add is 2 operations; the backward pass costs twice the forward pass; only
matrix products count (norms, rotary, softmax, activations and lambdas are linear in width, looking up an embedding is
free). Attention is causal: a query at position t (from 0) reads t + 1 keys, (T + 1) / 2 on average, and only those
count, about half of the full T x T square that some tables count. What is recomputed to save memory does not count.
"""

from skipsweep.config import Recipe
from skipsweep.model.shape import head_inputs, mlp_hidden, readout_lambdas

FORWARD_AND_BACKWARD = 3
"""Cost of a training pass, in forward passes."""


def parameters(recipe: Recipe) -> dict[str, int]:
    """Group -> number of parameters."""
    model, vocab = recipe.model, recipe.data.vocab_size
    return {
        "embed": vocab * model.dim,
        "blocks.attention": model.layers * _attention(recipe),
        "blocks.mlp": model.layers * _mlp(recipe),
        "head": vocab * head_inputs(recipe),
        "scalars": len(readout_lambdas(recipe)),
    }


def flops_per_token(recipe: Recipe) -> dict[str, int]:
    """Group -> operations of one training pass (forward and backward) per token, at the recipe's sequence length.

    `blocks.attention` is the projections, `blocks.attention.scores` the two products with keys and values.
    """
    model, seq_len = recipe.model, recipe.data.seq_len
    per_multiply_add = 2 * FORWARD_AND_BACKWARD
    return {
        "embed": 0,
        "blocks.attention": per_multiply_add * model.layers * _attention(recipe),
        # two products of dim multiply-adds with (seq_len + 1) / 2 keys each
        "blocks.attention.scores": per_multiply_add * model.layers * model.dim * (seq_len + 1),
        "blocks.mlp": per_multiply_add * model.layers * _mlp(recipe),
        "head": per_multiply_add * recipe.data.vocab_size * head_inputs(recipe),
    }


def total(counts: dict[str, int]) -> int:
    """Sum over all groups."""
    return sum(counts.values())


def _attention(recipe: Recipe) -> int:
    """Weights of one layer's query, key, value and output projections."""
    return 4 * recipe.model.dim**2


def _mlp(recipe: Recipe) -> int:
    """Weights of one layer's MLP."""
    return 2 * recipe.model.dim * mlp_hidden(recipe.model)
