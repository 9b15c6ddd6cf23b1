"""The attention window is a pure function of the step."""

from skipsweep.config import Model, Trapezoid
from skipsweep.model.window import window_blocks


def test_the_records_window() -> None:
    """3456 tokens by blocks of 128, as listed along the run (medium track)."""
    model = Model(window=3456, window_block=128, window_growth="cubic")
    tokens = {0: 128, 1: 896, 2: 1408, 3: 1664, 4: 1792, 6: 1792, 7: 1920, 8: 2176, 9: 2688, 10: 3456}
    schedule = Trapezoid(steps=5590, cooldown=0.7, final=0.01)
    assert {x: 128 * window_blocks(model, schedule, 559 * x) for x in tokens} == tokens
