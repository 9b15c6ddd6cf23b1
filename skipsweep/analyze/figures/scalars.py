"""What was learned layer by layer: weights of the skips and of the blocks' inputs, gates."""

import json
from typing import Any

import altair as alt

from skipsweep.analyze.figures import style
from skipsweep.analyze.figures.style import Figure
from skipsweep.analyze.figures.tables import Row, Tables

LAYER = "layer (0-based)"
FEWEST = 3
"""Values of which an outline says more than the values themselves."""


def skips(tables: Tables) -> Figure | None:
    """Learned skip lambdas at the end of training, per source layer (violins of the multi-output article)."""
    rows = [row for row in tables["lambdas"] if row.get("weight") == "skip" and row["last"]]
    if not rows:
        return None
    wanted, chosen = "datum.weight == 'skip' && datum.last", ""
    methods = sorted({method for row in rows if (method := tables["runs"][row["point"]].get("method"))})
    if len(methods) > 1:
        wanted += " && (ordering == null || datum.method == ordering)"
        chosen = " Below the figure one ordering can be chosen."
    marks = _violins("lambdas", rows, wanted, "skip_lambda (1)", tables)
    if chosen:
        options = alt.binding_select(options=[None, *methods], labels=["all", *methods], name="ordering: ")
        marks = marks.add_params(alt.param("ordering", value=None, bind=options))
    caption = f"Weight of each source at the last validation. {_outlined(rows, 'source')}{chosen}"
    return Figure("skip-lambdas", "Learned weights of the skips", caption, marks)


def blocks(tables: Tables) -> Figure | None:
    """Learned weights of each block's input: the stream, and the token embeddings."""
    rows = [row for row in tables["lambdas"] if row.get("weight") != "skip" and row["last"]]
    if not rows:
        return None
    marks = _by_weight("lambdas", rows, "datum.last", "weight in the block's input (1)", tables)
    names = sorted({row["weight"] for row in rows})
    caption = (
        f"What the input of every block is a weighted sum of ({', '.join(names)}), at the last validation; as learned, "
        f"not corrected for norms. {_outlined(rows, 'layer')}"
    )
    return Figure("block-lambdas", "Learned weights of the blocks' inputs", caption, marks)


def shares(tables: Tables) -> Figure | None:
    """The same, corrected for the norms of what is weighed (x00-x04 article), of runs whose weights have been read."""
    rows = tables["shares"]
    if not rows:
        return None
    marks = _by_weight("shares", rows, "true", "share of the block's input (1)", tables)
    caption = (
        "Weight times root mean square of what it weighs, over the sum of such absolute values, on the text that a run "
        f"was inspected with. {_outlined(rows, 'layer')}"
    )
    return Figure("block-shares", "Norm-corrected weights of the blocks' inputs", caption, marks)


def skip_curves(tables: Tables) -> Figure | None:
    """Skip lambdas over steps."""
    rows = [row for row in tables["lambdas"] if row.get("weight") == "skip"]
    return _curves(
        "lambdas", rows, "datum.weight == 'skip'", "skip_lambda (1)", "skip-lambdas-over-steps",
        "Weights of the skips over steps", tables,
    )  # fmt: skip


def readout(tables: Tables) -> Figure | None:
    """Weights at the head that belong to no layer, over steps: that of the stream, of an input or extra embedding."""
    return _curves(
        "readout", tables["readout"], "true", "weight at the head (1)", "readout-weights-over-steps",
        "Weights of the readout over steps", tables, "weight",
    )  # fmt: skip


def gates(tables: Tables) -> Figure | None:
    """Gates over steps, layer by layer."""
    return _curves(
        "gates", tables["gates"], "true", "gate, mean over tokens (1)", "gates-over-steps", "Gates over steps", tables
    )


def _by_weight(table: str, rows: list[Row], wanted: str, title: str, tables: Tables) -> Any:
    """A panel for each of the weights in `rows`. Not facets: of layers with lookups Vega-Lite makes none."""
    panels = []
    for weight in sorted({row["weight"] for row in rows}):
        own = [row for row in rows if row["weight"] == weight]
        marks = _violins(table, own, f"{wanted} && datum.weight == {json.dumps(weight)}", title, tables)
        panels.append(marks.properties(title=weight, width=260, height=200))
    return alt.concat(*panels, columns=2)


def _violins(table: str, rows: list[Row], wanted: str, title: str, tables: Tables) -> Any:
    """Outlines of the values' density at each layer, and on them a ring for every value. `rows`: those of `table` that
    `wanted` selects."""
    base = style.joined(table).transform_filter(wanted)
    layers, extent = sorted({row["layer"] for row in rows}), _around([row["value"] for row in rows])
    scale = alt.Scale(domain=[layers[0] - 0.6, layers[-1] + 0.6], nice=False)
    axis = alt.Axis(
        values=list(range(layers[0], layers[-1] + 1)), format="d", grid=False, labelOverlap="greedy", labelFlush=False
    )
    x = alt.X("layer:Q", title=LAYER, axis=axis, scale=scale)
    y = alt.Y("value:Q", title=title, scale=alt.Scale(domain=extent))
    outline = (
        base.transform_joinaggregate(n="count()", sd="stdev(value)", groupby=["layer"])
        .transform_filter(f"datum.n >= {FEWEST} && datum.sd > 0")
        .transform_density("value", groupby=["layer"], extent=extent, as_=["value", "density"], steps=60)
        .transform_joinaggregate(most="max(density)", groupby=["layer"])
        # Tails that nobody sees would be lines through the whole figure.
        .transform_filter("datum.density > 0.01 * datum.most")
        .transform_calculate(
            left="datum.layer - 0.4 * datum.density / datum.most",
            right="datum.layer + 0.4 * datum.density / datum.most",
        )
        .mark_area(orient="horizontal", color="#999", opacity=0.3)
        .encode(x=alt.X("left:Q", title=LAYER), x2="right:Q", y=y, detail="layer:O")
    )
    values = (
        style.ringed(base, "layer", "value", "method")
        .mark_point(filled=False, strokeWidth=1.4, opacity=0.8)
        .encode(
            x=x,
            y=y,
            color=style.colour(tables),
            shape=style.shape(tables),
            size=style.RING,
            tooltip=style.hover("layer:O", alt.Tooltip("value:Q", format="+.4f")),
        )
    )
    return alt.layer(outline, values)


def _around(values: list[float]) -> list[float]:
    """From below the least to above the greatest."""
    low, high = min(values), max(values)
    margin = 0.1 * (high - low) or 0.1 * abs(high) or 0.1
    return [low - margin, high + margin]


def _curves(
    table: str, rows: list[Row], wanted: str, y: str, name: str, title: str, tables: Tables, panel: str = "layer"
) -> Figure | None:
    if not rows:
        return None
    lines = (
        style.joined(table)
        .transform_filter(wanted)
        .properties(width=180, height=130)
        .mark_line(strokeWidth=1.2, opacity=0.8)
        .encode(
            x=alt.X("step:Q", title="training step (steps)"),
            y=alt.Y("value:Q", title=y),
            color=style.colour(tables),
            strokeDash=style.dash(tables),
            detail="point:N",
            tooltip=style.hover(f"{panel}:N", "step:Q", alt.Tooltip("value:Q", format="+.4f")),
        )
    )
    kind, title_of = ("O", LAYER) if panel == "layer" else ("N", panel)
    panels = style.panels(lines, f"{panel}:{kind}", 3, title=title_of)
    caption = f"One line per run, one panel per {panel}{_runs(rows)}"
    return Figure(name, title, caption, panels)


def _outlined(rows: list[Row], place: str) -> str:
    return (
        f"One ring per run and {place}, n = {len(rows)}{_runs(rows)} Grey: their density, its widest place as wide "
        f"everywhere, from {FEWEST} different values on."
    )


def _runs(rows: list[Row]) -> str:
    return f"; {len({row['point'] for row in rows})} runs."
