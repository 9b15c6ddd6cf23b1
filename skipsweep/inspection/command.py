"""`skipsweep inspect`."""

from pathlib import Path

from skipsweep.errors import UserError
from skipsweep.inspection.document import Inspection
from skipsweep.inspection.inspect import inspect
from skipsweep.inspection.write import write
from skipsweep.rundir import RunDir


def run(asked: RunDir, text: str | None, top: int, layers: str | None, out: Path | None) -> tuple[Inspection, Path]:
    """Inspect a run and write the files; returns the inspection, and their folder. Raises UserError."""
    inspection = inspect(asked, text, top, _layers(layers))
    folder = out or asked.inspection
    try:
        write(inspection, folder)
    except OSError as problem:
        raise UserError(f"{folder} cannot be written: {problem.strerror}; valid: --out FOLDER") from problem
    return inspection, folder


def _layers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as problem:
        raise UserError(f"--layers {text}; valid: layers with commas between, such as 0,5,7") from problem
