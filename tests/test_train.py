"""The loop itself: at which steps it validates."""

from pathlib import Path

import pytest
from runs import configuration

from skipsweep.config import Record, Trapezoid
from skipsweep.data import prepare
from skipsweep.data.batches import Batches
from skipsweep.distributed import World
from skipsweep.sweep.canonical import canonical_form
from skipsweep.train import Trainer


@pytest.mark.parametrize(("every", "validated"), [(0, [0, *range(3, 22, 3), 23]), (20, [0, 20, 23])])
def test_a_run_is_validated_ten_times_unless_it_says_how_often(
    every: int, validated: list[int], data_root: Path, tmp_path: Path
) -> None:
    schedule = Trapezoid(steps=23, cooldown=0.5, final=0.1)
    config = configuration(tmp_path, data_root, schedule=schedule, record=Record(val_every=every))
    run = canonical_form(config, prepare.resolve(config.data, data_root))
    boundaries = Trainer(run, Batches(run.data, data_root), World()).run()
    assert [boundary.step for boundary in boundaries if boundary.val_loss is not None] == validated
