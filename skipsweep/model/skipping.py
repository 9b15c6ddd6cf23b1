"""A block on its open tokens alone: skipping that saves time, where the skip-middle paper computes everything and
multiplies by 0.

Legend: B batch, T time, N open tokens of all sequences, D dim, K channels of a head.
"""

from typing import Any

from torch import Tensor, nn

from skipsweep.model.attention import AttentionMask
from skipsweep.model.seams import LayerContext


def open_only(block: nn.Module, x: Tensor, g: Tensor, layer: LayerContext, mask: AttentionMask) -> Tensor:
    """What `block(x, g, layer)` is at evaluation, of gates with `Gate.skips`: residual stream (B, T, D) after it.

    Open tokens are gathered into one sequence (1, N, D), see each other as `mask` says, and go back to where they
    were. Not compiled: N is another in every block. Where nothing is closed, the block runs as it is; and where all
    open gates are 1, as a dense one. Waits for a GPU, which says how many are open.
    """
    places = g.flatten().nonzero()[:, 0]
    if not len(places):
        return x
    if len(places) == g.numel():
        return block(x, *_dense(g, layer, mask))
    stream = x.flatten(0, 1)
    mine, of_mine = g.flatten(0, 1)[places][None], _gathered(layer, places, x.shape[1], mask)
    changed = block.forward(stream[places][None], *_dense(mine, of_mine, mask))
    return stream.index_copy(0, places, changed[0]).view_as(x)


def _dense(g: Tensor, layer: LayerContext, mask: AttentionMask) -> tuple[Tensor | None, LayerContext]:
    """Gate and layer without what multiplies by 1 and adds 0."""
    if mask.caches_keys or not bool((g == 1).all()):
        return g, layer
    return None, layer._replace(key_bias=None)


def _gathered(layer: LayerContext, places: Tensor, length: int, mask: AttentionMask) -> LayerContext:
    """What the tokens at `places` (N,) may look at, among sequences of `length` tokens."""
    cos, sin = layer.rotary

    def of_tokens(values: Any) -> Any:
        return None if values is None else values.flatten(0, 1)[places][None]

    return layer._replace(
        rotary=(cos[places % length], sin[places % length]),
        mask=mask.gather(places),
        value_embedding=of_tokens(layer.value_embedding),
        key_bias=of_tokens(layer.key_bias),
    )
