"""A report of many runs: time, memory, size of the page. And how often a report finds something where nothing is, and
what it finds where something is.

python benchmarks/report.py [RUNS] [VALIDATIONS] [SIMULATED SWEEPS]     (1000 50 1000)

Fails where a report of that many takes more than 20 s or 1 GB.
"""

import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
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
SD = 0.0007
"""Of runs that differ in their seeds alone, nats per token."""


@dataclass(frozen=True)
class Case:
    """Sweeps to simulate, the baseline first."""

    what: str
    runs: Sequence[int]
    sds: Sequence[float] = ()
    """Of each arm, in units of `SD`; all 1 by default."""
    shift: float = 0.0
    """True difference of the second arm to the baseline, in units of `SD`; of the others there is none."""
    diverged: bool = False
    """Whether one run of the last arm ends at 7.3."""


CASES = (
    Case("5 arms, 3 runs each", [3] * 5),
    Case("5 arms, 8 runs each", [8] * 5),
    Case("16 arms, 5 runs each", [5] * 16),
    Case("5 arms, 2 runs each", [2] * 5),
    Case("4 arms of 5 runs, one of 3 with 5 times the sd", [5, 5, 5, 5, 3], [1, 1, 1, 1, 5]),
    Case("4 arms of 8 runs, one of 2 with 5 times the sd", [8, 8, 8, 8, 2], [1, 1, 1, 1, 5]),
    Case("4 arms of 8 runs, a baseline of 2 with 4 times the sd", [2, 8, 8, 8, 8], [4, 1, 1, 1, 1]),
    Case("5 arms of 2 runs, one with 10 times the sd", [2] * 5, [1, 1, 1, 1, 10]),
    Case("8 arms, 3 runs each, the baseline with twice the sd", [3] * 8, [2, 1, 1, 1, 1, 1, 1, 1]),
    Case("8 arms, 5 runs each, the baseline with twice the sd", [5] * 8, [2, 1, 1, 1, 1, 1, 1, 1]),
    Case("8 arms, 8 runs each, the baseline with twice the sd", [8] * 8, [2, 1, 1, 1, 1, 1, 1, 1]),
    Case("8 arms, 5 runs each, an arm with twice the sd", [5] * 8, [1, 1, 1, 1, 1, 1, 1, 2]),
    Case("5 arms, 3 runs each, one 4 sd away", [3] * 5, shift=4),
    Case("5 arms, 5 runs each, one 4 sd away", [5] * 5, shift=4),
    Case("5 arms, 5 runs each, one 4 sd away, a run of another diverged", [5] * 5, shift=4, diverged=True),
)


def folders(place: Path, runs: int, validations: int) -> None:
    """A sweep of `runs` runs: a baseline, and arms with 1 to 5 sources and their lambdas, 10 seeds each."""
    draw = random.Random(0)
    made = Made(place, name="many", baseline="none", target=2.92)
    for i in range(runs // SEEDS):
        sources = sorted(draw.sample(range(8), draw.randint(1, 5))) if i else []
        losses = [draw.gauss(2.92, SD) for _ in range(SEEDS)]
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


def found_something(case: Case, sweeps: int) -> float:
    """Share of sweeps in which an arm, or the one that truly differs, is told from the baseline."""
    generator, found = np.random.default_rng(0), 0
    sds, shifts = case.sds or [1] * len(case.runs), [0, case.shift] + [0] * len(case.runs)
    for _ in range(sweeps):
        drawn = [generator.normal(2.92 + SD * shifts[i], SD * sds[i], size=n) for i, n in enumerate(case.runs)]
        if case.diverged:
            drawn[-1][0] = 7.3
        base, *others = (losses.tolist() for losses in drawn)
        tests = statistics.compare(base, {str(i): losses for i, losses in enumerate(others)})
        wanted = [tests["0"]] if case.shift else tests.values()
        found += any(test.p is not None and test.p < statistics.ALPHA for test in wanted)
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
    for case in CASES if sweeps else ():
        print(f"{sweeps} sweeps of {case.what}: {found_something(case, sweeps):.3f} found something", flush=True)
    bounds.end()


if __name__ == "__main__":
    main()
