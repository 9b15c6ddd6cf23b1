"""Where every mechanism is the baseline, and how exactly."""

from dataclasses import dataclass, field
from typing import Any

from skipsweep.model.wiring import mlp_hidden


@dataclass(frozen=True)
class Neutral:
    """Where a mechanism is the baseline."""

    settings: dict[str, Any]
    """Dotted keys of a recipe, and the values that switch the mechanism off; or a function of the model to them."""
    tolerance: float
    """Largest difference of the logits to the baseline's in float32, in units of the largest logit; 0: bit for bit."""
    why: str
    wider: tuple[str, ...] = field(default=())
    """Parameters that are larger than the baseline's: equal to it where all that is added is 0."""
    renamed: dict[str, str] = field(default_factory=dict)
    """The baseline's name of a parameter (`{last}`: number of the last layer) -> its name in this mechanism."""


SKIPS_OFF = {"lambda_init.skip_lambda": 0.0}
LAMBDAS_OFF = SKIPS_OFF | {"lambda_init.x_lambda": 1.0}
EXACT = "times 1 and plus 0 are exact"
REORDERED = "the added products are exact zeros, but a wider matrix product may sum the others in another order"

OWN_MLP = Neutral(
    settings={"head_type.hidden": mlp_hidden, "head_type.norm_each": True},
    tolerance=3e-6,
    why=REORDERED,
    wider=("head.weight", "readout.mlp.fc", "readout.mlp.proj"),
    renamed={f"blocks.{{last}}.mlp.{matrix}": f"readout.mlp.{matrix}" for matrix in ("fc", "proj")},
)
"""As many hidden channels as a block's MLP has, which see x alone."""

HEADS: dict[str, Neutral] = {
    "add": Neutral(LAMBDAS_OFF, 0.0, EXACT),
    "add_renorm": Neutral(LAMBDAS_OFF, 3e-6, "norming twice differs from once by rounding and by eps / 2 = 6e-8"),
    "add_unnormed": Neutral(LAMBDAS_OFF, 0.0, EXACT),
    "add_detached": Neutral(LAMBDAS_OFF, 0.0, EXACT),
    "add_fixed_x": Neutral(SKIPS_OFF, 0.0, EXACT),
    "add_relu": Neutral(LAMBDAS_OFF, 0.0, EXACT),
    "add_tanh": Neutral(LAMBDAS_OFF, 0.0, EXACT),
    "add_relu_linear": Neutral(LAMBDAS_OFF, 0.0, EXACT),
    "concat": Neutral({}, 3e-6, REORDERED, wider=("head.weight",)),
    "concat_mlp": OWN_MLP,
    "concat_mlp_narrow": OWN_MLP,
    "backout": Neutral({"lambda_init.backout": 0.0}, 0.0, EXACT),
}
"""Choice of `head_type` -> its neutral setting."""

BETWEEN_BLOCKS: dict[str, Neutral | None] = {
    "unet": Neutral({"lambda_init.unet": 0.0}, 0.0, EXACT),
    "unet, sigmoid": None,  # a logistic function is above 0 everywhere
    "rolling": Neutral({"lambda_init.rolling_x": 1.0, "lambda_init.rolling": 0.0}, 0.0, EXACT),
    "parallel_tail": None,  # of two layers side by side none sees the other
    "mix": Neutral(
        {"lambda_init.block_x": 1.0, "lambda_init.block_x00": 0.0, "lambda_init.block_extra": 0.0}, 0.0, EXACT
    ),
}
"""What is mixed into the stream before a block (`model/inject.py`) -> its neutral setting; None: there is none."""
