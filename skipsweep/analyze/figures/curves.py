"""Losses while training, and the schedules behind them."""

from typing import Any

import altair as alt

from skipsweep.analyze.figures import style
from skipsweep.analyze.figures.style import Figure
from skipsweep.analyze.figures.tables import Row, Tables


def over_steps(tables: Tables) -> Figure | None:
    """Validation loss over steps."""
    x = alt.X("step:Q", title="training step (steps)")
    return _losses(tables, "step", x, "loss-over-steps", "Validation loss over steps")


def over_time(tables: Tables) -> Figure | None:
    """Validation loss over training time; an arm's mean stands at its mean time."""
    x = alt.X("time:Q", title="training time, without compilation and validation (s)")
    return _losses(tables, "time", x, "loss-over-time", "Validation loss over training time")


def _losses(tables: Tables, key: str, x: Any, name: str, title: str) -> Figure | None:
    rows, means = style.has(tables["curves"], key), style.has(tables["means"], key)
    if not rows:
        return None
    title_y = "validation loss (nats/token)"
    y = alt.Y("loss:Q", title=title_y, scale=_settled(rows))
    base = style.chart("means").transform_filter(alt.datum[key] != None)  # noqa: E711 (an expression of Vega)
    shared: dict[str, Any] = {"x": x, "color": style.colour(tables), "detail": "arm:N"}
    band = (
        base.mark_area(opacity=0.15, clip=True)
        .encode(y=alt.Y("low:Q", title=title_y), y2="high:Q", **shared)
        .transform_filter("isValid(datum.low)")
    )
    single = (
        style.joined("curves")
        .mark_line(opacity=0.3, strokeWidth=0.8, clip=True)
        .encode(x=x, y=y, color=style.colour(tables), detail="point:N", tooltip=style.hover())
    )
    mean = base.mark_line(strokeWidth=2, clip=True).encode(
        y=y,
        strokeDash=style.dash(tables),
        tooltip=["arm:N", "step:Q", alt.Tooltip("loss:Q", format=".5f"), alt.Tooltip("n:Q", title="runs")],
        **shared,
    )
    runs, arms = len({row["point"] for row in rows}), len({row["arm"] for row in means})
    caption = (
        "Thick: mean of each arm over the runs that have reached a step, where all of them validated at it; band: one "
        f"standard deviation (from two runs on); thin: single runs. {runs} runs of {arms} arms. The axis begins where "
        "the first quarter of the training ends. Scroll to zoom, drag to move, double-click to reset."
    )
    zoom = alt.selection_interval(bind="scales", name=f"zoom_{key}")
    return Figure(name, title, caption, alt.layer(band, single, mean.add_params(zoom)))


def _settled(rows: list[Row]) -> alt.Scale:
    """Losses after the first quarter: an untrained model's is so much higher that arms would lie on one line."""
    last = max(row["step"] for row in rows)
    losses = [row["loss"] for row in rows if row["step"] >= last / 4]
    margin = 0.05 * (max(losses) - min(losses))
    return alt.Scale(zero=False, domain=[min(losses) - margin, max(losses) + margin]) if margin else style.apart()


def rates(tables: Tables) -> Figure | None:
    """Learning rate of each parameter group over steps."""
    rows = tables["rates"]
    if not rows:
        return None
    groups = list(dict.fromkeys(row["group"] for row in rows))
    lines = (
        style.chart("rates")
        .properties(width=250, height=150)
        .mark_line()
        .encode(
            x=alt.X("step:Q", title="training step (steps)"),
            y=alt.Y("rate:Q", title="learning rate (1)"),
            color=style.colour(tables),
            strokeDash=style.dash(tables),
            detail="arm:N",
            tooltip=["arm:N", "group:N", "step:Q", "rate:Q"],
        )
    )
    faceted = style.panels(lines, "group:N", 2).resolve_scale(y="independent")
    arms = len({row["arm"] for row in rows})
    caption = (
        f"Learning rate as recorded, for {len(groups)} groups of parameters; one run for each of {arms} arms. "
        "Lines that coincide are the same schedule."
    )
    return Figure("learning-rates", "Learning rates", caption, faceted)
