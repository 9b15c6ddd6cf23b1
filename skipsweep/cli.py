"""The `skipsweep` command: everything around the runs. `python launch.py` starts them."""

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
data_app = typer.Typer(help="Corpora: tokenise, download, list, check.", no_args_is_help=True)
app.add_typer(data_app, name="data")
import_app = typer.Typer(help="Logs of other programs, as runs that reports can read.", no_args_is_help=True)
app.add_typer(import_app, name="import")

DISK = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
"""What a disk refuses, which no other input mends."""

MULTIRUN = "multirun"

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Folder = Annotated[str, typer.Option("--multirun", help="Folder of runs and sweeps; relative to the checkout.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="As for launch.py: experiment=demo, skip_layers=none,2 ...")
]

ConfigDir = Annotated[
    str | None,
    typer.Option("--config-dir", "-cd", help="A folder of your own, searched beside conf/; as for launch.py."),
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
    """All runs: state, final losses, cost."""
    from skipsweep.analyze import listing

    folder = _multirun(multirun)
    rows = listing.runs(folder)
    if as_json:
        return _print_json([asdict(row) for row in rows])
    from skipsweep.sweep import show

    show.listing(rows, folder.path)


@app.command()
def status(
    sweep: Annotated[str | None, typer.Argument(help="Name of a sweep; without one: all runs, and the sweeps.")] = None,
    as_json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every few seconds until all have ended.")] = False,
    multirun: Folder = MULTIRUN,
) -> None:
    """Where runs stand: submitted, running, done, failed with cause, stuck; a sweep's arms."""
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
    sweep: Annotated[str, typer.Argument(help="A sweep; or a run that was launched by itself.")],
    as_json: Json = False,
    multirun: Folder = MULTIRUN,
) -> None:
    """Stop what a sweep alone waits for; runs that train save first. The same launch again continues them."""
    from skipsweep.slurm import commands

    folder = _multirun(multirun)
    found = commands.cancel(folder, folder.name_of(sweep))
    if as_json:
        return _print_json(found)
    commands.show_cancelled(found)


@app.command()
def logs(
    run: Annotated[str, typer.Argument(help="A run: name, id or the beginning of one.")],
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="Lines from the end of each file.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run has ended.")] = False,
    multirun: Folder = MULTIRUN,
) -> None:
    """What a run printed: its newest attempt, or its job where it never began."""
    from skipsweep.slurm import commands

    commands.logs(_multirun(multirun), run, lines, follow)


@app.command()
def compare(a: str, b: str, as_json: Json = False, multirun: Folder = MULTIRUN) -> None:
    """Two runs: differing settings, losses at equal steps, learned lambdas. Names, ids or beginnings of them."""
    from skipsweep.analyze import compare as comparing

    folder = _multirun(multirun)
    found = comparing.compare(comparing.find(folder, a), comparing.find(folder, b))
    if as_json:
        return _print_json(asdict(found))
    from skipsweep.sweep import show

    show.comparison(found)


@app.command()
def report(
    sweeps: Annotated[list[str], typer.Argument(help="Sweeps; several are united, the first one's question holds.")],
    baseline: Annotated[
        str | None, typer.Option(help="Arm that others are compared with; default: the plan's.")
    ] = None,
    png: Annotated[bool, typer.Option("--png", help="Figures also as PNG (slower).")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Folder; default: report/ in the sweep's own.")] = None,
    as_json: Json = False,
    multirun: Folder = MULTIRUN,
) -> None:
    """The answer, with its uncertainty: a page with figures and tables from what has finished so far."""
    from skipsweep.sweep import report as reporting

    folder = _multirun(multirun)
    made = reporting.make(folder, [*map(folder.name_of, sweeps)], baseline, out, png)
    if as_json:
        return _print_json({**asdict(made.findings), "page": str(made.page)})
    reporting.print_it(made)


@app.command()
def power(
    sweep: Annotated[str | None, typer.Argument(help="Its baseline's finished runs say how runs differ.")] = None,
    sd: Annotated[float | None, typer.Option(help="Standard deviation of final losses instead, nats/token.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Per arm: what difference do so many tell?")] = None,
    difference: Annotated[float | None, typer.Option(help="In nats/token: how many seeds tell it?")] = None,
    arms: Annotated[int | None, typer.Option(help="The baseline among them; default: the sweep's, else 2.")] = None,
    as_json: Json = False,
    multirun: Folder = MULTIRUN,
) -> None:
    """How many seeds a difference takes: found with 80 %, at a level of 5 % over all arms."""
    from skipsweep.sweep import report as reporting

    folder = _multirun(multirun)
    made = reporting.power(folder, sweep and folder.name_of(sweep), sd, seeds, difference, arms)
    if as_json:
        return _print_json(asdict(made))
    reporting.print_power(made)


@app.command()
def inspect(
    run: Annotated[str, typer.Argument(help="A run: name, id or the beginning of one.")],
    text: Annotated[
        str | None, typer.Option("--text", help="Prompt; without one: the start of the validation split.")
    ] = None,
    top: Annotated[int, typer.Option("--top", help="Next tokens per position.")] = 5,
    layers: Annotated[str | None, typer.Option("--layers", help="Layers to decode, e.g. 0,5,7; default: all.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the files; default: the run's inspect/.")] = None,
    as_json: Json = False,
    multirun: Folder = MULTIRUN,
) -> None:
    """What a trained model does: next tokens by layer, lambdas, sizes, contributions; as table, JSON and pictures."""
    from skipsweep.analyze.compare import find
    from skipsweep.inspection import command

    folder = _multirun(multirun)
    found, where = command.run(find(folder, run), text, top, layers, out)
    if as_json:
        return _print_json(asdict(found))
    from skipsweep.inspection import show

    show.inspection(found, where)


@app.command()
def generate(
    run: Annotated[str, typer.Argument(help="A run: name, id or the beginning of one.")],
    text: Annotated[str, typer.Option("--text", help="The text to continue.")],
    tokens: Annotated[
        int | None, typer.Option("--tokens", help="Most tokens to add; default: 200, or as many as fit.")
    ] = None,
    temperature: Annotated[float, typer.Option("--temperature", help="0: always the likeliest token.")] = 1.0,
    top_k: Annotated[int, typer.Option("--top-k", help="Draw from so many likeliest tokens; 0: from all.")] = 0,
    seed: Annotated[int, typer.Option("--seed", help="Another seed, another text.")] = 0,
    stop: Annotated[bool, typer.Option("--stop/--no-stop", help="End where the model ends the document.")] = True,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
    as_json: Json = False,
    multirun: Folder = MULTIRUN,
) -> None:
    """Continue a text with a trained model, token by token; blocks that gates close are left out."""
    from skipsweep.analyze.compare import find
    from skipsweep.generation import command

    asked, how = find(_multirun(multirun), run), command.Sampling(temperature, top_k, seed)
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
        bool, typer.Option("--schedules", help="Draw learning rates, momentum and attention window over the steps.")
    ] = False,
) -> None:
    """What `python launch.py -m ...` would do, without doing it."""
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
    name: Annotated[str, typer.Argument(help="A sweep; or a run: name, id or the beginning of one.")],
    as_json: Json = False,
    multirun: Folder = MULTIRUN,
) -> None:
    """Upload a sweep's finished runs to wandb, once each; or replay one run as its logger says, after wandb had
    failed."""
    folder = _multirun(multirun)
    name = folder.name_of(name)
    if names_a_folder(name) and folder.sweep(name).plan.exists():
        return _upload(folder, name, as_json)
    from skipsweep import mirror
    from skipsweep.analyze.compare import find

    found = find(folder, name)
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
    sweep: Annotated[str, typer.Argument(help="Name of a sweep.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the specification as JSON; no login, no network.")
    ] = False,
    entity: Annotated[str | None, typer.Option(help="wandb's team or user; default: the runs'.")] = None,
    project: Annotated[str | None, typer.Option(help="wandb's project; default: the runs'.")] = None,
    multirun: Folder = MULTIRUN,
) -> None:
    """Save a wandb workspace that compares a sweep's arms, orderings and numbers of sources; prints its address."""
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
    port: Annotated[int, typer.Option(min=0, max=65535, help="On this machine alone; 0: any free one.")] = 8765,
    multirun: Folder = MULTIRUN,
) -> None:
    """All reports in a browser: an index of the sweeps, and pages that are rebuilt while runs go on."""
    from skipsweep.board.server import Server, serve

    folder = _multirun(multirun)

    def make(sweep: str) -> None:
        from skipsweep.analyze import report

        report.make(folder, [sweep])

    serve(Server(folder, port, make))


# ----------------------------------------------------------------------------------------------------------------- data


@data_app.command("prepare", context_settings={"ignore_unknown_options": True})
def data_prepare(overrides: Overrides = None, config_dir: ConfigDir = None, as_json: Json = False) -> None:
    """Tokenise the corpus of a configuration (data=text data.path=...), or download what it reads of one from the hub
    (data=fineweb10B schedule.steps=5550), unless it is there already."""
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
def data_info(as_json: Json = False, root: Annotated[str | None, typer.Option(help="Data root.")] = None) -> None:
    """The corpora that are there, of those from the hub how much."""
    from skipsweep.data import prepare

    found = prepare.info(prepare.data_root(Paths(data=root)))
    if as_json:
        return _print_json(found)
    from skipsweep.sweep import show

    show.corpora(found)


@data_app.command("verify")
def data_verify(as_json: Json = False, root: Annotated[str | None, typer.Option(help="Data root.")] = None) -> None:
    """Read every shard that is there: header, size, token ids, hash. Exit status 1 if one is broken."""
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
    """Logs of other programs, as runs that reports can read."""


@import_app.command("speedrun-log")
def import_speedrun_log(
    paths: Annotated[list[Path], typer.Argument(help="Logs, or folders that hold *.txt and *.log.")],
    sweep: Annotated[str, typer.Option(help="The sweep they form; importing more into it extends it.")],
    arm: Annotated[str | None, typer.Option(help="Regular expression on the path: its group names the arm.")] = None,
    baseline: Annotated[str | None, typer.Option(help="Arm that others are compared with; else the first.")] = None,
    target: Annotated[float | None, typer.Option(help="Target loss, nats per token.")] = None,
    as_json: Json = False,
    multirun: Folder = MULTIRUN,
) -> None:
    """Text logs of modded-nanogpt, as finished runs of a sweep. Damaged lines are counted and named."""
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
