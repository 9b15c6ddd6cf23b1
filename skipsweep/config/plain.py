"""Configurations to and from plain data."""

from dataclasses import MISSING as NO_DEFAULT
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, get_type_hints

from skipsweep.config.base import MISSING, choices
from skipsweep.config.run import NEUTRAL_CHOICE, UNIONS
from skipsweep.errors import UserError


@cache
def _schema(cls: type) -> tuple[tuple[str, Any, Any], ...]:
    """(name, nested dataclass or None, default or MISSING) of every field."""
    hints = get_type_hints(cls)
    rows = []
    for f in fields(cls):
        hint = hints[f.name]
        nested = hint if isinstance(hint, type) and is_dataclass(hint) else None
        if f.default is not NO_DEFAULT:
            default = f.default
        else:
            default = f.default_factory() if f.default_factory is not NO_DEFAULT else MISSING
        rows.append((f.name, nested, default))
    return tuple(rows)


def from_dict(cls: type, values: dict[str, Any], where: str = "") -> Any:
    """Build `cls` from plain data (a frozen config.yaml, a composed config). Absent keys get their default, and groups
    that were not there when a run was frozen their neutral choice.

    Raises UserError for a key that the schema does not have, or a choice that does not exist.
    """
    if cls in UNIONS:
        cls = _choice(cls, values, where)
    known = {name for name, _, _ in _schema(cls)}
    for key in values:
        if key not in known:
            raise UserError(f"unknown key {where}{key}; valid: {', '.join(sorted(known))}")
    built = {}
    for name, nested, _ in _schema(cls):
        if name in values:
            value = values[name]
            built[name] = from_dict(nested, value, f"{where}{name}.") if nested and isinstance(value, dict) else value
        elif nested in UNIONS and name in NEUTRAL_CHOICE:
            built[name] = choices(nested)[NEUTRAL_CHOICE[name]]()
    return cls(**built)


def _choice(base: type, values: dict[str, Any], where: str) -> type:
    valid = choices(base)
    name = values.get("name")
    if name not in valid:
        raise UserError(f"{where}name={name} is no choice of {where.rstrip('.')}; valid: {', '.join(sorted(valid))}")
    return valid[name]


def to_dict(node: Any) -> Any:
    """Plain data of a dataclass tree; the inverse of `from_dict`."""
    if is_dataclass(node):
        return {name: to_dict(getattr(node, name)) for name, _, _ in _schema(type(node))}
    if isinstance(node, dict):
        return {key: to_dict(value) for key, value in node.items()}
    return list(node) if isinstance(node, list | tuple) else node


def leaves(node: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted path -> value of every leaf field, locations left out."""
    found = {}
    skip = {f.name for f in fields(node) if f.metadata.get("location")}
    for name, _, _ in _schema(type(node)):
        value = getattr(node, name)
        if name in skip:
            continue
        if is_dataclass(value):
            found.update(leaves(value, f"{prefix}{name}."))
        else:
            found[prefix + name] = value
    return found


def defaults(node: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted path -> neutral default of every leaf of `node`'s choices (MISSING where there is none)."""
    found = {}
    for name, _, default in _schema(type(node)):
        value = getattr(node, name)
        if is_dataclass(value):
            found.update(defaults(value, f"{prefix}{name}."))
        else:
            found[prefix + name] = default
    return found
