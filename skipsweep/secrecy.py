"""Keys and passwords belong into the environment: what stands on a command line is written down, and seen by others."""

import os
import re
from collections.abc import Iterable, Mapping

from skipsweep.errors import UserError

_NAME = re.compile(r"(?i)(api_?key|token|secret|passw(or)?d|credential)s?($|[^a-z])")
_NOT_SECRET = re.compile(r"(?i)tokens|tokenizer")
_VALUE = r"""\s*[\\"']*(?=[^\\"'$`\s,}\]])"""
"""Written out. What the shell looks up, as in `NAME=$(cat file)`, is not written down."""
_ASSIGNED = re.compile(r"""(\w+)\s*=""" + _VALUE)
_ENTRY = re.compile(r"""[{,]\s*["']?(\w+)["']?\s*:""" + _VALUE)
"""Names that are given a value inside a setting: `export NAME=...`, `{NAME: ...}`."""
SHORTEST = 8
"""Values in the environment below this length are too common to be looked for."""


def is_secret(name: str) -> bool:
    """Whether a setting or variable of this name holds what nobody else should read."""
    return bool(_NAME.search(_NOT_SECRET.sub("", name)))


def values(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Secrets in the environment, the longest first."""
    found = {value for key, value in environment.items() if is_secret(key) and len(value) >= SHORTEST}
    return sorted(found, key=len, reverse=True)


def _inside(setting: str) -> list[str]:
    return _ASSIGNED.findall(setting) + _ENTRY.findall(setting)


def check(command: Iterable[str], environment: Mapping[str, str] = os.environ) -> None:
    """Raise UserError for a command line that holds a secret: other users see it in the list of processes, and
    configurations are written down."""
    known = values(environment)
    for argument in command:
        key, is_setting, value = argument.partition("=")
        named = [key] if value and is_secret(key) else list(filter(is_secret, _inside(value)))
        if named or any(secret in argument for secret in known):
            name = (named or [key if is_setting else "the command line"])[0].lstrip("+~")
            raise UserError(
                f"{name} holds a secret; put it into the environment (export NAME=...) and leave it out here"
            )
