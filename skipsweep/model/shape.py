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


def readout_lambdas(recipe: Recipe) -> dict[str, float]:
    """Label -> start value of the readout's learned scalars; ValueError unless there is one start value per source."""
    if readout_name(recipe) not in ADD_HEADS:
        return {}
    given, skip = sources(recipe), recipe.lambda_init.skip_lambda
    each = skip if isinstance(skip, list | tuple) else [skip] * len(given)
    skips = {f"lambda/skip/{source}": float(value) for source, value in zip(given, each, strict=True)}
    return {"lambda/x": float(recipe.lambda_init.x_lambda)} | skips


def mlp_hidden(model: Model) -> int:
    """Hidden width of the MLP, in channels."""
    return round(model.mlp_ratio * model.dim)
