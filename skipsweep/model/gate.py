"""How much of a block's change reaches the residual stream.

Legend: B batch, T time, D dim, L layers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipsweep.config import Gated, Recipe
from skipsweep.model.seams import Gate, LayerContext

CLOSED = -1e30
"""What is added to the product with a closed key at evaluation: its weight is exactly 0 beside any open key. Finite,
as a query that sees closed keys only, which is closed itself, must not make a NaN of what a factor of 0 takes out."""


class NoGate(Gate):
    """All of it, everywhere: a dense trunk."""

    def forward(self, i: int, x: Tensor, gate_state: list[Tensor]) -> Tensor | None:
        return None


class SkipMiddle(Gate):
    """Gates that skip blocks from the middle outward (skip-middle paper, equations 1 to 3).

    s_l = relu(w_l h_l + b_l) for l < L / 2, where h_l is what enters layer l (before anything is mixed into it);
    S_l = sum of s_k over k <= l; g_l = 1 - clamp(S_l, 0, 1), and layer L - 1 - l has the same gate. So S_l >= 1 skips
    layers l to L - 1 - l, both included. Computed in float32 at least: near 1 the steps of bfloat16 are .004.
    """

    def __init__(self, recipe: Recipe, dtype: torch.dtype) -> None:
        super().__init__()
        targets, half = recipe.gate_targets, recipe.model.layers // 2
        assert isinstance(targets, Gated)
        self.pairs, self.init, self.start = half, targets.init, targets.bias
        self.attention, self.floor = targets.attention, targets.floor
        self.skips = self.attention == "keys"
        wide = torch.promote_types(dtype, torch.float32)
        self.weight = nn.Parameter(torch.empty(half, recipe.model.dim, dtype=wide))
        self.bias = nn.Parameter(torch.empty(half, dtype=wide))

    def forward(self, i: int, x: Tensor, gate_state: list[Tensor]) -> Tensor | None:
        if i < self.pairs:
            mask = F.relu(F.linear(x.to(self.weight.dtype), self.weight[i, None], self.bias[i, None]))
            gate_state.append(gate_state[-1] + mask if gate_state else mask)
        if self.observer and i == self.pairs - 1:
            self.observer(_open(torch.stack(gate_state)[..., 0]))
        return _open(gate_state[min(i, 2 * self.pairs - 1 - i)])

    def bias_attention(self, layer: LayerContext, g: Tensor | None) -> LayerContext:
        """With ln g on the keys (equation 3), or on the queries as in the released code, where softmax does
        not see it. While training g is `floor` at least; at evaluation closed keys are left out: with the floor, one
        whose product is large would outweigh open ones."""
        if g is None or self.attention == "none":
            return layer
        bias = g.clamp(min=self.floor).log()
        if not self.training:
            bias = bias.masked_fill(g <= 0, CLOSED) if self.attention == "keys" else bias
        return layer._replace(**{"key_bias" if self.attention == "keys" else "query_bias": bias})


def _open(total: Tensor) -> Tensor:
    """The gate at a sum of soft masks."""
    return 1 - total.clamp(0, 1)


def build_gate(recipe: Recipe, dtype: torch.dtype) -> Gate:
    """The gates in force in a canonical recipe."""
    return SkipMiddle(recipe, dtype) if isinstance(recipe.gate_targets, Gated) else NoGate()
