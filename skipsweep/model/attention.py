"""Which keys a query sees, and attention over them: one meaning, two implementations.

Query q sees key k where k <= q, both lie in the same document, and (block of q) - (block of k) < w for a window of w
blocks. Windows are granular by blocks: a query at a block's start sees w - 1 whole blocks before its own, one at its
end almost w (medium track, reference record 15).

Legend: B batch, T time, H heads, G heads of keys and values, K channels of a head, N blocks of a sequence.
"""

import itertools
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipsweep.model.seams import LayerContext

FLEX_BLOCK = 128
"""FlexAttention skips what nobody sees in squares of (a multiple of) this many tokens."""

CHUNK = 512
"""Queries that are looked at together where FlexAttention is not used: a whole 65,536 x 65,536 mask has 4 GB."""


def documents(ids: Tensor, end_of_text: int, longest: int = 0) -> Tensor:
    """Number of its document for every token of `ids` (B, T), int32: each end-of-text token opens one.

    Documents of more than `longest` tokens count as several; 0: no limit.
    """
    opens = ids == end_of_text
    if longest:
        position = torch.arange(ids.shape[-1], device=ids.device)
        start = torch.where(opens, position, 0).cummax(-1).values
        opens = opens | ((position - start) % longest == 0)
    return opens.cumsum(-1, dtype=torch.int32)


def uses_flex(ids: Tensor, dtype: torch.dtype, block: int) -> bool:
    """Whether FlexAttention takes sequences like `ids`: on a GPU (elsewhere it has no backward), in whole blocks."""
    whole = ids.shape[-1] % FLEX_BLOCK == 0 and block % FLEX_BLOCK == 0 and ids.shape[-1] % block == 0
    return ids.device.type == "cuda" and whole and dtype != torch.float64


def attend_layer(q: Tensor, k: Tensor, v: Tensor, layer: LayerContext, scale: float) -> Tensor:
    """`attend` with the layer's mask, and with its biases on keys or queries.

    A bias is one more channel of queries and keys: every kernel has its gradient (a score function's can be lost).
    """
    keys, queries = layer.key_bias, layer.query_bias
    if keys is None and queries is None:
        return attend(q, k, v, layer.mask, scale)
    one = q.new_full((q.shape[0], 1, q.shape[2], 1), 1 / scale)
    of_queries = one if queries is None else queries[:, None].to(q.dtype) / scale
    of_keys = torch.ones_like(one) if keys is None else keys[:, None].to(k.dtype)
    q, k = _widened(q, of_queries), _widened(k, of_keys)
    return attend(q, k, F.pad(v, (0, 1)), layer.mask, scale)[..., :-1]


class ValueSum(nn.Module):
    """A layer's own values and its value embedding, each with its weight."""

    def forward(self, v: Tensor, layer: LayerContext) -> Tensor:
        """(B, T, H, K) of own values of that shape."""
        if layer.value_lambda is not None:
            v = v * layer.value_lambda
        if layer.value_embedding is not None and layer.value_embedding_lambda is not None:
            v = v + layer.value_embedding.view_as(v) * layer.value_embedding_lambda
        return v


def _widened(x: Tensor, channel: Tensor) -> Tensor:
    """(B, H, T, K) and one more channel (B, 1, T, 1), the same for all heads."""
    return torch.cat((x, channel.expand(-1, x.shape[1], -1, -1)), -1)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: float) -> Tensor:
    """Attention output (B, H, T, K) of queries of that shape, as far as `mask` lets them see. Keys and values may have
    fewer heads, each for H / G queries (B, G, T, K)."""
    if isinstance(mask, AttentionMask) and mask.caches_keys:
        return mask.attend(q, k, v, scale)
    if k.shape[1] != q.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    return (
        mask.attend(q, k, v, scale)
        if isinstance(mask, AttentionMask)
        else _flex()(q, k, v, block_mask=mask, scale=scale)
    )


# ---------------------------------------------------------------------------------------- scaled dot product attention


class AttentionMask:
    """Which keys queries see, and attention over them without FlexAttention."""

    caches_keys = False
    """Whether later queries see the keys of this pass: all of them then need the same channels, and none is repeated
    for the queries that share it."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Attention output (B, H, T, K) of queries, keys and values of that shape."""
        raise NotImplementedError

    def gather(self, places: Tensor) -> "AttentionMask":
        """The mask among the tokens at `places` (N,), rising, of all tokens one after the other; queries, keys and
        values are then (1, H, N, K)."""
        raise NotImplementedError


class ChunkedMask(AttentionMask):
    """Attention in chunks of queries, each with only those keys that one of its queries may see."""

    def __init__(self, length: int, docs: Tensor | None, window: int, block: int) -> None:
        """`docs` (B, T), None: one document; `window` in blocks of `block` tokens, 0: no limit."""
        blocks = -(-length // block)
        self.length, self.docs, self.block = length, docs, block
        self.window = window if window < blocks else 0
        self._whole: list[Tensor] = []  # the mask of a sequence that is one chunk, shared by all layers

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """See the function of this name."""
        if self.docs is None and not self.window:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        pieces = [
            F.scaled_dot_product_attention(
                q[:, :, first:last],
                k[:, :, start:last],
                v[:, :, start:last],
                attn_mask=self._bias(first, last, start, q),
                scale=scale,
            )
            for first, last, start in self._chunks()
        ]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2)

    def gather(self, places: Tensor) -> "PackedMask":
        """See `AttentionMask`; `places` number the tokens of all sequences together."""
        of_sequence, positions = places // self.length, places % self.length
        document = of_sequence * (self.length + 1)  # no sequence has more documents than that
        if self.docs is not None:
            document = document + self.docs.flatten()[places]
        return PackedMask(document, positions, self.window, self.block)

    def _chunks(self) -> Iterator[tuple[int, int, int]]:
        """(first query, end of queries, first key); keys end where queries do."""
        for first in range(0, self.length, CHUNK):
            oldest = first // self.block - self.window + 1 if self.window else 0
            yield first, min(first + CHUNK, self.length), max(oldest, 0) * self.block

    def _bias(self, first: int, last: int, start: int, like: Tensor) -> Tensor:
        """0 where a query of the chunk sees a key, else -inf: (queries, keys), or (B, 1, queries, keys)."""
        if self._whole:
            return self._whole[0]
        sees = self.sees(torch.arange(first, last, device=like.device), torch.arange(start, last, device=like.device))
        bias = torch.zeros(sees.shape, dtype=like.dtype, device=like.device).masked_fill_(~sees, float("-inf"))
        if last - first == self.length:
            self._whole.append(bias)
        return bias

    def sees(self, q: Tensor, k: Tensor) -> Tensor:
        """Whether the query at each position of `q` sees the key at each of `k`: (q, k), or (B, 1, q, k)."""
        q, k = q[:, None], k[None, :]
        sees = k <= q
        if self.window:
            sees = sees & (q // self.block - k // self.block < self.window)
        if self.docs is not None:
            sees = sees & (self.docs[:, None, q] == self.docs[:, None, k])
        return sees


class PackedMask(AttentionMask):
    """Among some tokens of several sequences, packed one after the other.

    Documents lie in one piece each, so each is an attention of its own: nothing is padded.
    """

    def __init__(self, documents: Tensor, positions: Tensor, window: int, block: int) -> None:
        """`documents` (N,): equal in one document of one sequence only; `positions` (N,) within the sequence."""
        lengths = torch.unique_consecutive(documents, return_counts=True)[1].tolist()
        self.ends = list(itertools.accumulate(lengths, initial=0))
        self.positions, self.window, self.block = positions, window, block

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """See `AttentionMask`."""
        attention = self._within_window if self.window else _causal
        out = torch.empty_like(q)
        for first, last in itertools.pairwise(self.ends):
            attention(out, q, k, v, first, last, scale)
        return out

    def _within_window(self, out: Tensor, q: Tensor, k: Tensor, v: Tensor, begin: int, end: int, scale: float) -> None:
        """One document: fill `out` for its tokens `begin` to `end`."""
        blocks = self.positions[begin:end] // self.block
        for first in range(begin, end, CHUNK):
            last = min(first + CHUNK, end)
            oldest = blocks[first - begin] - self.window + 1
            start = begin + int(torch.searchsorted(blocks, oldest))
            sees = self._sees(first, last, start)
            out[:, :, first:last] = F.scaled_dot_product_attention(
                q[:, :, first:last], k[:, :, start:last], v[:, :, start:last], attn_mask=sees, scale=scale
            )

    def _sees(self, first: int, last: int, start: int) -> Tensor:
        """Whether the queries `first` to `last` see the keys `start` to `last` (queries, keys)."""
        q, k = self.positions[first:last, None], self.positions[None, start:last]
        return (k <= q) & (q // self.block - k // self.block < self.window)


def _causal(out: Tensor, q: Tensor, k: Tensor, v: Tensor, first: int, last: int, scale: float) -> None:
    """One document without a window: fill `out` for its tokens `first` to `last`."""
    mine = slice(first, last)
    out[:, :, mine] = F.scaled_dot_product_attention(
        q[:, :, mine], k[:, :, mine], v[:, :, mine], is_causal=True, scale=scale
    )


@cache
def keep_masks_out_of_graphs() -> None:
    """Compiled blocks call `ChunkedMask` as it is, between two graphs. Traced, every window would be compiled anew.

    Not at import: this loads the compiler. Once: another function would be another graph.
    """
    ChunkedMask.attend = torch.compiler.disable(ChunkedMask.attend)  # pyright: ignore[reportAttributeAccessIssue]


# -------------------------------------------------------------------------------------------------------- FlexAttention


def _flex() -> Any:
    """FlexAttention as a compiled kernel, or a part of the block that is being compiled.

    Uncompiled it computes the whole square, and on CPU it does not heed which blocks are seen.
    """
    from torch.nn.attention.flex_attention import flex_attention  # loads the compiler, which CPU runs do without

    return flex_attention if torch.compiler.is_compiling() else _compiled(flex_attention)


@cache
def _compiled(kernel: Any) -> Any:
    return torch.compile(kernel, dynamic=False)


def block_mask(docs: Tensor, window: int, block: int) -> Any:
    """FlexAttention's mask: for every block of queries those blocks of keys that are seen wholly, and in part.

    `docs` (B, T) is needed also where all is one document; `window` in blocks, 0: no limit. Made of tensors: neither
    another window nor other documents compile anything anew.
    """
    from torch.nn.attention.flex_attention import BlockMask

    def sees(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q >= k) & (docs[b, q] == docs[b, k])  # the window is kept by the blocks

    part, whole = blocks_seen(docs, window, block)
    return BlockMask.from_kv_blocks(*_listed(part), *_listed(whole), BLOCK_SIZE=block, mask_mod=sees)


def blocks_seen(docs: Tensor, window: int, block: int) -> tuple[Tensor, Tensor]:
    """Which blocks of keys each block of queries sees (B, 1, N, N): in part, and wholly. Documents `docs` (B, T)."""
    by_block = docs.unflatten(-1, (-1, block))[:, None]
    first, last = by_block[..., 0], by_block[..., -1]
    number = torch.arange(first.shape[-1], device=docs.device)
    q, k = number[:, None], number[None, :]
    near = (k <= q) & ((q - k < window) if window else True)
    # Numbers of documents never fall along a sequence: comparing the blocks' ends settles all that lies between.
    some = near & (first[..., :, None] <= last[..., None, :])
    whole = near & (k < q) & (last[..., :, None] == first[..., None, :])
    return some & ~whole, whole


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Number of blocks seen (B, 1, N), and which (B, 1, N, N), the others after them."""
    order = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32), order.int()
