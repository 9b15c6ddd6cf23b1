"""From a command line to a LaunchRequest: what launch.py does around Hydra, and the same without a command line."""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra import main as hydra_main
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from skipsweep.config import Sweep, from_dict
from skipsweep.errors import UserError
from skipsweep.sweep import grammar, hydra_schema, shorthand
from skipsweep.sweep.compose import Composer
from skipsweep.sweep.explain import check_override, explained
from skipsweep.sweep.request import LaunchRequest, check_launcher

CONF = Path(__file__).resolve().parents[2] / "conf"
CONFIG_NAME = "config"
MULTIRUN_FLAGS = ("-m", "--multirun")
FULL_ERROR = "HYDRA_FULL_ERROR"


def main() -> None:
    """Let Hydra read the command line, then launch what it asks for, and exit.

    Exit status: the launch's; 2 for bad input, said in one line on standard error; 130 when interrupted; 141 where
    nobody reads what is printed (`| head`).
    """
    with reported():
        if request := _ask_hydra():
            # Only now, outside Hydra: it would log, wrap and re-raise whatever happens.
            from skipsweep.sweep.launch import launch

            status = launch(request)
            sys.stdout.flush()
            sys.exit(status)


def _ask_hydra() -> LaunchRequest | None:
    """What the command line asks for; None where Hydra has answered it itself (--help, --cfg). Raises UserError."""
    answers: list[LaunchRequest | UserError] = []

    @hydra_main(version_base="1.3", config_path=str(CONF), config_name=CONFIG_NAME)
    def task(_: DictConfig) -> None:
        """Called once, for a run and for a sweep alike (hydra_plugins/skipsweep_sweeper.py)."""
        try:
            with explained():
                answers.append(request_from_hydra())
        except UserError as problem:  # raised here, Hydra would print more about it than its one line
            answers.append(problem)

    with explained(), _errors_handed_over():
        _prepare()
        task()
    answer = answers[0] if answers else None
    if isinstance(answer, UserError):
        raise answer
    return answer


def _prepare() -> None:
    """Make Hydra see only what it can read."""
    hydra_schema.register_schema()
    sys.argv[1:] = shorthand.rewrite_arguments(_flag_first(sys.argv[1:]))
    check_arguments(sys.argv[1:])
    if "COMP_LINE" in os.environ:
        os.environ["COMP_LINE"] = shorthand.rewrite_line(os.environ["COMP_LINE"])


def _flag_first(arguments: Sequence[str]) -> list[str]:
    """`-m` once, and before the overrides: between them Hydra's parser takes those behind it for unknown."""
    others = [argument for argument in arguments if argument not in MULTIRUN_FLAGS]
    return [MULTIRUN_FLAGS[0], *others] if len(others) < len(arguments) else others


@contextmanager
def _errors_handed_over() -> Iterator[None]:
    """Keep Hydra from printing errors and exiting: it then raises them."""
    before = os.environ.get(FULL_ERROR)
    os.environ[FULL_ERROR] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[FULL_ERROR]


@contextmanager
def reported() -> Iterator[None]:
    """Print a UserError as one line and exit; with HYDRA_FULL_ERROR=1 in the environment it keeps its traceback."""
    whole = os.environ.get(FULL_ERROR) == "1"
    try:
        yield
    except UserError as error:
        if whole:
            raise
        if "COMP_LINE" not in os.environ:  # nothing of this belongs into a half-typed line
            print(f"error: {error}", file=sys.stderr)
        sys.exit(UserError.EXIT_CODE)
    except KeyboardInterrupt:
        if whole:
            raise
        sys.exit(130)
    except BrokenPipeError:
        from skipsweep.sweep.show import silence

        silence()  # else Python would flush, and complain, once more
        sys.exit(128 + signal.SIGPIPE)


def check_arguments(arguments: Sequence[str]) -> None:
    """Raise UserError for overrides that Hydra would answer with a traceback."""
    for argument in arguments:
        try:
            override = grammar.parse(argument)
        except UserError:
            continue  # a flag's value, or Hydra says what is wrong
        check_override(override, _shipped)


def _shipped(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml")) if group.isidentifier() else []


def request_from_hydra() -> LaunchRequest:
    """What Hydra has just composed, inside its task function."""
    hydra: Any = HydraConfig.get()
    command = list(sys.orig_argv)
    multirun = hydra.mode == RunMode.MULTIRUN
    return _request(hydra._get_root(), GlobalHydra.instance().config_loader(), command, multirun)


def from_command_line(arguments: Sequence[str], config_dir: Path = CONF, own: str | None = None) -> LaunchRequest:
    """What `python launch.py ARGUMENTS` would ask for, with `-cd OWN`; `-m` may be left out. Raises UserError."""
    with explained():
        hydra_schema.register_schema()
        hydra_schema.register_plugins()
        overrides = shorthand.rewrite_arguments([a for a in arguments if a not in MULTIRUN_FLAGS])
        swept = [grammar.is_sweep(grammar.parse(text)) for text in overrides]
        check_arguments(overrides)
        with initialize_config_dir(str(config_dir), version_base="1.3"):
            loader = GlobalHydra.instance().config_loader() if own is None else _loader(config_dir, own)
            master = loader.load_configuration(CONFIG_NAME, overrides, RunMode.MULTIRUN)
        command = ["launch.py", *(["-cd", own] if own is not None else []), *arguments]
        return _request(master, loader, command, any(swept) or len(overrides) < len(arguments))


def _loader(config_dir: Path, own: str) -> ConfigLoader:
    """What Hydra's main function makes of `-cd OWN`."""
    folder = os.path.abspath(own)
    if not os.path.isdir(folder):
        raise UserError(f"Additional config directory '{folder}' not found")
    path = create_config_search_path(str(config_dir))
    path.prepend("command-line", f"file://{folder}", SearchPathQuery(provider="schema"))
    return ConfigLoaderImpl(path)


def _request(master: DictConfig, loader: Any, command: list[str], multirun: bool) -> LaunchRequest:
    hydra = master.hydra
    composer = Composer(loader, hydra.job.config_name, _texts(hydra.overrides.hydra))
    launcher = _launcher(hydra)
    return LaunchRequest(
        command=command,
        overrides=[*_machine(hydra, launcher), *_texts(hydra.overrides.task)],
        composer=composer,
        launcher=launcher,
        sweep=from_dict(Sweep, _values(master.sweep), "sweep."),
        plan=master.plan,
        retry=master.retry,
        multirun=multirun,
    )


def _launcher(hydra: DictConfig) -> dict[str, Any]:
    choice = hydra.runtime.choices.get("hydra/launcher")
    return check_launcher(str(choice), _values(hydra.launcher) if hydra.launcher is not None else {})


def _machine(hydra: DictConfig, launcher: dict[str, Any]) -> list[str]:
    """On a cluster a run gets a whole node with its GPUs, unless the command line or the experiment says otherwise."""
    keys = [grammar.parse(text).key_or_group for text in _texts(hydra.overrides.task)]
    said = any(key == "compute" or str(key).startswith("compute.device") for key in keys)
    if launcher["kind"] != "slurm" or said or hydra.runtime.choices.get("compute") != "cpu":
        return []
    return ["compute=h100x8"]


def _texts(node: Any) -> list[str]:
    """Overrides as they were written: an interpolation in one belongs to the run's configuration."""
    return [str(text) for text in OmegaConf.to_container(node, resolve=False) or []]


def _values(node: DictConfig) -> dict[str, Any]:
    values = OmegaConf.to_container(node, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}
