"""Final losses against what the arms differ in: layer, ordering, distance, number of sources, FLOPs, sparsity."""

from typing import Any

import altair as alt

from skipsweep.analyze.figures import style
from skipsweep.analyze.figures.style import Figure
from skipsweep.analyze.figures.tables import Row, Tables

PAIRS = {
    "best_to_worst": "best/worst first",
    "worst_to_best": "best/worst first",
    "late_to_early": "late/early first",
    "early_to_late": "late/early first",
    "random": "random",
    "given": "given",
}
"""Orderings that are each other's reverse stand in one panel."""


_HEAD = "how it reaches the head"
_BASELINE = "baseline", "the baseline's mean"
_ALONE = "alone", "the mean without a source"
"""Column of a dashed line, and what it is."""


def per_arm(tables: Tables) -> Figure | None:
    """Final losses, arm by arm."""
    rows = style.has(tables["runs"], "loss")
    if not rows:
        return None
    arms = list(dict.fromkeys(row["arm"] for row in tables["runs"]))
    base = style.chart("runs").transform_filter("isValid(datum.loss)").properties(height=alt.Step(18))
    marks = style.rings(base, alt.X("loss:Q", title=style.LOSS, scale=style.apart()), tables, "arm")
    y = alt.Y("arm:N", sort=arms, title="arm", axis=alt.Axis(labelLimit=320))
    mean = base.mark_tick(thickness=2, size=16, color="#555").encode(x=alt.X("mean(loss):Q"), y=y)
    caption = f"One mark per run, n = {len(rows)}; the tick is the arm's mean. {_unfinished(tables)}"
    return Figure("loss-per-arm", "Final loss of every run", caption, alt.layer(marks.encode(y=y), mean))


def per_layer(tables: Tables) -> Figure | None:
    """Final loss over the one layer that the head sees as well; where arms differ in further settings, in panels by
    those, each with its own arm without sources."""
    several = bool(style.has(tables["runs"], "panel"))
    return _scatter(
        tables,
        "layer",
        alt.X("layer:O", title="skipped layer (0-based)", axis=alt.Axis(labelAngle=0)),
        "loss-per-layer",
        "Final loss per skipped layer",
        f"arms with a single layer as source; panels: {'the head, and what else differs' if several else _HEAD}",
        facet="panel" if several else "head",
        line=_ALONE if several else _BASELINE,
    )


def per_ordering(tables: Tables) -> Figure | None:
    """Final loss per selection method."""
    rows = [row for row in style.has(tables["runs"], "loss", "method") if row["sources"] > 1]
    if len({row["method"] for row in rows}) < 2:
        return None
    x = alt.X("method:N", title="ordering that chose the layers", axis=alt.Axis(labelAngle=0))
    return _scatter(
        tables, "method", x, "loss-per-ordering", "Final loss per ordering", "arms of several sources", several=True
    )


def over_distance(tables: Tables) -> Figure | None:
    """Final loss over the mean distance of the sources to the output."""
    x = alt.X("distance:Q", title="mean distance of the sources to the output (blocks)", scale=style.apart())
    note = "arms whose sources are layers"
    return _scatter(tables, "distance", x, "loss-over-distance", "Final loss over mean distance", note)


def over_count(tables: Tables) -> Figure | None:
    """Final loss over the number of sources: all orderings together, then each pair of opposite ones."""
    rows = [row for row in style.has(tables["runs"], "loss", "method") if row["sources"] > 1]
    if len({row["sources"] for row in rows}) < 2:
        return None
    panels = ["all", *dict.fromkeys(PAIRS.get(row["method"], row["method"]) for row in rows)]
    drawn = [_count_panel(tables, panel) for panel in panels]
    figure = alt.concat(*drawn, columns=2).resolve_scale(x="shared", y="shared")
    caption = (
        f"Arms of several sources, one mark per run, n = {len(rows)}; the line joins means over the runs of a panel "
        "(in the first one over all orderings)."
    )
    return Figure("loss-over-number", "Final loss over the number of sources", caption, figure)


def _count_panel(tables: Tables, panel: str) -> Any:
    base = style.chart("runs").transform_filter("isValid(datum.loss) && datum.sources > 1 && isValid(datum.method)")
    if panel != "all":
        methods = [m for m in {row.get("method") for row in tables["runs"]} if m and PAIRS.get(m, m) == panel]
        base = base.transform_filter(alt.FieldOneOfPredicate(field="method", oneOf=sorted(methods)))
    counts = sorted({row["sources"] for row in tables["runs"] if row["sources"] > 1})
    x = alt.X("sources:Q", title="number of sources (1)", axis=alt.Axis(values=counts, format="d"), scale=style.apart())
    split: dict[str, Any] = {"strokeDash": alt.StrokeDash("method:N", title="ordering")} if panel != "all" else {}
    line = base.mark_line(color="#777").encode(x=x, y=alt.Y("mean(loss):Q", title=style.LOSS), **split)
    marks = style.rings(base, x, tables, "sources")
    return alt.layer(line, marks).properties(title=panel, width=260, height=200)


def over_flops(tables: Tables) -> Figure | None:
    """Final loss over the FLOPs of the training, where arms differ in them."""
    x = alt.X("flops:Q", title="training FLOPs, forward and backward (PFLOP)", scale=style.apart())
    if len({row["flops"] for row in style.has(tables["runs"], "loss", "flops")}) < 2:
        return None
    return _scatter(tables, "flops", x, "loss-over-flops", "Final loss over FLOPs", "counted, not measured")


def over_inference(tables: Tables) -> Figure | None:
    """Final loss over the operations of a forward pass, where there are gates that save some (skip-middle paper, figure
    2)."""
    if not style.has(tables["runs"], "loss", "sparsity"):
        return None
    title = "forward pass, as far as gates are open (MFLOP per token)"
    x = alt.X("inference:Q", title=title, scale=style.apart())
    note = "counted: open tokens, and products of open queries with open keys in the last validation"
    return _scatter(tables, "inference", x, "loss-over-inference-flops", "Final loss over FLOPs of inference", note)


def over_sparsity(tables: Tables) -> Figure | None:
    """Final loss over the closed part of the gates."""
    title = "sparsity: part of the gates that are exactly 0, mean over layers (1)"
    x = alt.X("sparsity:Q", title=title, scale=style.apart())
    return _scatter(tables, "sparsity", x, "loss-over-sparsity", "Final loss over sparsity", "arms with gates")


def _scatter(
    tables: Tables,
    key: str,
    x: Any,
    name: str,
    title: str,
    note: str,
    facet: str | None = None,
    several: bool = False,
    line: tuple[str, str] = _BASELINE,
) -> Figure | None:
    rows = [row for row in style.has(tables["runs"], "loss", key) if not several or row["sources"] > 1]
    if not rows:
        return None
    wanted = f"isValid(datum.loss) && isValid(datum.{key})" + (" && datum.sources > 1" if several else "")
    base = style.chart("runs").transform_filter(wanted)
    marks: Any = alt.layer(_line(base, *line), style.rings(base, x, tables, key))
    if facet and len({row.get(facet) for row in rows}) > 1:
        marks = style.panels(marks.properties(width=260, height=240), f"{facet}:N", 2)
        # Also before the panels are made, or there would be empty ones.
        marks = marks.transform_filter(wanted)
    caption = (
        f"One mark per run, n = {len(rows)} ({note}). Equal points are rings around each other; dashed: {line[1]}."
    )
    return Figure(name, title, caption, marks)


def _line(base: alt.Chart, column: str, what: str) -> Any:
    """A line at a mean that every row of a panel has; none where that has no result."""
    known = base.transform_filter(f"isValid(datum.{column})")
    once = known.transform_aggregate(line=f"mean({column})").transform_filter("isValid(datum.line)")
    y = alt.Y("line:Q", title=style.LOSS)
    name = once.mark_text(align="left", baseline="bottom", dy=-2, color="#555")
    return alt.layer(
        once.mark_rule(strokeDash=[4, 4], color="#555").encode(y=y),
        name.encode(y=y, x=alt.value(4), text=alt.value(what.removeprefix("the "))),
    )


def _unfinished(tables: Tables) -> str:
    missing: list[Row] = [row for row in tables["runs"] if "loss" not in row]
    return f"{len(missing)} of {len(tables['runs'])} points have no final loss and no mark." if missing else ""
