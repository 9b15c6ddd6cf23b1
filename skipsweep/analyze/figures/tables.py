"""The tables that all figures of a page share: plain rows, each fact once. Charts join them by `point`.

runs     one row per point that is done: what it was and where it ended
curves   one row per point and validation: step, training time, validation loss
means    one row per arm and step that all its runs have validated: their mean, with the band of one standard deviation
lambdas  one row per point, validation and learned scalar that belongs to a layer
readout  one row per point, validation and learned scalar of the readout that belongs to no layer
rates    one row per arm, step and parameter group: the learning rate (of the arm's first run with rows)
shares   one row per point and term of a block's input, of runs whose weights have been read: its norm-corrected weight
gates    one row per point, validation and gated layer
"""

import math
import re
import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

from skipsweep.analyze import descriptive
from skipsweep.analyze.arms import inference_flops, training_flops
from skipsweep.analyze.documents import as_number
from skipsweep.analyze.evidence import Evidence, Run
from skipsweep.analyze.figures import panels
from skipsweep.sweep_file import GIVEN, PlannedPoint

Row = dict[str, Any]
Tables = dict[str, list[Row]]

MOST_RATES = 200
"""Rows per arm and parameter group: a schedule is piecewise smooth, and a page is to stay small."""
MOST_POINTS = 20_000
"""PlannedPoints of a weight's lines over all runs, at least 20 each: a thousand runs are to stay a page that opens."""
DISTINGUISHABLE = 8
"""As many arms have a colour of their own; above, colour says which kind of arm it is."""
_SKIP = re.compile(r"lambda/skip/(\d+)")
_READOUT = re.compile(r"lambda/(x|skip|skip/[a-z]\w*|rolling_row/\d+/\w+)")
_BLOCK = re.compile(r"lambda/block/(\d+)/(\w+)")
_GATE = re.compile(r"gate/(\d+)")
_ZEROS = re.compile(r"gate/zeros/\d+")


def of(evidence: Evidence) -> Tables:
    """All tables of a sweep; what is not known is missing from a row, never 0."""
    arms = evidence.arms()
    by_kind = len(arms) > DISTINGUISHABLE
    results = {name: run.result for name, run in evidence.runs.items()}
    base = descriptive.mean(descriptive.per_seed(descriptive.by_seed(arms.get(evidence.baseline or "", ()), results)))
    settings, alone = panels.of_layers(evidence)
    tables: Tables = {
        name: [] for name in ("runs", "curves", "means", "lambdas", "readout", "shares", "rates", "gates")
    }
    number, most = 0, max(20, MOST_POINTS // max(1, len(evidence.points)))
    for arm, points in arms.items():
        curves: list[Row] = []
        for point in points:
            run = evidence.runs[point.run]
            colour = _kind(point, run, arm == evidence.baseline) if by_kind else arm
            row = _run(number, point, run, colour, base)
            if arm in settings:
                row["panel"] = f"{row.get('head', '?')}: {settings[arm]}"
                row |= {"alone": alone[arm]} if arm in alone else {}
            tables["runs"].append(row)
            own = [{"point": number, **row} for row in _series(run, "val/loss", "loss")]
            curves += own
            tables["lambdas"] += _scalars(number, run, most)
            tables["readout"] += _readout(number, run, most)
            tables["shares"] += _shares(number, run)
            tables["gates"] += _layers(number, run, _GATE, most)
            number += 1
        if points:
            colour = tables["runs"][-1]["colour"]
            tables["curves"] += curves
            tables["means"] += _means(arm, colour, curves)
            tables["rates"] += _rates(arm, colour, [evidence.runs[point.run] for point in points])
    return tables


def command(point: PlannedPoint) -> str:
    """What one types to repeat the run of a point."""
    return shlex.join(["python", "launch.py", *point.overrides])


def _run(number: int, point: PlannedPoint, run: Run, colour: str, base: float | None) -> Row:
    layers = [source for source in point.sources if isinstance(source, int)]
    depth = as_number(run.setting("model", "layers"))
    result = run.result or {}
    row = {
        "point": number,
        "arm": point.arm,
        "colour": colour,
        "run": run.name,
        "seed": point.seed,
        "state": run.outcome,
        "command": None if run.imported else command(point),  # nothing here repeats what came from a log
        "loss": run.val_loss,
        "difference": None if base is None or run.val_loss is None else run.val_loss - base,
        "baseline": base,
        "head": run.setting("head_type", "name"),
        "method": _method(point),
        "sources": len(point.sources),
        "layer": layers[0] if len(point.sources) == len(layers) == 1 else None,
        # Blocks between the output of a source and the output of the last block.
        "distance": depth - 1 - fmean(layers) if depth and layers and len(layers) == len(point.sources) else None,
        "flops": training_flops(result),
        "inference": _inference(result),
        "sparsity": _sparsity(run),
    }
    return {key: value for key, value in row.items() if value is not None}


def _method(point: PlannedPoint) -> str | None:
    """The ordering behind a point's sources."""
    return point.method or GIVEN if point.sources else None


def _kind(point: PlannedPoint, run: Run, is_baseline: bool) -> str:
    """What an arm is called where there are more arms than colours."""
    if is_baseline:
        return f"baseline: {point.arm}"
    kind = point.kind or "arm"
    head = run.setting("head_type", "name")
    return f"{kind}, {head}" if head and point.sources else kind


def _inference(result: Mapping[str, Any]) -> float | None:
    """FLOPs of a token's forward pass, in units of 1e6, as far as gates are open."""
    measured = inference_flops([result], "measured")
    return None if measured is None else measured / 1e6


def _sparsity(run: Run) -> float | None:
    """Mean part of the tokens whose gate is exactly 0, at the last validation that recorded it."""
    last = [series[-1][2] for key in run.recorded() if _ZEROS.fullmatch(key) and len(series := run.series(key))]
    return fmean(last) if last else None


def _series(run: Run, key: str, name: str) -> list[Row]:
    return [
        {"step": int(step), name: float(value)} | ({} if math.isnan(time) else {"time": float(time)})
        for step, time, value in run.series(key)
        if math.isfinite(value)
    ]


def _scalars(number: int, run: Run, most: int) -> list[Row]:
    """`lambda/skip/5` -> weight skip of layer 5; `lambda/block/3/x00` -> weight x00 of layer 3."""
    skips = [{**row, "weight": "skip"} for row in _layers(number, run, _SKIP, most)]
    return skips + _layers(number, run, _BLOCK, most)


def _readout(number: int, run: Run, most: int) -> list[Row]:
    """`lambda/x` -> weight x; `lambda/skip/input` -> weight skip/input."""
    keys = {key: match[1] for key in run.recorded() if (match := _READOUT.fullmatch(key))}
    return [
        {"point": number, "weight": name, **row}
        for key, name in keys.items()
        for row in _thin(_series(run, key, "value"), most)
    ]


def _layers(number: int, run: Run, pattern: re.Pattern[str], most: int) -> list[Row]:
    found = []
    for key in run.recorded():
        if match := pattern.fullmatch(key):
            fixed = {"point": number, "layer": int(match[1])} | ({"weight": match[2]} if pattern.groups > 1 else {})
            rows = [fixed | row for row in _thin(_series(run, key, "value"), most)]
            found += [row | {"last": i == len(rows) - 1} for i, row in enumerate(rows)]
    return found


def _shares(number: int, run: Run) -> list[Row]:
    found = run.mixed_shares()
    return [{"point": number, "layer": layer, "weight": term, "value": share} for layer, term, share in found]


def _means(arm: str, colour: str, curves: Iterable[Row]) -> list[Row]:
    """Mean, band and n per step; where some runs are behind, n says over how many. Only at steps that all runs that got
    as far have validated: a mean over now these, now those would zigzag between them."""
    steps: dict[int, list[Row]] = defaultdict(list)
    last: dict[int, int] = defaultdict(int)
    for row in curves:
        steps[row["step"]].append(row)
        last[row["point"]] = max(last[row["point"]], row["step"])
    found = []
    for step, rows in sorted(steps.items()):
        if len(rows) < sum(got >= step for got in last.values()):
            continue
        losses = [row["loss"] for row in rows]
        times = [row["time"] for row in rows if "time" in row]
        mean, spread = fmean(losses), descriptive.sd(losses)
        row: Row = {"arm": arm, "colour": colour, "step": step, "n": len(losses), "loss": mean}
        row |= {"time": fmean(times)} if len(times) == len(rows) else {}
        found.append(row | ({} if spread is None else {"low": mean - spread, "high": mean + spread}))
    return found


def _rates(arm: str, colour: str, runs: Iterable[Run]) -> list[Row]:
    for run in runs:
        keys = [key for key in run.recorded() if key.startswith("lr/")]
        if keys:
            fixed = {"arm": arm, "colour": colour}
            return [fixed | {"group": k[3:]} | row for k in keys for row in _thin(_series(run, k, "rate"), MOST_RATES)]
    return []


def _thin(rows: list[Row], most: int) -> list[Row]:
    """At most so many evenly spaced rows, the last one among them."""
    every = math.ceil(len(rows) / most) if rows else 1
    return rows[::-1][::every][::-1]
