"""The mean of each coordinate without its extremes."""

import functools
from collections.abc import Sequence

import jax

from fedjax_health.aggregators.coordinates import (
    CoordinateKernel,
    added,
    coordinate_update,
    sorted_mean,
    sorted_rows,
)
from fedjax_health.aggregators.rows import check_majority, check_malicious, no_state
from fedjax_health.core.message import Message
from fedjax_health.core.ranks import ordered_rows
from fedjax_health.core.types import Aggregator, State


def _general(
    rows: jax.Array, valid: jax.Array, dropped: jax.Array, state: State
) -> jax.Array:
    del state
    return sorted_mean(sorted_rows(rows, valid), dropped, valid.sum() - 2 * dropped)


@functools.cache
def _rule(f: int) -> Aggregator:
    def network(rows: Sequence[jax.Array], state: State) -> jax.Array:
        del state
        check_majority("trimmed_mean", f, len(rows))
        middle = range(f, len(rows) - f)
        kept = ordered_rows(rows, middle) if f else rows
        return added(kept) / len(kept)

    def check(message: Message, cohort_size: int) -> Message:
        check_majority("trimmed_mean", f, cohort_size)
        return message

    kernel = CoordinateKernel(network, _general, malicious=f, reach=100)
    update = coordinate_update(kernel)
    return Aggregator(no_state, update, check, False, "coordinates", kernel)


def trimmed_mean(num_malicious: int) -> Aggregator:
    """Drops the f lowest and the f highest of each coordinate and averages the rest.

    Yin et al., 2018, "Byzantine-Robust Distributed Learning: Towards Optimal
    Statistical Rates" (arXiv:1803.01498), with f rows in place of a share of them.

    Breakdown point: f malicious rows, for f < n / 2. Weights are not used, but for a
    weight of 0, which marks an absent row. Static: f, which the network holds.

    Args:
      num_malicious: f, the malicious rows that are assumed.

    Raises:
      ValueError: if f is negative; a ``CompositionError`` of ``check`` if 2 f >= n.
    """
    return _rule(check_malicious("trimmed_mean", num_malicious))
