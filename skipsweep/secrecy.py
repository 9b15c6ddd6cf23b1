"""Keys and passwords belong into the environment: what stands on a command line is written down, and seen by others."""

import os
import re
from collections.abc import Iterable, Mapping

from skipsweep.errors import UserError

_NAME = re.compile(r"(?i)(api_?key|token|secret|passw(or)?d|credential)s?($|[^a-z])")
_NOT_SECRET = re.compile(r"(?i)tokens|tokenizer")
SHORTEST = 8
"""Values in the environment below this length are too common to be looked for."""


def is_secret(name: str) -> bool:
    """Whether a setting or variable of this name holds what nobody else should read."""
    return bool(_NAME.search(_NOT_SECRET.sub("", name)))


def values(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Secrets in the environment, the longest first."""
    found = {value for key, value in environment.items() if is_secret(key) and len(value) >= SHORTEST}
    return sorted(found, key=len, reverse=True)


def check(command: Iterable[str], environment: Mapping[str, str] = os.environ) -> None:
    """Raise UserError for a command line that holds a secret: other users see it in the list of processes, and
    configurations are written down."""
    known = values(environment)
    for argument in command:
        key, is_setting, value = argument.partition("=")
        if (is_setting and value and is_secret(key)) or any(secret in argument for secret in known):
            name = key.lstrip("+~") if is_setting else "the command line"
            raise UserError(
                f"{name} holds a secret; put it into the environment (export NAME=...) and leave it out here"
            )
