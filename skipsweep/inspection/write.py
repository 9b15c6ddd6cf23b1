"""An inspection as files: inspection.json, and pictures as SVG and PNG."""

from dataclasses import asdict
from pathlib import Path

from skipsweep import files
from skipsweep.inspection import pictures
from skipsweep.inspection.document import Inspection


def write(inspection: Inspection, folder: Path) -> list[Path]:
    """Write all files of an inspection; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    document = folder / "inspection.json"
    files.write_json(document, asdict(inspection), durable=False)
    return [document, *pictures.save(inspection, folder)]
