"""Which layers are wired how: what a recipe says in words (`scaled`) worked out for its depth. Imports no torch.

The words mean the medium track's wiring (reference record 15) at its 16 layers, and its like at any other depth:

| layers | U-net skips        | no attention | long window  | value embeddings (table: layers)          |
|--------|--------------------|--------------|--------------|-------------------------------------------|
| 16     | 6->9, 4->10, 2->11 | 7            | 0, 4, 11, 15 | 0: 0, 11; 1: 1, 12; ... 4: 4, 15          |
| 12     | 4->7, 2->8         | 5            | 0, 3, 8, 11  | 0: 0, 9; 1: 1, 10; 2: 2, 11               |
| 8      | 3->5, 1->6         | 3            | 0, 2, 5, 7   | 0: 0, 6; 1: 1, 7                          |

Other words for the U-net skips: the medium track's with their targets moved, and the small track's before and since its
record 45 (modded-nanogpt #159):

| layers | shifted             | short                                         | single |
|--------|---------------------|-----------------------------------------------|--------|
| 16     | 6->12, 4->13, 2->14 | 7->8, 6->9, 5->10, 4->11, 3->12, 2->13, 1->14 | 5->9   |
| 12     | 4->9, 2->10         | 5->6, 4->7, 3->8, 2->9, 1->10                 | 4->7   |
| 8      | 3->6, 1->7          | 3->4, 2->5, 1->6                              | 2->4   |
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from skipsweep.config import Model, Residual
from skipsweep.errors import UserError

SCALED = "scaled"


def unet(value: Any, layers: int) -> list[list[int]]:
    """Pairs [source, target] of the U-net skips, by target. Raises UserError for pairs that cannot be."""
    word = isinstance(value, str) and value in UNETS
    pairs = UNETS[value](layers) if word else _lists("residual.unet", value, tuple(UNETS))
    for pair in pairs:
        if len(pair) != 2 or not 0 <= pair[0] < pair[1] < layers:
            raise UserError(
                f"residual.unet: {pair} is no skip of {layers} layers; valid: [source, target] with "
                f"0 <= source < target <= {layers - 1}"
            )
    if len({tuple(pair) for pair in pairs}) < len(pairs):
        raise UserError(f"residual.unet={pairs} names a pair twice")
    return sorted(pairs, key=lambda pair: (pair[1], pair[0]))


def _scaled_unet(layers: int) -> list[list[int]]:
    """Every second layer from 6 of 16 down, the nearest to 9 of 16, the next to the layer after it, and so on."""
    sources = range(6 * layers // 16, 0, -2)
    first = -(-9 * layers // 16)
    return [[source, first + k] for k, source in enumerate(sources)]


def _shifted_unet(layers: int) -> list[list[int]]:
    """The same sources, their targets moved up until none is where one was, or the last is the last layer."""
    pairs = _scaled_unet(layers)
    by = min(len(pairs), layers - 1 - max((target for _, target in pairs), default=0))
    if pairs and by < 1:
        raise UserError(f"residual.unet=shifted: {layers} layers leave no room after the targets; valid: 5 or more")
    return [[source, target + by] for source, target in pairs]


def _short_unet(layers: int) -> list[list[int]]:
    """From every layer of the first half but layer 0 to its mirror image."""
    return [[source, layers - 1 - source] for source in range(1, layers // 2)]


def _single_unet(layers: int) -> list[list[int]]:
    source = layers // 3
    return [[source, max(7 * layers // 12, source + 1)]]


UNETS: dict[str, Callable[[int], list[list[int]]]] = {
    SCALED: _scaled_unet,
    "shifted": _shifted_unet,
    "short": _short_unet,
    "single": _single_unet,
}
"""Word -> pairs at a depth."""


def rolling_layers(residual: Residual, layers: int) -> list[int]:
    """Layers that start with a part of the output two layers before them."""
    return list(range(3, layers)) if residual.rolling else []


def tail_layers(residual: Residual, layers: int) -> list[int]:
    """Layers that stand side by side."""
    return list(range(layers - residual.parallel_tail, layers))


def no_attention(value: Any, layers: int) -> list[int]:
    """Layers without attention, ascending. Raises UserError for layers that are not there."""
    if value == SCALED:
        return [layers // 2 - 1] if layers >= 4 else []
    return _layers("model.no_attention", value, layers)


def long_window(value: Any, layers: int) -> list[int]:
    """Layers with the whole attention window, ascending. Raises UserError for layers that are not there."""
    if value == SCALED:
        return sorted({0, layers // 4, 11 * layers // 16, layers - 1})
    return _layers("model.long_window", value, layers)


def value_layers(value: Any, layers: int, without: Sequence[int] = ()) -> list[list[int]]:
    """Per value embedding the layers that it serves, ascending. Raises UserError where a layer has two, or is none.

    Of the layers that a word means, those `without` attention are left out (small track: 0: 9; 1: 1, 10; 2: 2, 11).
    """
    key = "embeddings.value_layers"
    if value == SCALED or _is_int(value):
        tables = 5 * layers // 16 if value == SCALED else value
        if not 0 <= 2 * tables <= layers:
            raise UserError(f"{key}={value}: {layers} layers have room for 0 to {layers // 2} tables")
        pairs = [[k, layers - tables + k] for k in range(tables)]
        kept = [[layer for layer in pair if layer not in without or value != SCALED] for pair in pairs]
        return [table for table in kept if table]
    by_table = [_layers(key, table, layers) for table in _lists(key, value, (SCALED,))]
    flat = [layer for table in by_table for layer in table]
    if len(set(flat)) < len(flat) or not all(by_table):
        raise UserError(f"{key}={by_table}: every table needs a layer, and no layer has two tables")
    return by_table


def no_mlp(value: Any, layers: int) -> list[int]:
    """Layers without an MLP, ascending. Raises UserError for layers that are not there."""
    return _layers("model.no_mlp", value, layers)


def left_out(model: Model) -> list[int]:
    """Layers with neither attention nor MLP, of a model whose layers are resolved."""
    return sorted(set(model.no_attention) & set(model.no_mlp))


def mlp_hidden(model: Model) -> int:
    """Hidden width of a block's MLP, in channels: rounded up to a whole multiple where one is asked for."""
    wanted = round(model.mlp_ratio * model.dim, 6)  # 2.7 * 10 is 27.000000000000004
    return math.ceil(wanted / model.mlp_multiple) * model.mlp_multiple


def _lists(key: str, value: Any, words: tuple[str, ...]) -> list[list[int]]:
    value = [] if value in (None, "none") else value
    if not _is_list(value) or not all(_is_list(item) and all(map(_is_int, item)) for item in value):
        shown = ", ".join(f"`{word}`" for word in words)
        raise UserError(f"{key}={value}; valid: {shown}, or lists of layers such as [[6,9],[4,10]]")
    return [list(item) for item in value]


def _layers(key: str, value: Any, layers: int) -> list[int]:
    value = [] if value in (None, "none") else value
    if not _is_list(value) or not all(map(_is_int, value)):
        raise UserError(f"{key}={value}; valid: `{SCALED}`, or a list of layers")
    for layer in value:
        if not 0 <= layer < layers:
            raise UserError(f"{key}: layer {layer} is outside the trunk; valid: 0 to {layers - 1}")
    if len(set(value)) < len(value):
        raise UserError(f"{key}={list(value)} names a layer twice")
    return sorted(value)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
