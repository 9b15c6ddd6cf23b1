"""Which process updates which parameter."""

from collections.abc import Mapping, Sequence
from math import prod


def balance(costs: Mapping[str, int], ranks: int) -> dict[str, int]:
    """Name -> rank: the dearest first, each to the rank that has least so far. The same on every process.

    (Graham's longest processing time first: at most 4/3 of the best possible maximum.)
    """
    loads = [0] * ranks
    owners = {}
    for name in sorted(costs, key=lambda name: (-costs[name], name)):
        owners[name] = min(range(ranks), key=loads.__getitem__)
        loads[owners[name]] += costs[name]
    return owners


def newton_schulz_cost(shape: Sequence[int]) -> int:
    """Multiplications of one Newton-Schulz iteration on matrices (..., rows, columns): two products of the wide matrix
    with a square one, and that one's square."""
    short, long = sorted(shape[-2:])
    return prod(shape[:-2]) * (2 * short * short * long + short**3)
