"""`skip_layers=5`, `=[5,2]`, `=top3`, ... written as the leaf that Hydra can compose: `skip_layers.layers=5`; and
`gate_targets=[1,.5]` as `gate_targets=list gate_targets.means=[1,.5]`; and `sweep.seeds=range(0,3)` as a text.

Hydra takes nothing but names for a group, and fails on numbers and lists; several seeds it takes for several launches,
which need -m, where they are one set. So such overrides are rewritten before it sees them. Names (`skip_layers=record`)
stay choices of the group; everything else is passed on byte for byte.
"""

import re
import shlex
from collections.abc import Sequence
from typing import Any

from skipsweep.errors import UserError
from skipsweep.model import readout_specs
from skipsweep.sweep import grammar, select

GROUP = "skip_layers"
LEAF = "skip_layers.layers"
_PREFIX = f"{GROUP}="
_TARGETS = "gate_targets"
SEEDS = "sweep.seeds"
_WORD = re.compile(rf"none|{'|'.join(readout_specs.NAMED)}|{select.TWO_THIRDS}|top\d+|{select.SPREADS}|[+-]?\d+")
FORMS = f"none, a layer (11), a list ([11,10]), topN, {select.TWO_THIRDS}, input, extra, {select.EACH}, topA..topB"
"""What skip_layers takes besides the group's choices."""


def rewrite(override: str) -> str:
    """One override with its shorthand written out; sweeps are left for `expand`."""
    if not override.startswith(_PREFIX):
        return override
    try:
        parsed = grammar.parse(override)
    except UserError:
        return override  # Hydra, or `expand`, says what is wrong with it
    if grammar.is_sweep(parsed):
        return override
    text = _leaf_text(parsed.value(), override.removeprefix(_PREFIX))
    return override if text is None else f"{LEAF}={text}"


def written_out(override: str) -> list[str]:
    """One override with its shorthand written out, as one or as two."""
    if override.startswith(f"{SEEDS}="):
        return [_seeds(override)]
    if not override.startswith(f"{_TARGETS}=["):
        return [rewrite(override)]
    try:
        parsed = grammar.parse(override)
    except UserError:
        return [override]
    if grammar.is_sweep(parsed) or not isinstance(parsed.value(), list):
        return [override]
    return [f"{_TARGETS}=list", f"{_TARGETS}.means={override.removeprefix(f'{_TARGETS}=')}"]


def _seeds(override: str) -> str:
    try:
        several = grammar.is_sweep(grammar.parse(override))
    except UserError:
        return override
    return f"{SEEDS}={grammar.to_text(override.removeprefix(f'{SEEDS}='))}" if several else override


def _leaf_text(value: Any, text: str) -> str | None:
    """Text of the leaf's value; None where the value names a choice, or sets keys of the group."""
    if value is None:
        return "none"
    if isinstance(value, str):
        return value if _WORD.fullmatch(value) else None
    return None if isinstance(value, dict) else text


def rewrite_arguments(arguments: Sequence[str]) -> list[str]:
    """Command-line arguments, flags among them. Of several `skip_layers=` the last counts, as Hydra has it."""
    given = [i for i, argument in enumerate(arguments) if argument.startswith(_PREFIX)]
    kept = [a for i, a in enumerate(arguments) if i not in given[:-1]]
    return [text for argument in kept for text in written_out(argument)]


def rewrite_line(line: str) -> str:
    """A line of a shell under completion: all but the word that is being typed."""
    *parts, last = re.split(r"(\s+)", line)
    return "".join([*map(_rewrite_word, parts), last])


def _rewrite_word(word: str) -> str:
    try:
        unquoted = shlex.split(word)
    except ValueError:
        return word
    if len(unquoted) != 1 or not unquoted[0].startswith((_PREFIX, f"{_TARGETS}=")):
        return word
    return " ".join(written_out(unquoted[0]))
