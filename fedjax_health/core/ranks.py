"""Order statistics of each coordinate by a selection network.

Batcher's odd-even merge sort, pruned to what the wanted ranks need, written out as
minima and maxima of whole rows.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp


class _Comparison(NamedTuple):
    """Two places of a network, and which of the smaller and the larger is needed."""

    low: int
    high: int
    smaller: bool
    larger: bool


@functools.cache
def _network(size: int, ranks: tuple[int, ...]) -> tuple[_Comparison, ...]:
    """Returns the comparisons that bring the wanted ranks to their places.

    K. E. Batcher, 1968, "Sorting networks and their applications": odd-even merge sort
    for any number of rows; comparisons that no wanted rank depends on are left out.
    """
    pairs = []
    p = 1
    while p < size:
        k = p
        while k >= 1:
            for j in range(k % p, size - k, 2 * k):
                for i in range(min(k, size - j - k)):
                    if (i + j) // (2 * p) == (i + j + k) // (2 * p):
                        pairs.append((i + j, i + j + k))
            k //= 2
        p *= 2
    needed = set(ranks)
    kept = []
    for low, high in reversed(pairs):
        smaller, larger = low in needed, high in needed
        if smaller or larger:
            kept.append(_Comparison(low, high, smaller, larger))
            needed |= {low, high}
    return tuple(reversed(kept))


def ordered_rows(rows: Sequence[jax.Array], ranks: Sequence[int]) -> list[jax.Array]:
    """Returns the values of these ranks (0 is the smallest), coordinate by coordinate.

    Args:
      rows: one array for each client, without NaN.
      ranks: static.
    """
    held = list(rows)
    for step in _network(len(held), tuple(ranks)):
        a, b = held[step.low], held[step.high]
        # As selections: minima that must pass NaN on are several instructions each.
        if step.smaller:
            held[step.low] = jnp.where(a < b, a, b)
        if step.larger:
            held[step.high] = jnp.where(a < b, b, a)
    return [held[rank] for rank in ranks]
