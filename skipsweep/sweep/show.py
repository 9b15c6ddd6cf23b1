"""What a person at a terminal sees of plans, sweeps and runs."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from skipsweep.analyze.arms import ArmRow
from skipsweep.analyze.listing import Row, Status
from skipsweep.analyze.run_diff import RunDiff
from skipsweep.progress import counted, describe, duration, gigabytes, number
from skipsweep.rundir import RunDir
from skipsweep.status import Observation, observe
from skipsweep.sweep import chart
from skipsweep.sweep.estimate import Estimate, sizes
from skipsweep.sweep.plan import Plan
from skipsweep.sweep.precision import Precision
from skipsweep.sweep.schedules import Drawing

LINE_WIDTH = 2000
"""Columns where there is no terminal: nothing is to be folded in a log."""


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Whoever prints learns of it, as from `print`; rich, which has caught it and calls this, would exit."""
        raise


console = _Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else LINE_WIDTH)
"""Takes text as it is: the brackets of `skip_layers=[input,2]` are no markup."""
MAX_ROWS = 20
"""Rows of a live table; with more runs, only those that are running."""
MAX_OPEN = 100
"""Rows of unfinished runs in `skipsweep status`."""
MAX_FIGURES = 8
"""Schedules that `skipsweep plan --schedules` draws."""
OBSERVE_EVERY_S = 1.0
STYLE = {"done": "green", "running": "cyan", "failed": "red", "interrupted": "yellow", "preempted": "yellow"}


def table(*columns: str, title: str | None = None) -> Table:
    """An empty table in the one style; columns that begin with `>` are right-aligned."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left", overflow="fold")
    return made


def state(seen: Observation) -> Text:
    """A state in its colour."""
    return Text(seen.state, STYLE.get(seen.state, ""))


# ----------------------------------------------------------------------------------------------------------------- plan


def plan(made: Plan, todo: Sequence[str], expected: Estimate | None) -> None:
    """Points, runs, what is finished, what will run and how long that takes, how large each arm's model is."""
    if made.name is not None:
        headline(made.name, made.sweep.question)
    shown = table("arm", "layers", ">seed", ">parameters", ">MFLOP/token", "run", "state")
    for point in made.points[:MAX_ROWS]:
        size = sizes(made.configs[point.run])
        seen = made.observations[point.run]
        layers = ",".join(map(str, point.sources)) or "none"
        where = Text(f" by {seen.holder}" if seen.holder else "")
        cost = f"{size.parameters:,}", f"{size.flops_per_token / 1e6:,.2f}"
        arm = _marked(point.arm, made.confounds.get(point.arm))
        shown.add_row(arm, layers, str(point.seed), *cost, point.run, state(seen) + where)
    console.print(shown)
    if len(made.points) > MAX_ROWS:
        console.print(f"... and {len(made.points) - MAX_ROWS} more points")
    for note in made.notes:
        console.print(note, soft_wrap=True)
    console.print(summary(made, todo, expected))


def _marked(arm: str, keys: Sequence[str] | None) -> Text:
    """An arm's name, and the keys that its effect cannot be told apart from."""
    return Text(arm).append(f" confounded by {', '.join(keys)}", "yellow") if keys else Text(arm)


def summary(made: Plan, todo: Sequence[str], expected: Estimate | None) -> str:
    """`4 points, 3 runs: 1 finished, 2 to run; about 3:20`, and on GPUs what that costs."""
    states = [seen.state for seen in made.observations.values()]
    failed = sum(s == "failed" for s in states) - sum(made.observations[r].state == "failed" for r in todo)
    parts = [f"{states.count('done')} finished"]
    if failed:
        parts.append(f"{failed} failed (again with retry=failed)")
    parts.append(f"{len(todo)} to run")
    cost = f"; {_cost(expected)}" if todo else ""
    return f"{counted(made.points, 'point')}, {counted(made.configs, 'run')}: {', '.join(parts)}{cost}"


def _cost(expected: Estimate | None) -> str:
    if expected is None:
        return "time unknown until measured"
    hours = f", {expected.gpu_hours:,.1f} GPU-hours" if expected.gpu_hours else ""
    return f"about {duration(expected.seconds)}{hours}" + (" at published speed" if expected.recorded else "")


def precision(told: Precision | None) -> None:
    """What the planned seeds can detect, and what half of that would take."""
    if told is None:
        return
    hours = "" if told.gpu_hours_for_half is None else f" ({told.gpu_hours_for_half:,.0f} GPU-hours)"
    console.print(
        f"With {told.seeds} seeds per arm, differences of about {told.difference:.2g} nats/token or more are "
        f"detectable (power 80 %; sd {told.sd:.2g} {told.source}); half that difference takes {told.seeds_for_half} "
        f"seeds{hours}",
        soft_wrap=True,
    )


def download(size: int) -> None:
    """What is to be downloaded before anything starts, in bytes."""
    if size:
        console.print(f"to download first: {gigabytes(size)} GB")


def schedules(drawn: Sequence[Drawing]) -> None:
    """Charts of what changes over the steps, one set per distinct schedule."""
    for drawing in drawn[:MAX_FIGURES]:
        console.print()
        console.print(chart.figure(drawing))
    if len(drawn) > MAX_FIGURES:
        console.print(f"... and {len(drawn) - MAX_FIGURES} more schedules; all with --json")


def come_back(sweep: str | None, runs: Sequence[str], what: str) -> None:
    """What a launcher that does not wait any longer says; without a sweep there is a single run."""
    look = f"skipsweep status {sweep}" if sweep else "skipsweep status"
    console.print(f"{what}; to look: {look} --watch; to wait for the results: the same command again", soft_wrap=True)
    console.print(f"to cancel: skipsweep cancel {sweep or runs[0]}", soft_wrap=True)


def headline(sweep: str, question: str | None) -> None:
    """A sweep's name and question."""
    console.print(Text(f"sweep {sweep}", "bold").append(f": {question}" if question else "", "not bold"))


def place(what: str, path: Path) -> None:
    """Where something lies, never folded: to be copied from the terminal."""
    console.print(f"{what}: {path}", soft_wrap=True)


# ----------------------------------------------------------------------------------------------------------------- live


class Watch:
    """Follows runs: a live table on a terminal, else a line whenever a run's state changes."""

    def __init__(
        self,
        runs: Sequence[RunDir],
        known: Mapping[str, Observation],
        look: Callable[[RunDir], Observation] = observe,
    ):
        """`known`: what has been said of the runs already."""
        self._runs, self._look = runs, look
        self._next = 0.0
        self._seen = {run: (one.state, one.attempt) for run, one in known.items() if one.state != "new"}
        self._live = Live(console=console, auto_refresh=False, transient=True) if sys.stdout.isatty() else None

    def __enter__(self) -> "Watch":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.tick(force=True)
        if self._live:
            with _while_somebody_listens():
                self._live.stop()

    def tick(self, force: bool = False) -> None:
        """Look again, at most once a second. Nothing that goes wrong with that is worth ending a launch."""
        if not force and time.monotonic() < self._next:
            return
        self._next = time.monotonic() + OBSERVE_EVERY_S
        try:
            seen = [self._look(run) for run in self._runs]
        except OSError:  # the file server does not answer: asked again
            return
        if self._live:
            with _while_somebody_listens():
                self._live.update(Group(runs(_worth_showing(seen)), _counts(seen)), refresh=True)
        else:
            self._print_changes(seen)

    def _print_changes(self, seen: Sequence[Observation]) -> None:
        for one in seen:
            before = self._seen.get(one.run, ("planned", None))
            self._seen[one.run] = now = one.state, one.attempt
            if now != before:
                cause = f": {one.cause}: {one.message}" if one.cause else ""
                with _while_somebody_listens():
                    print(f"{one.run}: {one.state}{cause}", flush=True)


@contextlib.contextmanager
def _while_somebody_listens() -> Iterator[None]:
    """Once standard output is a closed pipe, or a terminal that is gone, all that is printed goes nowhere."""
    try:
        yield
    except UnicodeError:  # a character that the encoding has not got
        pass
    except OSError:
        silence()


def silence() -> None:
    """Send standard output nowhere, also what is still buffered."""
    with contextlib.suppress(OSError):  # a stream without a file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _worth_showing(seen: Sequence[Observation]) -> Sequence[Observation]:
    return (
        seen
        if len(seen) <= MAX_ROWS
        else [one for one in seen if one.state in ("running", "failed") or one.stuck][:MAX_ROWS]
    )


def _counts(seen: Sequence[Observation]) -> Text:
    states = [one.state for one in seen]
    return Text(", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states)))


def runs(seen: Sequence[Observation]) -> Table:
    """One row per run: state, step, losses, speed, time left, cause of a failure."""
    shown = table("run", "state", ">step", "progress")
    for one in seen:
        now = one.progress or {}
        step = f"{now['step']}/{now['steps']}" if "step" in now else ""
        if one.stuck:
            what = f"stuck: {one.stuck}"
        elif one.state == "failed":
            what = f"{one.cause}: {one.message}" + (f" ({one.log})" if one.log else "")
        elif one.state == "running" and now:
            what = describe(now)
        else:
            what = one.message or ""
        shown.add_row(one.run, state(one), step, what)
    return shown


# -------------------------------------------------------------------------------------------------------------- results


def arms(found: Sequence[ArmRow]) -> None:
    """Arms with validation loss and difference from the baseline, and a word of caution where one is due."""
    seeds = ">pairs" if any(arm.paired for arm in found) else ">same seeds"
    figures = ">runs", ">val loss", ">sd", ">vs baseline", seeds, ">steps", ">time", ">parameters", ">MFLOP/token"
    # Without gates both are a third of the column before, windows aside.
    skips = any(arm.has_gates for arm in found)
    shown = table("arm", *figures, *([">inference, estimated", ">measured"] if skips else []))
    for arm in found:
        versus = "baseline" if arm.is_baseline else f"is {arm.same_as}" if arm.same_as else _signed(arm.difference)
        count = f"{arm.done}/{arm.planned}" + (f", {arm.failed} failed" if arm.failed else "")
        shown.add_row(
            _marked(arm.name, arm.confounds),
            count,
            number(arm.val_loss),
            number(arm.val_loss_sd),
            versus,
            _seeds(arm),
            "-" if arm.steps is None else str(arm.steps),
            duration(arm.train_time_s),
            "-" if arm.parameters is None else f"{arm.parameters:,}",
            _mflop(arm.flops_per_token),
            *([_mflop(arm.inference_estimated), _mflop(arm.inference_measured)] if skips else []),
        )
    console.print(shown)
    if len(found) > 1 and any(arm.done for arm in found) and all(arm.val_loss_sd is None for arm in found):
        console.print(
            "one seed per arm: differences cannot be distinguished from noise; more seeds: 'sweep.seeds=range(0,5)'"
        )
    if any(arm.difference is not None and arm.pairs and not arm.same_seeds and not arm.paired for arm in found):
        console.print(
            "where only some seeds are the same as the baseline's, part of a difference may be due to the seeds"
        )


def _mflop(operations: float | None) -> str:
    return "-" if operations is None else f"{operations / 1e6:,.2f}"


def _seeds(arm: ArmRow) -> str:
    """The pairs that the difference is the mean over; of a difference of means, how many of its seeds are the same."""
    if arm.is_baseline or arm.same_as:
        return ""
    if arm.difference is None:
        return "-"
    return "all" if arm.same_seeds and not arm.paired else str(arm.pairs)


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.4f}"


def result(run: RunDir, found: dict[str, Any]) -> None:
    """The end of a single run: losses, cost, learned lambdas, and where all that lies."""
    shown = table("", ">")
    shown.add_row("validation loss", f"{found['val_loss']:.4f} nats/token")
    shown.add_row("unigram entropy", f"{found['unigram_entropy']:.4f} nats/token (ignoring all context)")
    shown.add_row("steps", f"{found['steps']:,}")
    shown.add_row("tokens", f"{found['tokens']:,}")
    shown.add_row("training time", duration(found["train_time_s"]))
    shown.add_row("parameters", f"{sum(found['parameters'].values()):,}")
    by_layer, others = split_lambdas(found["lambdas"])
    for label, value in others.items():
        shown.add_row(label, f"{value:+.4f}")
    console.print(shown)
    if by_layer:
        console.print(_lambdas_by_layer(by_layer))
    place("run", run.path)
    console.print("look: metrics.jsonl (rows), result.json, log/; `skipsweep compare RUN RUN`, `skipsweep list`")


def split_lambdas(lambdas: Mapping[str, float]) -> tuple[dict[int, dict[str, float]], dict[str, float]]:
    """Layer -> {`block/x00`: value} of those that every layer has (`lambda/block/3/x00`), and the others by label."""
    by_layer: dict[int, dict[str, float]] = {}
    others = {}
    for label, value in lambdas.items():
        match label.split("/"):
            case ["lambda", mechanism, layer, name] if layer.isdigit():
                by_layer.setdefault(int(layer), {})[f"{mechanism}/{name}"] = value
            case _:
                others[label] = value
    return dict(sorted(by_layer.items())), others


def _lambdas_by_layer(by_layer: Mapping[int, Mapping[str, float]]) -> Table:
    columns = dict.fromkeys(name for values in by_layer.values() for name in values)
    shown = table("lambdas of layer", *[f">{name}" for name in columns])
    for layer, values in by_layer.items():
        shown.add_row(str(layer), *[f"{values[c]:+.4f}" if c in values else "" for c in columns])
    return shown


# ------------------------------------------------------------------------------------------------ the skipsweep command


def listing(rows: Sequence[Row], where: Path) -> None:
    """All runs below `where`. Plain columns: laying out a table of a thousand rows takes rich a second."""
    if not rows:
        print(f"no runs yet below {where}")
        return
    cells = [("run", "state", "val loss", "steps", "time", "sweeps")]
    for row in rows:
        state_ = row.state + (f" ({row.cause})" if row.cause else "")
        steps = "-" if row.steps is None else str(row.steps)
        time_ = "-" if row.train_time_s is None else duration(row.train_time_s)
        cells.append((row.run, state_, number(row.val_loss), steps, time_, " ".join(row.sweeps)))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        name, state_, *figures, sweeps = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        figures = [figure.strip().rjust(width) for figure, width in zip(figures, widths[2:5], strict=True)]
        print("  ".join([name, state_, *figures, sweeps]).rstrip())


def status(found: Status, where: Path) -> None:
    """Of what is below `where`: counts, what is not finished, and a sweep's arms."""
    if found.sweep:
        headline(found.sweep, found.question)
    counts = ", ".join(f"{n} {s}" for s, n in found.counts.items())
    console.print(counts or f"no runs yet below {where}", soft_wrap=True)
    open_ = [one for one in found.runs if one.state != "done"]
    if open_:
        console.print(runs(open_[:MAX_OPEN]))
    if len(open_) > MAX_OPEN:
        console.print(f"... and {len(open_) - MAX_OPEN} more; all with --json")
    if found.arms:
        arms(found.arms)
    if found.sweeps:
        console.print("sweeps: " + ", ".join(found.sweeps))


def run_diff(found: RunDiff) -> None:
    """Settings, losses and lambdas of two runs."""
    a, b = found.runs
    console.print(f"a: {a}\nb: {b}")
    for title, pairs in (
        ("settings that differ", found.settings),
        ("result", found.result),
        ("lambdas", found.lambdas),
    ):
        shown = table("", ">a", ">b", title=f"\n{title}")
        for key, values in pairs.items():
            shown.add_row(key, *(_cell(value) for value in values))
        console.print(shown if pairs else f"\n{title}: none")
    shown = table(">step", ">a", ">b", ">b - a", title="\nvalidation loss at equal steps")
    for row in found.losses:
        shown.add_row(str(row["step"]), number(row["a"]), number(row["b"]), _signed(row["difference"]))
    console.print(shown if found.losses else "\nno validation at equal steps")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def corpora(found: Sequence[dict[str, Any]]) -> None:
    """Tokenised corpora (`data.corpus.summary`), one row each; a damaged one with what is wrong."""
    shown = table("corpus", "tokenizer", ">vocabulary", ">train tokens", ">val tokens", ">documents", ">MB", "state")
    for one in found:
        name = Path(one["folder"]).name
        if "problem" in one:
            shown.add_row(name, *["-"] * 6, one["problem"])
            continue
        train, val = one["train"], one["val"]
        documents = None if train["documents"] is None else train["documents"] + val["documents"]
        figures = one["vocab_size"], train["tokens"], val["tokens"], documents
        cells = ("-" if figure is None else f"{figure:,}" for figure in figures)
        shown.add_row(name, one["tokenizer"], *cells, f"{one['disk_bytes'] / 1e6:.1f}", _condition(one))
    console.print(shown if found else "no corpora yet")


def _condition(one: dict[str, Any]) -> str:
    """`verified`; of a corpus from the hub also how much of it is there."""
    present, of = (one["train"][key] + one["val"][key] for key in ("present", "shards"))
    checked = "verified" if one["verified"] else "not verified"
    if "origin" not in one:
        return checked
    return f"{present} of {of} shards" + (f", {checked}" if present else "")


def shards(found: Sequence[dict[str, Any]]) -> None:
    """Shards after they were read, one row each, with what is wrong."""
    shown = table("corpus", "shard", ">tokens", "state")
    for one in found:
        tokens = "-" if one["tokens"] is None else f"{one['tokens']:,}"
        shown.add_row(one["corpus"], one["shard"] or "-", tokens, one["problem"] or "ok")
    console.print(shown if found else "no corpora yet")
