"""The text logs of modded-nanogpt, and of the ablations made from it: text in, figures out. Opens no file.

A log is the whole script, a line of 100 `=`, versions and nvidia-smi, another such line, then one line per step:

    step:5550/5550 val_loss:2.919954 train_time:1385433ms step_avg:249.63ms lx:0.828 ls:-0.292

Old ones lack the script, or have `nan` for step_avg. The author of the multi-output article appended lambdas to
validation lines: ` lx: ls:`, ` x-lambda: lambdas: [..] skip-layers: [..]` and `rolling_lambdas:[[..], ..]`.
"""

import json
import math
import re
from dataclasses import dataclass, field
from typing import Any

RULE = "=" * 100
_STEP = re.compile(
    r"step:(\d{1,12})/(\d{1,12})(?: val_loss:(\d+(?:\.\d+)?|nan))? train_time:(\d{1,15}(?:\.\d+)?)ms"
    r" step_avg:(?:\d+(?:\.\d+)?|nan)ms(.*)",
    re.ASCII,
)
_SINGLE = re.compile(r" lx:(\S+) ls:(\S+)")
_MULTI = re.compile(r" x-lambda: (\S+) lambdas: (\[.*?\]) skip-layers: (\[.*?\])")
_ROLLING = re.compile(r" ?rolling_lambdas:(\[.*\])")


@dataclass
class Log:
    """What one log says."""

    script: str = ""
    """The program at the top; empty where the log has none."""
    hardware: list[str] = field(default_factory=list)
    """Lines between script and steps: versions, nvidia-smi."""
    steps: int | None = None
    """Steps that the run was to take, as its newest line says."""
    last_step: int | None = None
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Step -> step, train_time_s (seconds), val/loss (nats per token; absent where nan), lambda/*; validations only."""
    nan_at: int | None = None
    """Step of the first validation whose loss was nan."""
    damaged: list[int] = field(default_factory=list)
    """Numbers, from 1, of lines that begin like a step and cannot be read."""

    @property
    def is_log(self) -> bool:
        """Whether there was a readable step line at all."""
        return self.last_step is not None


def parse(text: str) -> Log:
    """Read a log. Raises nothing, whatever the text: what cannot be read is counted in `damaged`."""
    lines = text.split("\n")
    rules = [i for i, line in enumerate(lines) if line.rstrip() == RULE]
    log = Log()
    start = 0
    if rules:
        log.script = "\n".join(line.rstrip("\r") for line in lines[: rules[0]])
        start = rules[1] + 1 if len(rules) > 1 else rules[0] + 1
        log.hardware = [line.rstrip() for line in lines[rules[0] + 1 : start - 1] if line.strip()]
    for number, line in enumerate(lines[start:], start + 1):
        if line.startswith("step:"):
            _step(log, number, line.rstrip())
    return log


def _step(log: Log, number: int, line: str) -> None:
    found = _STEP.fullmatch(line)
    extras = _lambdas(found[5]) if found else None
    if found is None or extras is None:
        log.damaged.append(number)
        return
    step, steps, loss = int(found[1]), int(found[2]), found[3]
    log.steps = steps
    log.last_step = max(step, log.last_step or 0)
    if loss is None:
        return
    row: dict[str, Any] = {"step": step, "train_time_s": round(float(found[4]) / 1000, 4)}
    if math.isfinite(float(loss)):
        row["val/loss"] = float(loss)
    elif log.nan_at is None:
        log.nan_at = step
    log.rows[step] = row | extras


def _lambdas(text: str) -> dict[str, float] | None:
    """What stands after step_avg, by our labels; None where it is torn or nothing known."""
    try:
        if not text:
            return {}
        if found := _SINGLE.fullmatch(text):
            return _finite({"lambda/x": float(found[1]), "lambda/skip": float(found[2])})
        if found := _MULTI.fullmatch(text):
            values, layers = json.loads(found[2]), json.loads(found[3])
            each = {f"lambda/skip/{int(i)}": float(v) for i, v in zip(layers, values, strict=True)}
            return _finite({"lambda/x": float(found[1])} | each)
        if found := _ROLLING.fullmatch(text):
            pairs = enumerate(json.loads(found[1]))
            return _finite({f"lambda/rolling_row/{i}/{n}": float(v) for i, p in pairs for n, v in _named(p)})
    except (ValueError, TypeError, OverflowError, RecursionError):
        pass
    return None


def _named(pair: Any) -> list[tuple[str, Any]]:
    """The two of one row; which block the row belongs to, the log does not say."""
    return list(zip(("x", "skip"), pair, strict=True))


def _finite(values: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in values.items() if math.isfinite(value)}
