"""Impossible settings of an optimiser are refused when planning."""

import math
from pathlib import Path
from typing import Any

import pytest
from optim_cases import ADAMW, muon
from runs import configuration

from skipsweep.config import Optim
from skipsweep.errors import UserError
from skipsweep.sweep.validate import validate


def check(optim: Optim, tmp_path: Path) -> None:
    validate(configuration(tmp_path, tmp_path, optim=optim))


@pytest.mark.parametrize(
    "optim", [ADAMW, muon(), muon(outer_every=0, outer_lr=0.0), muon(newton_schulz=[[2, -1.5, 0.5]])]
)
def test_what_is_possible_passes(optim: Optim, tmp_path: Path) -> None:
    check(optim, tmp_path)


NO_TRIPLES: dict[str, Any] = {
    "none": [],
    "no triple": [[3.4, -4.8]],
    "numbers": [3.4, -4.8, 2.0],
    "text": [["a", "b", "c"]],
    "not finite": [[3.4, -4.8, 2.0], [3.4, math.nan, 2.0]],
    "one of four": [[3.4, -4.8, 2.0, 1.0]],
}


@pytest.mark.parametrize("case", NO_TRIPLES)
def test_newton_schulz_takes_triples(case: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^optim\.newton_schulz=\[.* must be a list of one triple of finite numbers"):
        check(muon(newton_schulz=NO_TRIPLES[case]), tmp_path)


@pytest.mark.parametrize("key", ["momentum", "momentum_start", "smoothing", "outer_momentum", "beta1", "beta2"])
def test_what_decays_stays_below_one(key: str, tmp_path: Path) -> None:
    check(muon(**{key: 0.0}), tmp_path)
    with pytest.raises(UserError, match=rf"^optim\.{key}=1\.0 is a decay per step; valid: 0 to below 1$"):
        check(muon(**{key: 1.0}), tmp_path)


@pytest.mark.parametrize(
    "key", ["lr", "embed_lr", "eps", "weight_decay", "mlp_decay_factor", "momentum_warmup", "outer_every", "outer_lr"]
)
def test_nothing_is_negative(key: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^optim\.{key}=-1 must not be negative$"):
        check(muon(**{key: -1}), tmp_path)


def test_an_outer_optimiser_must_move(tmp_path: Path) -> None:
    """At rate 0 the weights would fall back to where they were, and nothing would ever be learned."""
    with pytest.raises(UserError, match=r"^optim\.outer_lr=0\.0 must be above 0"):
        check(muon(outer_lr=0.0), tmp_path)
