"""What was learned layer by layer: weights of the skips and of the blocks' inputs, gates."""

from typing import Any

import altair as alt

from skipsweep.analyze.figures import style
from skipsweep.analyze.figures.style import Figure
from skipsweep.analyze.figures.tables import Row, Tables


def skips(tables: Tables) -> Figure | None:
    """Learned skip lambdas at the end of training, per source layer, a panel per ordering where there are several."""
    rows = [row for row in tables["lambdas"] if row.get("weight") == "skip" and row["last"]]
    if not rows:
        return None
    methods = {tables["runs"][row["point"]].get("method") for row in rows}
    marks: Any = _strip("datum.weight == 'skip' && datum.last", "skip_lambda (1)", tables)
    if len(methods) > 1:
        marks = style.panels(marks.properties(width=260, height=200), "method:N", 2)
    caption = f"Weight of each source at the last validation; one mark per run and source, n = {len(rows)}{_runs(rows)}"
    return Figure("skip-lambdas", "Learned weights of the skips", caption, marks)


def blocks(tables: Tables) -> Figure | None:
    """Learned weights of each block's input: the stream, and the token embeddings."""
    rows = [row for row in tables["lambdas"] if row.get("weight") != "skip" and row["last"]]
    if not rows:
        return None
    marks = _by_weight(_strip("datum.weight != 'skip' && datum.last", "weight in the block's input (1)", tables))
    names = sorted({row["weight"] for row in rows})
    caption = (
        f"What the input of every block is a weighted sum of ({', '.join(names)}), at the last validation; as learned, "
        f"not corrected for norms. One mark per run and layer, n = {len(rows)}{_runs(rows)}"
    )
    return Figure("block-lambdas", "Learned weights of the blocks' inputs", caption, marks)


def shares(tables: Tables) -> Figure | None:
    """The same, corrected for the norms of what is weighed (seed 003), of runs whose weights have been read."""
    rows = tables["shares"]
    if not rows:
        return None
    marks = _by_weight(_strip("true", "share of the block's input (1)", tables, "shares"))
    caption = (
        "Weight times root mean square of what it weighs, over the sum of such absolute values, on the text that a run "
        f"was inspected with. One mark per run and layer, n = {len(rows)}{_runs(rows)}"
    )
    return Figure("block-shares", "Norm-corrected weights of the blocks' inputs", caption, marks)


def skip_curves(tables: Tables) -> Figure | None:
    """Skip lambdas over steps."""
    rows = [row for row in tables["lambdas"] if row.get("weight") == "skip"]
    return _curves(
        "lambdas", rows, "datum.weight == 'skip'", "skip_lambda (1)", "skip-lambdas-over-steps",
        "Weights of the skips over steps", tables,
    )  # fmt: skip


def gates(tables: Tables) -> Figure | None:
    """Gates over steps, layer by layer."""
    return _curves(
        "gates", tables["gates"], "true", "gate, mean over tokens (1)", "gates-over-steps", "Gates over steps", tables
    )


def _by_weight(marks: alt.Chart) -> Any:
    panels = style.panels(marks.properties(width=260, height=200), "weight:N", 2)
    return panels.resolve_scale(y="independent")


def _strip(wanted: str, title: str, tables: Tables, table: str = "lambdas") -> alt.Chart:
    return (
        style.ringed(style.joined(table).transform_filter(wanted), "weight", "layer", "value", "method")
        .mark_point(filled=False, strokeWidth=1.4, opacity=0.8)
        .encode(
            x=alt.X("layer:O", title="layer (0-based)", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("value:Q", title=title, scale=style.apart()),
            color=style.colour(tables),
            shape=style.shape(tables),
            size=style.RING,
            tooltip=style.hover("layer:O", alt.Tooltip("value:Q", format="+.4f")),
        )
    )


def _curves(table: str, rows: list[Row], wanted: str, y: str, name: str, title: str, tables: Tables) -> Figure | None:
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
            tooltip=style.hover("layer:O", "step:Q", alt.Tooltip("value:Q", format="+.4f")),
        )
    )
    panels = style.panels(lines, "layer:O", 3, title="layer (0-based)")
    caption = f"One line per run, one panel per layer{_runs(rows)}"
    return Figure(name, title, caption, panels)


def _runs(rows: list[Row]) -> str:
    return f"; {len({row['point'] for row in rows})} runs."
