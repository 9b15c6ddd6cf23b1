"""A run's trained model, with what its texts are made of: for whoever looks at weights after the training."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from skipsweep import checkpoint
from skipsweep.config import RunConfig
from skipsweep.data import tokenizer
from skipsweep.data.batches import val_seq_len
from skipsweep.data.text import text_of
from skipsweep.errors import UserError
from skipsweep.model.gpt import GPT, build
from skipsweep.model.window import window_blocks
from skipsweep.rundir import RunDir

# T tokens


@dataclass(frozen=True)
class Trained:
    """The newest whole checkpoint of a run, on the CPU, set to evaluation."""

    config: RunConfig
    step: int
    model: GPT

    @property
    def window(self) -> int:
        """Blocks of the long attention window at that step; 0: all."""
        return window_blocks(self.config.model, self.config.schedule, self.step)


def read_config(run: RunDir) -> RunConfig:
    """The configuration of a run that has weights, or may come to have them. Raises UserError for others."""
    if run.read_status().get("imported"):
        raise UserError(f"{run.name} was imported from a log, which has no weights")
    if not run.config.exists():
        raise UserError(f"{run.name} has no config.yaml; it was never planned")
    return run.read_config()


def load(run: RunDir) -> Trained:
    """The newest weights of a run, finished or not. Raises UserError where there are none."""
    config, trouble = read_config(run), ""
    for path in checkpoint.steps(run.checkpoints):
        try:
            state = checkpoint.load(path, run.id, ("model",))
        except checkpoint.Corrupt as problem:
            trouble = trouble or f" ({path.name}: {problem})"
            continue
        return Trained(config, state["step"], _model(config, state["model"]))
    raise UserError(f"{run.name} has no weights{trouble}; it is {run.read_status()['state']}")


def _model(config: RunConfig, weights: dict[str, Tensor]) -> GPT:
    model = build(config, "meta").to_empty(device="cpu")
    parameters = dict(model.named_parameters())
    if weights.keys() != parameters.keys():
        odd = ", ".join(sorted(weights.keys() ^ parameters.keys())[:5])
        raise UserError(f"the checkpoint belongs to a model with other parameters: {odd}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
    return model.eval()


# ---------------------------------------------------------------------------------------------------------------- texts


def longest(config: RunConfig) -> int:
    """Tokens of the longest text that the model was made for: a validation sequence."""
    return val_seq_len(config.data)


def prompt(config: RunConfig, text: str, without: str) -> Tensor:
    """Token ids (1, T) of a text, after the end-of-text that opens a document.

    Raises UserError for a text that is too long or no text, or for a corpus without a tokenizer; `without` then says
    what else could be done.
    """
    name = config.data.tokenizer
    if name == "none":
        raise UserError(f"--text: data={config.data.name} has no tokenizer; {without}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"--text {text!r} is not UTF-8") from None
    ids = [tokenizer.end_of_text(name), *tokenizer.encoder(name)(text).tolist()]
    if len(ids) > longest(config):
        raise UserError(
            f"--text has {len(ids)} tokens, the opening end-of-text included; valid: at most {longest(config)}"
        )
    return torch.tensor([ids])


def bytes_of(config: RunConfig) -> Callable[[int], bytes]:
    """Token id -> the bytes it stands for; ids without any as text that says so."""
    if config.data.tokenizer == "none":
        return lambda i: str(i).encode()
    encoding = tokenizer.load(config.data.tokenizer)

    def content(i: int) -> bytes:
        within = i < config.data.vocab_size
        return encoding.decode_single_token_bytes(i) if within else f"<unused {i}>".encode()

    return content


def namer(config: RunConfig) -> Callable[[int], str]:
    """Token id -> its text."""
    content = bytes_of(config)
    return lambda i: text_of(content(i))
