"""A text read piece by piece: every layer caches the keys and values that later tokens may see, and no others.

Legend: T tokens so far, N new ones, S cached ones, H heads, G heads of keys and values, K channels of a head, F
features, V rows of the head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from skipsweep.model.attention import CHUNK, AttentionMask, ChunkedMask
from skipsweep.model.gpt import GPT

FIRST_ROOM = 64
"""Tokens that a layer makes room for at first."""


class KVCache:
    """Keys and values (1, G, S, K) of one layer, and their positions (S,), rising."""

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []
        """Keys, values, positions, each with room after the last."""
        self._first = self._end = 0

    def __len__(self) -> int:
        return self._end - self._first

    def add(self, k: Tensor, v: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Append new ones; returns all. Where nothing is evicted, a token costs no copy of those before it."""
        new = [k, v, positions[None, None, :, None]]
        count = len(positions)
        if not self._buffers or self._end + count > self._buffers[0].shape[2]:
            self._make_room(new, count)
        for buffer, values in zip(self._buffers, new, strict=True):
            buffer[:, :, self._end : self._end + count] = values
        self._end += count
        keys, values, places = self._all()
        return keys, values, places.flatten()

    def evict(self, count: int) -> None:
        """Drop the `count` oldest ones."""
        self._first += count

    def _all(self) -> list[Tensor]:
        return [buffer[:, :, self._first : self._end] for buffer in self._buffers]

    def _make_room(self, like: list[Tensor], count: int) -> None:
        old, had = self._all(), len(self)
        room = max(FIRST_ROOM, 2 * (had + count))
        self._buffers = [x.new_empty((*x.shape[:2], room, x.shape[3])) for x in like]
        for buffer, values in zip(self._buffers, old, strict=False):  # none at first
            buffer[:, :, :had] = values
        self._first, self._end = 0, had


class CachedMask(AttentionMask):
    """Among new tokens and those before them, whose keys are cached. Attention over it caches the new ones' own."""

    caches_keys = True

    def __init__(self, cache: KVCache, whole: ChunkedMask, positions: Tensor) -> None:
        """`whole`: the mask of all of the text; `positions` (N,) of the new tokens in it."""
        self.cache, self.whole, self.positions = cache, whole, positions

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Attention output (1, H, N, K) of queries of that shape, keys and values (1, G, N, K)."""
        keys, values, positions = self.cache.add(k, v, self.positions)
        sees = self.whole.sees(self.positions, positions)
        # A key that the last new token cannot see is outside the window or in another document, so no later token can
        # see it either.
        self.cache.evict(len(positions) - int(sees[..., -1, :].sum()))
        shared = keys.shape[1] != q.shape[1]
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=sees, scale=scale, enable_gqa=shared)

    def gather(self, places: Tensor) -> "CachedMask":
        """See `AttentionMask`. Tokens at other places leave no keys: the block is closed to them."""
        return CachedMask(self.cache, self.whole, self.positions[places])


class Decoder:
    """A model on one text, which it is given piece by piece. What it says is what it would say of the whole text.

    Blocks compute what their gates leave open, and nothing else, where the gates allow it (`Gate.skips`).
    """

    def __init__(self, model: GPT, room: int, window: int = 0) -> None:
        """`room`: most tokens that the text will have; `window` in blocks, as in `GPT.features`."""
        self.model, self.room, self.window = model, room, window
        self.caches = [KVCache() for _ in model.blocks]
        """Per layer; empty in those without attention."""
        self.ids = torch.empty((1, 0), dtype=torch.long, device=next(model.parameters()).device)

    @torch.no_grad()
    def features(self, ids: Tensor) -> Tensor:
        """What the head sees (1, N, F) of the next tokens (1, N). Raises ValueError beyond the room."""
        if self.ids.shape[1] + ids.shape[1] > self.room:
            raise ValueError(f"{self.ids.shape[1]} + {ids.shape[1]} tokens, but room for {self.room}")
        return torch.cat([self._piece(piece) for piece in ids.to(self.ids.device).split(CHUNK, 1)], 1)

    @torch.no_grad()
    def logits(self, ids: Tensor) -> Tensor:
        """Logits (V,) of the token after the last of the next ones (1, N)."""
        return self.model.head(self.features(ids)[0, -1])

    def _piece(self, ids: Tensor) -> Tensor:
        start = self.ids.shape[1]
        self.ids = torch.cat((self.ids, ids), 1)
        ctx = self.model.context.continued(self.ids, start, self.window, self.room)
        positions = torch.arange(start, self.ids.shape[1], device=ids.device)
        ctx.masks = [CachedMask(*both, positions) for both in zip(self.caches, ctx.masks, strict=True)]
        ctx.layers = [layer._replace(mask=mask) for layer, mask in zip(ctx.layers, ctx.masks, strict=True)]
        return self.model.features_of(ctx, skip=True)
