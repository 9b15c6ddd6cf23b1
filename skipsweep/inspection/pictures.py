"""Pictures of an inspection: what every layer predicts, how long the stream is, what the output is made of.

Colours are viridis, or the blue and orange of Okabe & Ito (2008): told apart by all kinds of colour vision.
"""

import json
from pathlib import Path
from typing import Any

import altair as alt

from skipsweep import files
from skipsweep.inspection.document import Inspection, visible

BLUE, ORANGE = "#0072B2", "#E69F00"
CELL_W, CELL_H, BAR_H = 44, 22, 18
LONGEST = 7
"""Characters of a token that fit a cell."""
SCALE = 2.0
"""Pixels of the PNG per unit of the SVG."""


def save(inspection: Inspection, folder: Path) -> list[Path]:
    """Write tokens, streams and contributions as SVG and PNG; returns their paths."""
    import vl_convert

    paths = []
    for name, chart in (
        ("tokens", tokens(inspection)),
        ("streams", streams(inspection)),
        ("contributions", contributions(inspection)),
    ):
        spec = chart.to_json()
        svg, png = folder / f"{name}.svg", folder / f"{name}.png"
        files.write_bytes(svg, vl_convert.vegalite_to_svg(spec).encode(), durable=False)
        files.write_bytes(png, vl_convert.vegalite_to_png(spec, scale=SCALE), durable=False)
        paths += [svg, png]
    return paths


def tokens(inspection: Inspection) -> Any:
    """Heat map: the likeliest next token at every position, as decoded from every layer, the output and embeddings."""
    few = [lens for lens in inspection.lens if not lens.aside]
    rows = [
        {"at": at, "what": lens.title, "token": _cell(guesses[0].text), "p": guesses[0].p}
        for lens in few
        for at, guesses in enumerate(lens.top)
    ]
    order = [lens.title for lens in few]
    given = [_cell(token.text) for token in inspection.prompt]
    labels = alt.Axis(
        labelExpr=f"{_list(given)}[datum.value]",
        labelAngle=0,
        orient="top",
        title="token read",
        ticks=False,
        domain=False,
    )
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X("at:O", axis=labels), y=alt.Y("what:N", sort=order, title="decoded from")
    )
    heat = base.mark_rect().encode(
        color=alt.Color(
            "p:Q",
            scale=alt.Scale(scheme="viridis", domain=[0, 1]),
            legend=alt.Legend(title="probability of the likeliest next token", titleLimit=0),
        )
    )
    text = base.mark_text(fontSize=9, font="monospace").encode(
        text="token:N", color=alt.condition("datum.p > 0.6", alt.value("black"), alt.value("white"))
    )
    size = {"width": CELL_W * len(given), "height": CELL_H * len(order)}
    return _titled(heat + text, "Next token as the head decodes it", inspection).properties(**size)


def streams(inspection: Inspection) -> Any:
    """Bars: RMS of the stream after every layer, and of the embeddings."""
    groups = (("residual stream", inspection.stream_rms), ("embedding", inspection.embedding_rms))
    rows = [{"what": what, "rms": value, "kind": kind} for kind, values in groups for what, value in values.items()]
    colour = alt.Color("kind:N", scale=alt.Scale(domain=[g for g, _ in groups], range=[BLUE, ORANGE]), title=None)
    chart = _bars(rows, "rms", "root mean square over positions and channels").encode(color=colour)
    return _titled(chart, "Length of the residual stream and of embeddings", inspection)


def contributions(inspection: Inspection) -> Any:
    """Bars: every source's part along the output."""
    rows = [{"what": one.name, "share": one.share} for one in inspection.contributions]
    colour = alt.condition("datum.share >= 0", alt.value(BLUE), alt.value(ORANGE))
    chart = _bars(rows, "share", "part along the output (all sum to 1)").encode(color=colour)
    of = {"stream": "the stream that leaves the trunk", "readout": "the readout's sum"}[inspection.contributions_of]
    return _titled(chart, f"Where {of} comes from", inspection)


def _bars(rows: list[dict[str, Any]], field: str, title: str) -> Any:
    order = [row["what"] for row in rows]
    chart = alt.Chart(alt.Data(values=rows)).mark_bar()
    size = {"width": 480, "height": BAR_H * len(rows)}
    return chart.encode(x=alt.X(f"{field}:Q", title=title), y=alt.Y("what:N", sort=order, title=None)).properties(
        **size
    )


def _titled(chart: Any, title: str, inspection: Inspection) -> Any:
    subtitle = f"{inspection.run}, step {inspection.step}; {inspection.prompt_source}"
    return chart.properties(title=alt.TitleParams(title, subtitle=subtitle, anchor="start"))


def _cell(text: str) -> str:
    shown = visible(text)
    return shown if len(shown) <= LONGEST else shown[: LONGEST - 1] + "…"


def _list(texts: list[str]) -> str:
    """A list of strings as a Vega expression."""
    return json.dumps(texts)
