"""Follow, compare and manage the runs that `python launch.py` starts."""

import errno
import json
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from skipsweep import progress, provenance
from skipsweep.config import Paths, Text
from skipsweep.errors import UserError
from skipsweep.rundir import Multirun, names_a_folder

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False)
data_app = typer.Typer(help="Tokenise, download, list and check corpora.", no_args_is_help=True)
app.add_typer(data_app, name="data")
import_app = typer.Typer(help="Import the logs of other programs as runs that reports can read.", no_args_is_help=True)
app.add_typer(import_app, name="import")

DISK = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
"""What a disk refuses, which no other input mends."""

MULTIRUN = "multirun"

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Folder = Annotated[str, typer.Option("--multirun", help="Folder of runs and sweeps, relative to the checkout.")]
Run = Annotated[str, typer.Argument(help="A run: its name, its id, or the beginning of either.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="As for launch.py: experiment=demo, skip_layers=none,2 ...")
]

ConfigDir = Annotated[
    str | None,
    typer.Option("--config-dir", "-cd", help="A folder of your own that is searched beside conf/, as in launch.py."),
]


def _multirun(folder: str, is_new: bool = False) -> Multirun:
    """Raises UserError for a folder that is not there, unless it `is_new`, or the default one of a fresh checkout."""
    path = (provenance.CHECKOUT / Path(folder).expanduser()).resolve()
    if not (is_new or folder == MULTIRUN or path.is_dir()):
        raise UserError(f"--multirun {folder}: no folder {path}; a relative one starts at the checkout")
    return Multirun(path)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=1, allow_nan=False))


@app.command("list")
def list_runs(as_json: Json = False, multirun: Folder = MULTIRUN) -> None:
    """List all runs with their state, final loss, steps, time and sweeps."""
    from skipsweep.analyze import listing

    folder = _multirun(multirun)
    rows = listing.runs(folder)
    if as_json:
        return _print_json([asdict(row) for row in rows])
    from skipsweep.sweep import show

    show.listing(rows, folder.path)


@app.command()
def status(
    sweep: Annotated[
        str | None, typer.Argument(help="A sweep; default: all runs, and the names of all sweeps.")
    ] = None,
    as_json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", help="Repeat every few seconds until every run has ended.")] = False,
    multirun: Folder = MULTIRUN,
) -> None:
    """Show the state of each run, why it failed or is stuck, and a sweep's arms."""
    from skipsweep.analyze import listing
    from skipsweep.slurm import commands

    folder = _multirun(multirun)

    def look() -> listing.Status:
        return commands.with_queue(listing.status(folder, sweep and folder.name_of(sweep)), folder)

    def show_it(found: listing.Status) -> None:
        if as_json:
            return _print_json(asdict(found))
        from skipsweep.sweep import show

        show.status(found, folder.path)

    if watch:
        commands.watch(look, show_it)
    else:
        show_it(look())


@app.command()
def cancel(
    sweep: Annotated[str, typer.Argument(help="A sweep, or a run that was launched by itself.")],
    as_json: Json = False,
    multirun: Folder = MULTIRUN,
) -> None:
    """Cancel the runs that only this sweep needs.

    Runs in training save a checkpoint first; repeat the launch to resume them.
    """
    from skipsweep.slurm import cancel as cancelling
    from skipsweep.slurm import commands

    folder = _multirun(multirun)
    cancelled = cancelling.cancel(folder, folder.name_of(sweep))
    if as_json:
        return _print_json(asdict(cancelled))
    commands.show_cancelled(cancelled)


@app.command()
def logs(
    run: Run,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="Lines to show from the end of each file.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep printing until the run has ended.")] = False,
    multirun: Folder = MULTIRUN,
) -> None:
    """Show the logs of a run's newest attempt, or of its job if no attempt began."""
    from skipsweep.slurm import commands

    commands.logs(_multirun(multirun), run, lines, follow)


@app.command()
def compare(a: Run, b: Run, as_json: Json = False, multirun: Folder = MULTIRUN) -> None:
    """Compare two runs: the settings that differ, losses at equal steps, and learned lambdas."""
    from skipsweep.analyze import run_diff

    folder = _multirun(multirun)
    found = run_diff.diff(folder.find_run(a), folder.find_run(b))
    if as_json:
        return _print_json(asdict(found))
    from skipsweep.sweep import show

    show.run_diff(found)


@app.command()
def report(
    sweeps: Annotated[
        list[str],
        typer.Argument(help="One or more sweeps; several are merged into one report, with the first one's baseline."),
    ],
    baseline: Annotated[
        str | None, typer.Option(help="The arm that all others are compared with; default: the plan's.")
    ] = None,
    png: Annotated[bool, typer.Option("--png", help="Also write the figures as PNG (slower).")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder to write to; default: report/ in the sweep's folder.")
    ] = None,
    as_json: Json = False,
    multirun: Folder = MULTIRUN,
) -> None:
    """Write a sweep's report: its answer with the uncertainty, figures and tables, from the runs finished so far."""
    from skipsweep.sweep import report as reporting

    folder = _multirun(multirun)
    made = reporting.make(folder, [*map(folder.name_of, sweeps)], baseline, out, png)
    if as_json:
        return _print_json({**asdict(made.findings), "page": str(made.page)})
    reporting.print_it(made)


@app.command()
def power(
    sweep: Annotated[
        str | None,
        typer.Argument(help="Take the standard deviation within the arms of this sweep."),
    ] = None,
    sd: Annotated[
        float | None, typer.Option(help="Standard deviation of final losses, in nats/token; instead of a sweep.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Seeds per arm: print the difference that they can detect.")] = None,
    difference: Annotated[
        float | None, typer.Option(help="Difference in nats/token: print how many seeds detect it.")
    ] = None,
    arms: Annotated[
        int | None, typer.Option(help="Number of arms, baseline included; default: the sweep's, else 2.")
    ] = None,
    as_json: Json = False,
    multirun: Folder = MULTIRUN,
) -> None:
    """How many seeds it takes to detect a difference (power 80 %, family-wise level 5 %)."""
    from skipsweep.sweep import report as reporting

    folder = _multirun(multirun)
    made = reporting.power(folder, sweep and folder.name_of(sweep), sd, seeds, difference, arms)
    if as_json:
        return _print_json(asdict(made))
    reporting.print_power(made)


@app.command()
def inspect(
    run: Run,
    text: Annotated[
        str | None, typer.Option("--text", help="Prompt; default: the start of the validation split.")
    ] = None,
    top: Annotated[int, typer.Option("--top", help="Number of next tokens to show per position.")] = 5,
    layers: Annotated[str | None, typer.Option("--layers", help="Layers to decode, as in 0,5,7; default: all.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder to write to; default: inspect/ in the run's folder.")
    ] = None,
    as_json: Json = False,
    multirun: Folder = MULTIRUN,
) -> None:
    """Look inside a trained model: next tokens by layer, lambdas, norms, contributions; tables, JSON and figures."""
    from skipsweep.inspection import command

    found, where = command.run(_multirun(multirun).find_run(run), text, top, layers, out)
    if as_json:
        return _print_json(asdict(found))
    from skipsweep.inspection import show

    show.inspection(found, where)


@app.command()
def generate(
    run: Run,
    text: Annotated[str, typer.Option("--text", help="The text to continue.")],
    tokens: Annotated[
        int | None, typer.Option("--tokens", help="Maximum number of tokens to add; default: 200, or as many as fit.")
    ] = None,
    temperature: Annotated[
        float, typer.Option("--temperature", help="Sampling temperature; 0 always takes the likeliest token.")
    ] = 1.0,
    top_k: Annotated[
        int, typer.Option("--top-k", help="Sample from this many of the likeliest tokens; 0: from all.")
    ] = 0,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the sampling.")] = 0,
    stop: Annotated[bool, typer.Option("--stop/--no-stop", help="Stop where the model ends the document.")] = True,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
    as_json: Json = False,
    multirun: Folder = MULTIRUN,
) -> None:
    """Continue a text with a trained model; blocks whose gates are closed are skipped."""
    from skipsweep.generation import command

    asked, how = _multirun(multirun).find_run(run), command.Sampling(temperature, top_k, seed)
    if as_json:
        return _print_json(asdict(command.run(asked, text, tokens, how, stop, device)))
    found = command.run(asked, text, tokens, how, stop, device, command.teller(text))
    typer.echo()
    typer.echo(command.summary(found), err=True)


@app.command(context_settings={"ignore_unknown_options": True})
def plan(
    overrides: Overrides = None,
    config_dir: ConfigDir = None,
    as_json: Json = False,
    schedules: Annotated[
        bool, typer.Option("--schedules", help="Also draw learning rate, momentum and attention window over the steps.")
    ] = False,
) -> None:
    """Show what `python launch.py -m ...` would do, without doing it."""
    from skipsweep.sweep import launch
    from skipsweep.sweep.entry import from_command_line
    from skipsweep.sweep.schedules import drawings

    request = from_command_line(overrides or [], own=config_dir)
    made = launch.make_plan(request)
    drawn = drawings(made) if schedules else []
    if as_json:
        found = [drawing.document() for drawing in drawn]
        return _print_json(launch.document(made, request) | ({"schedules": found} if schedules else {}))
    launch.show_plan(made, request)
    if schedules:
        from skipsweep.sweep import show

        show.schedules(drawn)


@app.command()
def sync(
    name: Annotated[str, typer.Argument(help="A sweep, or a run (name, id, or the beginning of either).")],
    as_json: Json = False,
    multirun: Folder = MULTIRUN,
) -> None:
    """Upload the finished runs of a sweep to wandb, each once.

    Given a run: replay it into wandb as its logger says, after wandb had failed.
    """
    folder = _multirun(multirun)
    name = folder.name_of(name)
    if names_a_folder(name) and folder.sweep(name).plan.exists():
        return _upload(folder, name, as_json)
    from skipsweep import mirror

    found = folder.find_run(name)
    if not found.config.exists():
        raise UserError(f"{found.name} has no config.yaml; imported runs cannot be mirrored")
    trouble = mirror.sync(found)
    if trouble is not None:
        print(f"error: wandb: {trouble}", file=sys.stderr)
        raise typer.Exit(1)
    if as_json:
        return _print_json([{"run": found.name, "state": "mirrored", "message": None}])
    typer.echo(f"mirrored into {found.mirror}")


def _upload(multirun: Multirun, sweep: str, as_json: bool) -> None:
    """Exit status 1 if a run could not be uploaded."""
    from skipsweep import upload

    found = []
    for outcome in upload.sweep(multirun, sweep):
        found.append(outcome)
        if not as_json:
            typer.echo(str(outcome))
    if as_json:
        _print_json([asdict(outcome) for outcome in found])
    else:
        counts = Counter(outcome.state for outcome in found)
        typer.echo(f"{len(found)} runs: " + ", ".join(f"{n} {state}" for state, n in counts.items()))
    if any(outcome.is_failure for outcome in found):
        raise typer.Exit(1)


@app.command()
def dashboard(
    sweep: Annotated[str, typer.Argument(help="A sweep.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the specification as JSON, without login or network.")
    ] = False,
    entity: Annotated[str | None, typer.Option(help="Team or user at wandb; default: that of the runs.")] = None,
    project: Annotated[str | None, typer.Option(help="Project at wandb; default: that of the runs.")] = None,
    multirun: Folder = MULTIRUN,
) -> None:
    """Save a wandb workspace that compares a sweep's arms, orderings and numbers of sources, and print its URL."""
    from skipsweep import dashboard as boards

    folder = _multirun(multirun)
    sweep = folder.name_of(sweep)
    subject, place = boards.read(folder, sweep), boards.place(folder, sweep, entity, project)
    if dry_run:
        return _print_json(boards.specification(subject, place))
    try:
        typer.echo(boards.save(subject, place))
    except UserError:
        raise
    except Exception as problem:  # of wandb, its server, or the network
        print(f"error: wandb: {' '.join(str(problem).split())[:300]}", file=sys.stderr)
        raise typer.Exit(1) from problem


@app.command()
def board(
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port, reachable from this machine only; 0: any free one.")
    ] = 8765,
    multirun: Folder = MULTIRUN,
) -> None:
    """Serve all reports to a browser: an index of the sweeps, and pages that are rebuilt while runs go on."""
    from skipsweep.board.server import Server, serve

    folder = _multirun(multirun)

    def make(sweep: str) -> None:
        from skipsweep.analyze import report

        report.make(folder, [sweep])

    serve(Server(folder, port, make))


# ----------------------------------------------------------------------------------------------------------------- data


@data_app.command("prepare", context_settings={"ignore_unknown_options": True})
def data_prepare(overrides: Overrides = None, config_dir: ConfigDir = None, as_json: Json = False) -> None:
    """Tokenise the corpus of a configuration, or download the part of it that its runs read.

    Examples: data=text data.path=notes/, or data=fineweb10B schedule.steps=5550. What is there already is kept.
    """
    from skipsweep.data import corpus, documents, prepare
    from skipsweep.sweep.entry import from_command_line

    request = from_command_line(overrides or [], own=config_dir)
    config = request.composer(request.overrides)
    root = prepare.data_root(config.paths)
    with progress.counting("tokenising") as count:
        made = prepare.prepare(config.data, root, count)
    with progress.transferring(f"downloading {made.name}") as tell:
        prepare.fetch(config.data, root, config.schedule.steps, tell)
    if isinstance(config.data, Text):
        with suppress(UserError):  # a corpus named by its fingerprint outlives its text
            typer.echo(documents.remark(config.data), err=True)
    found = corpus.summary(made)
    if as_json:
        return _print_json(found)
    from skipsweep.sweep import show

    show.corpora([found])


@data_app.command("info")
def data_info(
    as_json: Json = False,
    root: Annotated[
        str | None, typer.Option(help="Folder of corpora; default: $SKIPSWEEP_DATA, else ~/.cache/skipsweep.")
    ] = None,
) -> None:
    """List the prepared corpora, and how much of those from the hub has been downloaded."""
    from skipsweep.data import prepare

    found = prepare.info(prepare.data_root(Paths(data=root)))
    if as_json:
        return _print_json(found)
    from skipsweep.sweep import show

    show.corpora(found)


@data_app.command("verify")
def data_verify(
    as_json: Json = False,
    root: Annotated[
        str | None, typer.Option(help="Folder of corpora; default: $SKIPSWEEP_DATA, else ~/.cache/skipsweep.")
    ] = None,
) -> None:
    """Read every shard and check its header, size, token ids and hash. Exit status 1 if one is broken."""
    from skipsweep.data import prepare

    found = prepare.verify_all(prepare.data_root(Paths(data=root)))
    if as_json:
        _print_json(found)
    else:
        from skipsweep.sweep import show

        show.shards(found)
    if any(one["problem"] for one in found):
        raise typer.Exit(1)


@import_app.callback()
def import_group() -> None:
    """Import the logs of other programs as runs that reports can read."""


@import_app.command("speedrun-log")
def import_speedrun_log(
    paths: Annotated[list[Path], typer.Argument(help="Logs, or folders of *.txt and *.log files.")],
    sweep: Annotated[str, typer.Option(help="The sweep to put them into; importing more into it extends it.")],
    arm: Annotated[
        str | None, typer.Option(help="Regular expression matched with the path; its group names the arm.")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="The arm that all others are compared with; default: the first.")
    ] = None,
    target: Annotated[float | None, typer.Option(help="Target loss, in nats/token.")] = None,
    as_json: Json = False,
    multirun: Folder = MULTIRUN,
) -> None:
    """Import text logs of modded-nanogpt as finished runs of a sweep; damaged lines are counted and named."""
    from skipsweep.imports.write import import_logs

    found = import_logs(_multirun(multirun, is_new=True), paths, sweep, arm, baseline, target)
    if as_json:
        return _print_json(asdict(found))
    typer.echo(f"{len(found.runs)} run(s) from {found.files} file(s) in sweep {sweep}")
    said = {name: name for name in ("refused", "unmatched", "damaged")} | {
        "repeated": "copies, left out",
        "grown": "grown, in place of what was imported before",
        "several": "with several runs",
        "unread": "unread behind validations",
        "kept": "kept in its earlier arm",
    }
    for what, text in said.items():
        names = getattr(found, what)
        if names:
            shown = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
            typer.echo(f"{len(names)} {text}: {shown}", err=True)


def main() -> None:
    """Entry point: a user's mistake is one line and exit status 2."""
    try:
        app()
    except UserError as problem:
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(UserError.EXIT_CODE)
    except OSError as problem:
        if problem.errno not in DISK:
            raise
        print(f"error: {problem.filename or 'disk'}: {problem.strerror}", file=sys.stderr)
        sys.exit(UserError.EXIT_CODE)
