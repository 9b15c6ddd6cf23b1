"""A preempted run: seconds from SLURM's warning to the saved checkpoint, and from the requeue to the first new step.

    python benchmarks/preempting.py [TIMES]

On the private SLURM of the tests (a requeued job waits 5 s there, 120 s by default elsewhere), two ranks.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(CHECKOUT / "tests" / "slurm"), str(CHECKOUT / "tests")]

from cluster import Cluster  # noqa: E402
from commands import until  # noqa: E402
from sweeps import SlurmPlace, job_of  # noqa: E402

from skipsweep import checkpoint, files, lease  # noqa: E402
from skipsweep.rundir import RunDir  # noqa: E402
from skipsweep.slurm import submission  # noqa: E402

SLOW = ["data.batch_tokens=1024", "data.train_tokens=40000", "data.epochs=100", "compute.micro_batch=1"]
SLOW += ["schedule.steps=200", "record.val_every=10", "record.log_every=1", "record.checkpoint_every=0"]
"""Steps of 64 micro-batches, each of which leaves a row."""


def steps_done(run: RunDir) -> int:
    return max((row["step"] for row in run.read_metrics()), default=-1)


def once(cluster: Cluster, run: RunDir) -> tuple[float, float, float]:
    """(warning -> checkpoint, warning -> requeue, requeue -> first new row), in seconds."""
    target = steps_done(run) + 2
    until(lambda: steps_done(run) >= target, 120)
    attempt = lease.next_attempt(run)
    warned = time.time()
    cluster.call("scancel", "--signal=USR2", job_of(run))
    until(lambda: run.read_status()["state"] == "preempted", 60)
    saved = (checkpoint.steps(run.checkpoints)[0]).stat().st_mtime
    claim = submission.claim_of(run)
    assert claim is not None
    folder = Path(claim.folder)
    requeued = until(lambda: [r["time"] for r in submission.restarts(folder, claim.index) if r["time"] > warned])[0]
    first = until(lambda: [r["time"] for r in files.read_rows(run.metrics) if r["attempt"] == attempt], 120)[0]
    return saved - warned, requeued - warned, first - requeued


def main() -> None:
    times = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with tempfile.TemporaryDirectory(prefix="sl-", ignore_cleanup_errors=True) as text:
        root = Path(text)
        root.chmod(0o755)
        (root / "data").mkdir()
        with Cluster(root / "slurm") as cluster:
            place = SlurmPlace(root / "runs", root / "data", cluster)
            more = ("compute.processes=2", "seed=0", "sweep.name=s")
            place.launch("-m", "hydra.launcher.detach=true", *SLOW, *more)
            found = [once(cluster, place.runs_of("s")[0]) for _ in range(times)]
    for name, column in zip(("checkpoint", "requeue", "first new step"), zip(*found, strict=True), strict=True):
        start = "requeue" if name.startswith("first") else "warning"
        print(f"{start} -> {name}: median {statistics.median(column):.2f} s, {min(column):.2f} to {max(column):.2f}")


if __name__ == "__main__":
    main()
