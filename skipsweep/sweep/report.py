"""Reports as a person at a terminal meets them: on demand, and by themselves when a sweep ends.

`analyze.report` is imported where it is used: scipy and altair take a second to load, and plans do without them.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skipsweep.errors import UserError
from skipsweep.progress import number
from skipsweep.rundir import Multirun
from skipsweep.sweep import show

if TYPE_CHECKING:
    from skipsweep.analyze.power import Power
    from skipsweep.analyze.report import Report

MOST_ROWS = 30
"""Arms in the terminal; the page has them all."""


def make(multirun: Multirun, names: Sequence[str], baseline: str | None, out: Path | None, png: bool) -> Report:
    """Write the report of sweeps; see `analyze.report.make`."""
    from skipsweep.analyze import report

    return report.make(multirun, names, baseline, out, png)


def at_end(multirun: Multirun, name: str) -> None:
    """Write a sweep's report and say its answer. Never fails a launch: what goes wrong is one line."""
    try:
        made = make(multirun, [name], None, None, False)
        show.console.print(made.findings.answer, soft_wrap=True)
        show.place("report", made.page)
    except Exception as problem:
        what = str(problem).strip().splitlines()
        print(
            f"warning: no report: {type(problem).__name__}: {what[0] if what else '?'}; "
            f"again with: skipsweep report {name}",
            file=sys.stderr,
        )


def print_it(made: Report) -> None:
    """Counts, answer, warnings, losses and differences, and where the page lies."""
    found = made.findings
    show.headline(" and ".join(made.evidence.names), made.evidence.question)
    show.console.print(", ".join(f"{count} {name}" for name, count in found.counts.items()))
    show.console.print(found.answer, soft_wrap=True)
    for text in found.warnings:
        show.console.print(f"warning: {text}", soft_wrap=True)
    sheets = {sheet.file: sheet for sheet in found.sheets}
    rows = _joined(sheets["final_loss"].rows, sheets["difference"].rows if "difference" in sheets else ())
    table = show.table("arm", ">n", ">mean", ">sd", ">difference", ">95 % interval", ">p", "says")
    for row in rows[:MOST_ROWS]:
        table.add_row(*_cells(row))
    show.console.print(table)
    if len(rows) > MOST_ROWS:
        show.console.print(f"... and {len(rows) - MOST_ROWS} more arms")
    show.place("report", made.page)


def _joined(arms: Sequence[Mapping[str, Any]], differences: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    by_arm = {row["arm"]: row for row in differences}
    own = ("arm", "n", "planned", "mean", "sd")
    return [{**by_arm.get(row["arm"], {"says": ""}), **{key: row[key] for key in own}} for row in arms]


def _cells(row: Mapping[str, Any]) -> list[str]:
    interval = "-" if row.get("low_95") is None else f"{row['low_95']:+.5f} to {row['high_95']:+.5f}"
    difference, p = row.get("difference"), row.get("p")
    needed = row.get("seeds_to_tell")
    return [
        row["arm"],
        f"{row['n']}/{row['planned']}",
        "-" if row["mean"] is None else f"{row['mean']:.5f}",
        number(row["sd"], 5),
        "-" if difference is None else f"{difference:+.5f}",
        interval,
        "-" if p is None else f"{p:.2g}",
        row["says"] + (f" ({needed} seeds would detect it)" if needed else ""),
    ]


def power(
    multirun: Multirun,
    sweep: str | None,
    sd: float | None,
    seeds: int | None,
    difference: float | None,
    arms: int | None,
) -> Power:
    """See `analyze.power`. Raises UserError."""
    from skipsweep.analyze import power

    if (sweep is None) == (sd is None):
        raise UserError("give either a sweep that has finished runs, or --sd")
    spread = power.given(sd, arms or 2) if sd is not None else power.measured(multirun, sweep or "", arms)
    return power.table(spread, seeds, difference)


def print_power(made: Power) -> None:
    """One row per number of seeds."""
    spread = made.spread
    show.console.print(
        f"sd {spread.sd:.4g} nats/token ({spread.source}); {spread.arms} arms; detected with 80 % power at a level of "
        f"{made.alpha:.3g} for each comparison",
        soft_wrap=True,
    )
    table = show.table(">seeds per arm", ">smallest difference", ">seeds for half", ">GPU-hours for half")
    for row in made.rows:
        half, hours = row["seeds_for_half"], row["gpu_hours_for_half"]
        table.add_row(
            str(row["seeds"]),
            "-" if row["difference"] is None else f"{row['difference']:.3g}",
            "-" if half is None else str(half),
            "-" if hours is None else f"{hours:,.1f}",
        )
    show.console.print(table)
