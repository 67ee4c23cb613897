"""Bulyan: rows picked by Krum one after the other, then a mean around their median."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fedjax_health.aggregators.coordinates import (
    CoordinateKernel,
    coordinate_update,
    sorted_rows,
)
from fedjax_health.aggregators.gram import Geometry
from fedjax_health.aggregators.mean_around_median import (
    nearest_mean,
    sorted_nearest_mean,
)
from fedjax_health.aggregators.rows import Rows, check_malicious, no_state
from fedjax_health.core.message import CompositionError, Message
from fedjax_health.core.types import Aggregator, State


def _picks(
    squared: jax.Array, valid: jax.Array, f: jax.Array, picks: jax.Array, size: int
) -> tuple[jax.Array, jax.Array]:
    """Picks rows by Krum, each among those that are left.

    Args:
      squared: float32 ``[n, n]``, infinite to rows that do not count.
      valid: bool ``[n]``.
      f: int32 ``[]``.
      picks: int32 ``[]``, how many.
      size: static length of the list of picks.

    Returns:
      ``(order [size], picked [n])``.
    """
    n = valid.shape[0]
    others = jnp.where(jnp.eye(n, dtype=bool), jnp.inf, squared)
    near = jnp.argsort(others, axis=1)
    ordered = jnp.take_along_axis(others, near, axis=1)

    def pick(i: jax.Array, held):
        order, left = held
        neighbors = jnp.maximum(jnp.sum(left) - f - 2, 1)
        there = left[near] & (ordered < jnp.inf)
        taken = there & (jnp.cumsum(there, axis=1) <= neighbors)
        scores = jnp.sum(jnp.where(taken, ordered, 0.0), axis=1)
        best = jnp.argmin(jnp.where(left, scores, jnp.inf)).astype(jnp.int32)
        return order.at[i].set(best, mode="drop"), left.at[best].set(False)

    start = jnp.zeros(size, jnp.int32), valid
    order, left = jax.lax.fori_loop(0, picks, pick, start)
    return order, valid & ~left


def _general(
    rows: jax.Array, valid: jax.Array, dropped: jax.Array, state: State
) -> jax.Array:
    del state
    count = valid.sum()
    return sorted_nearest_mean(sorted_rows(rows, valid), count, count - 2 * dropped)


def _check_size(f: int, cohort_size: int) -> None:
    if cohort_size < 4 * f + 3:
        raise CompositionError(
            "bulyan needs 4 num_malicious + 3 clients or more, and a cohort of "
            f"{cohort_size} with num_malicious={f} has not: assume at most "
            f"{max((cohort_size - 3) // 4, 0)}, or draw {4 * f + 3} clients or more"
        )


@functools.cache
def _rule(f: int) -> Aggregator:
    def choose(geometry: Geometry, rows: Rows, state: State):
        del state
        n = rows.valid.shape[0]
        _check_size(f, n)
        left = rows.malicious(f)
        picks = jnp.maximum(rows.count - 2 * left, jnp.minimum(rows.count, 1))
        by_client = rows.by_client()
        squared = geometry.squared_distances()[:n, :n]
        squared = squared[by_client][:, by_client]
        order, picked = _picks(squared, rows.valid[by_client], left, picks, n - 2 * f)
        return by_client[order], jnp.zeros(n, bool).at[by_client].set(picked)

    def network(rows: Sequence[jax.Array], state: State) -> jax.Array:
        del state
        return nearest_mean(rows, len(rows) - 2 * f)

    def check(message: Message, cohort_size: int) -> Message:
        _check_size(f, cohort_size)
        return message

    kernel = CoordinateKernel(network, _general, malicious=f, choose=choose)
    update = coordinate_update(kernel)
    return Aggregator(no_state, update, check, False, "rows", kernel)


def bulyan(num_malicious: int) -> Aggregator:
    """Picks n - 2 f rows by Krum, then averages what lies nearest their median.

    El Mhamdi et al., 2018, "The Hidden Vulnerability of Distributed Learning in
    Byzantium" (arXiv:1802.07927). Each pick is Krum's among the r rows that are left,
    with r - f - 2 neighbours (at least 1); of several with the least score that of the
    lowest client id. Of the n - 2 f picked rows each coordinate takes the mean of the n
    - 4 f values nearest their median.

    Breakdown point: f malicious rows, for n >= 4 f + 3. Weights are not used, but for a
    weight of 0, which marks an absent row. Static: f, which the network holds.

    Args:
      num_malicious: f, the malicious rows that are assumed.

    Raises:
      ValueError: if f is negative; a ``CompositionError`` of ``check`` if n < 4 f + 3.
    """
    return _rule(check_malicious("bulyan", num_malicious))
