"""`selection_method.ranking_from=SWEEP`: layers ranked by the results of that sweep's single-layer arms.

Read when planning and frozen in plan.json, so that more finished seeds there never re-rank in silence what has begun.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from skipsweep import files, provenance, sweep_file
from skipsweep.config import BestToWorst, Config, WorstToBest
from skipsweep.errors import UserError
from skipsweep.rundir import Multirun, names_a_folder
from skipsweep.sweep import select
from skipsweep.sweep_file import PlannedPoint

KEY = "selection_method.ranking_from"
Arms = dict[int, dict[str, list[str]]]
"""Layer -> arm that has it as its only source -> names of the arm's runs."""


class Rankings:
    """The rankings that one planning needs, each read once."""

    def __init__(self, multirun: Multirun, frozen: Mapping[str, list[int]]):
        """`frozen`: sweep -> ranking, as an earlier launch of the sweep that is being planned has used it."""
        self._multirun, self._frozen = multirun, frozen
        self.used: dict[str, list[int]] = {}
        """Sweep -> layers from best to worst."""
        self.notes: list[str] = []
        """What a user should know about them, a line each."""

    def of(self, config: Config) -> list[int] | None:
        """The ranking that `config` is to read from a sweep; None where it needs none, or gives its own.

        Raises UserError where the sweep to read it from is not there, not finished or of another depth.
        """
        method = config.selection_method
        if not isinstance(method, BestToWorst | WorstToBest) or method.ranking or method.ranking_from is None:
            return None
        if not select.tops(config.skip_layers.layers):
            return None
        return self._of(method.ranking_from, config.model.layers)

    def _of(self, sweep: str, layers: int) -> list[int]:
        if sweep not in self.used:
            self.used[sweep] = self._begun_with(sweep) or read(self._multirun, sweep, layers)
        ranking = self.used[sweep]
        if len(ranking) != layers - 1:
            raise UserError(f"{KEY}={sweep} ranks a trunk of {len(ranking) + 1} layers, not one of {layers}")
        return list(ranking)

    def _begun_with(self, sweep: str) -> list[int] | None:
        """The frozen ranking, with a note where results say another by now."""
        frozen = self._frozen.get(sweep)
        if frozen is None:
            return None
        try:
            now = read(self._multirun, sweep, len(frozen) + 1)
        except UserError:
            return list(frozen)  # whatever has happened there since changes nothing here
        if now != frozen:
            self.notes.append(
                f"ranking of {sweep}: kept as frozen, {_show(frozen)}; its results now say {_show(now)} "
                "(choose another sweep.name to use that)"
            )
        return list(frozen)


def read(multirun: Multirun, sweep: str, layers: int) -> list[int]:
    """Layers 0 to `layers` - 2 from best to worst: by mean final validation loss of the arm whose only source they are,
    equal ones by their number.

    Raises UserError where a layer has no such arm, several, or one with a run that is not done.
    """
    plan = _plan(multirun, sweep)
    arms = _single_layer_arms(sweep_file.points(sweep, plan))
    runs = [run for of_layer in arms.values() for names in of_layer.values() for run in names]
    _check_depth(multirun, sweep, runs, layers)
    missing = [layer for layer in range(layers - 1) if layer not in arms]
    if missing:
        raise UserError(
            f"{KEY}={sweep}: no arm has layer(s) {_show(missing)} as its only source; extend that sweep "
            f"({_command(plan)}), or give selection_method.ranking=[...]"
        )
    losses = {layer: _losses(multirun, sweep, layer, of_layer) for layer, of_layer in arms.items()}
    unfinished = sorted(layer for layer, found in losses.items() if None in found)
    if unfinished:
        raise UserError(
            f"{KEY}={sweep}: layer(s) {_show(unfinished)} have runs without a result; to finish them: {_command(plan)}"
        )
    means = {layer: math.fsum(x for x in found if x is not None) / len(found) for layer, found in losses.items()}
    return sorted(means, key=lambda layer: (means[layer], layer))


def _plan(multirun: Multirun, sweep: str) -> dict[str, Any]:
    if names_a_folder(sweep) and multirun.sweep(sweep).plan.exists():
        return sweep_file.read_plan(multirun, sweep)
    known = ", ".join(folder.name for folder in multirun.all_sweeps()) or "none yet"
    shipped = (provenance.CHECKOUT / "conf" / "experiment" / f"{sweep}.yaml").exists()
    hint = f"; it is made by python launch.py experiment={sweep}" if shipped else ""
    raise UserError(f"{KEY}={sweep}: no sweep of that name below {multirun.sweeps}; there are: {known}{hint}")


def _single_layer_arms(points: Iterable[PlannedPoint]) -> Arms:
    arms: Arms = {}
    for point in points:
        match point.sources:
            case [int(layer)]:
                arms.setdefault(layer, {}).setdefault(point.arm, []).append(point.run)
    return arms


def _check_depth(multirun: Multirun, sweep: str, runs: Sequence[str], layers: int) -> None:
    for run in runs:
        identity = files.read_json(multirun.run(run).identity) or {}
        found = identity.get("recipe", {}).get("model.layers", layers)
        if found != layers:
            raise UserError(f"{KEY}={sweep} ranks a trunk of {found} layers (run {run}), not one of {layers}")


def _losses(multirun: Multirun, sweep: str, layer: int, arms: Mapping[str, list[str]]) -> list[float | None]:
    """Final validation losses of a layer's runs; None: not done. Arms served by the very same runs are one."""
    first, *others = arms.items()
    for name, runs in others:
        if set(runs) != set(first[1]):
            raise UserError(
                f"{KEY}={sweep}: two arms have layer {layer} as their only source, {first[0]} and {name}; "
                "give selection_method.ranking=[...]"
            )
    return [_loss(multirun, run) for run in dict.fromkeys(first[1])]


def _loss(multirun: Multirun, run: str) -> float | None:
    loss = (files.read_json(multirun.run(run).result) or {}).get("val_loss")
    return loss if isinstance(loss, float) and math.isfinite(loss) else None


def _command(plan: Mapping[str, Any]) -> str:
    return next(reversed(plan.get("commands", [])), "its command is not known")


def _show(layers: Sequence[int]) -> str:
    return ",".join(map(str, layers))
