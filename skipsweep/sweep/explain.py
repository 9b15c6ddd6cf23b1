"""What Hydra, OmegaConf and YAML complain about, in one line: what, where, and what would be valid."""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from traceback import walk_tb

import yaml
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from skipsweep.config import Config, choices
from skipsweep.errors import UserError
from skipsweep.sweep import grammar, infile, shorthand
from skipsweep.sweep.grammar import Options
from skipsweep.sweep.hydra_schema import ROOT, union_groups
from skipsweep.sweep.request import LAUNCHERS

_OVERRIDE = re.compile(r"Error merging override (.+)|To append to your (?:config|default list) use \+(.+)")
_FILE = re.compile(r"^In '(.+?)':")
_UNDER_A_GROUP = re.compile(r"Could not find '\w+/([\w/]+)/(\w+)'")
_NOT_IN_DEFAULTS = re.compile(r"Could not override '(?:experiment/)?([\w/]+)(?:@\w+)?'")
_SEVERAL = re.compile(r"(?:Ambiguous value for argument|Sweep parameters) '(.+)'")
_NOISE = re.compile(r"^(See https?://.*|\s*(full_key|object_type|reference_type)[:=].*)$")


@contextmanager
def explained() -> Iterator[None]:
    """Turn what the libraries raise over a user's input into UserError; a bug keeps its own type."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        raise UserError(line) from error


def explain(error: Exception) -> str | None:
    """One line on an error of Hydra, OmegaConf or YAML; None for any other error."""
    if isinstance(error, MissingConfigException):
        return _missing(error)
    if isinstance(error, OverrideParseException):
        return _unreadable(error)
    if isinstance(error, InstantiationException):
        return "hydra/sweeper and hydra/launcher: skipsweep brings its own; leave hydra/sweeper=skipsweep as it is"
    if isinstance(error, yaml.YAMLError):
        return f"not YAML: {_flat(str(error))}"
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _composition(error)
    return _refused_by_hydra(error) if isinstance(error, ValueError) else None


def suggest(word: str, valid: Iterable[str], what: str = "valid") -> str:
    """`; did you mean ...? valid: ...`"""
    names = sorted(valid)
    close = get_close_matches(word, names, n=1)
    return (f"; did you mean {close[0]}?" if close else ";") + f" {what}: {', '.join(names) or 'none'}"


def check_override(override: Override, options: Options) -> None:
    """Raise UserError for what Hydra would answer with a traceback, or take in silence for something else."""
    key, value, text = override.key_or_group, override.value(), override.input_line
    if not key:
        raise UserError(f"{text}: there is no key before the =")
    if grammar.is_sweep(override) or override.is_delete():
        return
    grammar.values(override, options)
    tags = {f"{group}.name" for group in union_groups()}
    set_by_it = {f"{key}.{name}" for name in value} if isinstance(value, dict) else {key}
    for tag in sorted(tags & set_by_it):
        group = tag.removesuffix(".name")
        raise UserError(f"{text}: a choice is made by its group; write {group}={_choice(value)}")
    names = [] if isinstance(value, str | dict) else options(key)
    if names:
        raise UserError(f"{text}: {key} takes the name of one choice{_also(key)}; valid: {', '.join(names)}")


def _choice(value: object) -> str:
    return str(value.get("name") if isinstance(value, dict) else value)


def _also(group: str) -> str:
    return f" (or {shorthand.FORMS})" if group == shorthand.GROUP else ""


def _missing(error: MissingConfigException) -> str:
    path = error.missing_cfg_file or "?"
    group, _, name = path.rpartition("/")
    where = _file(str(error), infile.folders([error]))
    if not error.options:
        told = _FILE.sub("", _flat(str(error).partition("Config search path")[0])).strip()
        relative = _UNDER_A_GROUP.fullmatch(told.rstrip("."))
        return where + (told or f"no configuration file {path}") + (_as_default(*relative.groups()) if relative else "")
    also = f", or {shorthand.FORMS}" if group == shorthand.GROUP else ""
    also += "; more of your own: -cd FOLDER adds FOLDER/experiment/NAME.yaml" if group == "experiment" else ""
    options = list(LAUNCHERS) if group == "hydra/launcher" else error.options
    return f"{where}{group}={name}: no such choice{suggest(name, options)}{also}"


def _as_default(group: str, choice: str = "CHOICE") -> str:
    return f"; a choice of a group is made by `- override /{group}: {choice}`"


def _unreadable(error: OverrideParseException) -> str:
    try:
        grammar.parse(error.override)
    except UserError as told:
        return str(told)
    return _flat(str(error))


def _composition(error: Exception) -> str:
    several = _SEVERAL.search(str(error))
    if several:
        return f"{several[1]} stands for several values: add -m to run them all, or write KEY=[A,B] for one list"
    chain = list(_chain(error))
    folders = infile.folders(chain)
    where = "".join(dict.fromkeys(w for e in chain if (w := _where(str(e), folders))))
    file = next(filter(None, (_FILE.match(str(e)) for e in chain)), None)
    said = infile.hint(infile.path_of(file[1], folders), folders) if file else None
    if said:
        return where + said
    inner = next((e for e in chain if isinstance(e, OmegaConfBaseException)), error)
    schema = getattr(inner, "object_type", None)
    if isinstance(inner, ConfigKeyError | ConfigAttributeError) and isinstance(schema, type) and is_dataclass(schema):
        return where + _unknown_key(inner.full_key or "", schema)
    told = _FILE.sub("", _flat(str(inner) or str(error))).strip()
    if absent := _NOT_IN_DEFAULTS.search(told):
        groups = infile.groups(folders)
        told = told.rstrip(".") + (_as_default(absent[1]) if absent[1] in groups else suggest(absent[1], groups))
    key = getattr(inner, "full_key", None)
    return where + (f"{key}: " if key and key not in where else "") + told


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _where(message: str, folders: Sequence[Path]) -> str:
    override = _OVERRIDE.search(message)
    return f"{override[1] or override[2]}: " if override else _file(message, folders)


def _file(message: str, folders: Sequence[Path]) -> str:
    """The file at fault; the main one, and a schema, go without saying."""
    match = _FILE.match(message)
    file = match[1] if match else ""
    is_ours = file in ("", "config", "hydra/config") or file.startswith(f"{ROOT}.")
    return "" if is_ours else f"{infile.shown(infile.path_of(file, folders))}: "


def _unknown_key(path: str, cls: type) -> str:
    parent, _, key = path.rpartition(".")
    owners = [name for base in cls.__bases__ for name, c in _siblings(base).items() if key in _fields(c)]
    of = f"{parent}={getattr(cls, 'name', '')}" if _siblings(cls.__bases__[0]) else parent
    if owners:
        return f"{of} has no key {key} (that belongs to {' and '.join(f'{parent}={n}' for n in sorted(owners))})"
    if path == "experiment":
        return "begins without the line `# @package _global_`, which lets it set any key"
    if of != parent and not _fields(cls):
        return f"{of} has no keys"
    valid = _fields(cls) + (["experiment"] if cls is Config else [])
    return f"no key {key}{f' in {of}' if of else ''}{suggest(key, valid)}"


def _siblings(base: type) -> dict[str, type]:
    return choices(base) if base in union_groups().values() else {}


def _fields(cls: type) -> list[str]:
    return [f.name for f in fields(cls) if f.name != "name"]


def _flat(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip() and not _NOISE.match(line)]
    return " ".join(lines)


def _refused_by_hydra(error: ValueError) -> str | None:
    """What Hydra says with a bare ValueError, of flags (`--cfg job -m`) or a defaults list; None if another said it."""
    *_, (frame, _line) = walk_tb(error.__traceback__)
    module = str(frame.f_globals.get("__name__"))
    if not module.startswith("hydra."):
        return None
    file = frame.f_locals.get("config_path") if module.endswith(".config_repository") else None
    path = infile.path_of(file, infile.folders([error])) if file else None
    return (f"{infile.shown(path)}: " if path else "") + _flat(str(error))
