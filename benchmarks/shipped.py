"""What the benchmarks of the GPU path train: shipped configurations, composed without Hydra, on random text.

A machine with a GPU may have torch, numpy and PyYAML and nothing else that this project needs.
"""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from skipsweep.config import Config, Model, RunConfig, from_dict
from skipsweep.data.tokenizer import end_of_text, vocab_size
from skipsweep.sweep.canonical import canonical_form

CONF = Path(__file__).resolve().parents[1] / "conf"
DOCUMENT = 1_000
"""Mean length of a document, in tokens."""

# B sequences, T tokens of a sequence

Pair = tuple[NDArray[np.int64], NDArray[np.int64]]


def composed(**choices: str) -> Config:
    """The configuration that Hydra makes of `GROUP=CHOICE ...`, of what is shipped in conf/ and nothing else."""
    groups = {}
    for entry in yaml.safe_load((CONF / "config.yaml").read_text())["defaults"]:
        if isinstance(entry, dict):
            ((group, choice),) = entry.items()
            if choice is not None and not group.startswith("override "):  # experiment and scale: none unless asked for
                groups[group] = _choice(group, choices.get(group, choice))
    return from_dict(Config, groups)


@cache
def _choice(group: str, name: str) -> dict[str, Any]:
    """Values of conf/GROUP/NAME.yaml, and of the choices that it starts from."""
    own = yaml.safe_load((CONF / group / f"{name}.yaml").read_text())
    found: dict[str, Any] = {}
    for parent in own.pop("defaults", []):
        if parent.startswith("/schema."):  # /schema.GROUP.NAME@_here_
            found["name"] = parent.partition("@")[0].rpartition(".")[2]
        elif parent != "_self_":
            found |= _choice(group, parent)
    return found | own


def run(
    model: str = "medium", head: str = "last", device: str = "cuda", changes: dict[str, Any] | None = None
) -> RunConfig:
    """A run of `model=... head_type=... data=fineweb10B schedule=speedrun` on one GPU or the CPU, with one micro-batch
    of 65,536 tokens per step. Heads other than `last` skip from the layer at two thirds of the depth.

    `changes`: dotted key -> value.
    """
    compute = {"cuda": "gpu", "cpu": "cpu"}[device]
    choices = {"data": "fineweb10B", "schedule": "speedrun", "logger": "none", "compute": compute}
    skip = "none" if head == "last" else "record"
    config = composed(model=model, head_type=head, skip_layers=skip, **choices)
    config.data.batch_tokens = config.data.seq_len
    for key, value in (changes or {}).items():
        group, _, name = key.rpartition(".")
        setattr(getattr(config, group), name, value)
    data = replace(config.data, vocab_size=vocab_size(config.data.tokenizer), fingerprint="random")
    return canonical_form(config, data)


TINY = {"layers": 8, "dim": 32, "heads": 2, "window_block": 16, "window": 128, "dtype": "float32"}
"""A trunk with all of the wiring for a CPU; FlexAttention needs larger blocks and heads."""

NARROW = {"layers": 8, "dim": 256, "heads": 2, "window_block": 128, "window": 3456}
"""The same with the medium track's heads and blocks."""


def little(sizes: dict[str, Any], seq_len: int, **changes: Any) -> dict[str, Any]:
    """Changes for `run` that make a small model of little text. `changes`: fields of the model, or dotted keys."""
    model = {f"model.{name}": value for name, value in sizes.items()}
    data = {"tokenizer": "bytes", "seq_len": seq_len, "batch_tokens": 2 * seq_len, "val_seq_len": 2 * seq_len}
    data |= {"val_tokens": 4 * seq_len}
    own = {key if "." in key else f"model.{key}": value for key, value in changes.items()}
    assert all(hasattr(Model, key.removeprefix("model.")) for key in own if key.startswith("model."))
    return model | {f"data.{name}": value for name, value in data.items()} | {"schedule.steps": 8} | own


class RandomText:
    """Batches of random tokens in documents of about `DOCUMENT` tokens: nothing to learn, but the work of a text."""

    def __init__(self, config: RunConfig) -> None:
        self._data = config.data
        self._end = end_of_text(config.data.tokenizer)
        self.val_sequences = config.data.val_tokens // (config.data.val_seq_len or config.data.seq_len)

    def train(self, step: int) -> Pair:
        """Inputs and targets (B, T) of a step."""
        data = self._data
        return self._draw(step, data.batch_tokens // data.seq_len, data.seq_len)

    def val(self, start: int, stop: int) -> Pair:
        """Inputs and targets (B, T) of these sequences of the validation split."""
        count = min(stop, self.val_sequences) - start
        return self._draw(10**9 + start, count, self._data.val_seq_len or self._data.seq_len)

    def _draw(self, seed: int, sequences: int, length: int) -> Pair:
        source = np.random.default_rng(seed)
        shape = (sequences, length + 1)
        ids = np.where(source.random(shape) * DOCUMENT < 1, self._end, source.integers(0, self._end, shape))
        return np.ascontiguousarray(ids[:, :-1]), np.ascontiguousarray(ids[:, 1:])
