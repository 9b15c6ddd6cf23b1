"""A run's logs, wherever it was executed."""

from pathlib import Path

from skipsweep import lease
from skipsweep.rundir import RunDir
from skipsweep.slurm import submission


def logs_of(run: RunDir) -> list[Path]:
    """Files to read, the most telling last: of the newest attempt, or of the job where there was none."""
    attempt = lease.next_attempt(run) - 1
    paths = [run.log(attempt, "out"), run.log(attempt, "err")] if attempt else []
    told = run.read_status().get("log")
    if told and Path(told) not in paths:
        paths.append(Path(told))
    paths = [path for path in paths if path.exists()]
    claim = submission.claim_of(run)
    if claim and not any(path.stat().st_size for path in paths):
        job = submission.log_of(Path(claim.folder), claim.index)
        paths += [path for path in (job.with_suffix(".out"), job) if path.exists() and path not in paths]
    return paths


def tail(path: Path, lines: int) -> tuple[int, str]:
    """(Bytes that the file has now, the last lines of them)."""
    end = path.stat().st_size
    with open(path, "rb") as f:
        start = f.seek(max(0, end - 400 * lines))
        text = f.read(end - start).decode(errors="replace")
    return end, "\n".join(text.splitlines()[-lines:])
