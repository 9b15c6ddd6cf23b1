"""Overrides and an experiment's blocks -> points."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from hydra.core.override_parser.types import Override

from skipsweep.config import Config, Sweep
from skipsweep.errors import UserError
from skipsweep.sweep import grammar, select, shorthand
from skipsweep.sweep.grammar import Options
from skipsweep.sweep.request import GridPoint
from skipsweep.sweep.shorthand import SEEDS

NOT_LABELS = ("seed", "replicate")
"""Keys whose values make repetitions of an arm, not arms."""


@dataclass(frozen=True)
class Axis:
    """One key and the values that it takes in turn."""

    key: str
    texts: tuple[str, ...]
    """Each as a whole override."""
    swept: bool
    touches: frozenset[str]
    """Keys that it sets, for finding contradictions."""
    source: str
    """Where it was written, for messages."""

    def label(self, text: str) -> str:
        """The value alone, as one would type it for `key`."""
        return text.partition("=")[2]


def expand(overrides: Sequence[str], sweep: Sweep, options: Options) -> list[GridPoint]:
    """The points that the command line and the experiment's blocks ask for, repetitions included.

    Blocks are united; inside a block, and on the command line, several values make a grid in which the last key varies
    fastest; seeds vary faster still. Words whose meaning depends on the trunk are left for `spread`. Raises UserError
    for what cannot be read, for a key that command line and block both set, and for a sweep over experiments.
    """
    command = _command_axes(overrides, options)
    seeds = _seeds(command.pop(SEEDS, None), sweep.seeds, options)
    points = []
    for name, arm in (sweep.arms or {None: {}}).items():
        block = [_arm_axis(name, text, options) for text in _arm_overrides(name, arm)]
        _refuse_contradictions(list(command.values()), block)
        axes = [*command.values(), *block]
        if seeds is not None and not any("seed" in axis.touches for axis in axes):
            axes.append(seeds)
        points += [_point(name, axes, choice) for choice in product(*(axis.texts for axis in axes))]
    return points


def _point(block: str | None, axes: list[Axis], choice: tuple[str, ...]) -> GridPoint:
    chosen = list(zip(axes, choice, strict=True))
    labels = {a.key: a.label(text) for a, text in chosen if a.swept and a.key not in NOT_LABELS}
    seed = next((grammar.parse(text).value() for a, text in reversed(chosen) if a.key == "seed"), None)
    texts = tuple(text for each in choice for text in shorthand.written_out(each))
    return GridPoint(block, texts, labels, seed if isinstance(seed, int) else None)


def spread(point: GridPoint, config: Config) -> list[GridPoint]:
    """The points that one stands for whose `skip_layers` is a word such as `each`; `config`: what it composes to, as
    the trunk's depth says how many. Else the point alone. Raises UserError for a range that the trunk does not have."""
    values = select.spread(config.skip_layers.layers, config.model.layers)
    return [point] if values is None else [_with_layers(point, str(value)) for value in values]


def _with_layers(point: GridPoint, value: str) -> GridPoint:
    """The label is the value's, whether the word was typed as an axis or not."""
    text, given = f"{shorthand.LEAF}={value}", f"{shorthand.LEAF}="
    overrides = tuple(text if one.startswith(given) else one for one in point.overrides)
    if text not in overrides:  # a choice of the group says it
        overrides = (*overrides, text)
    key = shorthand.LEAF if shorthand.LEAF in point.axes else shorthand.GROUP
    return replace(point, overrides=overrides, axes={**point.axes, key: value})


# ----------------------------------------------------------------------------------------------------- command line


def _command_axes(overrides: Sequence[str], options: Options) -> dict[str, Axis]:
    """Key -> axis; of several overrides of one key the last counts, in the place of the first (as Hydra's sweeper)."""
    axes: dict[str, Axis] = {}
    for text in overrides:
        axis = _axis(text, "on the command line", options)
        if axis.swept:
            _refuse_sweeping(axis)
        axes[axis.key] = axis
    return axes


def _refuse_sweeping(axis: Axis) -> None:
    if axis.key == "experiment":
        raise UserError(f"experiment={','.join(map(axis.label, axis.texts))}: one question per sweep; run them in turn")
    if axis.key.startswith("sweep.arms"):
        raise UserError(f"{axis.key} cannot be swept over: it is what makes the points")


def _axis(text: str, source: str, options: Options) -> Axis:
    override = grammar.parse(text)
    key = override.get_key_element()
    if not grammar.is_sweep(override):
        return Axis(key, (text,), False, _touches(override), source)
    texts = tuple(f"{key}={value}" for value in grammar.values(override, options))
    return Axis(key, texts, True, _touches(override), source)


def _touches(override: Override) -> frozenset[str]:
    key = override.key_or_group
    return frozenset(_leaves(key, override.value()))


def _leaves(key: str, value: Any) -> list[str]:
    if isinstance(value, dict):
        return [leaf for name, inner in value.items() for leaf in _leaves(f"{key}.{name}", inner)]
    return [shorthand.GROUP if key == shorthand.LEAF else key]


# ----------------------------------------------------------------------------------------------------------- blocks


def _arm_overrides(name: str | None, arm: Any) -> list[str]:
    """A block of `sweep.arms` as override texts. Nested keys may be written either way (`a.b: 1` or `a: {b: 1}`)."""
    if arm is None:
        return []
    if not isinstance(arm, Mapping):
        raise UserError(f"sweep.arms.{name}: {arm!r} is not a block of KEY: VALUE; e.g. {name}: {{skip_layers: 5}}")
    texts = []
    for key, value in arm.items():
        if isinstance(value, Mapping) and value:
            texts += _arm_overrides(name, {f"{key}.{inner}": v for inner, v in value.items()})
        else:
            texts.append(f"{key}={value if isinstance(value, str) else grammar.to_text(value)}")
    return texts


def _arm_axis(name: str | None, text: str, options: Options) -> Axis:
    source = f"in sweep.arms.{name}"
    try:
        axis = _axis(text, source, options)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    if axis.key in ("experiment", SEEDS) or axis.key.startswith(("hydra.", "hydra/")):
        raise UserError(f"{source}: {axis.key} belongs to the whole sweep, not to an arm")
    return axis


def _refuse_contradictions(command: list[Axis], block: list[Axis]) -> None:
    """Raise UserError where two axes set the same key: either could be meant.

    On the command line alone a choice may be followed by one of its keys (`skip_layers=record skip_layers.layers=[5]`).
    """
    seen: dict[str, Axis] = {}
    for axis in [*command, *block]:
        for key in axis.touches:
            if key in seen and (axis in block or axis.swept or seen[key].swept):
                raise UserError(f"{key} is set {_said(seen[key])} and {_said(axis)}; leave one out")
            seen[key] = axis


def _said(axis: Axis) -> str:
    text = axis.texts[0] if not axis.swept else f"{axis.key}={','.join(map(axis.label, axis.texts))}"
    return f"{axis.source} ({text})"


# ------------------------------------------------------------------------------------------------------------ seeds


def _seeds(command: Axis | None, given: Any, options: Options) -> Axis | None:
    """The axis of `sweep.seeds`; what the command line says replaces the experiment's."""
    if command is not None:
        given = [grammar.parse(text).value() for text in command.texts]
    if given is None:
        return None
    seeds = _numbers(given, options)
    if not seeds:
        raise UserError(f"{SEEDS}={grammar.to_text(given)}: no seed at all")
    return Axis("seed", tuple(f"seed={seed}" for seed in seeds), True, frozenset({"seed"}), f"by {SEEDS}")


def _numbers(given: Any, options: Options) -> list[int]:
    """The seeds that a number, a list, or a text such as `range(0,22)` or `0,1,2` stands for."""
    if isinstance(given, list):
        return [seed for item in given for seed in _numbers(item, options)]
    if isinstance(given, str):
        texts = grammar.values(grammar.parse(f"{SEEDS}={given}"), options)
        read = [grammar.parse(f"{SEEDS}={text}").value() for text in texts]
        if not any(isinstance(item, str) for item in read):
            return _numbers(read, options)
    if isinstance(given, int) and not isinstance(given, bool):
        return [given]
    raise UserError(f"{SEEDS}: {given!r} is not a seed; valid: a number, a list of numbers, range(a,b)")
