"""What a process of a run executes: frozen configuration -> train -> record; resume, signals, causes of failure.

python -m skipsweep.job RUN_FOLDER            (one process per rank; RANK and WORLD_SIZE from the launcher)
"""

import contextlib
import datetime
import errno
import functools
import hashlib
import os
import random
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from skipsweep import checkpoint, distributed, files, lease, provenance
from skipsweep.config import RunConfig, recipe_of
from skipsweep.data import prepare
from skipsweep.data.batches import Batches
from skipsweep.data.corpus import open_corpus, unigram_entropy
from skipsweep.data.prefetch import Prefetch
from skipsweep.distributed import World
from skipsweep.errors import DataError, UserError
from skipsweep.inspection import at_end
from skipsweep.mirror import Mirror
from skipsweep.model import count
from skipsweep.progress import Progress, for_stdout
from skipsweep.record import Recorder
from skipsweep.rundir import Multirun, RunDir
from skipsweep.stop import StopSignal
from skipsweep.train import Boundary, NonFinite, Trainer

DONE, FAILED, PREEMPTED, HELD = 0, 1, 75, 76
"""Exit codes of a job."""

AGREE_EVERY = {"cpu": 1, "cuda": 16}
"""Steps between two looks at each other's signals: on a GPU every look waits for the device."""

MIRROR_TIMEOUT_S = 30.0
"""Longest that a run waits for wandb at its end."""


def execute(run: RunDir, progress: Progress | None = None, stop: StopSignal | None = None) -> int:
    """Train `run` to its end, or until a signal; returns an exit code. Every rank of the run calls this.

    `stop`: where the caller listens to signals already.
    """
    if stop is not None:
        return _execute(run, stop, progress)
    with StopSignal() as own:
        return _execute(run, own, progress)


def _execute(run: RunDir, stop: StopSignal, progress: Progress | None) -> int:
    config = run.read_config()
    _set_threads(config)
    _prepare_gpu(prepare.data_root(config.paths))
    try:
        world = distributed.join(config.compute)
    except UserError as problem:
        return _refuse(run, problem)
    try:
        return _lead(run, config, world, stop, progress) if world.is_leader else _follow(run, config, world, stop)
    finally:
        distributed.leave()


def _refuse(run: RunDir, problem: UserError) -> int:
    """Say in status.json why nothing was started, unless somebody executes the run or has finished it."""
    if not distributed.is_follower():
        with contextlib.suppress(lease.Held):
            held = lease.acquire(run)
            if not _is_finished(run):
                run.write_status("failed", cause="config", message=str(problem))
            held.release()
    return _say(str(problem), FAILED)


def _prepare_gpu(root: Path) -> None:
    """Have compiled kernels kept beside the corpora, where they outlive /tmp and other machines find them, and memory
    handed out in segments that grow: windows grow too."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(root / "compiled"))
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")


def _set_threads(config: RunConfig) -> None:
    threads = config.compute.threads or int(os.environ.get("SKIPSWEEP_THREADS", "0"))
    torch.set_num_threads(threads or max(1, provenance.cpus() // config.compute.processes))
    # For mechanisms that draw at random in training; initialisation and data have generators of their own.
    torch.manual_seed(config.seed)
    random.seed(config.seed)


def _lead(run: RunDir, config: RunConfig, world: World, stop: StopSignal, progress: Progress | None) -> int:
    """Rank 0: hold the lease, record, and put the outcome into status.json."""
    try:
        held = lease.acquire(run)
    except lease.Held as other:
        world.broadcast(None)
        return _say(f"{run.name} is being executed by {other}", HELD)
    if _is_finished(run):
        world.broadcast(None)
        held.release()
        return DONE
    held.on_beat = functools.partial(_watch, run, stop)
    world.broadcast(held.attempt)
    facts: dict[str, Any] = {"attempt": held.attempt, **_whereabouts(), "started": time.time()}
    facts["log"] = str(run.log(held.attempt, "err"))
    progress = progress or for_stdout()
    mirror: Mirror | None = None
    try:
        run.write_status("running", **facts)
        _write_env(run, held.attempt, world)
        mirror = Mirror.start(run, config.logger)
        finished = _train(run, config, world, stop, Recorder(run, config, held, progress))
        state = ("done", {}) if finished else ("preempted", {"cause": "signal", "message": stop.reason})
    except lease.LeaseLost as problem:
        _close(mirror)
        return _say(str(problem), HELD)
    except BaseException as problem:
        traceback.print_exc()
        _keep_traceback(Path(facts["log"]))
        cause, message = cause_of(problem)
        state = ("failed", {"cause": cause, "message": message})
    finally:
        progress.close()
    code = _conclude(run, held, mirror, state[0], {**facts, **state[1], "ended": time.time()})
    if state[0] != "failed":
        world.broadcast("concluded")
    return code


def _watch(run: RunDir, stop: StopSignal) -> None:
    """What else than a signal tells a run to stop."""
    stop.watch_parent()
    if run.cancelled.exists():
        stop.reason = "cancelled"


def _keep_traceback(log: Path) -> None:
    """Have the present exception in the attempt's log too where errors went to a terminal."""
    with contextlib.suppress(OSError):
        if not log.exists() or not log.stat().st_size:
            log.write_text(traceback.format_exc())


def _is_finished(run: RunDir) -> bool:
    """Whether another launcher, or an earlier attempt that ended between its result and its status, has done it all.
    Only for the holder of the lease, who makes good what is missing."""
    if run.read_status()["state"] == "done":
        return True
    result = files.read_json(run.result)
    if result is None:
        return False
    checkpoint.prune(run.checkpoints, checkpoint.steps(run.checkpoints)[0], keep=1)
    run.write_status("done", attempt=result["attempt"], ended=time.time())
    return True


def _conclude(run: RunDir, held: lease.Lease, mirror: Mirror | None, state: str, details: dict[str, Any]) -> int:
    """Publish the outcome; returns the exit code. Where even that fails (disk full), it still tells the launcher."""
    try:
        held.check()
        run.write_status(state, **details)
        _close(mirror)
        held.release()
    except lease.LeaseLost as problem:
        return _say(str(problem), HELD)
    except OSError as problem:
        return _say(f"status could not be written: {problem}", FAILED)
    return {"done": DONE, "preempted": PREEMPTED, "failed": FAILED}[state]


def _follow(run: RunDir, config: RunConfig, world: World, stop: StopSignal) -> int:
    """Other ranks: the same training, nothing recorded."""
    if world.broadcast(None) is None:  # somebody else executes it, or has finished it
        return DONE
    try:
        finished = _train(run, config, world, stop, None)
        world.broadcast(None)  # whoever starts processes may end them all when one has ended: rank 0 comes first
        return DONE if finished else PREEMPTED
    except BaseException:
        traceback.print_exc()
        return FAILED


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
            if _should_stop(trainer, boundary, stop, recorder):
                return False
    state = trainer.state()
    if recorder:
        _remember_speed(config, world, recorder.finish(trainer, state, _facts(config, root, trainer)))
        if config.record.inspect:
            at_end.inspect(run)
    return True


def _should_stop(trainer: Trainer, boundary: Boundary, stop: StopSignal, recorder: Recorder | None) -> bool:
    """Whether all ranks stop at this boundary, because one of them was told to. Saves first; saves too
    when it is time."""
    world, every = trainer.world, trainer.config.record.checkpoint_every
    by_step = bool(every) and boundary.step % every == 0
    if boundary.step % AGREE_EVERY[world.device.type] and not by_step:
        return False
    due = recorder is not None and recorder.checkpoint_due(boundary.step)
    votes = torch.tensor([float(stop.reason is not None), float(due)], device=world.device)
    stopping, saving = (vote > 0 for vote in world.sum(votes).tolist())
    at_end = boundary.step == trainer.config.schedule.steps
    if (stopping or saving) and not at_end:
        trainer.clock.pause()
        state = trainer.state()
        if recorder:
            recorder.save(state)
    return stopping and not at_end


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


def _close(mirror: Mirror | None) -> None:
    """Let wandb catch up; whatever happens there, the run is what it is."""
    warning = mirror.close(MIRROR_TIMEOUT_S) if mirror else None
    if warning:
        print(f"warning: {warning}", flush=True)


def _assert_same_config(run: RunDir, world: World) -> None:
    """All ranks must train the very same thing: published runs have averaged different models for want of this."""
    digests = world.gather(hashlib.sha256(run.config.read_bytes()).hexdigest())
    if len(set(digests)) > 1:
        odd = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
        raise UserError(f"{run.config} reads differently on rank(s) {odd} than on rank 0")


# --------------------------------------------------------------------------------------------------- what stands beside


def _facts(config: RunConfig, root: Path, trainer: Trainer) -> dict[str, Any]:
    """What a result says beyond its losses."""
    recipe = recipe_of(config)
    return {
        "unigram_entropy": unigram_entropy(open_corpus(config.data, root), config.data.val_tokens),
        "parameters": count.parameters(recipe),
        "flops_per_token": count.flops_per_token(recipe),
        "inference_flops_per_token": count.inference_columns(recipe, *trainer.open_fractions()),
    }


def _whereabouts() -> dict[str, Any]:
    where = provenance.machine()
    return {"host": where["host"], "pid": os.getpid(), "job": os.environ.get("SLURM_JOB_ID")}


def _write_env(run: RunDir, attempt: int, world: World) -> None:
    """Add this attempt to env.json."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    entry = {
        **provenance.machine(),
        "gpus": gpus,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "world_size": world.size,
        "commit": provenance.commit(),
        "code": provenance.code_hash(),
    }
    files.write_json(run.env, {**(files.read_json(run.env) or {}), str(attempt): entry})


def _remember_speed(config: RunConfig, world: World, result: dict[str, Any]) -> None:
    """Note the throughput, so that the next plan can say how long it will take."""
    if result["train_time_s"] <= 0:
        return
    flops = sum(result["flops_per_token"].values()) * result["tokens"]
    row = {
        "device": world.device.type,
        "host": provenance.machine()["host"],
        "world_size": world.size,
        "threads": torch.get_num_threads(),
        "model": [config.model.layers, config.model.dim, config.data.seq_len],
        "flops_per_s": flops / result["train_time_s"],
        "time": round(time.time()),
    }
    with contextlib.suppress(OSError):  # an estimate is not worth a run
        files.append_row(Multirun(Path(config.paths.multirun)).speeds, row)


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


def _say(message: str, code: int) -> int:
    print(message, file=sys.stderr, flush=True)
    return code


# ------------------------------------------------------------------------------------------------------- under torchrun


def lead(run: RunDir | None) -> int:
    """Rank 0 under torchrun: tell the others which run it is (None: nothing is left to do), then execute it."""
    _torchrun_store().set("skipsweep/run", str(run.path) if run else "")
    return execute(run) if run else DONE


def follow() -> int:
    """Other ranks under torchrun: wait for rank 0's plan, then execute the run that it names."""
    path = _torchrun_store().get("skipsweep/run").decode()
    return execute(RunDir(Path(path))) if path else DONE


def _torchrun_store() -> TCPStore:
    """The key-value store that torchrun's agent keeps for its processes."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    # Rank 0 may first download the corpus; should it die, torchrun ends the others.
    return TCPStore(address, port, is_master=False, timeout=datetime.timedelta(days=1))


if __name__ == "__main__":
    sys.exit(execute(RunDir(Path(sys.argv[1]))))
