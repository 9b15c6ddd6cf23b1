"""What is computed once per pass: embeddings, documents and windows, the rotary table.

Legend: B batch, T time, V vocabulary, D dim, K channels of a head.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipsweep.config import Recipe
from skipsweep.data.tokenizer import end_of_text
from skipsweep.model.attention import ChunkedMask, block_mask, documents, uses_flex
from skipsweep.model.lambdas import Lambdas
from skipsweep.model.norm import RMSNorm, norm
from skipsweep.model.seams import Context, LayerContext
from skipsweep.model.shape import (
    LLAMA,
    gate_channels,
    has_weighted_norms,
    smear_lambdas,
    table_rows,
    token_embeddings,
    value_lambdas,
    value_table,
)
from skipsweep.model.window import short_window_blocks


class TokenContext(nn.Module):
    """Context of the token ids alone.

    `embed` holds all tables (V, D): x00, x01, ... are normed where they are used, value embeddings ve0, ... are not.
    """

    def __init__(self, recipe: Recipe, dtype: torch.dtype) -> None:
        super().__init__()
        model = recipe.model
        self.model, self.dtype = model, dtype
        self.rows = table_rows(recipe)
        has_documents = model.document_mask and recipe.data.tokenizer != "none"
        self.end_of_text = end_of_text(recipe.data.tokenizer) if has_documents else None
        self.tables, self.names = value_table(recipe), token_embeddings(recipe)
        names = [*self.names, *(f"ve{k}" for k in range(len(recipe.embeddings.value_layers)))]
        self.embed = nn.ParameterDict({n: nn.Parameter(torch.empty(self.rows, model.dim, dtype=dtype)) for n in names})
        self.lambdas = Lambdas(value_lambdas(recipe), dtype)
        self.smear = Smear(recipe, dtype) if model.smeared else None
        # Llama's norm after the embedding; x01, ... have no weights of their own, as no seed asks for them.
        self.norm = RMSNorm(model, dtype) if has_weighted_norms(model) else None
        self._rotary: tuple[Tensor, Tensor] | None = None
        self._rotary_of: Any = None

    def forward(self, ids: Tensor, window: int) -> Context:
        """Context of the token ids (B, T); `window`: blocks that the layers with the long window see, 0: all."""
        masks = self._masks(ids, window)
        rotary = self._rotary_table(ids.shape[1], ids.device, window)
        return self._context(ids, 0, rotary, masks, [self._kernel_mask(ids, mask) for mask in masks])

    def continued(self, ids: Tensor, start: int, window: int, room: int) -> Context:
        """The same of ids[:, start:] alone, a text that will have `room` tokens at most; masks are as for all of it."""
        cos, sin = self._rotary_table(room, ids.device, window)
        here, masks = slice(start, ids.shape[1]), self._masks(ids, window)
        return self._context(ids, start, (cos[here], sin[here]), masks, masks)

    def _context(
        self,
        ids: Tensor,
        start: int,
        rotary: tuple[Tensor, Tensor],
        masks: list[ChunkedMask],
        kernel_masks: Sequence[Any],
    ) -> Context:
        """`masks`, and the same as attention takes them: of the layers with the long window, and of the others."""
        before, new = max(start - 1, 0), ids[:, start:]  # an embedding may look at the one before it
        embedded = [self._normed(self._embedded(ids[:, before:], name), name) for name in self.names]
        ctx = Context(tuple(e[:, start - before :] for e in embedded), [], new)
        weights = ctx.scalars(self.lambdas)
        values = [F.embedding(new, self.embed[f"ve{k}"]) for k in range(len(self.embed) - len(self.names))]
        for layer in range(self.model.layers):
            table, kind = self.tables.get(layer), 0 if layer in self.model.long_window else 1
            ctx.masks.append(masks[kind])
            ctx.layers.append(
                LayerContext(
                    rotary,
                    kernel_masks[kind],
                    None if table is None else values[table],
                    weights.get(f"lambda/value/{layer}/v"),
                    weights.get(f"lambda/value/{layer}/ve"),
                )
            )
        return ctx

    def _embedded(self, ids: Tensor, name: str) -> Tensor:
        embedded = F.embedding(ids, self.embed[name])
        return embedded if self.smear is None or name != self.names[0] else self.smear(embedded)

    def _normed(self, e: Tensor, name: str) -> Tensor:
        return norm(e, self.model.norm_eps) if self.norm is None or name != self.names[0] else self.norm(e)

    def _masks(self, ids: Tensor, window: int) -> list[ChunkedMask]:
        """Of the layers with the long window, and of the others."""
        docs, block = self._documents(ids), self.model.window_block
        return [ChunkedMask(ids.shape[1], docs, w, block) for w in (window, short_window_blocks(window))]

    def _kernel_mask(self, ids: Tensor, mask: ChunkedMask) -> Any:
        """The same for FlexAttention, where that takes such sequences."""
        if not uses_flex(ids, self.dtype, mask.block):
            return mask
        docs = torch.zeros_like(ids, dtype=torch.int32) if mask.docs is None else mask.docs
        return block_mask(docs, mask.window, mask.block)

    def _documents(self, ids: Tensor) -> Tensor | None:
        if self.end_of_text is None:
            return None
        docs = documents(ids, self.end_of_text, self.model.max_document)
        # A GPU would have to be waited for, and its kernels skip what nobody sees anyway.
        one = ids.device.type == "cpu" and bool((docs[:, 0] == docs[:, -1]).all())
        return None if one else docs

    def _rotary_table(self, length: int, device: torch.device, window: int) -> tuple[Tensor, Tensor]:
        """One table for all layers, kept from pass to pass."""
        windows = self._windows_so_far(window)
        wanted = (length, device, windows)
        if self._rotary is None or self._rotary_of != wanted:
            model, dtype = self.model, torch.promote_types(self.dtype, torch.float32)
            turning = round(model.dim // model.heads * model.rotary_fraction / 2)
            width = model.dim // model.heads
            table = pair_table if model.block == LLAMA else rotary_table
            self._rotary = table(length, width, turning, model.rotary_base, dtype, device, windows)
            self._rotary_of = wanted
        return self._rotary

    def _windows_so_far(self, window: int) -> tuple[int, ...]:
        """Long windows in tokens of the training until now, as far as the rotary table depends on them."""
        model = self.model
        if not model.yarn:
            return ()
        stages = [model.window_block * blocks for blocks in model.window_stages]
        return tuple(w for w in [*stages, model.window] if not window or w <= window * model.window_block)


class Smear(nn.Module):
    """e_t + lambda * sigmoid(w e_t[:12]) * e_(t-1) (small track, records 28 and on)."""

    def __init__(self, recipe: Recipe, dtype: torch.dtype) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.empty(1, gate_channels(recipe.model), dtype=dtype))
        self.lambdas = Lambdas(smear_lambdas(recipe), dtype)

    def forward(self, e: Tensor) -> Tensor:
        """Embeddings (B, T, D) as they are in the table."""
        (weight,) = self.lambdas().values()
        factor = F.linear(e[..., : self.gate.shape[1]], self.gate).sigmoid() * weight
        return torch.cat((e[:, :1], e[:, 1:] + (factor[:, 1:] * e[:, :-1]).to(e.dtype)), dim=1)


def rotary_table(
    length: int,
    width: int,
    turning: int,
    base: float,
    dtype: torch.dtype,
    device: torch.device,
    windows: tuple[int, ...] = (),
) -> tuple[Tensor, Tensor]:
    """cos and signed sin (T, 1, K = `width`).

    Pair j of the first `turning` of K / 2 turns by base^(-j / (turning - 1)) radians per position, the others do not
    (Su et al. 2021; half of them still: medium track). Angles are taken in float64: float32 is off by 0.004 rad at
    position 65,536.

    After the attention window has been widened, from each of `windows` (tokens) to the next, pairs that turn by less
    than 32 times within the old one turn more slowly, and products of queries and keys are larger (YaRN; small track).
    """
    exponents = torch.linspace(0, 1, turning, dtype=torch.float64, device=device)
    cos, sin = _turns(base**-exponents, length, width, dtype, windows)
    return torch.cat((cos, cos), -1), torch.cat((sin, -sin), -1)


def pair_table(
    length: int,
    width: int,
    turning: int,
    base: float,
    dtype: torch.dtype,
    device: torch.device,
    windows: tuple[int, ...] = (),
) -> tuple[Tensor, Tensor]:
    """`rotary_table` as Llama has it: for pairs (2j, 2j + 1), turning by base^(-j / turning) radians per position, and
    with sines that are all of one sign."""
    exponents = torch.arange(turning, dtype=torch.float64, device=device) / max(turning, 1)
    cos, sin = _turns(base**-exponents, length, width, dtype, windows)
    return cos.repeat_interleave(2, -1), sin.repeat_interleave(2, -1)


def _turns(
    speeds: Tensor, length: int, width: int, dtype: torch.dtype, windows: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """cos and sin (T, 1, K / 2) of pairs that turn by `speeds` (float64, radians per position), the others still."""
    sharpness = 1.0
    for old, new in itertools.pairwise(windows):
        kept = ((old * speeds / (2 * math.pi) - 1) / 31).clamp(0, 1)
        speeds = speeds * (kept + (1 - kept) * old / new)
        sharpness *= 1 + 0.2 * math.log(new / old)
    speeds = torch.cat((speeds, speeds.new_zeros(width // 2 - len(speeds))))
    angles = torch.outer(torch.arange(length, dtype=torch.float64, device=speeds.device), speeds)[:, None, :]
    # Queries and keys are both turned: each carries half of the sharpness.
    cos, sin = ((f(angles) * math.sqrt(sharpness)).to(dtype) for f in (torch.cos, torch.sin))
    return cos, sin
