"""Inspection as the last thing that a run does (`record.inspect=true`)."""

import contextlib

from skipsweep import files
from skipsweep.rundir import RunDir


def inspect(run: RunDir) -> None:
    """Inspect a run whose result stands. It is done whatever happens here: what went wrong is printed and noted."""
    problem_at = run.inspection / "problem.txt"
    try:
        # Not at the top: drawing libraries are slow to load, and no training is to depend on them.
        from skipsweep.inspection.inspect import inspect
        from skipsweep.inspection.write import write

        write(inspect(run), run.inspection)
        problem_at.unlink(missing_ok=True)
    except Exception as problem:
        line = f"{type(problem).__name__}: {problem}".splitlines()[0]
        print(f"warning: not inspected: {line}", flush=True)
        with contextlib.suppress(OSError):
            run.inspection.mkdir(exist_ok=True)
            files.write_bytes(problem_at, f"{line}\n".encode(), durable=False)
