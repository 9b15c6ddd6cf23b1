"""Found by Hydra: the sweeper and the launchers' settings. Everything they do is in skipsweep.sweep."""

from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from skipsweep.sweep.hydra_schema import register_plugins

register_plugins()


class SkipsweepSweeper(Sweeper):
    """Hands the whole sweep over at once: planning needs all of its points together, and composes them faster."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._config, self._task_function = config, task_function

    def sweep(self, arguments: list[str]) -> Any:
        """Call the task function once; it finds `arguments`, unexpanded, in Hydra's configuration."""
        HydraConfig.instance().set_config(self._config)
        return self._task_function(self._config)
