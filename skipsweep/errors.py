"""Errors that are the user's to mend: one line that says what, where, and what would be valid."""


class UserError(Exception):
    """Bad input. The entry points print it as one line, without a traceback, and exit with `EXIT_CODE`."""

    EXIT_CODE = 2


class DataError(UserError):
    """A corpus or shard that cannot be used; the message names file and byte offset where there is one."""
