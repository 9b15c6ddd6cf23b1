"""A run's weights and a prompt -> an `Inspection`."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from skipsweep import checkpoint
from skipsweep.config import RunConfig
from skipsweep.data import prepare, tokenizer
from skipsweep.data.batches import Batches
from skipsweep.errors import UserError
from skipsweep.inspection import readings
from skipsweep.inspection.contributions import Contributions, contributions
from skipsweep.inspection.document import Guess, Inspection, Lens, Source, Token, text_of
from skipsweep.inspection.trace import Trace, trace
from skipsweep.model.gpt import GPT, build
from skipsweep.model.shape import token_embeddings
from skipsweep.optim.schedule import window_blocks
from skipsweep.rundir import RunDir

PROMPT_TOKENS = 32
"""Length of the default prompt, from the start of the validation split (seed 003 looked at as many)."""

Name = Callable[[int], str]


def inspect(run: RunDir, text: str | None = None, k: int = 5, layers: Sequence[int] | None = None) -> Inspection:
    """All readings of a run's newest weights, on the CPU.

    `text`: the prompt; None: the first tokens of the validation split. `k`: next tokens per position. `layers`: whose
    streams are decoded; None: all. Raises UserError for a run without weights, and for what cannot be read.
    """
    if run.read_status().get("imported"):
        raise UserError(f"{run.name} was imported from a log, which has no weights to inspect")
    if not run.config.exists():
        raise UserError(f"{run.name} has no config.yaml; it was never planned")
    config = run.read_config()
    wanted = _layers(config, layers)
    step, model = _load(run, config)
    rows = model.head.weight.shape[0]
    if not 1 <= k <= rows:
        raise UserError(f"--top {k}; valid: 1 to {rows}, the rows of the head")
    ids, source = _prompt(config, text)
    return read(model, config, run.name, step, ids, source, k, wanted)


def read(
    model: GPT, config: RunConfig, run: str, step: int, ids: Tensor, source: str, k: int, layers: Sequence[int]
) -> Inspection:
    """All readings of a model on `ids` (1, T), with the attention window of `step`."""
    window = window_blocks(config.model, config.schedule, step)
    found, name = trace(model, ids, window), _namer(config)
    embeddings, values = dict(zip(token_embeddings(config), found.ctx.embeddings, strict=True)), _values(model, ids)
    parts, remark = contributions(model, found, list(embeddings))
    latents = found.features[0]
    return Inspection(
        run=run,
        step=step,
        window_blocks=window,
        prompt_source=source,
        prompt=[Token(i, name(i)) for i in ids[0].tolist()],
        notes=[*_notes(model, config), *([remark] if remark else [])],
        lambdas=model.lambdas(),
        lens=_lenses(model, found, embeddings, values, k, layers, name),
        stream_rms={f"layer {i}": readings.rms(x) for i, x in enumerate(found.streams)},
        embedding_rms={what: readings.rms(x) for what, x in (embeddings | values).items()},
        shares=[asdict(one) for one in readings.shares(model, found)],
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


def _load(run: RunDir, config: RunConfig) -> tuple[int, GPT]:
    """The newest whole checkpoint's step and model."""
    trouble = ""
    for path in checkpoint.steps(run.checkpoints):
        try:
            state = checkpoint.load(path, run.id, ("model",))
        except checkpoint.Corrupt as problem:
            trouble = trouble or f" ({path.name}: {problem})"
            continue
        return state["step"], _model(config, state["model"])
    raise UserError(f"{run.name} has no weights to inspect{trouble}; it is {run.read_status()['state']}")


def _model(config: RunConfig, weights: dict[str, Tensor]) -> GPT:
    model = build(config, "meta").to_empty(device="cpu")
    parameters = dict(model.named_parameters())
    if weights.keys() != parameters.keys():
        odd = ", ".join(sorted(weights.keys() ^ parameters.keys())[:5])
        raise UserError(f"the checkpoint belongs to a model with other parameters: {odd}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
    return model


def _prompt(config: RunConfig, text: str | None) -> tuple[Tensor, str]:
    """Token ids (1, T), and where they come from."""
    data = config.data
    most = data.val_seq_len or data.seq_len
    if text is None:
        ids, _ = Batches(data, prepare.data_root(config.paths)).val(0, 1)
        return torch.from_numpy(ids[:, :PROMPT_TOKENS]), "start of the validation split"
    if data.tokenizer == "none":
        raise UserError(f"--text: data={data.name} has no tokenizer; leave --text out to read the validation split")
    if not text:
        raise UserError("--text is empty")
    ids = [tokenizer.end_of_text(data.tokenizer), *tokenizer.encoder(data.tokenizer)(text).tolist()]
    if len(ids) > most:
        raise UserError(f"--text has {len(ids)} tokens, the opening end-of-text included; valid: at most {most}")
    return torch.tensor([ids]), "--text, after the end-of-text that opens a document"


def _namer(config: RunConfig) -> Name:
    """Token id -> its text."""
    if config.data.tokenizer == "none":
        return str
    encoding = tokenizer.load(config.data.tokenizer)

    def name(i: int) -> str:
        return text_of(encoding.decode_single_token_bytes(i)) if i < config.data.vocab_size else f"<unused {i}>"

    return name


# ------------------------------------------------------------------------------------------------------------ readings


@torch.no_grad()
def _values(model: GPT, ids: Tensor) -> dict[str, Tensor]:
    """The value embeddings (1, T, D) of the prompt."""
    tables: Any = model.context.embed
    return {name: torch.nn.functional.embedding(ids, tables[name]) for name in tables if name.startswith("ve")}


def _lenses(
    model: GPT,
    found: Trace,
    embeddings: dict[str, Tensor],
    values: dict[str, Tensor],
    k: int,
    layers: Sequence[int],
    name: Name,
) -> list[Lens]:
    def lens(what: str, normed: bool, logits: Tensor, aside: bool = False) -> Lens:
        return Lens(what, normed, aside, [[Guess(i, name(i), p) for i, p in row] for row in readings.top(logits, k)])

    streams = {f"layer {i}": found.streams[i] for i in layers}
    with torch.no_grad():
        output = model.head(found.features)[0]
    return [
        *(lens(what, True, readings.decode(model, x, normed=True)) for what, x in streams.items()),
        lens("output", False, output),
        *(lens(what, True, readings.decode(model, x, normed=False)) for what, x in embeddings.items()),
        *(lens(what, False, readings.decode(model, x, normed=False)) for what, x in values.items()),
        *(lens(what, False, readings.decode(model, x, False), aside=True) for what, x in _added(model, found).items()),
    ]


@torch.no_grad()
def _added(model: GPT, found: Trace) -> dict[str, Tensor]:
    """What attention adds of a value embedding (1, T, D) where a token looks at itself alone: W_o (lambda ve), before
    gates on heads; for every layer that has one."""
    made = {}
    for i, layer in enumerate(found.ctx.layers):
        attention: Any = model.blocks[i].attention
        if layer.value_embedding is not None and layer.value_embedding_lambda is not None and attention is not None:
            value = layer.value_embedding_lambda * layer.value_embedding
            name = readings.value_name(model, i)
            made[f"{name}, layer {i}"] = torch.nn.functional.linear(value, attention.out)
    return made


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
