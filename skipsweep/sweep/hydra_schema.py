"""What Hydra is told about skipsweep: the schema, and the configurations of its sweeper and launchers."""

from typing import get_type_hints

from hydra.core.config_store import ConfigStore

from skipsweep.config import UNIONS, Config, choices
from skipsweep.sweep.request import LAUNCHERS

PROVIDER = "skipsweep"
ROOT = "schema"
SWEEPER = "hydra_plugins.skipsweep_sweeper.SkipsweepSweeper"


def union_groups() -> dict[str, type]:
    """Group -> base class of its choices, for every group whose choices have fields of their own."""
    return {key: hint for key, hint in get_type_hints(Config).items() if hint in UNIONS}


def register_schema() -> None:
    """Store the root schema as `schema` and each choice's as `schema.GROUP.CHOICE`.

    The names are of the top level, not of a group: Hydra's help and tab completion list groups, and nobody chooses a
    schema by hand.
    """
    store = ConfigStore.instance()
    store.store(name=ROOT, node=Config, provider=PROVIDER)
    for group, base in union_groups().items():
        for name, choice in choices(base).items():
            store.store(name=f"{ROOT}.{group}.{name}", node=choice, provider=PROVIDER)


def register_plugins() -> None:
    """Store `hydra/sweeper=skipsweep` and `hydra/launcher=NAME`."""
    store = ConfigStore.instance()
    store.store(group="hydra/sweeper", name="skipsweep", node={"_target_": SWEEPER}, provider=PROVIDER)
    for name, settings in LAUNCHERS.items():
        store.store(group="hydra/launcher", name=name, node=settings, provider=PROVIDER)
