"""A run's weights and a prompt -> an `Inspection`."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from skipsweep import trained
from skipsweep.config import RunConfig
from skipsweep.data import prepare
from skipsweep.data.batches import Batches
from skipsweep.errors import UserError
from skipsweep.inspection import readings
from skipsweep.inspection.contributions import Contributions, contributions
from skipsweep.inspection.document import Guess, Inspection, Lens, Source, Token
from skipsweep.inspection.trace import Trace, trace
from skipsweep.model.gpt import GPT
from skipsweep.model.shape import token_embeddings
from skipsweep.rundir import RunDir
from skipsweep.trained import Trained

PROMPT_TOKENS = 32
"""Length of the default prompt, from the start of the validation split (the x00-x04 article looked at as many)."""

Name = Callable[[int], str]


def inspect(run: RunDir, text: str | None = None, k: int = 5, layers: Sequence[int] | None = None) -> Inspection:
    """All readings of a run's newest weights, on the CPU.

    `text`: the prompt; None: the first tokens of the validation split. `k`: next tokens per position. `layers`: whose
    streams are decoded; None: all. Raises UserError for a run without weights, and for what cannot be read.
    """
    wanted = _layers(trained.read_config(run), layers)
    loaded = trained.load(run)
    rows = loaded.model.head.weight.shape[0]
    if not 1 <= k <= rows:
        raise UserError(f"--top {k}; valid: 1 to {rows}, the rows of the head")
    ids, source = _prompt(loaded.config, text)
    return read(loaded, run.name, ids, source, k, wanted)


def read(given: Trained, run: str, ids: Tensor, source: str, k: int, layers: Sequence[int]) -> Inspection:
    """All readings of a model on `ids` (1, T), with the attention window that it had."""
    model, config = given.model, given.config
    traced, name = trace(model, ids, given.window), trained.namer(config)
    embeddings, values = dict(zip(token_embeddings(config), traced.ctx.embeddings, strict=True)), _values(model, ids)
    parts, remark = contributions(model, traced, list(embeddings))
    latents = traced.features[0]
    return Inspection(
        run=run,
        step=given.step,
        window_blocks=given.window,
        prompt_source=source,
        prompt=[Token(i, name(i)) for i in ids[0].tolist()],
        notes=[*_notes(model, config), *([remark] if remark else [])],
        lambdas=model.lambdas(),
        lens=_lenses(model, traced, embeddings, values, k, layers, name),
        stream_rms={f"layer {i}": readings.rms(x) for i, x in enumerate(traced.streams)},
        embedding_rms={what: readings.rms(x) for what, x in (embeddings | values).items()},
        shares=[asdict(one) for one in readings.shares(model, traced)],
        contributions_of=parts.of,
        contributions=_sources(parts),
        contributions_error=parts.error,
        effective_rank=readings.effective_rank(latents),
        effective_rank_most=min(latents.shape),
    )


# --------------------------------------------------------------------------------------------------- what is looked at


def _layers(config: RunConfig, asked: Sequence[int] | None) -> list[int]:
    depth = config.model.layers
    for layer in asked or ():
        if not 0 <= layer < depth:
            raise UserError(f"--layers: layer {layer} is outside the trunk; valid: 0 to {depth - 1}")
    return sorted(set(asked)) if asked is not None else list(range(depth))


def _prompt(config: RunConfig, text: str | None) -> tuple[Tensor, str]:
    """Token ids (1, T), and where they come from."""
    if text is None:
        ids, _ = Batches(config.data, prepare.data_root(config.paths)).val(0, 1)
        return torch.from_numpy(ids[:, :PROMPT_TOKENS]), "start of the validation split"
    ids = trained.prompt(config, text, without="leave --text out to read the validation split")
    return ids, "--text, after the end-of-text that opens a document"


# ------------------------------------------------------------------------------------------------------------ readings


@torch.no_grad()
def _values(model: GPT, ids: Tensor) -> dict[str, Tensor]:
    """The value embeddings (1, T, D) of the prompt."""
    tables: Any = model.context.embed
    return {name: torch.nn.functional.embedding(ids, tables[name]) for name in tables if name.startswith("ve")}


def _lenses(
    model: GPT,
    traced: Trace,
    embeddings: dict[str, Tensor],
    values: dict[str, Tensor],
    k: int,
    layers: Sequence[int],
    name: Name,
) -> list[Lens]:
    def lens(what: str, normed: bool, logits: Tensor, aside: bool = False) -> Lens:
        return Lens(what, normed, aside, [[Guess(i, name(i), p) for i, p in row] for row in readings.top(logits, k)])

    streams = {f"layer {i}": traced.streams[i] for i in layers}
    with torch.no_grad():
        output = model.head(traced.features)[0]
    return [
        *(lens(what, True, readings.decode(model, x, normed=True)) for what, x in streams.items()),
        lens("output", False, output),
        *(lens(what, True, readings.decode(model, x, normed=False)) for what, x in embeddings.items()),
        *(lens(what, False, readings.decode(model, x, normed=False)) for what, x in values.items()),
        *(lens(what, False, readings.decode(model, x, False), aside=True) for what, x in _added(model, traced).items()),
    ]


@torch.no_grad()
def _added(model: GPT, traced: Trace) -> dict[str, Tensor]:
    """What attention adds of a value embedding (1, T, D) where a token looks at itself alone: W_o (lambda ve), before
    gates on heads; for every layer that has one."""
    added = {}
    for i, layer in enumerate(traced.ctx.layers):
        attention: Any = model.blocks[i].attention
        if layer.value_embedding is not None and layer.value_embedding_lambda is not None and attention is not None:
            value = layer.value_embedding_lambda * layer.value_embedding
            name = readings.value_name(model, i)
            added[f"{name}, layer {i}"] = torch.nn.functional.linear(value, attention.out)
    return added


def _sources(parts: Contributions) -> list[Source]:
    means, sizes = parts.weights.mean(0).tolist(), [readings.rms(v) for v in parts.vectors]
    ends = bool(parts.output.any())
    columns = zip(parts.names, parts.stream_weights.tolist(), means, sizes, parts.shares.tolist(), strict=True)
    return [Source(name, stream, mean, size, share if ends else None) for name, stream, mean, size, share in columns]


def _notes(model: GPT, config: RunConfig) -> list[str]:
    notes = []
    if model.readout.width > config.model.dim:
        notes.append(
            "the head is wider than the stream: all but the output are decoded by the columns of the last layer"
        )
    if model.readout.owns_last_mlp:
        notes.append(f"layer {config.model.layers - 1} has no MLP of its own: that is the readout's")
    if config.residual.parallel_tail:
        notes.append(f"the last {config.residual.parallel_tail} layers stand side by side: none sees the one before it")
    return notes
