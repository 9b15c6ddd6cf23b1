"""Launch overhead per run for no-op runs: ours, here and as SLURM jobs, beside Hydra's own launchers.

    python benchmarks/launching.py [RUNS]

No-op means: a process is started that marks itself as done. Ours goes through planning, freezing, leases and status
files; the others call an empty function. Hydra's launchers are measured where they are installed
(pip install hydra-joblib-launcher hydra-submitit-launcher); SLURM is the private one of the tests, two cores.

Then 1,000 runs, held in the queue: fails where freezing and submitting them takes more than 30 s, or `skipsweep status`
more than 1 s.
"""

import importlib.metadata
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(CHECKOUT / "tests" / "slurm"), str(CHECKOUT / "tests")]

from bounds import Bounds  # noqa: E402
from cluster import Cluster, missing  # noqa: E402
from commands import Place  # noqa: E402
from sweeps import SlurmPlace, stand_in  # noqa: E402

JOB = """
import os, sys
from pathlib import Path
from skipsweep import lease
from skipsweep.rundir import RunDir
run = RunDir(Path(sys.argv[1]))
held = lease.acquire(run)
run.write_status("running")
sys.path.insert(0, {tests!r})
from no_op import finish
finish(run, held)
"""

HYDRA_APP = """
import hydra
@hydra.main(version_base="1.3", config_path=None)
def main(cfg):
    pass
main()
"""


def seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def hydra(folder: Path, launcher: list[str], runs: int, environment: dict[str, str]) -> float:
    """An empty function in Hydra, `runs` times."""
    folder.mkdir()
    (folder / "app.py").write_text(HYDRA_APP)
    command = [sys.executable, "app.py", "-m", *launcher, f"+x=range({runs})"]
    return seconds(lambda: subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True))


def ours_on_slurm(folder: Path, cluster: Cluster, runs: int, *more: str) -> float:
    place = SlurmPlace(folder / "runs", folder / "data", cluster)
    (folder / "data").mkdir(parents=True)
    command = ["-m", *stand_in(folder / "play", {}), f"seed=range(0,{runs})", "sweep.name=s", *more]
    place.launch("-m", "seed=9999", "plan=true")  # the corpus is tokenised once
    return seconds(lambda: check(place.launch(*command).status))


def ours_here(folder: Path, runs: int) -> float:
    """With a stand-in for the job that loads no torch either."""
    import skipsweep

    (folder / "data").mkdir(parents=True)
    package = folder / "code" / "skipsweep"
    package.mkdir(parents=True)
    place = Place(folder / "runs", folder / "data")
    place.launch("-m", "seed=9999", "plan=true")
    (package / "__init__.py").write_text(f"__path__.append({str(Path(skipsweep.__file__).parent)!r})")
    (package / "job.py").write_text(JOB.format(tests=str(Path(__file__).parent)))
    script = "import sys\nfrom pathlib import Path\nfrom skipsweep.sweep import entry, launch\n"
    script += "code = Path(sys.argv[1])\nlaunch._frozen_code = lambda plan: code\n"
    script += "sys.exit(launch.launch(entry.from_command_line(sys.argv[2:])))"
    arguments = place.arguments("-m", f"seed=range(0,{runs})", "sweep.name=s", "hydra.launcher.parallel=2")
    command = [sys.executable, "-c", script, str(package.parent), *arguments]
    return seconds(lambda: subprocess.run(command, env=place.environment, check=True, capture_output=True))


MANY, SUBMIT_S, STATUS_S = 1000, 30, 1


def many(folder: Path, cluster: Cluster, bounds: Bounds) -> None:
    """Submit what will not run, and look at it; the better of three looks, Python's start included."""
    place = SlurmPlace(folder / "runs", folder / "data", cluster)
    (folder / "data").mkdir(parents=True)
    place.launch("-m", "seed=9999", "plan=true")
    hold = ("hydra.launcher.detach=true", "hydra.launcher.additional_parameters={hold:true}")
    command = ["-m", *hold, f"seed=range(0,{MANY})", "sweep.name=many"]
    bounds.check(f"{MANY} runs frozen and submitted", seconds(lambda: check(place.launch(*command).status)), SUBMIT_S)
    looks = [seconds(lambda: place.skipsweep("status", "many", "--json")) for _ in range(3)]
    bounds.check(f"skipsweep status of {MANY} runs in the queue", min(looks), STATUS_S)


def check(status: int) -> None:
    if status:
        raise SystemExit(f"the launch ended with {status}")


def has(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


class Figures(dict[str, float]):
    """Prints every figure as it comes in."""

    def __init__(self, runs: int):
        super().__init__()
        self._runs = runs
        print(f"{runs} no-op runs, seconds per run", flush=True)

    def __setitem__(self, name: str, took: float) -> None:
        print(f"{name:55} {took / self._runs:6.3f}", flush=True)
        super().__setitem__(name, took)


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    found, bounds = Figures(runs), Bounds()
    with tempfile.TemporaryDirectory(prefix="sl-", ignore_cleanup_errors=True) as text:
        root = Path(text)
        root.chmod(0o755)
        found["ours, this machine, 2 at a time"] = ours_here(root / "here", runs)
        if has("hydra-joblib-launcher"):
            options = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
            found["hydra-joblib-launcher, 2 at a time"] = hydra(root / "joblib", options, runs, dict(os.environ))
        if not missing(accounting=True):
            with Cluster(root / "slurm", accounting=True) as cluster:
                limit = "hydra.launcher.array_parallelism=4"
                found["ours, SLURM, 4 jobs at a time"] = ours_on_slurm(root / "ours", cluster, runs, limit)
                cluster.empty()
                packed = ("hydra.launcher.pack=true",)
                found["ours, SLURM, packed 8 to a job"] = ours_on_slurm(root / "packed", cluster, runs, *packed)
                cluster.empty()
                many(root / "many", cluster, bounds)
                cluster.empty()
                if has("hydra-submitit-launcher"):
                    options = ["hydra/launcher=submitit_slurm", limit, "hydra.launcher.timeout_min=20"]
                    name = "hydra-submitit-launcher, SLURM, 4 jobs at a time"
                    found[name] = hydra(root / "submitit", options, runs, cluster.environment)
    bounds.end()


if __name__ == "__main__":
    main()
