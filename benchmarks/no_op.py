"""What a run that does nothing leaves behind."""

from typing import Any

from skipsweep import files
from skipsweep.lease import Lease
from skipsweep.rundir import RunDir

CURVE = [{"step": step, "tokens": step, "train_time_s": 1.0, "val/loss": 2.0} for step in (0, 12)]
RESULT: dict[str, Any] = {"val_loss": 2.0, "steps": 12, "tokens": 1536, "train_time_s": 1.0, "val_curve": CURVE}
RESULT |= {"parameters": {"blocks": 1}, "lambdas": {}, "unigram_entropy": 3.0, "flops_per_token": {"blocks": 1}}


def finish(run: RunDir, held: Lease) -> None:
    """End as a run does."""
    files.write_json(run.result, RESULT | {"id": run.id, "attempt": held.attempt})
    run.write_status("done", attempt=held.attempt)
    held.release()
