"""What a multirun folder holds to look at: sweeps with their counts, reports of several sweeps; and when it changed."""

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from skipsweep import sweep_file
from skipsweep.analyze.documents import observed
from skipsweep.errors import UserError
from skipsweep.progress import duration
from skipsweep.rundir import Multirun, RunDir
from skipsweep.status import FINAL

Stamp = tuple[tuple[str, int, int], ...]
"""(file, time of change in ns, size) of everything that a report is made of."""


@dataclass(frozen=True)
class Entry:
    """One sweep."""

    name: str
    question: str | None
    runs: int
    counts: dict[str, int]
    """State, as `skipsweep status` says it -> number of runs."""
    changed: float | None
    """When a run or the plan last changed, in seconds since 1970."""
    problem: str | None = None
    """Why the sweep cannot be read."""

    @property
    def state(self) -> str:
        if self.problem is not None:
            return "damaged"
        if self.counts.get("running"):
            return "running"
        return "finished" if sum(self.counts.get(state, 0) for state in FINAL) == self.runs else "unfinished"


def entries(multirun: Multirun) -> list[Entry]:
    """All sweeps, the most recently changed first."""
    found = [_entry(multirun, sweep.name) for sweep in multirun.all_sweeps()]
    return sorted(found, key=lambda entry: (-(entry.changed or 0), entry.name))


def united(multirun: Multirun) -> list[str]:
    """Names of the reports of several sweeps."""
    try:
        with os.scandir(multirun.reports) as found:
            return sorted(one.name for one in found if Path(one.path, "index.html").is_file())
    except OSError:
        return []


def _entry(multirun: Multirun, name: str) -> Entry:
    try:
        plan = sweep_file.read_plan(multirun, name)
        runs = [multirun.run(run) for run in sweep_file.runs(sweep_file.points(name, plan))]
    except UserError as problem:
        return Entry(name, None, 0, {}, None, str(problem))
    times = [changed for _, changed, _ in _stamp(multirun, name, runs)]
    counts = Counter(observed(run).state for run in runs)
    return Entry(name, plan.get("question"), len(runs), counts, max(times) / 1e9 if times else None)


def stamp(multirun: Multirun, name: str) -> Stamp:
    """Changes whenever a report of the sweep may say something else. Raises UserError."""
    runs = sweep_file.runs(sweep_file.read_points(multirun, name))
    return _stamp(multirun, name, [multirun.run(run) for run in runs])


def _stamp(multirun: Multirun, name: str, runs: Sequence[RunDir]) -> Stamp:
    return tuple(_stats([multirun.sweep(name).plan, *(f for r in runs for f in (r.status, r.metrics, r.result))]))


def _stats(paths: Sequence[Path]) -> Iterator[tuple[str, int, int]]:
    for path in paths:
        try:
            found = path.stat()
        except OSError:
            continue
        yield str(path), found.st_mtime_ns, found.st_size


# ----------------------------------------------------------------------------------------------------------------- page

STATES = ("done", "failed", "running", "submitted", "preempted", "interrupted", "planned", "new", "damaged")
"""In the order of the index's text."""
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; width: 100% }
th, td { padding: 0.3rem 0.8rem; text-align: left; vertical-align: top }
th { border-bottom: 1px solid #222 } tr + tr td { border-top: 1px solid #ddd } a { color: #0072B2 }
footer { margin-top: 2rem; font-size: 0.85rem; color: #555 }
.running { font-weight: 600 } .damaged { color: #a33c00 }
"""
_SCRIPT = """
setInterval(async () => {
  if (document.hidden) return;
  try {
    const text = await (await fetch(location.href)).text();
    const fresh = new DOMParser().parseFromString(text, "text/html").querySelector("main");
    document.querySelector("main").replaceWith(fresh);
  } catch { document.querySelector("footer").textContent = "the board has stopped" }
}, 5000);
"""


def html(multirun: Multirun) -> str:
    """The index; it renews itself every few seconds."""
    now = time.time()
    rows = "".join(_row(entry, now) for entry in entries(multirun))
    table = (
        "<table><thead><tr><th>sweep</th><th>question</th><th>runs</th><th>state</th><th>last change</th></tr></thead>"
        f"<tbody>{rows}</tbody></table>"
    )
    together = "".join(f'<li><a href="reports/{escape(name)}/">{escape(name)}</a></li>' for name in united(multirun))
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            f"<title>skipsweep board</title><style>{_STYLE}</style></head><body>",
            f"<main><h1>Sweeps</h1>{table if rows else '<p>No sweep yet.</p>'}",
            f"<h2>Several sweeps together</h2><ul>{together}</ul>" if together else "",
            f"</main><footer>{escape(str(multirun.path))}</footer><script>{_SCRIPT}</script></body></html>",
        ]
    )


def _row(entry: Entry, now: float) -> str:
    name = escape(entry.name)
    counts = ", ".join(f"{entry.counts[state]} {state}" for state in STATES if entry.counts.get(state))
    link = name if entry.problem else f'<a href="sweeps/{name}/">{name}</a>'
    age = "-" if entry.changed is None else f"{duration(max(0.0, now - entry.changed))} ago"
    cells = (
        link,
        escape(entry.question or "-"),
        escape(entry.problem or f"{counts} of {entry.runs}"),
        entry.state,
        age,
    )
    return f'<tr class="{entry.state}">' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
