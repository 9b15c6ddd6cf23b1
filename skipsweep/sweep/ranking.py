"""`selection_method.ranking_from=SWEEP`: layers ranked by the results of that sweep's single-layer arms.

Read when planning and frozen in plan.json, so that more finished seeds there never re-rank in silence what has begun.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from skipsweep import files, provenance, sweep_file
from skipsweep.analyze.confounds import Settings, differing
from skipsweep.config import BestToWorst, Config, WorstToBest, leaves, recipe_of
from skipsweep.errors import UserError
from skipsweep.rundir import Multirun, names_a_folder
from skipsweep.sweep import select
from skipsweep.sweep_file import PlannedPoint

KEY = "selection_method.ranking_from"
GIVE = "selection_method.ranking=[...] in the arm"
Arms = dict[int, dict[str, list[str]]]
"""Layer -> arm that has it as its only source -> names of the arm's runs."""
NOT_OWN = ("skip_layers", "lambda_init", "seed", "replicate", "data.epochs")
"""Settings by which no arm is told from another: they follow from the layer, or are a repetition's."""


@dataclass(frozen=True)
class Ranking:
    """What the results of a sweep say of its trunk's layers."""

    layers: list[int]
    """From best to worst."""
    runs: list[str]
    """Whose results say so: those of the best layer are lucky ones, and no evidence of how good it is."""


class Rankings:
    """The rankings that one planning needs, each read once."""

    def __init__(self, multirun: Multirun, frozen: Mapping[str, list[int]]):
        """`frozen`: sweep -> ranking, as an earlier launch of the sweep that is being planned has used it."""
        self._multirun, self._frozen = multirun, frozen
        self.used: dict[str, list[int]] = {}
        """Sweep -> layers from best to worst."""
        self.ranked_by: dict[str, list[str]] = {}
        """Sweep -> the runs whose results rank them, where they were read now."""
        self.notes: list[str] = []
        """What a user should know about them, a line each."""
        self._found: dict[tuple[str, int, str], Ranking] = {}

    def of(self, config: Config) -> list[int] | None:
        """The ranking that `config` is to read from a sweep; None where it needs none, or gives its own.

        Raises UserError where the sweep to read it from is not there, not finished or of another depth.
        """
        method = config.selection_method
        if not isinstance(method, BestToWorst | WorstToBest) or method.ranking or method.ranking_from is None:
            return None
        if not select.tops(config.skip_layers.layers):
            return None
        return self._of(method.ranking_from, config)

    def _of(self, sweep: str, config: Config) -> list[int]:
        ranking = self._begun_with(sweep, config) if sweep in self._frozen else self._read(sweep, config)
        if len(ranking) != config.model.layers - 1:
            trunk = f"a trunk of {len(ranking) + 1} layers, not one of {config.model.layers}"
            raise UserError(f"{KEY}={sweep} ranks {trunk}")
        self.used[sweep] = ranking
        return list(ranking)

    def _read(self, sweep: str, config: Config) -> list[int]:
        found = self._now(sweep, config.model.layers, config)
        runs = self.ranked_by.setdefault(sweep, found.runs)
        if runs != found.runs:
            raise UserError(
                f"{KEY}={sweep} ranks the layers by {runs[0]} and others, and by {found.runs[0]} and others; a sweep "
                f"has one ranking: launch two, or give {GIVE}"
            )
        return found.layers

    def _now(self, sweep: str, layers: int, config: Config) -> Ranking:
        own = _own(leaves(recipe_of(config)))
        key = (sweep, layers, repr(own))
        if key not in self._found:
            self._found[key] = read(self._multirun, sweep, layers, own)
        return self._found[key]

    def _begun_with(self, sweep: str, config: Config) -> list[int]:
        """The frozen ranking, with a note where results say another by now."""
        frozen = self._frozen[sweep]
        try:
            now = self._now(sweep, len(frozen) + 1, config).layers
        except UserError:
            return frozen  # whatever has happened there since changes nothing here
        note = (
            f"ranking of {sweep}: kept as frozen, {_show(frozen)}; its results now say {_show(now)} "
            "(choose another sweep.name to use that)"
        )
        if now != frozen and note not in self.notes:
            self.notes.append(note)
        return frozen


def read(multirun: Multirun, sweep: str, layers: int, own: Settings | None = None) -> Ranking:
    """Layers 0 to `layers` - 2 from best to worst: by mean final validation loss of the arm whose only source they are,
    equal ones by their number. `own`: the recipe of the run to be ranked for; of several arms of a layer the one counts
    that has its settings, the layer aside.

    Raises UserError where a layer has no such arm, several, or one with a run that is not done.
    """
    plan = _plan(multirun, sweep)
    arms = _single_layer_arms(sweep_file.points(sweep, plan))
    _check_depth(
        multirun, sweep, [run for of_layer in arms.values() for names in of_layer.values() for run in names], layers
    )
    missing = [layer for layer in range(layers - 1) if layer not in arms]
    if missing:
        raise UserError(
            f"{KEY}={sweep}: no arm has layer(s) {_show(missing)} as its only source; extend that sweep "
            f"({_command(plan)}), or give {GIVE}"
        )
    runs = {layer: _runs(multirun, sweep, layer, of_layer, own or {}) for layer, of_layer in arms.items()}
    losses = {layer: [_loss(multirun, run) for run in names] for layer, names in runs.items()}
    unfinished = sorted(layer for layer, found in losses.items() if None in found)
    if unfinished:
        raise UserError(
            f"{KEY}={sweep}: layer(s) {_show(unfinished)} have runs without a result; to finish them: {_command(plan)}"
        )
    means = {layer: _mean_over_seeds(multirun, runs[layer], found) for layer, found in losses.items()}
    order = sorted(means, key=lambda layer: (means[layer], layer))
    return Ranking(order, [run for layer in order for run in runs[layer]])


def _mean_over_seeds(multirun: Multirun, runs: Sequence[str], losses: Sequence[float | None]) -> float:
    """A repeated seed counts once, with the mean of its runs."""
    by_seed: dict[Any, list[float]] = {}
    for run, loss in zip(runs, losses, strict=True):
        if loss is not None:
            by_seed.setdefault(_recipe(multirun, run).get("seed", run), []).append(loss)
    return fmean(map(fmean, by_seed.values()))


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
        found = _recipe(multirun, run).get("model.layers", layers)
        if found != layers:
            raise UserError(f"{KEY}={sweep} ranks a trunk of {found} layers (run {run}), not one of {layers}")


def _runs(multirun: Multirun, sweep: str, layer: int, arms: Mapping[str, Sequence[str]], own: Settings) -> list[str]:
    """The runs of a layer's arm; of several that with the settings of `own`. Arms served by the very same runs are
    one."""
    distinct = {frozenset(runs): name for name, runs in reversed(list(arms.items()))}
    names = [name for name in arms if name in distinct.values()]
    recipes = {name: _own(_recipe(multirun, arms[name][0])) for name in names}
    keys = {key for one in recipes.values() for key in differing(one, recipes[names[0]])}
    alike = [name for name in names if all(recipes[name].get(key) == own.get(key) for key in keys)]
    if len(alike) != 1:
        raise UserError(
            f"{KEY}={sweep}: two arms have layer {layer} as their only source, {names[0]} and {names[1]}, and not one "
            f"alone has the settings to be ranked for ({', '.join(sorted(keys)) or 'they have the same'}); give {GIVE}"
        )
    return list(dict.fromkeys(arms[alike[0]]))


def _own(recipe: Settings) -> Settings:
    """Without what follows from the layer or is a repetition's."""
    return {key: recipe[key] for key in differing(recipe, {}, NOT_OWN)}


def _recipe(multirun: Multirun, run: str) -> Settings:
    return (files.read_json(multirun.run(run).identity) or {}).get("recipe", {})


def _loss(multirun: Multirun, run: str) -> float | None:
    loss = (files.read_json(multirun.run(run).result) or {}).get("val_loss")
    return loss if isinstance(loss, float) and math.isfinite(loss) else None


def _command(plan: Mapping[str, Any]) -> str:
    return next(reversed(plan.get("commands", [])), "its command is not known")


def _show(layers: Sequence[int]) -> str:
    return ",".join(map(str, layers))
