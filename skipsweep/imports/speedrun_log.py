"""The text logs of modded-nanogpt, and of the ablations made from it: text in, figures out. Opens no file.

A log is the whole script, a line of 100 `=`, versions and nvidia-smi, another such line, then one line per step:

    step:5550/5550 val_loss:2.919954 train_time:1385433ms step_avg:249.63ms lx:0.828 ls:-0.292

Old ones lack the script, have `nan` for step_avg, or a train_loss on the lines between validations; track 3 counts its
train_time in seconds. The author of the multi-output article appended lambdas to validation lines: ` lx: ls:`,
` x-lambda: lambdas: [..] skip-layers: [..]` and `rolling_lambdas:[[..], ..]`.
"""

import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

RULE = "=" * 100
_STEP = re.compile(
    r"step:(\d{1,12})/(\d{1,12})(?: val_loss:(\d+(?:\.\d+)?|nan))?((?: (?!val_loss:)\w+:\S+)*?)"
    r" train_time:(\d{1,15}(?:\.\d+)?)(ms|s)\b(?: step_avg:(?:\d+(?:\.\d+)?|nan)ms)?(.*)",
    re.ASCII,
)
_NAME = re.compile(r"([^\s:\[\]]+):")
Reading = tuple[int, float | None, float]
"""A validation: step, loss (nats per token; None: nan), training time (seconds)."""


@dataclass
class Trace:
    """One run of a log."""

    script: str = ""
    """The program at the top; empty where the log has none, or another one may have begun since."""
    hardware: list[str] = field(default_factory=list)
    """Lines between script and steps: versions, nvidia-smi."""
    steps: int | None = None
    """Steps that the run was to take, as its newest line says."""
    last_step: int = -1
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Step -> step, train_time_s (seconds), val/loss (nats per token; absent where nan), lambda/*; validations only."""
    nan_at: int | None = None
    """Step of the first validation whose loss was nan."""

    @property
    def readings(self) -> list[Reading]:
        """What the validations say, in order of steps."""
        return readings(self.rows.values())


@dataclass
class Log:
    """What one log says."""

    runs: list[Trace] = field(default_factory=list)
    """In order: a script that trains several times, or is started again, goes on in the same log. Empty: no log."""
    damaged: list[int] = field(default_factory=list)
    """Numbers, from 1, of lines that begin like a step and cannot be read."""
    unread: list[str] = field(default_factory=list)
    """Names of what else stands on validation lines, each once: not known, or with a value that cannot be read."""


def readings(rows: Iterable[dict[str, Any]]) -> list[Reading]:
    """What rows of validations say, lambdas aside: equal for two guises of one run."""
    return [(row["step"], row.get("val/loss"), row["train_time_s"]) for row in rows]


def parse(text: str) -> Log:
    """Read a log. Raises nothing, whatever the text: what cannot be read is counted in `damaged`."""
    lines = text.split("\n")
    rules = [i for i, line in enumerate(lines) if line.rstrip() == RULE]
    log, head = Log(), {}
    start = 0
    if rules:
        start = rules[1] + 1 if len(rules) > 1 else rules[0] + 1
        hardware = [line.rstrip() for line in lines[rules[0] + 1 : start - 1] if line.strip()]
        head = {"script": "\n".join(line.rstrip("\r") for line in lines[: rules[0]]), "hardware": hardware}
    for number, line in enumerate(lines[start:], start + 1):
        if line.startswith("step:"):
            _step(log, number, line.rstrip(), head)
        elif line.rstrip() == RULE:
            head = {}  # of a script that was started again, perhaps changed
    return log


def _step(log: Log, number: int, line: str, head: dict[str, Any]) -> None:
    found = _STEP.fullmatch(line)
    if found is None:
        log.damaged.append(number)
        return
    step, steps, loss, time = int(found[1]), int(found[2]), found[3], float(found[5])
    if not log.runs or _falls_back(log.runs[-1], step, loss):
        log.runs.append(Trace(**head))
    run = log.runs[-1]
    run.steps, run.last_step = steps, step
    if loss is None:
        return
    row: dict[str, Any] = {"step": step, "train_time_s": round(time / 1000 if found[6] == "ms" else time, 4)}
    if math.isfinite(float(loss)):
        row["val/loss"] = float(loss)
    elif run.nan_at is None:
        run.nan_at = step
    lambdas, unread = _lambdas(found[4] + found[7])
    run.rows[step] = row | lambdas
    log.unread += [name for name in unread if name not in log.unread]


def _falls_back(run: Trace, step: int, loss: str | None) -> bool:
    """Whether a line begins another run: its step is below the last one, or it validates before any step once more."""
    return step < run.last_step or (step == 0 and loss is not None and 0 in run.rows)


def _lambdas(text: str) -> tuple[dict[str, float], list[str]]:
    """(lambdas among what else stands on a line, by our labels; names of the rest). A nan in them is a missing one."""
    values: dict[str, float] = {}
    for pattern, read in _KNOWN:
        if found := pattern.search(text):
            try:
                values |= {key: value for key, value in read(*found.groups()).items() if math.isfinite(value)}
            except (ValueError, TypeError, OverflowError, RecursionError):
                continue
            text = text[: found.start()] + text[found.end() :]
    return values, _NAME.findall(text) or (["text without a name"] if text.strip() else [])


def _single(x: str, skip: str) -> dict[str, float]:
    return {"lambda/x": float(x), "lambda/skip": float(skip)}


def _multi(x: str, values: str, layers: str) -> dict[str, float]:
    each = zip(_list(layers), _list(values), strict=True)
    return {"lambda/x": float(x)} | {f"lambda/skip/{int(layer)}": float(value) for layer, value in each}


def _rolling(rows: str) -> dict[str, float]:
    """Of each row the two; which block the row belongs to, the log does not say."""
    pairs = [zip(("x", "skip"), pair, strict=True) for pair in _list(rows)]
    return {f"lambda/rolling_row/{i}/{name}": float(value) for i, pair in enumerate(pairs) for name, value in pair}


def _list(text: str) -> list[Any]:
    """A list as Python prints it, which writes nan and inf where JSON has NaN and Infinity."""
    return json.loads(text.replace("nan", "NaN").replace("inf", "Infinity"))


_KNOWN: list[tuple[re.Pattern[str], Callable[..., dict[str, float]]]] = [
    (re.compile(r" lx:(\S+) ls:(\S+)"), _single),
    (re.compile(r" x-lambda: (\S+) lambdas: (\[.*?\]) skip-layers: (\[.*?\])"), _multi),
    (re.compile(r" ?rolling_lambdas:(\[\[.*?\]\])"), _rolling),
]
