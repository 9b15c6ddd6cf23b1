"""Hydra's override grammar: text -> parsed override -> its single values, and plain values -> text."""

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    Glob,
    IntervalSweep,
    Override,
    Quote,
    QuotedString,
    RangeSweep,
    Sweep,
    Transformer,
)
from hydra.errors import HydraException

from skipsweep.errors import UserError

_PARSER = OverridesParser.create()
_BARE_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_/-]*")
_RESERVED = {"true", "false", "null", "nan", "inf"}
Options = Callable[[str], list[str]]
"""Group -> names of its choices."""


@lru_cache(maxsize=65536)
def parse(text: str) -> Override:
    """The parsed override (shared: not to be changed). Raises UserError."""
    try:
        return _PARSER.parse_override(text)
    except HydraException as error:
        raise UserError(f"cannot read override {text!r}: {_reason(text, str(error))}") from error


def _reason(text: str, message: str) -> str:
    if "=" not in text:
        return "it has no value; valid: KEY=VALUE"
    told = " ".join(message.partition(" expecting {")[0].split())
    return f"{told}; quote text that holds any of ,:=()[]{{}}, as in \"KEY='a,b'\""


def is_sweep(override: Override) -> bool:
    """Whether it stands for several values."""
    return override.is_sweep_override()


def values(override: Override, options: Options) -> list[str]:
    """The text of every value an override stands for, in order; one for an override that is no sweep.

    Hydra's own iteration breaks on a range beside other values (`none,range(0,3)`); here such are flattened.
    """
    if not is_sweep(override):
        _refuse_inner_sweep(override._value, override)
        return [override.get_value_string()]
    found = list(_flatten(override._value, override, options))
    if not found:
        raise UserError(f"{override.input_line}: no value at all")
    return found


def _flatten(value: Any, override: Override, options: Options) -> Iterator[str]:
    if isinstance(value, Glob):
        yield from _matches(value, override, options)
    elif isinstance(value, ChoiceSweep | RangeSweep):
        for item in _items(value, override):
            yield from _flatten(item, override, options)
    elif isinstance(value, IntervalSweep):
        raise UserError(f"{override.input_line}: an interval has no single values; use range(a,b,step)")
    else:
        _refuse_inner_sweep(value, override)
        yield Transformer.str(value)


def _items(sweep: ChoiceSweep | RangeSweep, override: Override) -> list[Any]:
    plain = Override(override.type, override.key_or_group, override.value_type, sweep)
    return list(plain.sweep_iterator())


def _matches(glob: Glob, override: Override, options: Options) -> list[str]:
    names = options(override.key_or_group)
    if not names:
        raise UserError(f"{override.input_line}: glob() is for groups, and {override.key_or_group} is none")
    found = glob.filter(names)
    if not found:
        raise UserError(f"{override.input_line}: no choice matches; valid: {', '.join(names)}")
    return found


def _refuse_inner_sweep(value: Any, override: Override) -> None:
    if _holds_sweep(value):
        raise UserError(f"{override.input_line}: a sweep inside a list has no meaning; write out its values")


def _holds_sweep(value: Any) -> bool:
    if isinstance(value, list):
        return any(_holds_sweep(item) for item in value)
    if isinstance(value, dict):
        return any(_holds_sweep(item) for item in value.values())
    return isinstance(value, Sweep | Glob)


def to_text(value: Any) -> str:
    """Override text that Hydra reads back as exactly `value` (plain data)."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return "[" + ",".join(to_text(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{Transformer.str(key)}:{to_text(item)}" for key, item in value.items()) + "}"
    return _string(str(value))


def _string(text: str) -> str:
    if _BARE_WORD.fullmatch(text) and text.lower() not in _RESERVED:
        return text
    return QuotedString(text, Quote.single).with_quotes()
