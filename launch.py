"""The entry: `python launch.py` for one run, `python launch.py -m KEY=A,B` for a sweep, `--help` for the rest."""

import os
import sys

if int(os.environ.get("RANK") or 0) > 0:  # under torchrun rank 0 plans; the others execute what it froze
    from skipsweep import torchrun

    sys.exit(torchrun.execute_as_worker())

import hydra
from omegaconf import DictConfig

from skipsweep.errors import UserError
from skipsweep.sweep import entry
from skipsweep.sweep.request import LaunchRequest

asked: list[LaunchRequest | UserError] = []


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(_: DictConfig) -> None:
    """Called once, for a run and for a sweep alike (hydra_plugins/skipsweep_sweeper.py)."""
    entry.ask(asked)


if __name__ == "__main__":
    entry.run(main, asked)
