"""A run's mirror in wandb. metrics.jsonl is the truth; this is a view of it that may fail without harm.

wandb is only ever imported by a process of its own, `python -m skipsweep.mirror RUN_FOLDER [--follow]`, which reads the
run's files. The process that trains starts it, holds the other end of its standard input, and closes that at the end;
should training be killed, the kernel closes it, and the mirror still takes in what was written and finishes.

Every step once, over all restarts
    Rows after the last checkpoint reappear in the next attempt, and wandb keeps up to 15 s of rows in memory: a mirror
    that is killed loses them, so a mark that advances with every row would leave gaps. `wandb/mirror.json` therefore
    holds `last_step` and `folders` of mirrors that *finished* (and `uploaded`, a hash of what they told a server of the
    run's end), and is written when one does. The next mirror goes on
    after `last_step`, in a folder of its own (`wandb sync` joins folders of one id in order of their start); offline
    folders that are not listed were cut short and are deleted, since all their rows are logged again. Online, the
    server says which step comes next.
    Listed folders that have vanished are taken to be uploaded and cleaned up. Where that is wrong, or a mirror failed,
    or there was none, `sync` replays the whole of metrics.jsonl into one fresh folder, in place of all others.

Files below the run's folder: wandb/ (wandb's own folders and cache, mirror.json, mirror.lock), log/mirror.log.
"""

import argparse
import fcntl
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import IO, Any

from skipsweep import config, files
from skipsweep.rundir import RunDir
from skipsweep.sweep_file import GIVEN, method_of

POLL_S = 1.0
"""Seconds between two looks at metrics.jsonl."""
INIT_TIMEOUT_S = 60.0
"""Seconds that wandb may take to reach its server."""
LINGER_S = 600.0
"""Seconds a mirror may take to finish once nobody waits for it any more."""
TAG_LENGTH = 64
"""wandb refuses longer tags."""
GROUP_LENGTH = 128
"""wandb refuses longer groups."""
FAILED, BUSY = 1, 3
"""Exit codes: wandb failed; another mirror of this run is at work."""

_DIVERTING = ("WANDB_SERVICE", "WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_RUN_GROUP", "WANDB_TAGS")
"""Variables of an enclosing wandb session that would send our run elsewhere or label it."""


# --------------------------------------------------------------------------------------------- the trainer's side


@dataclass
class Mirror:
    """A trainer's hold on its mirror process. No method raises, and none waits longer than it is told to."""

    run: RunDir
    process: subprocess.Popen[bytes] | None
    trouble: str | None = None

    @classmethod
    def start(cls, run: RunDir, logger: config.Logger) -> "Mirror | None":
        """Begin to mirror `run`; None where the logger asks for none. status.json must already name this attempt."""
        if not isinstance(logger, config.Wandb):
            return None
        try:
            return cls(run, _launch(run, logger, "--follow", stdin=subprocess.PIPE))
        except OSError as error:
            return cls(run, None, _one_line(error))

    def close(self, timeout: float = 60.0) -> str | None:
        """Let the mirror finish, at most `timeout` seconds, then kill it. To be called when status.json is final.

        Returns None, or a warning of one line. What is missing in wandb then stands in metrics.jsonl for `sync`.
        """
        trouble = self.trouble or self._end(timeout)
        if trouble is None:
            return None
        return f"wandb: {trouble}; training was not affected, `skipsweep sync {self.run.name}` mirrors it again"

    def _end(self, timeout: float) -> str | None:
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            return _verdict(self.run, self.process.wait(timeout))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        trouble = f"did not finish within {timeout:g} s"
        with suppress(OSError, ValueError):
            _note(self.run, failed=trouble)
        return trouble


def sync(run: RunDir, logger: config.Wandb | None = None, timeout: float = LINGER_S) -> str | None:
    """Mirror the whole of a run anew, in place of earlier offline folders. Returns None, or what went wrong (one line).

    `logger`: where to; None: as the run's own config says, or wandb's defaults where the run had no mirror.
    `timeout`: seconds, after which it is stopped.
    """
    if logger is None:
        own = run.read_config().logger
        logger = own if isinstance(own, config.Wandb) else config.Wandb()
    process = _launch(run, logger, "--fresh", stdin=subprocess.DEVNULL)
    try:
        return _verdict(run, process.wait(timeout))
    except subprocess.TimeoutExpired:
        return f"wandb did not finish within {timeout:g} s"
    finally:
        process.kill()
        process.wait()


def is_uploaded(run: RunDir) -> bool:
    """Whether a server has this run as it ended, under the sweeps that it serves now."""
    return _record(run).get("uploaded") == _ending(run, run.read_serves())


def _ending(run: RunDir, serves: dict[str, Any]) -> str:
    """Hash of how a run ended and of the sweeps it serves."""
    status = run.read_status()
    told = [status.get("state"), status.get("attempt"), status.get("restart"), serves]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def _launch(run: RunDir, logger: config.Wandb, mode: str, stdin: int) -> subprocess.Popen[bytes]:
    """Start a mirror in a session of its own (Ctrl-C is not for it), in the run's folder, on the code we run."""
    folder = run.path.absolute()
    command = [sys.executable, "-P", "-m", "skipsweep.mirror", str(folder), mode, "--logger"]
    command.append(json.dumps(config.to_dict(logger)))
    code = str(Path(__file__).absolute().parent.parent)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (code, os.environ.get("PYTHONPATH"))))}
    (folder / "log").mkdir(exist_ok=True)
    with open(folder / "log" / "mirror.log", "ab") as log:
        return subprocess.Popen(
            command, stdin=stdin, stdout=log, stderr=log, env=env, cwd=folder, start_new_session=True
        )


def _verdict(run: RunDir, code: int) -> str | None:
    """What the exit code of a mirror means; None: all went well."""
    if code == 0:
        return None
    if code == BUSY:
        return "another mirror of this run is at work"
    cause = _record(run).get("failed") if code == FAILED else None
    return cause or f"the mirror ended with code {code}, see {run.path / 'log' / 'mirror.log'}"


# --------------------------------------------------------------------------------------------- what was mirrored


def _record(run: RunDir) -> dict[str, Any]:
    """mirror.json: id, folders, last_step (of finished mirrors) and failed; empty where missing or unreadable."""
    try:
        return files.read_json(run.mirror / "mirror.json") or {}
    except (OSError, ValueError):
        return {}


def _note(run: RunDir, **changes: Any) -> None:
    """Change entries of mirror.json; None removes one."""
    run.mirror.mkdir(exist_ok=True)
    record = {**_record(run), **changes}
    files.write_json(run.mirror / "mirror.json", {k: v for k, v in record.items() if v is not None})


class Busy(Exception):
    """Another mirror of this run is at work."""


@contextmanager
def _alone(run: RunDir, wait: bool) -> Iterator[None]:
    """Hold the run's mirror lock: the mirror of a killed attempt may still be finishing when the next one starts.

    Raises Busy if it is taken and `wait` is off. File systems that have no locks are taken to be quiet.
    """
    run.mirror.mkdir(exist_ok=True)
    with open(run.mirror / "mirror.lock", "ab") as f:
        with suppress(OSError):
            _lock(f, wait)
        yield


def _lock(f: IO[bytes], wait: bool) -> None:
    try:
        fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not wait:
            raise Busy from None
        print("waiting for the mirror of an earlier attempt", file=sys.stderr, flush=True)
        fcntl.flock(f, fcntl.LOCK_EX)


def _discard(run: RunDir, id: str, keep: Iterable[str]) -> None:
    """Delete this id's offline folders other than `keep`: all their rows are, or are about to be, elsewhere."""
    for folder in run.mirror.glob(f"offline-run-*-{id}"):
        if folder.name not in keep:
            rmtree(folder, ignore_errors=True)


# --------------------------------------------------------------------------------------------- reading the run


@dataclass
class Tail:
    """Reads a growing file of JSON lines. A last line without its newline is left for later."""

    path: Path
    offset: int = 0

    def read(self) -> list[dict[str, Any]]:
        """The rows with a step that were completed since the last call; torn lines are skipped."""
        try:
            with open(self.path, "rb") as f:
                f.seek(self.offset)
                content = f.read()
        except FileNotFoundError:
            return []
        end = content.rfind(b"\n") + 1
        self.offset += end
        return [row for line in content[:end].split(b"\n") if (row := _row(line))]


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


@dataclass
class Once:
    """Lets every step pass once, in rising order, beginning with `next_step`.

    `since`: number of the attempt that began again from step 0; earlier ones belong to another wandb run.
    """

    next_step: int
    since: int

    def pick(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rows that were not yet let through; of several for one step, the last counts."""
        latest = {row["step"]: row for row in rows if row.get("attempt", self.since) >= self.since}
        picked = [latest[step] for step in sorted(latest) if step >= self.next_step]
        if picked:
            self.next_step = picked[-1]["step"] + 1
        return picked


def _labels(run: RunDir) -> tuple[str | None, list[str]]:
    """(group, tags): the arm in the first sweep by name; every sweep, and what all points that this run serves are
    called."""
    serves = run.read_serves()
    arms = [serves[sweep]["arm"] for sweep in sorted(serves)]
    tags = {_cut(tag, TAG_LENGTH) for points in serves.values() for tag in points["tags"]}
    tags |= {sweep_tag(sweep) for sweep in serves}
    return (_cut(arms[0], GROUP_LENGTH) if arms else None), sorted(tags)


def sweep_tag(sweep: str) -> str:
    """The tag by which wandb finds all runs of a sweep."""
    return _cut(f"sweep/{sweep_key(sweep)}", TAG_LENGTH)


def sweep_key(sweep: str) -> str:
    """What wandb calls a sweep, where a point would separate keys and an equals sign read as an operator."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", sweep)


def _config(run: RunDir) -> dict[str, Any]:
    """config.yaml and, under `serves`, what dashboards group by: arm, ordering and number of sources in every sweep.

    A run may serve several orderings, which agree on their first layers and on all; it is then grouped under all their
    names at once.
    """
    settings = files.read_yaml(run.config)
    sources = len(settings["skip_layers"]["layers"] or ())
    serves = {
        sweep_key(sweep): {"arm": points["arm"], "ordering": _ordering(points["tags"], sources), "N": sources}
        for sweep, points in run.read_serves().items()
    }
    return {**settings, "serves": serves}


def _ordering(tags: list[str], sources: int) -> str:
    """`multi_layer/best_to_worst/N=5` -> `best_to_worst`; one source or none has no order."""
    if sources < 2:
        return "single_layer" if sources else "none"
    return "+".join(dict.fromkeys(method_of(tag) for tag in sorted(tags) if tag.count("/") > 1)) or GIVEN


def _cut(text: str, length: int) -> str:
    """`text`, its end replaced by a hash where it is too long: names of points often differ in their last letter."""
    if len(text) <= length:
        return text
    return f"{text[: length - 9]}~{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _figures(value: Any, name: str = "result") -> Iterator[tuple[str, Any]]:
    """(`result/<key>/...`, figure) of every number and text in result.json; lists (the curve) are in the history."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _figures(inner, f"{name}/{key}")
    elif isinstance(value, int | float | str):
        yield name, value


# --------------------------------------------------------------------------------------------- the mirror process


def _id(run: RunDir) -> tuple[str, int]:
    """(wandb's id, first attempt that belongs to it). status.json's `restart` is the attempt that began from step 0."""
    restart = run.read_status().get("restart")
    return (f"{run.id}-r{restart}", restart) if restart else (run.id, 0)


def _open(run: RunDir, id: str, logger: config.Wandb) -> Any:
    """wandb's run, with what is constant about it."""
    import wandb

    group, tags = _labels(run)
    mode: Any = logger.mode  # wandb itself refuses other modes
    opened = wandb.init(
        config=_config(run),
        dir=run.path,
        entity=logger.entity,
        group=group,
        id=id,
        mode=mode,
        name=run.name,
        project=logger.project,
        resume="allow",
        settings=wandb.Settings(**_settings(logger.system_stats)),
        tags=tags,
    )
    opened.define_metric("step")
    opened.define_metric("*", step_metric="step")
    opened.define_metric("val/loss", step_metric="step", summary="min")
    return opened


def _settings(system_stats: bool) -> dict[str, Any]:
    """wandb learns the configuration and the figures, and nothing of machine, user, code or command."""
    return {
        "console": "off",
        "save_code": False,
        "disable_code": True,
        "disable_git": True,
        "disable_job_creation": True,
        "host": "",
        "init_timeout": INIT_TIMEOUT_S,
        "quiet": True,
        "x_disable_machine_info": not system_stats,  # wandb collects no statistics either without it
        "x_disable_meta": True,
        "x_disable_stats": not system_stats,
        "x_save_requirements": False,
        "x_stats_pid": os.getppid(),  # the process that trains
    }


def _log(opened: Any, row: dict[str, Any]) -> None:
    known = {key: value for key, value in row.items() if value is not None}
    if "time" in known:
        known["_timestamp"] = known["time"]  # a replay happened when the training did
    opened.log(known, step=row["step"], commit=True)


def _mirror(run: RunDir, logger: config.Wandb, fresh: bool, ended: threading.Event) -> None:
    """Open, follow until `ended`, finish, and only then set the mark."""
    id, since = _id(run)
    serves = run.read_serves()
    opened = _open(run, id, logger)
    folder = Path(opened.dir).parent.name
    if fresh or _record(run).get("id") != id:
        _note(run, id=id, folders=[], last_step=-1)
    earlier, last = _record(run)["folders"], _record(run)["last_step"]
    offline = logger.mode == "offline"
    if offline:
        _discard(run, id, keep=[*earlier, folder])
    once = Once(last + 1 if offline else opened.starting_step, since)
    _follow(opened, Tail(run.metrics), once, ended)
    _finish(run, opened)
    if not offline:
        _discard(run, id, keep=[])
        _note(run, uploaded=_ending(run, serves))
    _note(run, folders=[*earlier, folder], last_step=max(last, once.next_step - 1), failed=None)


def _follow(opened: Any, tail: Tail, once: Once, ended: threading.Event) -> None:
    over = False
    while not over:
        over = ended.wait(POLL_S)  # asked before reading, so that the last read sees everything
        for row in once.pick(tail.read()):
            _log(opened, row)


def _finish(run: RunDir, opened: Any) -> None:
    opened.summary.update(dict(_figures(files.read_json(run.result) or {})))
    state = run.read_status()["state"]
    if state == "preempted":
        opened.mark_preempting()
    opened.finish(exit_code=0 if state == "done" else 1)


def _fail(run: RunDir, cause: str) -> None:
    """One line on standard error, which is log/mirror.log, and the same in mirror.json."""
    cause = cause.replace(os.environ.get("WANDB_API_KEY") or "\0", "***")
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} failed: {cause}", file=sys.stderr, flush=True)
    with suppress(OSError, ValueError):
        _note(run, failed=cause)


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300].rstrip(".")


def _watch_stdin(run: RunDir, ended: threading.Event) -> None:
    """Set `ended` when the trainer is gone, and see to it that a hanging wandb does not keep us forever."""
    with suppress(OSError):
        while os.read(0, 4096):
            pass
    ended.set()
    time.sleep(LINGER_S)
    _fail(run, f"did not finish within {LINGER_S:g} s of the end of training")
    os._exit(FAILED)


def _stand_back(run: RunDir) -> None:
    """Yield to training, outlive the signals that end it, and keep wandb below the run's folder."""
    os.nice(10)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    for name in _DIVERTING:
        os.environ.pop(name, None)
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    os.environ["WANDB_CACHE_DIR"] = os.environ["WANDB_DATA_DIR"] = str(run.mirror / "cache")


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m skipsweep.mirror", description="Mirror a run to wandb.")
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER")
    parser.add_argument("--follow", action="store_true", help="until standard input ends")
    parser.add_argument("--fresh", action="store_true", help="everything anew, in place of earlier offline folders")
    parser.add_argument("--logger", type=json.loads, help="the logger's fields as JSON; default: the run's own")
    return parser.parse_args(argv)


def _logger(run: RunDir, given: dict[str, Any] | None) -> config.Wandb:
    logger = config.from_dict(config.Logger, given) if given else run.read_config().logger
    if not isinstance(logger, config.Wandb):
        raise ValueError(f"logger={logger.name} in {run.config} is not wandb")
    return logger


def main(argv: list[str] | None = None) -> int:
    """Mirror one run. Returns 0, FAILED (the cause stands in mirror.json) or BUSY."""
    args = _arguments(argv)
    run, ended = RunDir(args.run.absolute()), threading.Event()
    _stand_back(run)
    if args.follow:
        threading.Thread(target=_watch_stdin, args=(run, ended), daemon=True).start()
    else:
        ended.set()
    try:
        with _alone(run, wait=args.follow):
            _mirror(run, _logger(run, args.logger), args.fresh, ended)
    except Busy:
        return BUSY
    except BaseException as error:  # whatever wandb throws, SystemExit included
        _fail(run, _one_line(error))
        return FAILED
    return 0


if __name__ == "__main__":
    code = main()
    if code:
        os._exit(code)  # a failed wandb may hang in its exit handlers
