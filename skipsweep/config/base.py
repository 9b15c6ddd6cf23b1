"""What every group of the schema is made with."""

from dataclasses import field
from typing import Any

MISSING: Any = "???"  # OmegaConf's marker, written out so that reports need not import it


def location(default: str = MISSING) -> Any:
    """A field that says where content is found. The content's fingerprint stands for it in a run's identity."""
    return field(default=default, metadata={"location": True})


def choices(base: type) -> dict[str, type]:
    """Name -> class of every choice of a tagged union; a class that others derive from is no choice itself."""
    found = {}
    for cls in base.__subclasses__():
        found |= choices(cls) or {cls.name: cls}
    return found
