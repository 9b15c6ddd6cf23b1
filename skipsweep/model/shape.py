"""What a recipe's model looks like, worked out without torch: for planning, for counting, and for building it.

Recipes are canonical here, as planning leaves them (`sweep/canonical.py`).
"""

import math
from typing import Any

from skipsweep.config import Model, Recipe
from skipsweep.model.readout_specs import Start, head_inputs, readout_lambdas
from skipsweep.model.wiring import left_out, rolling_layers, tail_layers


def head_rows(recipe: Recipe) -> int:
    """Rows of the head: the vocabulary, rounded up."""
    multiple = recipe.model.vocab_multiple
    return -(-recipe.data.vocab_size // multiple) * multiple


def table_rows(recipe: Recipe) -> int:
    """Rows of the trunk's embeddings."""
    return head_rows(recipe) if recipe.model.padded_tables else recipe.data.vocab_size


# ------------------------------------------------------------------------------------------------------------ the trunk


GATE_CHANNELS = 12
"""Channels that the gates of the small track look at."""


def gate_channels(model: Model) -> int:
    """Inputs of a gate: the first channels, all of them where there are fewer."""
    return min(GATE_CHANNELS, model.dim)


LLAMA = "llama"
"""The choice of `model.block` that the skip-middle paper is about."""


def has_weighted_norms(model: Model) -> bool:
    """Whether norms of the trunk, and what the head sees, have learned weights."""
    return model.block == LLAMA


def kv_heads(model: Model) -> int:
    """Heads of keys and values."""
    return model.kv_heads or model.heads


def norm_weights(recipe: Recipe) -> int:
    """Weights of all norms: after the embedding, around attention and MLPs, and of what the head sees."""
    model = recipe.model
    if not has_weighted_norms(model):
        return 0
    parts = len(attention_layers(model)) + len(mlp_layers(model))
    around = (2 if model.norm_scheme == "sandwich" else 1) * parts
    return (1 + around) * model.dim + head_inputs(recipe)


def mlp_layers(model: Model) -> list[int]:
    """Layers that have an MLP, in the trunk or, the last one, in the readout."""
    return [layer for layer in range(model.layers) if layer not in model.no_mlp]


def mixed_layers(recipe: Recipe) -> list[int]:
    """Layers that start from the weighted sum of stream and token embeddings."""
    model = recipe.model
    return [i for i in range(model.layers) if i not in left_out(model)] if recipe.embeddings.mix else []


def attention_layers(model: Model) -> list[int]:
    """Layers that have attention."""
    return [layer for layer in range(model.layers) if layer not in model.no_attention]


def token_embeddings(recipe: Recipe) -> list[str]:
    """Names of the embeddings in the blocks' weighted sums: x00, x01, ..."""
    return [f"x{k:02d}" for k in range(1 + recipe.embeddings.extra)]


def value_table(recipe: Recipe) -> dict[int, int]:
    """Layer -> the value embedding that its values get, for the layers that get one."""
    return {layer: k for k, layers in enumerate(recipe.embeddings.value_layers) for layer in layers}


# ------------------------------------------------------------------------------------------------------ learned scalars


def block_lambdas(recipe: Recipe) -> Start:
    """Of the weighted sum before every block: the stream, x00, x01, ..., layer by layer."""
    init, layers = recipe.lambda_init, mixed_layers(recipe)
    each = [init.block_x, init.block_x00, *[init.block_extra] * recipe.embeddings.extra]
    starts = [_each(value, len(layers)) for value in each]
    return {
        f"lambda/block/{layer}/{name}": start[place]
        for place, layer in enumerate(layers)
        for name, start in zip(["x", *token_embeddings(recipe)], starts, strict=True)
    }


def unet_lambdas(recipe: Recipe) -> Start:
    """Of the U-net skips, by target, then source."""
    pairs = recipe.residual.unet
    labels = [unet_label(recipe, source, target) for source, target in pairs]
    return dict(zip(labels, _each(recipe.lambda_init.unet, len(pairs)), strict=True))


LOGIT, WEIGHT = "lambda/unet_logit/", "lambda/unet/"


def unet_label(recipe: Recipe, source: int, target: int) -> str:
    """What is logged is what is learned: the weight, or the number whose logistic function is the weight."""
    return f"{LOGIT if recipe.residual.unet_weight == 'sigmoid' else WEIGHT}{source}-{target}"


def weights(values: dict[str, float]) -> dict[str, float]:
    """Learned scalars by label, those that stand for a weight through a logistic function replaced by that weight."""
    return {
        label.replace(LOGIT, WEIGHT): 1 / (1 + math.exp(-value)) if label.startswith(LOGIT) else value
        for label, value in values.items()
    }


def rolling_lambdas(recipe: Recipe) -> Start:
    """Of the rolling skip: the stream, and the output two layers before, layer by layer."""
    init, layers = recipe.lambda_init, rolling_layers(recipe.residual, recipe.model.layers)
    starts = zip(_each(init.rolling_x, len(layers)), _each(init.rolling, len(layers)), strict=True)
    values = Start()
    for layer, (x, skip) in zip(layers, starts, strict=True):
        values |= {f"lambda/rolling/{layer}/x": x, f"lambda/rolling/{layer}/skip": skip}
    return values


def tail_lambdas(recipe: Recipe) -> Start:
    """Of the outputs of the layers that stand side by side; their sum starts as the mean."""
    layers = tail_layers(recipe.residual, recipe.model.layers)
    starts = _each(recipe.lambda_init.tail, len(layers))
    return {f"lambda/tail/{layer}": start / len(layers) for layer, start in zip(layers, starts, strict=True)}


def _each(value: Any, count: int) -> list[float]:
    """One start value per place; ValueError for a list of another length."""
    if not isinstance(value, list | tuple):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"{len(value)} start values for {count} places")
    return list(value)


def value_lambdas(recipe: Recipe) -> Start:
    """Of the attention's values, layer by layer: on its own, and on the value embedding."""
    init, layers, tables, values = recipe.lambda_init, attention_layers(recipe.model), value_table(recipe), Start()
    own = dict(zip(layers, _each(init.value, len(layers)), strict=True)) if recipe.model.value_lambda else {}
    beside = dict(zip(sorted(tables), _each(init.value_embedding, len(tables)), strict=True))
    for layer in layers:
        if layer in own:
            values[f"lambda/value/{layer}/v"] = own[layer]
        if layer in tables:
            values[f"lambda/value/{layer}/ve"] = beside[layer]
    return values


def smear_lambdas(recipe: Recipe) -> Start:
    """Of the token embedding before each."""
    return {"lambda/smear": recipe.lambda_init.smear} if recipe.model.smeared else {}


def scalars(recipe: Recipe) -> Start:
    """Initial values of all learned scalars, by label."""
    trunk = tail_lambdas(recipe) | unet_lambdas(recipe) | rolling_lambdas(recipe) | block_lambdas(recipe)
    return value_lambdas(recipe) | smear_lambdas(recipe) | trunk | readout_lambdas(recipe)
