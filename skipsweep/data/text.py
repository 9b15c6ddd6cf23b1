"""Bytes of tokens as text that can be shown: those that are not UTF-8 as <0xE2>."""

import codecs

_HANDLER = "skipsweep.shown"
"""Name among Python's handlers of decoding errors."""


def _shown(problem: UnicodeError) -> tuple[str, int]:
    if not isinstance(problem, UnicodeDecodeError):
        raise problem
    bad = problem.object[problem.start : problem.end]
    return "".join(f"<0x{byte:02X}>" for byte in bad), problem.end


codecs.register_error(_HANDLER, _shown)


def text_of(content: bytes) -> str:
    """Bytes as text; where they are not UTF-8, each such byte as <0xE2>."""
    return content.decode(errors=_HANDLER)


class TextStream:
    """`text_of` of bytes that come in pieces: a character may be cut by two tokens, and is held back until whole."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(_HANDLER)

    def add(self, content: bytes) -> str:
        """What is certain by now."""
        return self._decoder.decode(content)

    def end(self) -> str:
        """What was held back."""
        return self._decoder.decode(b"", final=True)
