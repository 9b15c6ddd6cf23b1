"""Pure readings on a model and one traced pass.

Legend: T time, D dim, F features, V rows of the head.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from skipsweep.inspection.trace import VALUES, Sum, Trace, mechanisms
from skipsweep.model.gpt import GPT
from skipsweep.model.norm import norm


def rms(x: Tensor) -> float:
    """Root mean square over all positions and channels."""
    return x.double().square().mean().sqrt().item()


@torch.no_grad()
def top(logits: Tensor, k: int) -> list[list[tuple[int, float]]]:
    """Per position the `k` likeliest of logits (T, V) with probabilities; of equally likely ones the lower id first."""
    probabilities = logits.double().softmax(-1)
    values, ids = torch.sort(probabilities, dim=-1, descending=True, stable=True)
    return [list(zip(row[:k], p[:k], strict=True)) for row, p in zip(ids.tolist(), values.tolist(), strict=True)]


@torch.no_grad()
def decode(model: GPT, stream: Tensor, normed: bool) -> Tensor:
    """Logits (T, V) of a vector (1, T, D) where the last layer's output belongs in the head's inputs, the others 0."""
    features = norm(stream, model.readout.eps) if normed else stream
    return model.head(F.pad(features, (0, model.readout.width - features.shape[-1])))[0]


@torch.no_grad()
def effective_rank(latents: Tensor) -> float:
    """exp of the entropy of the singular values' shares (Roy & Vetterli 2007) of latents (T, F), not centred."""
    values = torch.linalg.svdvals(latents.double())
    shares = values / values.sum().clamp_min(torch.finfo(torch.float64).tiny)
    return torch.special.entr(shares).sum().exp().item()


@dataclass(frozen=True)
class Term:
    """One term of a weighted sum."""

    name: str
    weight: float
    rms: float
    share: float | None
    """weight * rms over the sum of such absolute values (x00-x04 article, "norm-corrected"); None: all are 0."""


@dataclass(frozen=True)
class Shares:
    """A weighted sum of the trunk or the readout."""

    mechanism: str
    layer: int | None
    """Before whose block it stands (`value`: in it); None: after the last."""
    terms: list[Term]


def shares(model: GPT, traced: Trace) -> list[Shares]:
    """Every weighted sum that the pass computed, in layer order."""
    modules, depth = mechanisms(model), len(model.blocks)
    return [
        Shares(
            name,
            None if layer == depth or name == "tail" else layer,
            _terms(sum_, ["own", value_name(model, layer)] if name == VALUES else _names(name, modules[name], layer)),
        )
        for (name, layer), sum_ in sorted(traced.sums.items(), key=lambda item: item[0][1])
    ]


def _terms(weighted_sum: Sum, names: Sequence[str]) -> list[Term]:
    sizes = [rms(term) for term in weighted_sum.terms]
    total = sum(abs(w * size) for w, size in zip(weighted_sum.weights, sizes, strict=True))
    return [
        Term(name, w, size, w * size / total if total else None)
        for name, w, size in zip(names, weighted_sum.weights, sizes, strict=True)
    ]


def value_name(model: GPT, layer: int) -> str:
    """Which value embedding a layer has."""
    return f"ve{model.context.tables[layer]}"  # pyright: ignore[reportIndexIssue]


def _names(mechanism: str, module: Any, layer: int) -> list[str]:
    """What the terms of a mechanism's sum are."""
    match mechanism:
        case "unet":
            return ["stream", *(f"layer {source}" for source in module.sources[layer])]
        case "rolling":
            return ["stream", f"layer {layer - 2}"]
        case "tail":
            return [f"layer {i}" for i in module.layers]
        case "mix":
            return ["stream", *module.names[1:]]
    return ["stream", *(f"layer {s}" if isinstance(s, int) else s for s in module.sources)]
