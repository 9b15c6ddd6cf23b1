"""What is shown while something trains, and that showing it can fail without harm."""

import io
import sys
from typing import Any

import pytest

from skipsweep import progress

NOW: dict[str, Any] = {"step": 5, "steps": 5, "loss": 2.5, "val_loss": None, "tokens_per_s": 61234, "left_s": 3661}


def test_a_log_line(capsys: pytest.CaptureFixture[str]) -> None:
    progress.for_stdout().update(NOW)
    assert capsys.readouterr().out == "step 5/5 | loss 2.5000 | val - | 61.2k tok/s | 1:01:01 left\n"


class Deaf(io.StringIO):
    """Standard output whose reader has gone."""

    tried = 0

    def write(self, text: str) -> int:
        self.tried += 1
        raise self.problem

    problem: Exception = BrokenPipeError()


@pytest.mark.parametrize(
    "problem", [BrokenPipeError(), OSError("disk full"), UnicodeEncodeError("ascii", "é", 0, 1, "")]
)
def test_training_outlives_whoever_listened(monkeypatch: pytest.MonkeyPatch, problem: Exception) -> None:
    deaf = Deaf()
    deaf.problem = problem
    monkeypatch.setattr(sys, "stdout", deaf)
    shown = progress.for_stdout()
    for _ in range(3):
        shown.update(NOW)
    shown.close()
    assert deaf.tried == 1
