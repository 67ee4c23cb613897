"""MoNNA: the rows nearest to a trusted client's."""

import functools

import jax
import jax.numpy as jnp

from fedjax_health.aggregators.columns import (
    squared_distances_to,
    stack_of,
    vectors_of,
    weighted_rows,
)
from fedjax_health.aggregators.gram import Geometry, GramKernel
from fedjax_health.aggregators.rows import (
    Rows,
    check_count,
    check_majority,
    check_malicious,
    normalised,
    row_metrics,
    rows_of,
    smallest,
)
from fedjax_health.core import trees
from fedjax_health.core.message import Message
from fedjax_health.core.types import Aggregator, Key, Metrics, Params, State, Updates


def _weigh(
    geometry: Geometry, rows: Rows, state: State, key: Key
) -> tuple[jax.Array, Metrics]:
    del key
    trusted = rows.valid & (rows.client_ids == state["trusted"])
    there = jnp.any(trusted)
    squared = geometry.squared_distances()[jnp.argmax(trusted)]
    keep = rows.count - rows.malicious(state["num_malicious"])
    weights = normalised(smallest(squared, keep))
    return jnp.where(there, weights, 0.0), {"trusted_present": there}


_KERNEL = GramKernel(_weigh, selects=True)


@jax.jit
def _update(
    stacked: Updates, weights: jax.Array, state: State, key: Key, *, context=None
) -> tuple[Updates, State, Metrics]:
    """The rule by itself, which needs the distances to one row alone."""
    del key
    stack = stack_of(stacked)
    ids = rows_of(weights, weights, context).client_ids
    asked = (weights > 0) & (ids == state["trusted"])
    center = trees.take_row(stacked, jnp.argmax(asked))
    there = jnp.any(asked) & trees.all_finite(center)
    center = jax.tree.map(lambda x: jnp.where(there, x, 0), center)
    squared = squared_distances_to(stack, vectors_of(stacked, center))
    rows = rows_of(weights, squared, context)
    keep = rows.count - rows.malicious(state["num_malicious"])
    near = smallest(jnp.where(rows.valid, squared, jnp.inf), keep)
    shares = jnp.where(there, normalised(near), 0.0)
    pieces = weighted_rows(stack, shares, jnp.all(jnp.isfinite(squared)))
    metrics = {"trusted_present": there, "kept": shares != 0}
    return stack.build(pieces), state, {**row_metrics(rows), **metrics}


@functools.cache
def _check(f: int):
    def check(message: Message, cohort_size: int) -> Message:
        check_majority("monna", f, cohort_size)
        return message

    return check


def monna(num_malicious: int, *, trusted: int = 0) -> Aggregator:
    """The mean of the n - f rows nearest to the trusted client's, its own included.

    Farhadkhani et al., 2023, "Robust Collaborative Learning with Linear Gradient
    Overhead" (arXiv:2209.10931), seen from one client. In a round without a finite
    message of the trusted client the aggregate is zero and the model stays.

    Breakdown point: f malicious rows, for f < n / 2, while the trusted client is
    honest. Weights are not used, but for a weight of 0, which marks an absent row.
    Traced: both numbers.

    Args:
      num_malicious: f, the malicious rows that are assumed.
      trusted: the id of a client that is honest.

    Raises:
      ValueError: if a number is negative; a ``CompositionError`` of ``check`` if
        2 f >= n.
    """
    f = check_malicious("monna", num_malicious)
    client = check_count("monna", "trusted", trusted, least=0)

    def init(params: Params) -> State:
        del params
        return {"num_malicious": jnp.int32(f), "trusted": jnp.int32(client)}

    return Aggregator(init, _update, _check(f), False, "gram", _KERNEL)
