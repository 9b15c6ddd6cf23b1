"""Figures of a report: pure functions from shared tables to charts, None where a sweep has nothing to show."""

from skipsweep.analyze.figures import curves, finals, scalars
from skipsweep.analyze.figures.style import Figure
from skipsweep.analyze.figures.tables import Tables

FIGURES = (
    finals.per_arm,
    curves.over_steps,
    curves.over_time,
    finals.per_layer,
    finals.per_ordering,
    finals.over_distance,
    finals.over_count,
    finals.over_flops,
    finals.over_inference,
    finals.over_sparsity,
    scalars.skips,
    scalars.skip_curves,
    scalars.readout,
    scalars.blocks,
    scalars.shares,
    scalars.gates,
    curves.rates,
)
"""In the order of the page."""


def drawn(tables: Tables) -> list[Figure]:
    """All figures for which there is something to draw."""
    return [figure for make in FIGURES if (figure := make(tables)) is not None]
