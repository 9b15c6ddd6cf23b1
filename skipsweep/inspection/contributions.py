"""Which part of the output comes from which layer: the trunk's sums, unrolled (modded-nanogpt #159).

Between the blocks the trunk is linear: every stream is a weighted sum of the token embeddings and of what each block
added. The weights are found by sending unit vectors, one per source, through the model's own seams.

Legend: T time, D dim, S sources (embeddings, then layers, then a readout's own embedding).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from skipsweep.inspection.trace import Trace
from skipsweep.model.gpt import GPT
from skipsweep.model.readout import Add
from skipsweep.model.readout_specs import EXTRA, INPUT
from skipsweep.model.seams import Context, Outputs

LINEAR = 1e-2
"""A readout's term counts as a multiple of its source if it is one up to this part of its length in bfloat16; in wider
numbers up to their own rounding, a hundred-fold."""


@dataclass(frozen=True)
class Linear:
    """The unrolled trunk."""

    names: list[str]
    layers: list[Tensor]
    """Per layer: weight of every source (S,) in the stream after it, float64."""
    trunk_output: Tensor
    """The same (S,) of the stream that leaves the trunk."""


@dataclass(frozen=True)
class Contributions:
    """The output as a sum over sources."""

    names: list[str]
    of: str
    """`stream`: what leaves the trunk, before the final norm; `readout`: the readout's sum."""
    stream_weights: Tensor
    """(S,) of the stream that leaves the trunk."""
    weights: Tensor
    """(T, S) of the output."""
    vectors: Tensor
    """(S, T, D): embeddings, and what blocks added."""
    output: Tensor
    """(T, D)."""

    @property
    def parts(self) -> Tensor:
        """(S, T, D), summing to the output."""
        return self.weights.T[..., None] * self.vectors

    @property
    def error(self) -> float:
        """Largest difference between the sum of all parts and the output, in units of the output's RMS."""
        scale = self.output.square().mean().sqrt().clamp_min(torch.finfo(self.output.dtype).tiny)
        return ((self.parts.sum(0) - self.output).abs().max() / scale).item()

    @property
    def shares(self) -> Tensor:
        """(S,), summing to 1: the part of each along the output, sum_t <part, output> / sum_t <output, output>."""
        total = self.output.square().sum()
        return (self.parts * self.output).sum((1, 2)) / total


@torch.no_grad()
def unroll(model: GPT, embeddings: list[str]) -> Linear:
    """Weights of all sources in every stream, by the model's own `inject`."""
    names = [*embeddings, *(f"layer {i}" for i in range(len(model.blocks)))]
    device = next(model.parameters()).device
    units = torch.eye(len(names), dtype=torch.float64, device=device)[:, None, None]
    ctx, outputs = Context(tuple(units[: len(embeddings)]), []), Outputs()
    x, layers = ctx.x00, list[Tensor]()
    for i in range(len(model.blocks)):
        x = model.inject(i, x, ctx, outputs) + units[len(embeddings) + i]
        outputs[i] = x
        layers.append(x.flatten())
    return Linear(names, layers, model.inject.trunk_output(x, ctx, outputs).flatten())


@torch.no_grad()
def contributions(model: GPT, traced: Trace, embeddings: list[str]) -> tuple[Contributions, str | None]:
    """The output of a pass as a sum over sources, and a remark where the readout's own part is not linear."""
    linear = unroll(model, embeddings)
    deltas = [after - before for before, after in zip(traced.block_inputs, traced.streams, strict=True)]
    vectors = torch.stack([v[0].double() for v in (*traced.ctx.embeddings, *deltas)])
    stream = linear.trunk_output.expand(vectors.shape[1], -1)
    of_stream = Contributions(
        linear.names, "stream", linear.trunk_output, stream, vectors, traced.trunk_output[0].double()
    )
    return (
        _with_readout(model, traced, linear, of_stream) if isinstance(model.readout, Add) else _plain(model, of_stream)
    )


def _plain(model: GPT, of_stream: Contributions) -> tuple[Contributions, str | None]:
    if model.readout.owns_last_mlp:
        return of_stream, "the last MLP is the readout's: contributions are to the stream that it starts from"
    beside = model.readout.needs or getattr(model.readout, "sources", ())
    remark = "contributions are to the last layer's stream, not to what the head sees of earlier ones"
    return of_stream, remark if beside else None


def _with_readout(
    model: GPT, traced: Trace, linear: Linear, of_stream: Contributions
) -> tuple[Contributions, str | None]:
    """The readout's weighted sum, each of its terms being a multiple of a stream or embedding."""
    readout, readout_sum = model.readout, traced.sums["readout", len(model.blocks)]
    assert isinstance(readout, Add)
    names, vectors = list(linear.names), of_stream.vectors
    plain = [traced.trunk_output, *readout.plain(traced.trunk_output, traced.outputs, traced.ctx)]
    rows = [linear.trunk_output]
    for source, h in zip(readout.sources, plain[1:], strict=True):
        if source == EXTRA:
            names, vectors = [*names, EXTRA], torch.cat((vectors, h.double()))
        rows.append(linear.layers[source] if isinstance(source, int) else _unit(names, linear, source))
    rows = [torch.nn.functional.pad(row, (0, len(names) - len(row))) for row in rows]
    weights = torch.zeros(vectors.shape[1], len(names), dtype=torch.float64, device=vectors.device)
    for weight, term, h, row in zip(readout_sum.weights, readout_sum.terms, plain, rows, strict=True):
        factor = _multiple(term, h)
        if factor is None:
            what = type(readout).__name__
            return of_stream, f"{what} is not linear in its sources: contributions are to the last layer's stream"
        weights += weight * factor[:, None] * row
    stream_weights = torch.nn.functional.pad(linear.trunk_output, (0, len(names) - len(linear.trunk_output)))
    return Contributions(names, "readout", stream_weights, weights, vectors, readout_sum.result[0].double()), None


def _unit(names: list[str], linear: Linear, source: str) -> Tensor:
    """Weights of an embedding that is a source itself (S,)."""
    place = 0 if source == INPUT else names.index(source)
    return torch.eye(len(names), dtype=torch.float64, device=linear.trunk_output.device)[place]


def _multiple(term: Tensor, of: Tensor) -> Tensor | None:
    """Factors (T,) with term = factor * of; None where a term is no multiple."""
    term, of, rounding = term[0].double(), of[0].double(), torch.finfo(term.dtype).eps
    tiny = torch.finfo(torch.float64).tiny
    factor = (term * of).sum(-1) / of.square().sum(-1).clamp_min(tiny)
    rest = (term - factor[:, None] * of).norm() / term.norm().clamp_min(tiny)
    return factor if rest <= min(LINEAR, 100 * rounding) else None
