"""The report as one HTML page that opens from disk: no network, no second file; figures also as SVG and PNG."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import vl_convert

from skipsweep import files
from skipsweep.analyze import figures
from skipsweep.analyze.evidence import Evidence
from skipsweep.analyze.figures import tables
from skipsweep.analyze.figures.style import Figure
from skipsweep.analyze.figures.tables import Tables
from skipsweep.analyze.findings import Findings

# Vega compiles its expressions with Function(), hence unsafe-eval; everything else is forbidden, fetching above all.
_POLICY = "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:"
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; font-size: 0.85rem } th, td { padding: 0.15rem 0.7rem; text-align: left }
th { border-bottom: 1px solid #222 } .number { text-align: right; font-variant-numeric: tabular-nums }
.wide { overflow-x: auto } .answer { font-size: 1.2rem; font-weight: 600 }
.warnings { border-left: 4px solid #D55E00; padding-left: 1rem } figure { margin: 2rem 0 }
figcaption { font-size: 0.9rem; color: #555 } code { font-size: 0.85rem }
#said { position: fixed; bottom: 1rem; right: 1rem; background: #222; color: #fff; padding: 0.4rem 0.8rem }
"""
MOST_ROWS = 30
"""Of a table that stands open: between the answer and the figures there is to be little to leaf through."""
# In braces: the bundle before it has names of its own at the top level.
_SCRIPT = """{
const data = JSON.parse(document.getElementById("data").textContent);
const specs = JSON.parse(document.getElementById("specs").textContent);
const said = document.getElementById("said");
function say(text) { said.textContent = text; said.hidden = false; setTimeout(() => { said.hidden = true }, 4000) }
function copy(text) {
  const shown = () => say(text);
  if (!navigator.clipboard) { shown(); return }
  navigator.clipboard.writeText(text).then(() => say("copied: " + text), shown);
}
const actions = { export: true, source: false, compiled: false, editor: false };
for (const [name, spec] of Object.entries(specs)) {
  vegaEmbed("#" + name, { ...spec, datasets: data }, { actions, renderer: "svg" }).then(({ view }) => {
    view.addEventListener("click", (_, item) => { if (item?.datum?.command) copy(item.datum.command) });
  }).catch((problem) => { document.getElementById(name).textContent = problem });
}
}"""


def write(evidence: Evidence, findings: Findings, folder: Path, png: bool = False) -> Path:
    """Write index.html and figures/*.svg (and .png) into `folder`; returns the page."""
    data = tables.of(evidence)
    drawn = figures.drawn(data)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    for figure in drawn:
        complete = _with_data(spec(figure), data)
        picture = folder / "figures" / figure.name
        files.write_bytes(picture.with_suffix(".svg"), vl_convert.vegalite_to_svg(complete).encode(), durable=False)
        if png:
            drawing = vl_convert.vegalite_to_png(complete, scale=2)
            files.write_bytes(picture.with_suffix(".png"), drawing, durable=False)
    page = folder / "index.html"
    files.write_bytes(page, html(evidence, findings, data, drawn).encode(), durable=False)
    return page


def spec(figure: Figure) -> dict[str, Any]:
    """A figure's Vega-Lite specification, without data."""
    bare = figure.chart.to_dict()
    # Browsers' fonts are wider than Vega takes them to be, and labels would run into titles.
    return {**bare, "config": {**bare.get("config", {}), "axisY": {"titlePadding": 14}}}


def _with_data(bare: Mapping[str, Any], data: Tables) -> dict[str, Any]:
    """The specification with the tables it names, and no others: every copy costs memory."""
    named = json.dumps(bare)
    return {**bare, "datasets": {name: rows for name, rows in data.items() if f'{{"name": "{name}"}}' in named}}


def html(evidence: Evidence, findings: Findings, data: Tables, drawn: Sequence[Figure]) -> str:
    """The page's text. Whatever comes from folders is escaped."""
    title = escape(" and ".join(evidence.names))
    body = [
        f"<h1>{escape(evidence.question) if evidence.question else title}</h1>",
        f"<p>Sweep {title}{_source(evidence)}.</p>",
        _counts(findings.counts),
        f'<p class="answer">{escape(findings.answer)}</p>',
        _warnings(findings.warnings),
        _arms(evidence),
        *(f"<h2>{escape(name)}</h2>{_table(rows)}" for name, rows in findings.tables.items()),
        "<h2>Figures</h2><p>Hover over a mark for its run; click it to copy the command that repeats the run.</p>",
        *map(_figure, drawn),
    ]
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            f"<title>{title}</title><style>{_STYLE}</style></head><body>",
            *body,
            '<p id="said" hidden></p>',
            f'<script type="application/json" id="data">{_json(data)}</script>',
            f'<script type="application/json" id="specs">{_json({f.name: spec(f) for f in drawn})}</script>',
            f"<script>{_bundle()}</script>",
            f"<script>{_SCRIPT}</script></body></html>",
        ]
    )


@cache
def _bundle() -> str:
    """Vega, Vega-Lite and vega-embed as one script without imports."""
    return vl_convert.javascript_bundle().replace("</script", "<\\/script")  # pyright: ignore[reportCallIssue] (its stub is wrong)


def _json(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _source(evidence: Evidence) -> str:
    return f" (source: {escape(evidence.source)})" if evidence.source else ""


def _counts(counts: Mapping[str, int]) -> str:
    text = ", ".join(f"{n} {escape(name)}" for name, n in counts.items())
    open_ = counts.get("planned", 0) - counts.get("done", 0)
    note = (
        " <strong>This sweep is not finished: every number covers only what is done so far.</strong>" if open_ else ""
    )
    return f"<p>Runs: {text}.{note}</p>"


def _warnings(warnings: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(text)}</li>" for text in warnings)
    return f'<div class="warnings"><h2>Warnings</h2><ul>{items}</ul></div>' if items else ""


def _arms(evidence: Evidence) -> str:
    """Each arm with the overrides that all of its points have; those of all arms stand above, once."""
    arms = evidence.arms()
    own = {
        arm: [o for o in points[0].overrides if all(o in point.overrides for point in points)]
        for arm, points in arms.items()
    }
    shared = [o for o in next(iter(own.values()), []) if all(o in overrides for overrides in own.values())]
    rows = [
        {
            "arm": arm,
            "role": "baseline" if arm == evidence.baseline else None,
            "points": len(arms[arm]),
            "overrides": " ".join(o for o in overrides if o not in shared) or None,
        }
        for arm, overrides in own.items()
    ]
    said = f"<p>All with <code>{escape(' '.join(shared))}</code></p>" if shared and len(own) > 1 else ""
    return f"<h2>Arms</h2>{said}{_table(rows)}"


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "<p>Nothing yet.</p>"
    columns = [_column(name, [row.get(name) for row in rows]) for name in dict.fromkeys(k for row in rows for k in row)]
    head, *lines = ("".join(column[i] for column in columns) for i in range(len(rows) + 1))
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    table = f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    if len(rows) <= MOST_ROWS:
        return table
    return f"<details><summary>{len(rows)} rows</summary>{table}</details>"


def _column(name: str, values: Sequence[Any]) -> list[str]:
    """Head and cells; numbers stand under each other with equally many decimals."""
    known = [value for value in values if value is not None]
    kind = ' class="number"' if known and all(isinstance(value, int | float) for value in known) else ""
    style = _format([value for value in known if isinstance(value, float)])
    shown = (f"{v:{style}}" if isinstance(v, float) else "-" if v is None else escape(str(v)) for v in values)
    return [f"<th{kind}>{escape(name)}</th>", *(f"<td{kind}>{text}</td>" for text in shown)]


def _format(values: Sequence[float]) -> str:
    """Losses differ in their fourth decimal and are shown with five; p-values and other small figures have three
    digits."""
    sizes = [abs(value) for value in values if value]
    if not sizes or all(round(value, 2) == value for value in values):
        return "g"
    if max(sizes) >= 100:
        return ".1f"
    return ".3g" if min(sizes) < 1e-4 and max(sizes) <= 1 else ".5f"


def _figure(figure: Figure) -> str:
    return (
        f'<figure><h3>{escape(figure.title)}</h3><div class="wide" id="{figure.name}"></div>'
        f"<figcaption>{escape(figure.caption)}</figcaption></figure>"
    )
