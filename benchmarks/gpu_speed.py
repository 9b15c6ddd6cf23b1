"""Sections of gpu.py that measure: time per step, part of the GPU's peak, time to the first step, memory."""

import gc
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import shipped
import torch

from skipsweep.config import RunConfig
from skipsweep.distributed import World
from skipsweep.model import count
from skipsweep.train import Trainer

if TYPE_CHECKING:
    from gpu import Report

PEAK = 989.4e12
"""Dense bfloat16 operations per second of an H100 SXM, or H200, by the data sheet; of others no part is said."""

MEMORY_GB = 56.8
"""Most that the medium model may take (the record's log says 56,812 MiB)."""

ACCUMULATED = 8
"""Micro-batches of a step of the medium track on one GPU."""


# ------------------------------------------------------------------------------------------------------------ utilities


def config_of(model: str, head: str, device: str, **changes: Any) -> RunConfig:
    """A shipped model on a GPU, its like in small on a CPU."""
    usual = {"schedule.steps": 5590, "data.val_tokens": 2**18}
    if device == "cpu":
        usual = shipped.little(shipped.TINY, 128) | {"schedule.steps": 5590}
    return shipped.run(model, head, device, usual | changes)


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


class Marks:
    """Points in time on the device, without waiting for it."""

    def __init__(self, device: str) -> None:
        self._device = device

    def now(self) -> Any:
        if self._device == "cpu":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def ms(self, first: Any, last: Any) -> float:
        """Between two points that are past."""
        return 1000 * (last - first) if self._device == "cpu" else first.elapsed_time(last)


@dataclass
class Times:
    """Of several steps, in ms each."""

    step: list[float] = field(default_factory=list)
    optimiser: list[float] = field(default_factory=list)


def timed(made: Trainer, first: int, steps: int, device: str) -> Times:
    """The updates from `first` on, with the window that they have."""
    marks, points, inner = Marks(device), [], []
    original = made.optimiser.step

    def step(*arguments: Any) -> None:
        start = marks.now()
        original(*arguments)
        inner.append((start, marks.now()))

    made.optimiser.step = step  # pyright: ignore[reportAttributeAccessIssue]
    try:
        made.step = first
        for _ in range(steps):
            start = marks.now()
            made._update()
            points.append((start, marks.now()))
        wait(device)
    finally:
        made.optimiser.step = original
    return Times([marks.ms(*p) for p in points], [marks.ms(*p) for p in inner])


def spread(values: list[float], digits: int = 1) -> str:
    """Median, and the middle half."""
    if len(values) < 2:
        return f"{values[0]:.{digits}f}"
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def operations(config: RunConfig, window: int) -> tuple[float, float]:
    """Operations of a step with a window of so many blocks: matrix products with parameters; with attention's scores
    too. Causality and window are counted off those, documents are not."""
    model = replace(config.model, window=window * config.model.window_block, window_growth="none")
    counts = count.flops_per_token(replace(config, model=model))
    tokens, every = config.data.batch_tokens, count.total(counts)
    return tokens * (every - counts["blocks.attention.scores"]), tokens * every


def part_of_peak(config: RunConfig, window: int, ms: float) -> str:
    tokens = f"{config.data.batch_tokens / ms:.1f} thousand tokens/s"
    if not torch.cuda.is_available() or not any(name in torch.cuda.get_device_name() for name in ("H100", "H200")):
        return tokens
    products, every = (100 * flops / (ms / 1000) / PEAK for flops in operations(config, window))
    return f"{tokens}; MFU {products:.1f} %, {every:.1f} % with attention's scores (window and causality counted off)"


# ------------------------------------------------------------------------------------------------------- the first step


def first_step(report: "Report", config: RunConfig, device: str, what: str, since: float | None = None) -> Trainer:
    """A trainer that has made its first update; measures how long that took, from `since` (time.time()) on."""
    start = time.time()
    made = Trainer(config, shipped.RandomText(config), World(device=torch.device(device)))
    wait(device)
    built = time.time()
    made._warm_up()
    wait(device)
    warm = time.time()
    made._update()
    wait(device)
    parts = [("model and optimiser", built - start), ("warm-up (compilation)", warm - built)]
    parts.append(("step", time.time() - warm))
    if since is not None:
        parts.insert(0, ("Python, torch, CUDA", start - since))
    note = ", ".join(f"{name} {seconds:.1f}" for name, seconds in parts)
    report.measured(f"s to the first step, {what}", f"{time.time() - (since or start):.1f}", note)
    return made


def process_start(device: str) -> float:
    """When this process was started; the GPU is awake afterwards."""
    if device == "cuda":
        torch.zeros((), device="cuda")
        wait(device)
    return float(os.environ.get("GPU_SECTION_STARTED", time.time()))


# ----------------------------------------------------------------------------------------------------------- a model


def model_section(name: str) -> Callable[["Report", str], None]:
    """Everything about one model with the head `last`, with nothing compiled before."""

    def section(report: "Report", device: str) -> None:
        since = process_start(device)
        config = config_of(name, "last", device)
        made = first_step(report, config, device, f"{name}, nothing cached", since)
        with report.guarded("time per step"):
            _windows(report, made, device)
        with report.guarded("outer step"):
            _outer(report, made, device)
        if device == "cuda":
            _memory(report, name)
        if name == "medium":
            with report.guarded("validation"):
                _validation(report, made, device)

    return section


def _windows(report: "Report", made: Trainer, device: str) -> None:
    """ms per step at the start, in the middle, and at the end of a run; steps without an outer one."""
    config, steps = made.config, 3 if report.quick else 16
    for where, part in (("start", 0.0), ("middle", 0.5), ("end", 0.99)):
        first = int(part * config.schedule.steps) // 28 * 28 + 1
        timed(made, first, 1 if report.quick else 3, device)
        times, window = timed(made, first, steps, device), made._window(first)
        ms, share = statistics.median(times.step), statistics.median(times.optimiser)
        note = f"{window} blocks; {part_of_peak(config, window, ms)}"
        report.measured(f"ms per step, {where} of the run", spread(times.step), note)
        report.measured(
            f"ms of the optimiser, {where}", spread(times.optimiser, 2), f"{100 * share / ms:.1f} % of the step"
        )
        if where == "middle":
            whole = ACCUMULATED * (ms - share) + share
            note = f"computed: {ACCUMULATED} passes and one optimiser step; 8 GPUs make one pass each, and communicate"
            report.measured(f"ms per step of {ACCUMULATED} micro-batches on one GPU", f"{whole:.0f}", note)


def _outer(report: "Report", made: Trainer, device: str) -> None:
    every = made.config.optim.outer_every
    ordinary = timed(made, every + 1, 3, device).optimiser
    outer = [timed(made, every * k, 1, device).optimiser[0] for k in (1, 2, 3)]
    more = statistics.median(outer) - statistics.median(ordinary)
    report.measured("ms more in an outer step", f"{more:.2f}", f"every {every} steps")


def _memory(report: "Report", name: str) -> None:
    peak = torch.cuda.max_memory_allocated() / 1e9
    note = f"allocated; reserved {torch.cuda.max_memory_reserved() / 1e9:.1f}"
    report.check(f"GB at most in training, {name}", peak, MEMORY_GB, note)


def _validation(report: "Report", made: Trainer, device: str) -> None:
    """On a GPU one sequence of 262,144 tokens."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        made.validate()
        seconds.append(time.perf_counter() - start)
    note = f"the first, with compilation, {seconds[0]:.1f}"
    if device == "cuda":
        note += f"; at most {torch.cuda.max_memory_allocated() / 1e9:.1f} GB"
    report.measured(f"s per validation of {made.config.data.val_tokens:,} tokens", f"{seconds[1]:.2f}", note)


def medium_warm(report: "Report", device: str) -> None:
    """The same model again, in a new process that finds the compiled kernels on disk."""
    since = process_start(device)
    first_step(report, config_of("medium", "last", device), device, "the same again, kernels on disk", since)


def medium_heads(report: "Report", device: str) -> None:
    """Another arm in a new process, and each head side by side with `last`."""
    since = process_start(device)
    first_step(report, config_of("medium", "add", device), device, "another arm (add), kernels on disk", since)
    free(device)
    # both models are in memory at once; the outer optimiser has nothing to do with the head
    alone = {"optim.outer_every": 0}
    base = first_step(report, config_of("medium", "last", device, **alone), device, "another arm, same process")
    for head in ("add", "add_renorm", "concat"):
        with report.guarded(f"overhead of {head}"):
            arm = first_step(report, config_of("medium", head, device, **alone), device, f"{head}, same process")
            _overhead(report, head, base, arm, device)
            del arm
        free(device)


def free(device: str) -> None:
    """Give back what is no longer in use."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def _overhead(report: "Report", head: str, base: Trainer, arm: Trainer, device: str) -> None:
    """The two in turns, at the middle of the run."""
    rounds, steps = (2, 1) if report.quick else (8, 3)
    first = base.config.schedule.steps // 2
    for made in (base, arm):
        timed(made, first, 1, device)
    ratios, more = [], []
    for _ in range(rounds):
        alone, with_head = (statistics.median(timed(made, first, steps, device).step) for made in (base, arm))
        ratios.append(100 * (with_head / alone - 1))
        more.append(with_head - alone)
    note = f"{spread(more, 2)} ms; {rounds} pairs of {steps} steps in turns"
    report.measured(f"% more time per step than last, {head}", spread(ratios, 2), note)


SECTIONS: dict[str, Callable[["Report", str], None]] = {
    "medium": model_section("medium"),
    "medium_warm": medium_warm,
    "medium_heads": medium_heads,
    "small": model_section("small"),
}
