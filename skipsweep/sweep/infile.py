"""Which file of a configuration is at fault, and what to write in it instead.

Hydra names a file without its folder, and for some mistakes not the key: so the file itself is read again.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from traceback import walk_tb
from typing import Any, get_type_hints

import yaml
from hydra._internal.config_repository import IConfigRepository

from skipsweep.config import Config
from skipsweep.provenance import CHECKOUT
from skipsweep.sweep.shorthand import GROUP as SKIP_LAYERS

_GLOBAL = re.compile(r"^#\s*@package\s+_global_\s*$", re.MULTILINE)
_MAPPINGS = {"arms": "name: {key: value}", "published": "name: value"}
"""Keys of `sweep` that are mappings, and how their entries are written."""
_SECTIONS = {key for key, hint in get_type_hints(Config).items() if is_dataclass(hint)}


def folders(errors: Iterable[BaseException]) -> list[Path]:
    """Where configuration files were looked for, in that order, when Hydra raised one of `errors`."""
    frames = (frame for error in errors for frame, _ in walk_tb(error.__traceback__))
    asked = (value for frame in frames for value in frame.f_locals.values() if isinstance(value, IConfigRepository))
    sources = next((repository.get_sources() for repository in asked), [])
    return [Path(source.path) for source in sources if source.scheme() == "file"]


def path_of(file: str, where: Sequence[Path]) -> Path:
    """The file that Hydra calls `file`, without its ending; a file of ours where it cannot be found."""
    paths = [folder / f"{file}.yaml" for folder in where]
    return next((path for path in paths if path.is_file()), CHECKOUT / "conf" / f"{file}.yaml")


def groups(where: Sequence[Path]) -> list[str]:
    """Names of all groups, those of Hydra's own apart."""
    return sorted({path.name for folder in where for path in folder.glob("[!._]*") if path.is_dir()} - {"hydra"})


def shown(path: Path) -> str:
    """From the checkout for our own files, which everybody has; the whole path for any other."""
    ours = CHECKOUT / "conf"
    return str(path.relative_to(CHECKOUT)) if path.is_relative_to(ours) else str(path)


def hint(path: Path, where: Sequence[Path]) -> str | None:
    """What is to be written instead, in a file that may set any key; None where nothing of it is known to be wrong."""
    try:
        text = path.read_text("utf-8")
        content = yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError):
        return None
    if not isinstance(content, dict) or not _GLOBAL.search(text):
        return None
    return next(_hints({str(key): value for key, value in content.items()}, where), None)


def _hints(content: dict[str, Any], where: Sequence[Path]) -> Iterator[str]:
    for key, value in content.items():
        is_group = key != "experiment" and any((folder / key).is_dir() for folder in where)
        if "." in key:
            yield _nested(key, value)
        elif (is_group or key.startswith("hydra/")) and isinstance(value, str | int | float):
            yield _chosen(key, value, where)
        elif key == SKIP_LAYERS and isinstance(value, list):
            yield _sources(value)
        elif key in _SECTIONS and not isinstance(value, dict):
            yield f"{key} is a mapping: {{key: value}}"
        elif isinstance(value, dict):
            yield from (_nested(f"{key}.{inner}", of, key) for inner, of in value.items() if "." in str(inner))
    yield from (
        f"sweep.{key} is a mapping: {entry}"
        for key, entry in _MAPPINGS.items()
        if isinstance(sweep := content.get("sweep"), dict) and not isinstance(sweep.get(key, {}), dict)
    )


def _nested(key: str, value: Any, section: str = "") -> str:
    inner = value
    for name in reversed(key.split(".")):
        inner = {name: inner}
    wrong = f"{key.removeprefix(f'{section}.')}: {_flow(value)}" + (f" (in {section})" if section else "")
    return f"{wrong}: only keys of sweep.arms' blocks hold dots; nest it: `{_flow(inner)[1:-1]}`"


def _chosen(group: str, value: Any, where: Sequence[Path]) -> str:
    if group == SKIP_LAYERS and not any((folder / group / f"{value}.yaml").is_file() for folder in where):
        return _sources(value)
    return f"{group}: {value}: a choice is no key of a file; write it under defaults: `- override /{group}: {value}`"


def _sources(value: Any) -> str:
    return f"{SKIP_LAYERS}: {_flow(value)}: in a file write `{SKIP_LAYERS}: {{layers: {_flow(value)}}}`"


def _flow(value: Any) -> str:
    """YAML of plain data, in one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()
