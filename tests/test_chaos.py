"""A run that is killed at random moments until it is done ends in every bit as one that nothing happened to."""

import multiprocessing
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from runs import Quiet, configuration, frozen, result, rows

from skipsweep import checkpoint, files, job, lease
from skipsweep.config import Config, Record
from skipsweep.rundir import RunDir

KILLS, STEPS, EVERY = 5, 120, 2
LIFE_S = 60.0
"""Longest that an attempt may take; it takes a second or two."""


def chaotic(folder: Path, data_root: Path) -> Config:
    """Long enough to be killed at many places, with a checkpoint at every other step."""
    base = configuration(folder, data_root, record=Record(val_every=10, checkpoint_every=EVERY))
    return replace(base, schedule=replace(base.schedule, steps=STEPS), data=replace(base.data, epochs=10))


class Forked:
    """An attempt in a process forked from one that has torch loaded already: it begins to train at once."""

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["skipsweep.job"])

    def __init__(self, run: RunDir):
        self._process = self.context.Process(target=execute, args=(run,))
        self._process.start()

    def wait(self, seconds: float) -> bool:
        """Whether it ended within `seconds`."""
        self._process.join(seconds)
        return self._process.exitcode is not None

    def kill(self) -> None:
        self._process.kill()
        self._process.join(LIFE_S)


def execute(run: RunDir) -> None:
    sys.exit(job.execute(run, Quiet()))


class Started:
    """An attempt as it is really started, so that it is killed while importing as well."""

    def __init__(self, run: RunDir):
        command = [sys.executable, "-m", "skipsweep.job", str(run.path)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def wait(self, seconds: float) -> bool:
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(LIFE_S)


def newest(run: RunDir) -> int:
    """Step of the newest whole checkpoint, 0 where there is none; only an unfinished one may be damaged."""
    state = checkpoint.load_newest(run.checkpoints, run.id, lambda line: pytest.fail(line))
    return 0 if state is None else state["step"]


def survive(run: RunDir, attempt: Callable[[RunDir], "Forked | Started"], longest: float, chance: random.Random) -> int:
    """Kill `run` until it has lived through KILLS of them, then let it end; returns how often it was killed."""
    killed = reached = 0
    while killed < KILLS:
        alive = attempt(run)
        if alive.wait(chance.uniform(0, longest)):
            break
        alive.kill()
        killed += 1
        if run.result.exists():
            continue
        assert newest(run) >= reached, "a checkpoint was lost"
        reached = newest(run)
        recorded = [row["step"] for row in run.read_metrics()]
        assert recorded == list(range(len(recorded)))
        assert reached <= max(recorded, default=0) <= reached + EVERY, "more was lost than the interval"
    last = attempt(run)
    assert last.wait(LIFE_S)
    return killed


def assert_same_end(run: RunDir, straight: RunDir) -> None:
    assert run.read_status()["state"] == "done"
    assert rows(run) == rows(straight)
    assert [row["step"] for row in rows(run)] == list(range(STEPS + 1))
    assert result(run)["val_loss"] == result(straight)["val_loss"]
    assert result(run)["val_curve"][-1]["step"] == STEPS
    manifests = [files.read_json(checkpoint.steps(r.checkpoints)[0] / "manifest.json") for r in (run, straight)]
    assert manifests[0]["files"] == manifests[1]["files"], "the last weights differ"
    assert [path.name for path in run.checkpoints.iterdir()] == [f"step-{STEPS:08d}"]
    assert not lease.is_live(run, lease.newest(run))


NIGHTLY = [pytest.param(Forked, 1.5, case, marks=pytest.mark.nightly, id=f"forked-{case}") for case in range(1, 9)]
NIGHTLY += [pytest.param(Started, 8.0, case, marks=pytest.mark.nightly, id=f"started-{case}") for case in range(9, 11)]


@pytest.mark.parametrize(("attempt", "longest", "case"), [pytest.param(Forked, 1.0, 0, id="forked"), *NIGHTLY])
def test_kills_at_random_moments_change_nothing(
    attempt: Callable[[RunDir], "Forked | Started"], longest: float, case: int, tmp_path: Path, data_root: Path
) -> None:
    """To see one again, set CHAOS_SEED to the seed that is printed (moments hit other places on another machine)."""
    seed = int(os.environ.get("CHAOS_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
    print(f"CHAOS_SEED={seed}")
    straight = frozen(chaotic(tmp_path / "straight", data_root))
    assert job.execute(straight, Quiet()) == job.DONE
    run = frozen(chaotic(tmp_path / "killed", data_root))
    started = time.monotonic()
    killed = survive(run, attempt, longest, random.Random(seed + case))
    print(f"killed {killed} times in {time.monotonic() - started:.1f} s, {lease.next_attempt(run) - 1} attempts")
    assert_same_end(run, straight)
