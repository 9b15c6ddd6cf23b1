"""What is computed once per pass: embeddings, documents and windows, the rotary table.

Legend: B batch, T time, V vocabulary, D dim, K channels of a head.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipsweep.config import Recipe
from skipsweep.data.tokenizer import end_of_text
from skipsweep.model.attention import Visible, block_mask, documents, uses_flex
from skipsweep.model.lambdas import Lambdas
from skipsweep.model.norm import norm
from skipsweep.model.seams import Context, Layer
from skipsweep.model.shape import token_embeddings, value_lambdas, value_table
from skipsweep.optim.schedule import short_window_blocks


class TokenContext(nn.Module):
    """Context of the token ids alone.

    `embed` holds all tables (V, D): x00, x01, ... are normed where they are used, value embeddings ve0, ... are not.
    """

    def __init__(self, recipe: Recipe, dtype: torch.dtype) -> None:
        super().__init__()
        model, vocab = recipe.model, recipe.data.vocab_size
        self.model, self.dtype = model, dtype
        has_documents = model.document_mask and recipe.data.tokenizer != "none"
        self.end_of_text = end_of_text(recipe.data.tokenizer) if has_documents else None
        self.tables, self.names = value_table(recipe), token_embeddings(recipe)
        names = [*self.names, *(f"ve{k}" for k in range(len(recipe.embeddings.value_layers)))]
        self.embed = nn.ParameterDict({n: nn.Parameter(torch.empty(vocab, model.dim, dtype=dtype)) for n in names})
        self.lambdas = Lambdas(value_lambdas(recipe), dtype)
        self._rotary: tuple[Tensor, Tensor] | None = None

    def forward(self, ids: Tensor, window: int) -> Context:
        """Context of the token ids (B, T); `window`: blocks that the layers with the long window see, 0: all."""
        ctx = Context(tuple(norm(F.embedding(ids, self.embed[name])) for name in self.names), [], ids)
        weights = ctx.scalars(self.lambdas)
        values = [F.embedding(ids, self.embed[f"ve{k}"]) for k in range(len(self.embed) - len(self.names))]
        rotary, (long, short) = self._rotary_table(ids), self._masks(ids, window)
        for layer in range(self.model.layers):
            table = self.tables.get(layer)
            ctx.layers.append(
                Layer(
                    rotary,
                    long if layer in self.model.long_window else short,
                    None if table is None else values[table],
                    weights.get(f"lambda/value/{layer}/v"),
                    weights.get(f"lambda/value/{layer}/ve"),
                )
            )
        return ctx

    def _masks(self, ids: Tensor, window: int) -> tuple[Any, Any]:
        """What queries see in layers with the long window, and in the others."""
        docs = self._documents(ids)
        return self._mask(ids, docs, window), self._mask(ids, docs, short_window_blocks(window))

    def _mask(self, ids: Tensor, docs: Tensor | None, window: int) -> Any:
        block = self.model.window_block
        if uses_flex(ids, self.dtype, block):
            return block_mask(torch.zeros_like(ids, dtype=torch.int32) if docs is None else docs, window, block)
        return Visible(ids.shape[1], docs, window, block)

    def _documents(self, ids: Tensor) -> Tensor | None:
        if self.end_of_text is None:
            return None
        docs = documents(ids, self.end_of_text)
        # A GPU would have to be waited for, and its kernels skip what nobody sees anyway.
        one = ids.device.type == "cpu" and bool((docs[:, 0] == docs[:, -1]).all())
        return None if one else docs

    def _rotary_table(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """One table for all layers, kept from pass to pass."""
        length, kept = ids.shape[1], self._rotary
        if kept is None or kept[0].shape[0] != length or kept[0].device != ids.device:
            model, dtype = self.model, torch.promote_types(self.dtype, torch.float32)
            turning = round(model.dim // model.heads * model.rotary_fraction / 2)
            width = model.dim // model.heads
            self._rotary = rotary_table(length, width, turning, model.rotary_base, dtype, ids.device)
        assert self._rotary is not None
        return self._rotary


def rotary_table(
    length: int, width: int, turning: int, base: float, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """cos and signed sin (T, 1, K = `width`).

    Pair j of the first `turning` of K / 2 turns by base^(-j / (turning - 1)) radians per position, the others do not
    (Su et al. 2021; half of them still: medium track). Angles are taken in float64: float32 is off by 0.004 rad at
    position 65,536.
    """
    exponents = torch.linspace(0, 1, turning, dtype=torch.float64, device=device)
    speeds = torch.cat((base**-exponents, exponents.new_zeros(width // 2 - turning)))
    angles = torch.outer(torch.arange(length, dtype=torch.float64, device=device), speeds)[:, None, :]
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    return torch.cat((cos, cos), -1), torch.cat((sin, -sin), -1)
