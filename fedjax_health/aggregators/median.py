"""The median of each coordinate."""

import functools
from collections.abc import Sequence

import jax

from fedjax_health.aggregators.coordinates import (
    CoordinateKernel,
    coordinate_update,
    sorted_median,
    sorted_rows,
)
from fedjax_health.aggregators.rows import accept_any, no_state
from fedjax_health.core.ranks import ordered_rows
from fedjax_health.core.types import Aggregator, State


def _network(rows: Sequence[jax.Array], state: State) -> jax.Array:
    del state
    n = len(rows)
    low, high = ordered_rows(rows, ((n - 1) // 2, n // 2))
    return low if n % 2 else 0.5 * (low + high)


def _general(
    rows: jax.Array, valid: jax.Array, dropped: jax.Array, state: State
) -> jax.Array:
    del dropped, state
    return sorted_median(sorted_rows(rows, valid), valid.sum())


_KERNEL = CoordinateKernel(_network, _general, reach=128)


@functools.cache
def median() -> Aggregator:
    """The median of each coordinate; an even number of rows averages the middle two.

    Yin et al., 2018, "Byzantine-Robust Distributed Learning: Towards Optimal
    Statistical Rates" (arXiv:1803.01498). (PyTorch's median, which other libraries use,
    takes the lower of the middle two.)

    Breakdown point 1/2. Weights are not used, but for a weight of 0, which marks an
    absent row: clients with many examples count like any other, which costs accuracy on
    clean data of unequal clients. Nothing is traced.
    """
    update = coordinate_update(_KERNEL)
    return Aggregator(no_state, update, accept_any, False, "median", _KERNEL)
