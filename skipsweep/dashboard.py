"""`skipsweep dashboard SWEEP`: a saved wandb workspace that compares a sweep's arms, orderings and numbers of sources.

Built from plan.json alone, so it can be made before the first run has logged anything. What it groups and filters by
is what mirror.py logs of every run: a tag `sweep/<name>`, and `serves.<sweep>.arm`, `.ordering` and `.N` in the
configuration.
"""

import importlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from skipsweep import mirror
from skipsweep.config import Wandb
from skipsweep.errors import UserError
from skipsweep.rundir import Multirun
from skipsweep.sweep_file import arms, points, read_plan, read_points

FINAL_LOSS = "result/val_loss"
MOST_LINES = 100
"""Groups or runs that one panel draws; wandb's own default is 10."""


@dataclass(frozen=True)
class Subject:
    """What a dashboard is of."""

    sweep: str
    question: str | None
    arms: int
    groupings: tuple[str, ...]
    """Of `arm`, `ordering`, `N`: those in which the sweep's points differ."""


@dataclass(frozen=True)
class Place:
    """Where at wandb the runs are."""

    entity: str | None
    """None: the account's default."""
    project: str


def read(multirun: Multirun, sweep: str) -> Subject:
    """Raises UserError for a sweep that does not exist."""
    plan = read_plan(multirun, sweep)
    found = points(sweep, plan)
    orderings = {point.method for point in found if len(point.sources) > 1}
    numbers = {len(point.sources) for point in found}
    varied = {"arm": True, "ordering": len(orderings) > 1, "N": len(numbers) > 1}
    groupings = tuple(name for name, varies in varied.items() if varies)
    return Subject(sweep, plan.get("question"), len(arms(found)), groupings)


def place(multirun: Multirun, sweep: str, entity: str | None, project: str | None) -> Place:
    """Where one run of every arm logs to, unless said otherwise.

    Raises UserError where they log to several places, or nowhere.
    """
    of_arms = [of_arm[-1].run for of_arm in arms(read_points(multirun, sweep)).values()]
    frozen = [multirun.run(run) for run in of_arms if multirun.run(run).config.exists()]
    loggers = [logger for run in frozen if isinstance(logger := run.read_config().logger, Wandb)]
    found = {Place(entity or logger.entity, project or logger.project) for logger in loggers}
    if len(found) > 1:
        places = ", ".join(f"{one.entity or '(default)'}/{one.project}" for one in found)
        raise UserError(f"runs of {sweep} log to several places ({places}); say --entity and --project")
    if found:
        return found.pop()
    if project is None:
        raise UserError(f"no run of {sweep} logs to wandb (logger=none); `skipsweep sync` does, then say --project")
    return Place(entity, project)


def specification(subject: Subject, place: Place) -> dict[str, Any]:
    """The workspace as wandb stores it. Asks no server."""
    # The library's public way to it is to save it.
    return {**_workspace(subject, place)._spec, "entity": place.entity}


def save(subject: Subject, place: Place) -> str:
    """Save it at wandb; returns its address. Raises whatever wandb raises without login, network or project."""
    import wandb

    entity = place.entity or wandb.Api().default_entity
    if entity is None:
        raise UserError("the wandb account has no default entity; say --entity")
    return _workspace(subject, Place(entity, place.project)).save().url


# ------------------------------------------------------------------------------------------------------------ its parts


def _library(name: str) -> Any:
    """A module of wandb_workspaces, which is an extra and takes seconds to import."""
    try:
        return importlib.import_module(f"wandb_workspaces.{name}")
    except ImportError as problem:
        raise UserError(f"dashboards need one more package ({problem}): pip install -e '.[dashboard]'") from problem


def _workspace(subject: Subject, place: Place) -> Any:
    ws, expr = _library("workspaces"), _library("expr")
    keys = [_key(subject, name) for name in subject.groupings]
    return ws.Workspace(
        name=_name(subject),
        entity=place.entity or "",
        project=place.project,
        sections=[ws.Section(name=name, panels=panels, is_open=True) for name, panels in _sections(subject)],
        settings=ws.WorkspaceSettings(max_runs=MOST_LINES, x_axis="step"),
        runset_settings=ws.RunsetSettings(
            filters=expr.And(expr.Tags().isin([mirror.sweep_tag(subject.sweep)])),
            # an arm is one ordering and one number: grouped by these where there are several
            groupby=[expr.Config(key) for key in keys[1:] or keys],
            order=[expr.Ordering(expr.Summary(FINAL_LOSS), ascending=True)],
            pinned_columns=[f"summary:{FINAL_LOSS}", *(f"config:{key}" for key in map(_column, keys))],
        ),
    )


def _name(subject: Subject) -> str:
    """Sweep and question, without symbols (`=`, `+`, an arrow), which wandb refuses in a name."""
    text = f"{subject.sweep}: {subject.question}" if subject.question else subject.sweep
    return "".join(" " if unicodedata.category(letter)[0] in "SC" else letter for letter in text)


def _key(subject: Subject, name: str) -> str:
    return f"serves.{mirror.sweep_key(subject.sweep)}.{name}"


def _column(key: str) -> str:
    """A nested key as wandb names columns: `.value` behind its first part."""
    first, _, rest = key.partition(".")
    return f"{first}.value.{rest}"


_SAID = {"arm": "arm", "ordering": "ordering", "N": "number of sources"}


def _sections(subject: Subject) -> list[tuple[str, list[Any]]]:
    loss = "validation loss (nats/token)"
    return [
        ("Final loss", [*_bars(subject, FINAL_LOSS, f"final {loss}"), *_scatter(subject)]),
        ("Loss over steps", [
            *_lines(subject, "step", "training step", loss, y=["val/loss"]),
            *_lines(subject, "step", "training step", "training loss (nats/token)", ["arm"], y=["train/loss"]),
        ]),
        ("Loss over training time", _lines(subject, "train_time_s", "training time (s)", loss, y=["val/loss"])),
        ("Weights of the skips", [
            *_lines(subject, "step", "training step", "skip_lambda (1)", metric_regex="lambda/skip/.*"),
            *_lines(subject, "step", "training step", "x_lambda (1)", y=["lambda/x"]),
        ]),
        ("Weights inside the trunk, gates, learning rates, cost", [
            *(
                _lines(subject, "step", "training step", f"{said} (1)", ["arm"], metric_regex=f"{key}.*")[0]
                for key, said in TRUNK.items()
            ),
            *_bars(subject, "result/train_time_s", "training time (s)", ["arm"]),
        ]),
    ]  # fmt: skip


TRUNK = {
    "lambda/unet": "weight of a skip between blocks",
    "lambda/block/": "weight in a block's input",
    "lambda/value/": "weight in attention values",
    "gate/": "gate, mean over tokens",
    "lr/": "learning rate",
}
"""Prefix of logged labels -> what their values are."""


def _lines(
    subject: Subject, x: str, title_x: str, title_y: str, groupings: Sequence[str] = (), **what: Any
) -> list[Any]:
    """For each grouping a panel of means over its runs, with bands of one standard deviation."""
    wr = _library("reports.v2")
    return [
        wr.LinePlot(
            title=f"{title_y} by {_SAID[name]}",
            x=x,
            title_x=title_x,
            title_y=title_y,
            groupby=wr.Config(_key(subject, name)),
            groupby_aggfunc="mean",
            groupby_rangefunc="stddev",
            max_runs_to_show=MOST_LINES,
            **what,
        )
        for name in groupings or subject.groupings
    ]


def _bars(subject: Subject, metric: str, title: str, groupings: Sequence[str] = ()) -> list[Any]:
    wr = _library("reports.v2")
    return [
        wr.BarPlot(
            title=f"{title} by {_SAID[name]}, mean over runs",
            metrics=[wr.SummaryMetric(metric)],
            title_x=title,
            groupby=wr.Config(_key(subject, name)),
            groupby_aggfunc="mean",
            groupby_rangefunc="stddev",
            max_bars_to_show=MOST_LINES,
        )
        for name in groupings or subject.groupings
    ]


def _scatter(subject: Subject) -> list[Any]:
    """Every run by itself, where the number of sources varies."""
    wr = _library("reports.v2")
    x, y = wr.Config(_key(subject, "N")), wr.SummaryMetric(FINAL_LOSS)
    return [wr.ScatterPlot(title="final validation loss over number of sources", x=x, y=y)] * ("N" in subject.groupings)
