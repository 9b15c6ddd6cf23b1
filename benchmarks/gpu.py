"""Is the GPU path right, and how fast is it? Checks, then measurements, on one GPU, in under 8 minutes on an H100.

    python benchmarks/gpu.py [--out FOLDER] [--quick] [--sections NAME ...]

Needs torch, numpy and PyYAML, and no installation of this package. Every section runs in a process of its own, so that
one that crashes or hangs costs only itself. What was found goes to FOLDER/gpu.json and FOLDER/gpu.md (a table) as it is
found. The exit code is 1 if a check failed. `--device cpu --quick` runs the same code on small models, without times
that mean anything; there the compiler's front end alone is used.
"""

import argparse
import json
import math
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a GPU machine need not have the package installed

from skipsweep import provenance

LIMIT = 470
"""Seconds for everything."""

SECTIONS = {
    "attention": 150,
    "blocks": 200,
    "loss": 150,
    "optimiser": 150,
    "trainer": 200,
    "gates": 150,
    "medium": 220,
    "medium_warm": 120,
    "medium_heads": 180,
    "small": 150,
    "skipping": 60,
}
"""Name -> most seconds it may take."""

CHECKS = ("attention", "blocks", "loss", "optimiser", "trainer", "gates")
"""Sections that measure no times: most of theirs is compilation, so they run at once."""

SHARED_CACHE = ("medium", "medium_warm", "medium_heads")
"""Sections whose compiled kernels are kept on disk for the next of them; the others start with an empty cache."""


@dataclass
class Row:
    """One line of the table."""

    section: str
    what: str
    status: str
    """`ok`, `FAILED`, `error`, or `measured`."""
    value: str
    limit: str = ""
    note: str = ""


class Report:
    """Takes what a section finds, prints it, and appends it to a file of JSON lines at once."""

    def __init__(self, section: str, path: Path, quick: bool = False) -> None:
        self.section, self.quick, self._path = section, quick, path

    def check(self, what: str, value: float, limit: float, note: str = "") -> None:
        """A number that must not be above its limit; NaN is."""
        ok = math.isfinite(value) and value <= limit
        self._add(what, "ok" if ok else "FAILED", f"{value:.3g}", f"{limit:.3g}", note)

    def holds(self, what: str, is_so: bool, note: str = "") -> None:
        """Something that must be so."""
        self._add(what, "ok" if is_so else "FAILED", "yes" if is_so else "no", "yes", note)

    def measured(self, what: str, value: str, note: str = "") -> None:
        """A figure without a limit."""
        self._add(what, "measured", value, "", note)

    @contextmanager
    def guarded(self, what: str) -> Iterator[None]:
        """Put an exception into the table and go on."""
        try:
            yield
        except Exception as problem:
            traceback.print_exc()
            line = (str(problem).strip().splitlines() or [""])[0]
            self._add(what, "error", type(problem).__name__, "", line[:300])

    def _add(self, what: str, status: str, value: str, limit: str, note: str) -> None:
        row = Row(self.section, what, status, value, limit, note)
        with self._path.open("a") as out:
            out.write(json.dumps(asdict(row)) + "\n")
        against = f" (limit {limit})" if limit else ""
        print(f"  {status:8} {self.section}: {what}: {value}{against} {note}".rstrip(), flush=True)


# ---------------------------------------------------------------------------------------------------------- one section


def work(name: str, device: str, report: Report) -> None:
    """Do a section in this process."""
    import gpu_checks
    import gpu_gates
    import gpu_speed

    found: dict[str, Callable[[Report, str], None]] = gpu_checks.SECTIONS | gpu_gates.SECTIONS | gpu_speed.SECTIONS
    with report.guarded(name):
        found[name](report, device)


# -------------------------------------------------------------------------------------------------------- all of them


class Conductor:
    """Starts the sections one after the other and gathers what they find."""

    def __init__(self, out: Path, device: str, quick: bool, scratch: Path) -> None:
        self.rows: list[Row] = []
        self._out, self._device, self._quick, self._scratch = out, device, quick, scratch
        self._start = time.monotonic()
        self._facts = facts()

    def run(self, names: Sequence[str]) -> None:
        """Sections, each in a process of its own, at the same time."""
        now = time.monotonic()
        took = now - self._start
        print(f"[{took:5.0f} s] {', '.join(names)}", flush=True)
        started = {name: self._started(name) for name in names if took < LIMIT - 20}
        for name in names:
            failure = (
                self._ended(name, started[name], now) if name in started else f"not run: {LIMIT} s were nearly over"
            )
            self._gather(name, failure)
            self.write()

    def _started(self, name: str) -> subprocess.Popen[bytes]:
        arguments = ["--section", name, "--device", self._device, "--found", str(self._found(name))]
        command = [sys.executable, __file__, *arguments, *["--quick"] * self._quick]
        return subprocess.Popen(command, env=self._environment(name), start_new_session=True)

    def _ended(self, name: str, process: subprocess.Popen[bytes], since: float) -> str:
        """What went wrong, if anything did."""
        seconds = min(SECTIONS[name], LIMIT - (since - self._start))
        try:
            code = process.wait(max(since + seconds - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # the compiler's workers with it
            process.wait()
            return f"stopped after {seconds:.0f} s"
        return f"exit code {code}" if code else ""

    def _gather(self, name: str, failure: str) -> None:
        if self._found(name).exists():
            self.rows += [Row(**json.loads(line)) for line in self._found(name).read_text().splitlines()]
        if failure:
            self.rows.append(Row(name, name, "error", failure))

    def _found(self, name: str) -> Path:
        return self._scratch / f"{name}.jsonl"

    def _environment(self, name: str) -> dict[str, str]:
        cache = self._scratch / ("shared" if name in SHARED_CACHE else name)
        own = {
            "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
            "TRITON_CACHE_DIR": str(cache / "triton"),
            "GPU_SECTION_STARTED": repr(time.time()),
        }
        # two names: the second since torch 2.10
        allocator = dict.fromkeys(("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"), "expandable_segments:True")
        return {**allocator, **os.environ, **own}

    def write(self) -> None:
        """gpu.json and gpu.md, of what there is so far."""
        self._out.mkdir(parents=True, exist_ok=True)
        took = round(time.monotonic() - self._start)
        content = {"facts": {**self._facts, "seconds": took}, "rows": [asdict(row) for row in self.rows]}
        (self._out / "gpu.json").write_text(json.dumps(content, indent=1))
        (self._out / "gpu.md").write_text(markdown(content["facts"], self.rows))


def facts() -> dict[str, Any]:
    """Commit, versions and GPU."""
    found = {"commit": provenance.commit(), "code": provenance.code_hash(), "python": platform.python_version()}
    for package in ("torch", "triton", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found | {"gpu": _gpu(), "cpus": provenance.cpus()}


def _gpu() -> str | None:
    """Name, memory and driver; None without one."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except OSError:
        return None
    return done.stdout.strip() or None


def markdown(about: dict[str, Any], rows: list[Row]) -> str:
    """The table, with what it was measured on above it."""
    lines = [", ".join(f"{key} {value}" for key, value in about.items() if value is not None), ""]
    lines += ["| section | what | result | limit | status | note |", "|---|---|---|---|---|---|"]
    for row in rows:
        cells = (row.section, row.what, row.value, row.limit, row.status, row.note)
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Check, measure, print; 1 if something failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("multirun/benchmarks"), help="folder for gpu.md and gpu.json")
    parser.add_argument("--quick", action="store_true", help="small models and few repetitions")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--sections", nargs="*", choices=tuple(SECTIONS), default=tuple(SECTIONS))
    parser.add_argument("--section", help=argparse.SUPPRESS)
    parser.add_argument("--found", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.section:
        work(args.section, args.device, Report(args.section, args.found, args.quick))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        conductor = Conductor(args.out, args.device, args.quick, Path(scratch))
        checks = [name for name in args.sections if name in CHECKS]
        for names in [checks] * bool(checks) + [[name] for name in args.sections if name not in CHECKS]:
            conductor.run(names)
    print(markdown({}, conductor.rows))
    return int(any(row.status in ("FAILED", "error") for row in conductor.rows))


if __name__ == "__main__":
    sys.exit(main())
