"""What a process of a run executes: frozen configuration -> train -> record; resume, signals, causes of failure.

python -m skipsweep.job RUN_FOLDER            (one process per rank; RANK and WORLD_SIZE from the launcher)
"""

import contextlib
import errno
import functools
import os
import random
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import torch

from skipsweep import checkpoint, distributed, files, lease, metadata, peers, provenance
from skipsweep.config import RunConfig
from skipsweep.data import prepare
from skipsweep.data.batches import Batches
from skipsweep.data.prefetch import Prefetch
from skipsweep.distributed import World
from skipsweep.errors import DataError, UserError
from skipsweep.exit_status import Exit
from skipsweep.inspection import at_end
from skipsweep.mirror import Mirror
from skipsweep.progress import Progress, for_stdout
from skipsweep.record import Recorder
from skipsweep.rundir import RunDir
from skipsweep.stop import StopSignal
from skipsweep.train import LOOK_EVERY, Boundary, NonFinite, Trainer

MIRROR_TIMEOUT_S = 30.0
"""Longest that a run waits for wandb at its end."""
EXIT_OF = {"done": Exit.DONE, "preempted": Exit.PREEMPTED, "failed": Exit.FAILED}


class Outcome(NamedTuple):
    """How an attempt ended: a state of status.json and, unless it is done, why."""

    state: str
    cause: str | None = None
    message: str | None = None

    def reason(self) -> dict[str, Any]:
        """What status.json says of it beside the state."""
        return {} if self.cause is None else {"cause": self.cause, "message": self.message}


SUPERSEDED = Outcome("superseded")
"""A later attempt holds the lease: no state of status.json, as `_publish` checks the lease before it writes."""


def execute(run: RunDir, progress: Progress | None = None, stop: StopSignal | None = None) -> Exit:
    """Train `run` to its end, or until a signal; returns an exit code. Every rank of the run calls this.

    `stop`: where the caller listens to signals already.
    """
    if stop is not None:
        return _execute(run, stop, progress)
    with StopSignal() as own:
        return _execute(run, own, progress)


def _execute(run: RunDir, stop: StopSignal, progress: Progress | None) -> Exit:
    config = run.read_config()
    if os.environ.get("SKIPSWEEP_CONFIG") not in (None, run.config_digest()):
        _print_error(f"{run.config} was rewritten by another launch; the run is left to be started with the new one")
        return Exit.HELD
    _set_threads(config)
    _seed_global_generators(config.seed)
    _prepare_gpu(prepare.data_root(config.paths))
    try:
        world = distributed.join(config.compute)
    except UserError as problem:
        _note_refusal(run, problem)
        return Exit.FAILED
    try:
        if world.is_leader:
            return _run_rank_zero(run, config, world, stop, progress)
        return _run_other_rank(run, config, world, stop)
    finally:
        distributed.leave()


def _note_refusal(run: RunDir, problem: UserError) -> None:
    """Say why nothing was started; in status.json too, unless somebody executes the run or has finished it."""
    if not distributed.is_follower():
        with contextlib.suppress(lease.Held):
            held = lease.acquire(run)
            if not _is_finished(run):
                run.write_status("failed", cause="config", message=str(problem))
            held.release()
    _print_error(str(problem))


def _prepare_gpu(root: Path) -> None:
    """Have compiled kernels kept beside the corpora, where they outlive /tmp and other machines find them, and memory
    handed out in segments that grow: windows grow too."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(root / "compiled"))
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")


def _set_threads(config: RunConfig) -> None:
    threads = config.compute.threads or int(os.environ.get("SKIPSWEEP_THREADS", "0"))
    torch.set_num_threads(threads or max(1, provenance.cpus() // config.compute.processes))


def _seed_global_generators(seed: int) -> None:
    """For mechanisms that draw at random in training; initialisation and data have generators of their own."""
    torch.manual_seed(seed)
    random.seed(seed)


def _run_rank_zero(run: RunDir, config: RunConfig, world: World, stop: StopSignal, progress: Progress | None) -> Exit:
    """Hold the lease, train, record, and publish the outcome."""
    held = _claim(run, stop)
    if isinstance(held, Exit):
        world.broadcast(None)
        return held
    world.broadcast(held.attempt)
    log = run.log(held.attempt, "err")
    details = {"attempt": held.attempt, **metadata.process(), "started": time.time(), "log": str(log)}
    recorder = Recorder(run, config, held, progress or for_stdout())
    with contextlib.ExitStack() as mirroring:
        outcome = _attempt(run, config, world, stop, recorder, details, mirroring)
        code = _publish(run, held, outcome, details, mirroring)
    if outcome.state in ("done", "preempted"):
        world.broadcast("concluded")
    return code


def _claim(run: RunDir, stop: StopSignal) -> lease.Lease | Exit:
    """The lease of a run; the exit code where there is nothing to do for us."""
    try:
        held = lease.acquire(run, on_beat=functools.partial(_stop_if_unwanted, run, stop))
    except lease.Held as other:
        _print_error(f"{run.name} is being executed by {other}")
        return Exit.HELD
    if _is_finished(run):
        held.release()
        return Exit.DONE
    return held


def _attempt(
    run: RunDir,
    config: RunConfig,
    world: World,
    stop: StopSignal,
    recorder: Recorder,
    details: dict[str, Any],
    mirroring: contextlib.ExitStack,
) -> Outcome:
    """Train; whatever happens is an outcome. `mirroring` is given what ends the mirror in wandb."""
    try:
        run.write_status("running", **details)
        metadata.write_env(run, details["attempt"], world)
        if mirror := Mirror.start(run, config.logger):
            mirroring.callback(_close, mirror)
        finished = _train(run, config, world, stop, recorder)
        return Outcome("done") if finished else Outcome("preempted", "signal", stop.reason)
    except lease.LeaseLost:
        return SUPERSEDED
    except BaseException as problem:
        traceback.print_exc()
        _keep_traceback(Path(details["log"]))
        return Outcome("failed", *peers.blamed(run, details["attempt"], *cause_of(problem)))
    finally:
        recorder.progress.close()


def _publish(
    run: RunDir, held: lease.Lease, outcome: Outcome, details: dict[str, Any], mirroring: contextlib.ExitStack
) -> Exit:
    """Write the outcome into status.json. Where even that fails (disk full), the exit code still tells the launcher."""
    try:
        held.check()
        run.write_status(outcome.state, **details, **outcome.reason(), ended=time.time())
        mirroring.close()
        held.release()
    except lease.LeaseLost as problem:
        _print_error(str(problem))
        return Exit.HELD
    except OSError as problem:
        _print_error(f"status could not be written: {problem}")
        return Exit.FAILED
    return EXIT_OF[outcome.state]


def _stop_if_unwanted(run: RunDir, stop: StopSignal) -> None:
    """Stop the run if its launcher died or it was cancelled."""
    stop.watch_parent()
    if run.cancelled.exists():
        stop.reason = "cancelled"


def _keep_traceback(log: Path) -> None:
    """Write the present exception to the attempt's log too, where errors went to a terminal."""
    with contextlib.suppress(OSError):
        if not log.exists() or not log.stat().st_size:
            log.write_text(traceback.format_exc())


def _is_finished(run: RunDir) -> bool:
    """Whether another launcher, or an earlier attempt that ended between its result and its status, has finished the
    run. Only for the holder of the lease: what that attempt left undone is completed."""
    if run.read_status()["state"] == "done":
        return True
    result = files.read_json(run.result)
    if result is None:
        return False
    checkpoint.prune(run.checkpoints, checkpoint.steps(run.checkpoints)[0], keep=1)
    run.write_status("done", attempt=result["attempt"], ended=time.time())
    return True


def _run_other_rank(run: RunDir, config: RunConfig, world: World, stop: StopSignal) -> Exit:
    """The same training, nothing recorded."""
    attempt = world.broadcast(None)
    if attempt is None:  # somebody else executes it, or has finished it
        return Exit.DONE
    try:
        finished = _train(run, config, world, stop, None)
        world.broadcast(None)  # whoever starts processes may end them all when one has ended: rank 0 comes first
        return Exit.DONE if finished else Exit.PREEMPTED
    except BaseException as problem:
        traceback.print_exc()
        peers.note(run, attempt, world.rank, *cause_of(problem))
        return Exit.FAILED


def _train(run: RunDir, config: RunConfig, world: World, stop: StopSignal, recorder: Recorder | None) -> bool:
    """Train from the newest checkpoint; returns whether the run reached its last step."""
    _assert_same_config(run, world)
    root = prepare.data_root(config.paths)
    prepare.require(config.data, root, config.schedule.steps)
    with Prefetch(Batches(config.data, root, world.rank, world.size), config.schedule.steps) as batches:
        trainer = Trainer(config, batches, world)
        _resume(run, trainer, recorder)
        for boundary in trainer.run():
            if recorder:
                recorder.record(trainer, boundary)
            stopping, saving = _agree(trainer, boundary, stop, recorder)
            if saving:
                _save(trainer, recorder)
            if stopping:
                return False
    state = trainer.state()
    if recorder:
        result = recorder.finish(trainer, state, metadata.sizes(config, root, trainer))
        metadata.remember_speed(config, world, result)
        if config.record.inspect:
            at_end.inspect(run)
    return True


def _agree(trainer: Trainer, boundary: Boundary, stop: StopSignal, recorder: Recorder | None) -> tuple[bool, bool]:
    """(Whether all ranks stop at this boundary, whether they save): they stop if one of them was told to."""
    world, every = trainer.world, trainer.config.record.checkpoint_every
    by_step = bool(every) and boundary.step % every == 0
    if boundary.step % LOOK_EVERY[world.device.type] and not by_step:
        return False, False
    due = recorder is not None and recorder.checkpoint_due(boundary.step)
    votes = torch.tensor([float(stop.reason is not None), float(due)], device=world.device)
    stopping, saving = (vote > 0 for vote in world.sum(votes).tolist())
    if boundary.step == trainer.config.schedule.steps:  # it is done, and the final weights are written anyway
        return False, False
    return stopping, stopping or saving


def _save(trainer: Trainer, recorder: Recorder | None) -> None:
    """Write a checkpoint: every rank has a part of the state, rank 0 records it."""
    trainer.clock.pause()
    state = trainer.state()
    if recorder:
        recorder.save(state)


def _resume(run: RunDir, trainer: Trainer, recorder: Recorder | None) -> None:
    """Every rank loads the checkpoint that rank 0 chose."""
    path, state = None, None
    if recorder:
        checkpoint.clean(run.checkpoints)
        state = checkpoint.load_newest(run.checkpoints, run.id, lambda line: print(line, flush=True))
        path = None if state is None else run.checkpoints / f"step-{state['step']:08d}"
    path = trainer.world.broadcast(path)
    if path is None:
        return
    if state is None:
        state = checkpoint.load(path, run.id)
    trainer.load_state(state)
    if recorder:
        recorder.resumed(trainer.step)
        print(f"resumed from step {trainer.step}", flush=True)


def _close(mirror: Mirror) -> None:
    """Let wandb catch up; a failure there is only a warning."""
    if warning := mirror.close(MIRROR_TIMEOUT_S):
        print(f"warning: {warning}", flush=True)


def _assert_same_config(run: RunDir, world: World) -> None:
    """All ranks must train the same configuration; without this check, published runs averaged different models."""
    digests = world.gather(run.config_digest())
    if len(set(digests)) > 1:
        odd = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
        raise UserError(f"{run.config} reads differently on rank(s) {odd} than on rank 0")


def cause_of(problem: BaseException) -> tuple[str, str]:
    """(class, last line) of a failure: nan, oom, disk, data, config, or exception."""
    message = f"{type(problem).__name__}: {problem}".strip().splitlines()[0]
    if isinstance(problem, NonFinite):
        return "nan", str(problem)
    if isinstance(problem, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(problem):
        return "oom", message
    if isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "disk", message
    if isinstance(problem, DataError):
        return "data", str(problem)
    if isinstance(problem, UserError):
        return "config", str(problem)
    return "exception", message


def _print_error(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(execute(RunDir(Path(sys.argv[1]))))
