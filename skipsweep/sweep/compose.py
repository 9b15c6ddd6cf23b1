"""Overrides -> configuration: Hydra composes each combination of choices once, single values are set on a copy.

Composing takes Hydra about 0.1 s, setting a value takes microseconds. The outcome is the same, conversions and refusals
included (a property test holds it): whatever is not plainly a value of a leaf is left to Hydra.
"""

import copy
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from skipsweep.config import MISSING, Config, from_dict
from skipsweep.errors import MissingValue, UserError
from skipsweep.sweep import grammar, shorthand
from skipsweep.sweep.explain import check_override, explained
from skipsweep.sweep.hydra_schema import union_groups

_KEPT = 128
"""Compositions held in memory, about 1 MB each."""


class Composer:
    """Composes configurations with one set of Hydra's own overrides (search path, config name)."""

    def __init__(self, loader: ConfigLoader, config_name: str, fixed: Sequence[str] = ()):
        self._loader, self._config_name, self._fixed = loader, config_name, list(fixed)
        self._composed: OrderedDict[tuple[str, ...], Composition] = OrderedDict()
        self.options = cache(self._options)
        """Group -> names of its choices; empty where there is no such group."""
        self._is_leaf = cache(self._looks_like_leaf)

    def __call__(self, overrides: Sequence[str]) -> Config:
        """The configuration that `overrides` (no sweeps among them) describe. Raises UserError."""
        with explained():
            texts = [text for override in overrides for text in shorthand.written_out(override)]
            leaves = [grammar.parse(text) for text in texts if self._is_leaf(text)]
            others = tuple(text for text in texts if not self._is_leaf(text))
            composition = self._compose(others)
            if composition.takes(leaves) and not self._overlap(others, leaves):
                return composition.config(leaves)
            return self._compose(tuple(texts)).config([])

    def _options(self, group: str) -> list[str]:
        if not group or "." in group:  # a key; asking Hydra takes 10 ms
            return []
        return self._loader.get_group_options(group, ObjectType.CONFIG, self._config_name, self._fixed)

    def _looks_like_leaf(self, text: str) -> bool:
        """Whether it sets a key outright, to a value of its own."""
        override = grammar.parse(text)
        if grammar.is_sweep(override):
            raise UserError(f"{text}: one value expected here, not a sweep")
        check_override(override, self.options)
        return (
            override.type is OverrideType.CHANGE
            and override.package is None
            and not isinstance(override.value(), dict)
            and "${" not in text
            and not self.options(override.key_or_group)
        )

    def _overlap(self, others: Sequence[str], leaves: Sequence[Override]) -> bool:
        """Whether the order of overrides matters: `+a={b: 1}` and `a.b=2`. Choices always apply before values."""
        inner = [o.key_or_group for o in map(grammar.parse, others) if not self._is_choice(o)]
        return any(_related(key, leaf.key_or_group) for key in inner for leaf in leaves)

    def _is_choice(self, override: Override) -> bool:
        return bool(self.options(override.key_or_group)) and not isinstance(override.value(), dict)

    def _compose(self, texts: tuple[str, ...]) -> "Composition":
        if texts not in self._composed:
            overrides = [*self._fixed, *texts]
            loaded = self._loader.load_configuration(self._config_name, overrides, RunMode.RUN)
            self._composed[texts] = Composition(loaded)
        self._composed.move_to_end(texts)
        while len(self._composed) > _KEPT:
            self._composed.popitem(last=False)
        return self._composed[texts]


class Composition:
    """What Hydra composed, and that with some leaves set."""

    def __init__(self, composed: DictConfig):
        self._composed = composed
        self._plain = _plain(composed)
        self._interpolates = any(isinstance(v, str) and "${" in v for _, v in _walk(self._plain))
        self._converted: dict[str, Any] = {}
        _check_tags(composed)

    def takes(self, leaves: Sequence[Override]) -> bool:
        """Whether each is the key of a value here."""
        return all(self._is_value(leaf.key_or_group) for leaf in leaves)

    def _is_value(self, key: str) -> bool:
        *parents, last = key.split(".")
        node: Any = self._plain
        for name in parents:
            node = node.get(name) if isinstance(node, dict) else None
        return isinstance(node, dict) and last in node and not isinstance(node[last], dict)

    def config(self, leaves: Sequence[Override]) -> Config:
        """The configuration with `leaves` set. Raises MissingValue for a mandatory value that is missing."""
        values = self._resolved(leaves) if self._interpolates else self._set(leaves)
        missing = [key for key, value in _walk(values) if value == MISSING]
        if missing:
            raise MissingValue(missing)
        return from_dict(Config, values)

    def _set(self, leaves: Sequence[Override]) -> dict[str, Any]:
        values = _copy(self._plain)
        for leaf in leaves:
            *parents, last = leaf.key_or_group.split(".")
            node = values
            for name in parents:
                node = node[name]
            node[last] = _copy(self._convert(leaf))
        return values

    def _convert(self, leaf: Override) -> Any:
        """The leaf's value as OmegaConf converts it: found by setting it, where what was set before plays no part."""
        text = leaf.input_line or ""
        if text not in self._converted:
            *parents, last = leaf.key_or_group.split(".")
            node: Any = self._composed
            for name in parents:
                node = node[name]
            try:
                OmegaConf.update(node, last, leaf.value(), merge=True)
            except OmegaConfBaseException as error:
                raise ConfigCompositionException(f"Error merging override {text}") from error
            self._converted[text] = _value(node, last)
        return self._converted[text]

    def _resolved(self, leaves: Sequence[Override]) -> dict[str, Any]:
        """The slow way, for a configuration in which one key may depend on another."""
        composed = copy.deepcopy(self._composed)
        for leaf in leaves:
            OmegaConf.update(composed, leaf.key_or_group, leaf.value(), merge=True)
        HydraConfig.instance().set_config(composed)
        return {str(key): _resolve(composed, str(key)) for key in composed if key != "hydra"}


def _plain(composed: DictConfig) -> dict[str, Any]:
    values = OmegaConf.to_container(composed)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items() if key != "hydra"}


def _value(node: DictConfig, key: str, resolve: bool = False) -> Any:
    """Plain data of `node[key]`."""
    if OmegaConf.is_missing(node, key):
        return MISSING
    value = node[key]
    return OmegaConf.to_container(value, resolve=resolve) if OmegaConf.is_config(value) else value


def _resolve(composed: DictConfig, key: str) -> Any:
    try:
        return _value(composed, key, resolve=True)
    except OmegaConfBaseException as error:
        error.full_key = error.full_key or key  # OmegaConf does not always say where
        raise


def _check_tags(composed: DictConfig) -> None:
    """Raise UserError where a group's `name` is not that of the choice whose fields it has."""
    for group in union_groups():
        if group in composed and not OmegaConf.is_missing(composed, group):
            name, own = composed[group].get("name"), getattr(OmegaConf.get_type(composed, group), "name", MISSING)
            if own not in (MISSING, name):
                raise UserError(f"{group}.name={name}: a choice is made by its group; write {group}={name}")


def _walk(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _walk(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            yield from ((f"{prefix}{key}", item) for item in value)
        else:
            yield f"{prefix}{key}", value


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def _related(a: str, b: str) -> bool:
    return a == b or a.startswith(f"{b}.") or b.startswith(f"{a}.")
