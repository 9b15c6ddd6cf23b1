"""Imports go one way, and whoever plans or reports never loads torch: read off the sources, lazy imports included."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
PACKAGE = "skipsweep"

ORDER: tuple[tuple[str, ...], ...] = (
    ("errors", "exit_status"),
    ("config", "files", "progress", "provenance", "secrecy", "slurm.environment", "slurm.assignment", "stop"),
    ("published", "rundir"),
    ("sweep_file",),
    ("imports", "lease", "mirror", "peers", "slurm.submission"),
    ("status",),
    ("distributed",),
    ("data", "analyze", "slurm.squeue", "slurm.batch_step", "slurm.logs"),
    ("model", "optim"),
    ("board", "dashboard", "slurm.cancel", "slurm.settings", "sweep.relative", "upload"),
    ("sweep.request", "sweep.select", "sweep.grammar", "sweep.identity"),
    ("sweep.canonical", "sweep.hydra_schema", "sweep.ranking", "sweep.shorthand"),
    ("sweep.compatibility", "sweep.infile"),
    ("sweep.validate",),
    ("sweep.explain", "sweep.expand", "sweep.resolve"),
    ("sweep.confound",),
    ("sweep.history",),
    ("sweep.question",),
    ("sweep.plan",),
    ("sweep.compose", "sweep.estimate", "sweep.fetch", "sweep.freeze", "sweep.schedules"),
    ("sweep.chart", "sweep.precision"),
    ("sweep.show",),
    ("sweep.report",),
    ("checkpoint",),
    ("trained",),
    ("inspection", "generation"),
    ("train",),
    ("record", "metadata"),
    ("job",),
    ("slurm.task", "torchrun"),
    ("sweep.local", "slurm.wait"),
    ("slurm.submit",),
    ("sweep.launch",),
    ("sweep.entry",),
    ("slurm.commands",),
    ("cli", "hydra_plugins", "launch"),
)
"""From the bottom up. A unit (a module, or a whole package) may import itself and units of earlier rows, not its
neighbours."""

READS_FILES_ONLY = {"analyze": ("config", "errors", "files", "published", "rundir", "status", "sweep_file")}
"""Unit -> all it may import of ours, where that is less than the order allows."""

ONLY_IN: dict[str, tuple[str, ...]] = {
    "altair": ("analyze.figures", "inspection.pictures"),
    "vl_convert": ("analyze.page", "inspection.pictures"),
    "hydra": ("sweep", "hydra_plugins"),
    "omegaconf": ("sweep", "hydra_plugins"),
    "submitit": ("slurm.submit",),
    "wandb": ("mirror", "dashboard"),
    "wandb_workspaces": ("dashboard",),
    "huggingface_hub": ("data.hub",),
    "httpx2": ("data.hub",),
    "torch": (
        "checkpoint",
        "distributed",
        "generation",
        "inspection",
        "job",
        "metadata",
        "model",
        "optim",
        "record",
        "torchrun",
        "train",
        "trained",
    ),
}
"""Library -> who may know it."""

PLANS_OR_REPORTS = ("analyze", "cli", "hydra_plugins", "launch", "sweep")
UNDER_TORCHRUN = {("sweep.launch", "torchrun"), ("launch", "torchrun")}
"""The exception: there this process is one of the run's own."""
RUNS_A_MODEL = {("cli", "inspection.command"), ("cli", "generation.command")}
"""The other: `skipsweep inspect` and `generate` neither plan nor report, but compute."""
EXCEPTIONS = UNDER_TORCHRUN | RUNS_A_MODEL

PLANS = ("hydra_plugins", "launch", "sweep")
WITH_A_SPREAD = {("sweep.precision", "analyze.statistics")}
"""A plan counts seeds as reports do, once it knows how runs differ; without, it loads no scipy."""
WRITES_A_REPORT = {("sweep.report", "analyze.report"), ("sweep.report", "analyze.power")}
LATE = WITH_A_SPREAD | WRITES_A_REPORT
"""Where launching may reach scipy: imported by the functions that need it, never by a module as it loads."""

Edges = AbstractSet[tuple[str, str]]
Graph = Mapping[str, frozenset[str]]
"""Module -> what it imports: ours without the leading `skipsweep.`, others by their full name."""


# -------------------------------------------------------------------------------------------------- reading sources


def sources() -> dict[str, str]:
    """Dotted name (ours without the package's) -> source text."""
    paths = [*(CHECKOUT / PACKAGE).rglob("*.py"), *(CHECKOUT / "hydra_plugins").rglob("*.py"), CHECKOUT / "launch.py"]
    return {short(".".join(path.relative_to(CHECKOUT).with_suffix("").parts)): path.read_text() for path in paths}


def short(name: str) -> str:
    return name.removesuffix(".__init__").removeprefix(f"{PACKAGE}.")


def graph(texts: Mapping[str, str]) -> Graph:
    return {name: frozenset(imported(text, texts)) - {name} for name, text in texts.items()}


def imported(text: str, known: Mapping[str, str]) -> Iterator[str]:
    """Everything imported anywhere in a module, in functions too."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (short(alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written out in full"
            assert node.module is not None
            yield from (_of(node.module, alias.name, known) for alias in node.names)


def _of(module: str, name: str, known: Mapping[str, str]) -> str:
    """`from a import b`: the module a.b, if it is one, else a."""
    whole = short(f"{module}.{name}")
    return whole if whole in known else short(module)


# --------------------------------------------------------------------------------------------------------- the rules


def within(module: str, unit: str) -> bool:
    return module == unit or module.startswith(f"{unit}.")


def unit_of(module: str) -> tuple[int, str] | None:
    """(row, unit) of a module of ours; None for other libraries."""
    return next(((row, unit) for row, units in enumerate(ORDER) for unit in units if within(module, unit)), None)


def wrong_way(found: Graph) -> list[str]:
    """Imports against the order."""
    wrong = []
    for module, targets in found.items():
        own = unit_of(module)
        for target in sorted(targets):
            other = unit_of(target)
            if own and other and own != other and other[0] >= own[0]:
                wrong.append(f"{module} imports {target}")
            if own and other and own != other and other[1] not in READS_FILES_ONLY.get(own[1], (other[1],)):
                wrong.append(f"{module} imports {target}, more than files")
    return wrong


def not_theirs(found: Graph) -> list[str]:
    """Libraries where they have no business."""
    return [
        f"{module} imports {target}"
        for module, targets in found.items()
        for target in sorted(targets)
        for library, allowed in ONLY_IN.items()
        if within(target, library) and not any(within(module, unit) for unit in allowed)
    ]


def ways_to(
    library: str, found: Graph, units: Sequence[str] = PLANS_OR_REPORTS, exceptions: Edges = EXCEPTIONS
) -> list[str]:
    """Shortest chains of imports that lead from planning or reporting to a library."""
    chains = []
    for start in (module for module in found if any(within(module, unit) for unit in units)):
        ahead, seen = [[start]], {start}
        while ahead:
            chain = ahead.pop(0)
            for target in sorted(found[chain[-1]]):
                if within(target, library):
                    chains.append(" -> ".join([*chain, target]))
                elif target in found and target not in seen and (chain[-1], target) not in exceptions:
                    seen.add(target)
                    ahead.append([*chain, target])
    return chains


def cycles(found: Graph) -> list[str]:
    """Modules that are imported by what they import."""
    done: set[str] = set()
    circles: list[str] = []

    def visit(module: str, path: list[str]) -> None:
        if module in path:
            circles.append(" -> ".join([*path[path.index(module) :], module]))
        elif module not in done:
            for target in sorted(found[module] & found.keys()):
                visit(target, [*path, module])
            done.add(module)

    for module in found:
        visit(module, [])
    return circles


# --------------------------------------------------------------------------------------------------------- the tests


@pytest.fixture(scope="module")
def found() -> Graph:
    return graph(sources())


def test_every_module_has_a_place(found: Graph) -> None:
    containers = {PACKAGE, "sweep", "slurm"}  # packages that hold nothing themselves
    assert [module for module in found if unit_of(module) is None and module not in containers] == []
    assert [unit for row in ORDER for unit in row if not any(within(module, unit) for module in found)] == []


def test_imports_go_one_way(found: Graph) -> None:
    assert wrong_way(found) == []


def test_there_are_no_cycles(found: Graph) -> None:
    assert cycles(found) == []


def test_libraries_stay_where_they_belong(found: Graph) -> None:
    assert not_theirs(found) == []


def test_planning_and_reporting_never_reach_torch(found: Graph) -> None:
    assert ways_to("torch", found) == []


def test_launching_reaches_scipy_in_the_named_places_alone(found: Graph) -> None:
    assert ways_to("scipy", found, PLANS, LATE) == []
    texts = sources()
    for module, target in LATE:
        at_once = {_of(node.module or "", alias.name, texts) for node in ast.parse(texts[module]).body
                   if isinstance(node, ast.ImportFrom) for alias in node.names}  # fmt: skip
        assert target in found[module] - at_once


VIOLATIONS: dict[str, tuple[str, str, str]] = {
    "upwards": ("config", "from skipsweep.sweep import plan", "config imports sweep.plan"),
    "upwards, by name": ("rundir", "from skipsweep.train import Trainer", "rundir imports train"),
    "upwards, lazily": ("data.corpus", "def f():\n    import skipsweep.job", "data.corpus imports job"),
    "sideways": ("model.gpt", "from skipsweep.optim.adam import Adam", "model.gpt imports optim.adam"),
    "analysis beyond files": ("analyze.arms", "from skipsweep import lease", "analyze.arms imports lease, more than"),
    "hydra outside of sweep": ("job", "from hydra import compose", "job imports hydra"),
    "omegaconf": ("config", "import omegaconf.errors", "config imports omegaconf.errors"),
    "wandb": ("record", "def f():\n    from wandb.sdk import run", "record imports wandb.sdk"),
    "submitit": ("sweep.plan", "import submitit", "sweep.plan imports submitit"),
    "torch in a plan": ("sweep.plan", "def f():\n    import torch.nn", "sweep.launch -> sweep.plan -> torch.nn"),
    "scipy in a plan": ("sweep.plan", "def f():\n    from scipy import stats", "sweep.launch -> sweep.plan -> scipy"),
    "scipy behind a table": ("analyze.arms", "import scipy.special", "sweep.launch -> analyze.arms -> scipy.special"),
    "torch behind data": ("data.corpus", "import torch", "cli -> data.corpus -> torch"),
    "torch behind a model's count": ("model.count", "from skipsweep.model import gpt", "model.count -> model.gpt -> "),
    "a cycle": ("data.shards", "from skipsweep.data import corpus", "data.corpus -> data.shards -> data.corpus"),
}


@pytest.mark.parametrize("case", VIOLATIONS)
def test_a_violation_is_seen(case: str) -> None:
    """Control: the same rules over the same sources, with one line added."""
    module, line, told = VIOLATIONS[case]
    texts = sources()
    texts[module] += f"\n{line}\n"
    changed = graph(texts)
    ways = ways_to("torch", changed) + ways_to("scipy", changed, PLANS, LATE)
    assert told in "\n".join(wrong_way(changed) + not_theirs(changed) + ways + cycles(changed))


SLOW = ("torch", "wandb", "submitit", "pandas", "scipy", "huggingface_hub")

PLANNING = f"""
import sys
from skipsweep import cli
runs = sys.argv[1]
plan = ["data=synthetic", "skip_layers=none,2", "paths.multirun=" + runs]
for arguments in (["list", "--multirun", runs], ["status", "--multirun", runs], ["data", "info"], ["plan", *plan]):
    sys.argv[1:] = arguments
    try:
        cli.main()
    except SystemExit as exit_:
        assert not exit_.code, arguments
assert not set({SLOW}) & set(sys.modules)
"""


def test_nothing_slow_is_loaded_in_earnest(tmp_path: Path) -> None:
    """What the libraries themselves import counts as well."""
    environment = {**os.environ, "SKIPSWEEP_DATA": str(tmp_path / "data")}
    (tmp_path / "runs").mkdir()
    command = [sys.executable, "-W", "error", "-c", PLANNING, str(tmp_path / "runs")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.stderr == ""
    assert done.returncode == 0
    assert "2 points" in done.stdout
