"""What a recipe's model looks like, worked out without torch: for planning, for counting, and for building it.

Recipes are canonical here, as planning leaves them (`sweep/identity.py`).
"""

from skipsweep.config import Model, Recipe

INPUT = "input"
"""The source x00, the normed token embedding."""
LAST = "last"
"""The source that is the last layer's output once more."""

ADD_HEADS = ("add", "add_renorm")
"""Heads that sum what they see, with a learned scalar each."""
CONCAT_HEADS = ("concat",)
"""Heads that see their sources side by side; only there may the last layer be a source too."""

Source = int | str
Start = dict[str, float]
"""Label of a learned scalar -> where it starts."""


# ---------------------------------------------------------------------------------------------------------- the readout


def sources(recipe: Recipe) -> tuple[Source, ...]:
    """What the head sees besides the last layer: layers ascending, then `input`, then `last`.

    Raises ValueError for a recipe that is not canonical, or has a source that its trunk and head do not offer.
    """
    given, head = list(recipe.skip_layers.layers), recipe.head_type.name
    last = [LAST] if head in CONCAT_HEADS else []
    offered: list[Source] = [] if head == "last" else [*range(recipe.model.layers - 1), INPUT, *last]
    if given != [source for source in offered if source in given]:
        raise ValueError(f"skip_layers.layers={given} is not canonical; head_type={head} offers, in order: {offered}")
    return tuple(given)


def readout_name(recipe: Recipe) -> str:
    """The choice of `head_type` in force: without sources every head is `last`."""
    return recipe.head_type.name if sources(recipe) else "last"


def head_inputs(recipe: Recipe) -> int:
    """Width of what the head sees, in channels."""
    beside = len(sources(recipe)) if readout_name(recipe) in CONCAT_HEADS else 0
    return (1 + beside) * recipe.model.dim


def head_rows(recipe: Recipe) -> int:
    """Rows of the head: the vocabulary, rounded up."""
    multiple = recipe.model.vocab_multiple
    return -(-recipe.data.vocab_size // multiple) * multiple


# ------------------------------------------------------------------------------------------------------------ the trunk


def mlp_hidden(model: Model) -> int:
    """Hidden width of the MLP, in channels."""
    return round(model.mlp_ratio * model.dim)


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


def readout_lambdas(recipe: Recipe) -> Start:
    """Of the readout; ValueError unless there is one start value per source."""
    if readout_name(recipe) not in ADD_HEADS:
        return {}
    given, skip = sources(recipe), recipe.lambda_init.skip_lambda
    each = skip if isinstance(skip, list | tuple) else [skip] * len(given)
    skips = {f"lambda/skip/{source}": float(value) for source, value in zip(given, each, strict=True)}
    return {"lambda/x": float(recipe.lambda_init.x_lambda)} | skips


def block_lambdas(recipe: Recipe) -> Start:
    """Of the weighted sum before every block: the stream, x00, x01, ..., layer by layer."""
    init, embeddings = recipe.lambda_init, token_embeddings(recipe)
    if not recipe.embeddings.mix:
        return {}
    each = [init.block_x, init.block_x00, *[init.block_extra] * recipe.embeddings.extra]
    return {
        f"lambda/block/{layer}/{name}": value
        for layer in range(recipe.model.layers)
        for name, value in zip(["x", *embeddings], each, strict=True)
    }


def unet_lambdas(recipe: Recipe) -> Start:
    """Of the U-net skips."""
    return {f"lambda/unet/{source}-{target}": recipe.lambda_init.unet for source, target in recipe.residual.unet}


def value_lambdas(recipe: Recipe) -> Start:
    """Of the attention's values, layer by layer: on its own, and on the value embedding."""
    init, tables, found = recipe.lambda_init, value_table(recipe), Start()
    for layer in attention_layers(recipe.model):
        if recipe.model.value_lambda:
            found[f"lambda/value/{layer}/v"] = init.value
        if layer in tables:
            found[f"lambda/value/{layer}/ve"] = init.value_embedding
    return found


def scalars(recipe: Recipe) -> Start:
    """All of them."""
    return value_lambdas(recipe) | unet_lambdas(recipe) | block_lambdas(recipe) | readout_lambdas(recipe)
