"""What all charts have in common: data by name, colours of arms, tooltips, axes."""

from dataclasses import dataclass
from typing import Any

import altair as alt

from skipsweep.analyze.figures.tables import Row, Tables

COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#999999")
"""Okabe and Ito's palette, which the colour-blind can tell apart; its yellow, illegible on white, is grey here."""
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [12, 4], [4, 8])
WIDTH, HEIGHT = 560, 300
LOSS = "final validation loss (nats/token)"
_JOINED = ["arm", "colour", "run", "seed", "difference", "command", "method", "head", "sources"]


@dataclass(frozen=True)
class Figure:
    """A chart without its data, and what it shows."""

    name: str
    """File name without suffix."""
    title: str
    caption: str
    chart: Any
    """An altair chart over named data (`figures.tables`)."""


def chart(table: str) -> alt.Chart:
    """A chart over a shared table; one row per point or arm."""
    return alt.Chart(alt.NamedData(name=table)).properties(width=WIDTH, height=HEIGHT)


def joined(table: str) -> alt.Chart:
    """A chart over a shared table, with what `runs` knows of each point."""
    lookup = alt.LookupData(data=alt.NamedData(name="runs"), key="point", fields=_JOINED)
    return chart(table).transform_lookup(lookup="point", from_=lookup)


def domain(tables: Tables) -> list[str]:
    """Names that colours stand for, in the order of the arms."""
    return list(dict.fromkeys(row["colour"] for row in tables["runs"]))


def colour(tables: Tables) -> alt.Color:
    """The same name has the same colour in every figure of a page."""
    names = domain(tables)
    scale = alt.Scale(domain=names, range=[COLOURS[i % len(COLOURS)] for i in range(len(names))])
    return alt.Color("colour:N", scale=scale, legend=_legend())


def _legend() -> alt.Legend:
    """One for colour, shape and dash: Vega-Lite makes them a single legend where they are the same."""
    return alt.Legend(title=None, labelLimit=260, symbolLimit=60, symbolOpacity=1)


def shape(tables: Tables) -> alt.Shape:
    """Tells apart what has to share a colour."""
    names = domain(tables)
    marks = [SHAPES[i // len(COLOURS) % len(SHAPES)] for i in range(len(names))]
    return alt.Shape("colour:N", scale=alt.Scale(domain=names, range=marks), legend=_legend())


def dash(tables: Tables) -> alt.StrokeDash:
    """Tells apart what has to share a colour."""
    names = domain(tables)
    lines = [DASHES[i // len(COLOURS) % len(DASHES)] for i in range(len(names))]
    return alt.StrokeDash("colour:N", scale=alt.Scale(domain=names, range=lines), legend=_legend())


def apart(**more: Any) -> alt.Scale:
    """A scale whose outermost marks keep off the frame, and that need not begin at 0."""
    return alt.Scale(zero=False, padding=12, **more)


def panels(marks: Any, field: str, columns: int, title: str | None = None) -> Any:
    """A panel for each value of `field`, each with an axis of its own: of a last row that is not full the others would
    stand beside nothing."""
    faceted = marks.facet(facet=alt.Facet(field, title=title), columns=columns)
    return faceted.resolve_axis(x="independent")


def hover(*more: Any) -> list[Any]:
    """Run, seed, and difference from the baseline's mean."""
    fixed = [alt.Tooltip("run:N"), alt.Tooltip("arm:N"), alt.Tooltip("seed:Q")]
    return [*fixed, *more, alt.Tooltip("difference:Q", title="loss - baseline's mean", format="+.5f")]


def rings(base: alt.Chart, x: Any, tables: Tables, key: str) -> alt.Chart:
    """One hollow mark per row of `base` at (`key`, loss). Marks that coincide are drawn as rings around each other, so
    that none hides another."""
    return (
        ringed(base, key, "loss")
        .mark_point(filled=False, strokeWidth=1.6)
        .encode(
            x=x,
            y=alt.Y("loss:Q", title=LOSS, scale=apart()),
            color=colour(tables),
            shape=shape(tables),
            size=RING,
            tooltip=hover(alt.Tooltip("loss:Q", format=".5f")),
        )
    )


RING = alt.Size("area:Q", scale=None, legend=None)


def ringed(base: alt.Chart, *keys: str) -> alt.Chart:
    """Gives every row an area for its mark that grows with the rows before it that have the same `keys`."""
    counted = base.transform_window(ring="row_number()", groupby=list(keys))
    return counted.transform_calculate(area="30 + 60 * (datum.ring - 1)")


def has(rows: list[Row], *keys: str) -> list[Row]:
    """The rows that know all of `keys`."""
    return [row for row in rows if all(key in row for key in keys)]
