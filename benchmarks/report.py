"""A report of many runs: time, memory, size of the page. And how often a report finds something where nothing is.

python benchmarks/report.py [RUNS] [VALIDATIONS] [SIMULATED SWEEPS]     (1000 50 1000)

Fails where a report of that many takes more than 20 s or 1 GB.
"""

import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from bounds import Bounds

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT / "tests"))

from sweep_folders import Made  # noqa: E402

from skipsweep.analyze import statistics  # noqa: E402

SEEDS = 10
DEFAULT = [1000, 50, 1000]
MOST_S, MOST_MIB = 20, 1024


def folders(place: Path, runs: int, validations: int) -> None:
    """A sweep of `runs` runs: a baseline, and arms with 1 to 5 sources and their lambdas, 10 seeds each."""
    draw = random.Random(0)
    made = Made(place, name="many", baseline="none", target=2.92)
    for i in range(runs // SEEDS):
        sources = sorted(draw.sample(range(8), draw.randint(1, 5))) if i else []
        losses = [draw.gauss(2.92, 0.0007) for _ in range(SEEDS)]
        lambdas = {f"lambda/skip/{layer}": draw.gauss(-0.2, 0.05) for layer in sources} | {"lambda/x": 0.8}
        name = f"arm {i}" if i else "none"
        made.arm(name, losses, sources=sources, lambdas=lambdas, validations=validations, steps=5000)
    made.write()


def measure(place: Path) -> tuple[float, float, float]:
    """(seconds, CPU seconds, peak MiB) of `skipsweep report`, in a process of its own."""
    begun = time.perf_counter()
    command = [sys.executable, "-c", "from skipsweep.cli import main; main()", "report", "many"]
    subprocess.run([*command, "--multirun", str(place)], check=True, stdout=subprocess.DEVNULL)
    seconds, used = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def found_something(sweeps: int, arms: int, runs: int) -> float:
    """Share of sweeps of identical arms in which an arm is told from the baseline."""
    generator, found = np.random.default_rng(0), 0
    for _ in range(sweeps):
        base, *others = generator.normal(2.92, 0.0007, size=(arms, runs)).tolist()
        tests = statistics.compare(base, {str(i): losses for i, losses in enumerate(others)})
        found += any(test.p is not None and test.p < statistics.ALPHA for test in tests.values())
    return found / sweeps


def main() -> None:
    given = [int(a) for a in sys.argv[1:]]
    runs, validations, sweeps = given + DEFAULT[len(given) :]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        folders(place, runs, validations)
        seconds, cpu, memory = measure(place)
        page = place / "sweeps" / "many" / "report" / "index.html"
        size = page.stat().st_size / 1e6
        bounds = Bounds()
        bounds.check(f"{runs} runs with {validations} validations (CPU {cpu:.1f} s)", seconds, MOST_S)
        bounds.check("its memory", memory, MOST_MIB, "MiB")
        print(f"the page: {size:.1f} MB")
    for arms, n in ((5, 3), (5, 8), (16, 5)) if sweeps else ():
        share = found_something(sweeps, arms, n)
        print(f"{sweeps} sweeps of {arms} identical arms, {n} runs each: {share:.3f} found something")
    bounds.end()


if __name__ == "__main__":
    main()
