"""The seams of the trunk: what a mechanism is given, and what it has to return.

Legend: B batch, T time, D dim, K channels of a head.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn

from skipsweep.model.lambdas import Lambdas

Outputs = dict[int, Tensor]
"""Layer -> its output (B, T, D), for those layers that some seam needs."""


class LayerContext(NamedTuple):
    """What one layer may look at besides the residual stream."""

    rotary: tuple[Tensor, Tensor]
    """Cosines and signed sines (T, 1, K), see `blocks.rotate`."""
    mask: Any
    """Which keys its queries see (`attention.ChunkedMask`, or FlexAttention's BlockMask)."""
    value_embedding: Tensor | None
    """(B, T, D), added to the values; None: nothing is."""
    value_lambda: Tensor | None
    """Scalar weight of the layer's own values; None: 1."""
    value_embedding_lambda: Tensor | None
    """Scalar weight of the value embedding."""
    key_bias: Tensor | None = None
    """(B, T, 1), added to the products of all queries with this key, before the softmax; None: nothing is."""
    query_bias: Tensor | None = None
    """(B, T, 1), added to the products of this query with all keys, where softmax does not see it."""


@dataclass
class Context:
    """What is computed once per pass."""

    embeddings: tuple[Tensor, ...]
    """The normed token embeddings x00, x01, ... (B, T, D)."""
    layers: list[LayerContext]
    ids: Tensor | None = None
    """The tokens themselves (B, T), for mechanisms with embeddings of their own."""
    masks: list[Any] = field(default_factory=list)
    """Per layer, its mask as an `attention.AttentionMask` also where FlexAttention is used: for passes over some tokens
    only."""
    _scalars: dict[Lambdas, dict[str, Tensor]] = field(default_factory=dict)

    @property
    def x00(self) -> Tensor:
        """The token embedding where the residual stream starts (B, T, D)."""
        return self.embeddings[0]

    def scalars(self, vector: Lambdas) -> dict[str, Tensor]:
        """Label -> scalar, taken apart once per pass: every other time would cost its own backward pass."""
        if vector not in self._scalars:
            self._scalars[vector] = vector()
        return self._scalars[vector]


class Inject(nn.Module):
    """What is mixed into the residual stream before a block."""

    needs: frozenset[int] = frozenset()
    """Layers whose outputs it reads; the trunk keeps no others alive."""

    def forward(self, i: int, x: Tensor, ctx: Context, outputs: Outputs) -> Tensor:
        """The stream (B, T, D) that block `i` starts from."""
        raise NotImplementedError

    def trunk_output(self, x: Tensor, ctx: Context, outputs: Outputs) -> Tensor:
        """What the trunk gives to the readout: the last layer's output `x` (B, T, D), or one made of the kept ones."""
        return x


GateObserver = Callable[[Tensor], None]
"""Is shown the gates of a pass, (pairs, B, T), as soon as they are known."""


class Gate(nn.Module):
    """How much of a block's change reaches the stream."""

    skips: bool = False
    """Whether, at evaluation, a token whose gate is 0 has no part in a block: neither does its own stream change there,
    nor do others see its keys."""
    pairs: int = 0
    """Pairs of layers that have a gate each."""
    observer: GateObserver | None = None
    """See `observed_by`."""

    def forward(self, i: int, x: Tensor, gate_state: list[Tensor]) -> Tensor | None:
        """Factor (B, T, 1) on what block `i` adds; None: all of it, everywhere.

        `x` (B, T, D) is the output of the block before, or x00. `gate_state` is empty before the first block; what a
        gate appends to it, it finds there at later blocks.
        """
        raise NotImplementedError

    @contextmanager
    def observed_by(self, observer: GateObserver | None) -> Iterator[None]:
        """Show the gates of every pass to `observer`, if there is one."""
        before, self.observer = self.observer, observer
        try:
            yield
        finally:
            self.observer = before

    def bias_attention(self, layer: LayerContext, g: Tensor | None) -> LayerContext:
        """The layer's context with what gates `g` (B, T, 1) add to products of queries and keys."""
        return layer


class Readout(nn.Module):
    """What the head sees."""

    needs: frozenset[int] = frozenset()
    """Layers whose outputs it reads; the trunk keeps no others alive."""
    width: int
    """Channels of the result: the head's inputs."""
    eps: float
    """Of its norms; 0: torch's default."""
    owns_last_mlp: bool = False
    """The trunk builds its last block without an MLP; the readout has one in its place."""

    def forward(self, x: Tensor, outputs: Outputs, ctx: Context) -> Tensor:
        """Features (B, T, width) from the last layer's output `x` (B, T, D) and the kept ones."""
        raise NotImplementedError

    def parts_to_compile(self) -> list[nn.Module]:
        """Modules as costly as a block, to be compiled as blocks are."""
        return []
