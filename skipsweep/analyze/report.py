"""`skipsweep report`: read sweeps, draw conclusions, write page, figures and tables."""

import csv
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from skipsweep import files
from skipsweep.analyze import evidence as reading
from skipsweep.analyze import findings as concluding
from skipsweep.analyze import page
from skipsweep.analyze.evidence import Evidence
from skipsweep.analyze.findings import Findings, Sheet
from skipsweep.errors import UserError
from skipsweep.rundir import Multirun


@dataclass(frozen=True)
class Report:
    """A report as written."""

    evidence: Evidence
    findings: Findings
    page: Path
    """index.html; beside it figures/ and tables/."""


def make(
    multirun: Multirun, names: Sequence[str], baseline: str | None = None, out: Path | None = None, png: bool = False
) -> Report:
    """Write index.html, figures/*.svg (and .png) and tables/*.csv into `out`, by default where `place` says.

    Raises UserError for a sweep or a baseline that is not there, and for a folder that cannot be written.
    """
    evidence = reading.read(multirun, names)
    if baseline is not None:
        evidence = _with_baseline(evidence, baseline)
    findings = concluding.find(evidence)
    folder = place(multirun, evidence.names) if out is None else out
    try:
        written = page.write(evidence, findings, folder, png)
        _write_tables(findings.sheets, folder / "tables")
    except OSError as problem:
        raise UserError(f"no report can be written to {folder} ({problem}); --out names another") from problem
    return Report(evidence, findings, written)


def place(multirun: Multirun, names: Sequence[str]) -> Path:
    """Where a report belongs: sweeps/<name>/report; of several sweeps reports/<name>+<name>."""
    if len(names) == 1:
        return multirun.sweep(names[0]).report
    joined = "+".join(names)
    if len(joined) > 100:
        joined = f"{joined[:87]}-{hashlib.sha256(joined.encode()).hexdigest()[:12]}"
    return multirun.reports / joined


def _with_baseline(evidence: Evidence, baseline: str) -> Evidence:
    arms = list(evidence.arms())
    if baseline not in arms:
        raise UserError(
            f"--baseline {baseline} is not an arm of {' and '.join(evidence.names)}; valid: {', '.join(arms)}"
        )
    return reading.with_baseline(evidence, baseline)


def _write_tables(sheets: Sequence[Sheet], folder: Path) -> None:
    """Write every table; one of an earlier report that there is no longer is removed."""
    folder.mkdir(parents=True, exist_ok=True)
    for sheet in sheets:
        files.write_bytes(folder / f"{sheet.file}.csv", _csv(sheet).encode(), durable=False)
    for old in folder.glob("*.csv"):
        if old.stem not in {sheet.file for sheet in sheets}:
            old.unlink(missing_ok=True)


def _csv(sheet: Sheet) -> str:
    """All digits; a missing value is an empty cell."""
    text = io.StringIO()
    names = list(dict.fromkeys(key for row in sheet.rows for key in row))
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(sheet.rows)
    return text.getvalue()
