"""The mean of the values that lie nearest the median, coordinate by coordinate."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fedjax_health.aggregators.coordinates import (
    CoordinateKernel,
    added,
    coordinate_update,
    sorted_median,
    sorted_rows,
)
from fedjax_health.aggregators.rows import check_majority, check_malicious, no_state
from fedjax_health.core.message import Message
from fedjax_health.core.ranks import ordered_rows
from fedjax_health.core.types import Aggregator, State


def nearest_mean(rows: Sequence[jax.Array], keep: int) -> jax.Array:
    """Returns the mean of the ``keep`` values nearest the median of each coordinate.

    The nearest are neighbours in sorted order: of the values at ranks i and i + keep
    only the nearer one is among them.

    Args:
      rows: one array for each client.
      keep: static.
    """
    n = len(rows)
    ordered = ordered_rows(rows, range(n))
    middle = 0.5 * (ordered[(n - 1) // 2] + ordered[n // 2])
    # Whether rank i gives way to rank i + keep.
    gives_way = [
        ordered[i + keep] - middle < middle - ordered[i] for i in range(n - keep)
    ]
    taken = []
    for rank, value in enumerate(ordered):
        if rank < n - keep:
            value = jnp.where(gives_way[rank], 0.0, value)
        if rank >= keep:
            value = jnp.where(gives_way[rank - keep], value, 0.0)
        taken.append(value)
    return added(taken) / keep


def sorted_nearest_mean(
    ordered: jax.Array, count: jax.Array, keep: jax.Array
) -> jax.Array:
    """Does the same for the first ``count`` rows of a sorted block, keep not static."""
    size = ordered.shape[0]
    middle = sorted_median(ordered, count)
    place = jnp.arange(size)[:, None]
    padded = jnp.pad(ordered, ((size, size), (0, 0)), constant_values=jnp.inf)
    later = jax.lax.dynamic_slice_in_dim(padded, size + keep, size, 0)
    earlier = jax.lax.dynamic_slice_in_dim(padded, size - keep, size, 0)
    gives_way = (place < count - keep) & (later - middle < middle - ordered)
    comes_in = (place < keep) | (ordered - middle < middle - earlier)
    taken = (place < count) & ~gives_way & comes_in
    ones = jnp.ones(size)
    return jnp.dot(ones, jnp.where(taken, ordered, 0.0)) / jnp.maximum(keep, 1)


def _general(
    rows: jax.Array, valid: jax.Array, dropped: jax.Array, state: State
) -> jax.Array:
    del state
    count = valid.sum()
    return sorted_nearest_mean(sorted_rows(rows, valid), count, count - dropped)


@functools.cache
def _rule(f: int) -> Aggregator:
    def network(rows: Sequence[jax.Array], state: State) -> jax.Array:
        del state
        check_majority("mean_around_median", f, len(rows))
        return nearest_mean(rows, len(rows) - f)

    def check(message: Message, cohort_size: int) -> Message:
        check_majority("mean_around_median", f, cohort_size)
        return message

    kernel = CoordinateKernel(network, _general, malicious=f)
    update = coordinate_update(kernel)
    return Aggregator(no_state, update, check, False, "coordinates", kernel)


def mean_around_median(num_malicious: int) -> Aggregator:
    """MeaMed: per coordinate, the mean of the n - f values nearest the median.

    Xie et al., 2018, "Generalized Byzantine-tolerant SGD" (arXiv:1802.10116). The
    median of an even number of rows averages the middle two. Of two values that lie
    equally far on either side of it, the lower one is taken.

    Breakdown point: f malicious rows, for f < n / 2. Weights are not used, but for a
    weight of 0, which marks an absent row. Static: f, which the network holds.

    Args:
      num_malicious: f, the malicious rows that are assumed.

    Raises:
      ValueError: if f is negative; a ``CompositionError`` of ``check`` if 2 f >= n.
    """
    return _rule(check_malicious("mean_around_median", num_malicious))
