"""Ranks, some of which are told to stop at a random moment: all save the same step and stop, or all finish."""

import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from forked import context
from runs import Quiet, configuration, frozen, rows

from skipsweep import checkpoint, job
from skipsweep.config import Compute, Config, Record
from skipsweep.exit_status import Exit
from skipsweep.rundir import RunDir
from skipsweep.stop import StopSignal

STEPS = 40
RANKS, TRIALS = 4, 8
NIGHTLY = pytest.param(8, 40, marks=pytest.mark.nightly)
STOP_S = 240.0
"""Longest that eight processes on two busy cores may take to save and to end; a deadlock takes for ever."""


def shared(folder: Path, data_root: Path, ranks: int) -> Config:
    """Validates at every other step, so that signals hit that as well."""
    base = configuration(folder, data_root, record=Record(val_every=2))
    data = replace(base.data, epochs=10)
    compute = Compute(processes=ranks, threads=1)
    return replace(base, data=data, schedule=replace(base.schedule, steps=STEPS), compute=compute)


def rank(run: RunDir, number: int, ranks: int, rendezvous: str) -> None:
    """One process of the run."""
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(ranks)}
    os.environ |= {"SKIPSWEEP_RENDEZVOUS": rendezvous}
    if (run.path / "deaf").exists():
        job._agree = lambda trainer, boundary, stop, recorder: (stop.reason is not None, False)
    with StopSignal() as stop:
        (run.path / f"ready-{number}").touch()
        os._exit(job.execute(run, Quiet(), stop))


def execute(run: RunDir, told: dict[int, float], after_step: int) -> list[int | None]:
    """Start all ranks; `told`: rank -> seconds after `after_step` (-1: while it starts) at which it gets SIGUSR2."""
    store = run.path / f"store-{time.monotonic_ns()}"
    size = run.read_config().compute.processes
    ranks = [context.Process(target=rank, args=(run, number, size, f"file://{store}")) for number in range(size)]
    for one in ranks:
        one.start()
    try:
        wait_until(lambda: all((run.path / f"ready-{n}").exists() for n in range(size)))
        wait_until(lambda: last_row(run) >= after_step or not ranks[0].is_alive())
        start = time.monotonic()
        for number, seconds in sorted(told.items(), key=lambda item: item[1]):
            time.sleep(max(0.0, start + seconds - time.monotonic()))
            if ranks[number].is_alive():
                os.kill(ranks[number].pid or 0, signal.SIGUSR2)
        deadline = time.monotonic() + STOP_S
        for one in ranks:
            one.join(max(0.0, deadline - time.monotonic()))
        assert not any(one.is_alive() for one in ranks), "they wait for each other"
        return [one.exitcode for one in ranks]
    finally:
        for one in ranks:
            one.kill()
            one.join()
        for number in range(size):
            (run.path / f"ready-{number}").unlink(missing_ok=True)


def wait_until(condition: object, seconds: float = 240) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def last_row(run: RunDir) -> int:
    return max((row["step"] for row in run.read_metrics()), default=-1)


@pytest.mark.parametrize(("ranks", "trials"), [(RANKS, TRIALS), NIGHTLY])
def test_a_signal_to_some_ranks_stops_all_at_one_step(ranks: int, trials: int, tmp_path: Path, data_root: Path) -> None:
    seed = int(os.environ.get("CHAOS_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
    print(f"CHAOS_SEED={seed}")
    chance = random.Random(seed)
    run, stops = frozen(shared(tmp_path / "0", data_root, ranks)), 0
    for trial in range(3 * trials):  # where signals come too late, all ranks just finish; that does not count
        if stops == trials:
            break
        told = {number: chance.uniform(0, 0.2) for number in chance.sample(range(ranks), chance.randint(1, ranks))}
        reached = last_row(run)
        after = -1 if trial % 4 == 0 else min(reached + chance.randint(1, 4), STEPS)
        codes = execute(run, told, after)
        assert len(set(codes)) == 1, (trial, told, codes)
        if codes[0] == Exit.DONE:
            assert run.read_status()["state"] == "done"
            run = frozen(shared(tmp_path / str(trial + 1), data_root, ranks))
            continue
        assert codes[0] == Exit.PREEMPTED
        stops += 1
        state = checkpoint.load_newest(run.checkpoints, run.id, lambda line: pytest.fail(line))
        assert state is not None
        assert state["step"] == last_row(run)
        assert len(state["random"]) == ranks
        assert [row["step"] for row in rows(run)] == list(range(state["step"] + 1))
    assert stops == trials, "the signals came too late to tell anything"


def test_ranks_that_do_not_agree_are_caught(tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: where each rank heeds its own signal alone, they do not end together."""
    monkeypatch.setattr(sys.modules[__name__], "STOP_S", 10.0)
    run = frozen(shared(tmp_path, data_root, RANKS))
    (run.path / "deaf").touch()
    with pytest.raises(AssertionError):
        codes = execute(run, {3: 0.0}, 2)
        assert len(set(codes)) == 1
