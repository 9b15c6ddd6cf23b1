"""Errors that are the user's to mend: one line that says what, where, and what would be valid."""

from collections.abc import Sequence


class UserError(Exception):
    """Bad input. The entry points print it as one line, without a traceback, and exit with `EXIT_CODE`."""

    EXIT_CODE = 2


class MissingValue(UserError):
    """A key without a default was not set."""

    def __init__(self, keys: Sequence[str]):
        self.keys = keys
        super().__init__(f"no value for {', '.join(keys)}: it has no default; set it, as in {keys[0]}=...")


class DataError(UserError):
    """A corpus or shard that cannot be used; the message names file and byte offset where there is one."""
