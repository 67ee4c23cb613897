"""The weighted mean: the one rule that is linear in the messages."""

import functools

import jax
import jax.numpy as jnp

from fedjax_health.aggregators.gram import Geometry, GramKernel
from fedjax_health.aggregators.rows import Rows, accept_any, normalised
from fedjax_health.core import trees
from fedjax_health.core.types import Aggregator, Key, Metrics, Params, State, Updates


def _init(params: Params) -> State:
    del params
    return ()


def _update(
    stacked: Updates, weights: jax.Array, state: State, key: jax.Array, *, context=None
) -> tuple[Updates, State, Metrics]:
    del key, context
    total = jnp.sum(weights)
    shares = weights / jnp.where(total > 0, total, 1.0)

    def average(x: jax.Array) -> jax.Array:
        # A row of weight 0 is absent: whatever it holds must not reach the sum.
        present = (weights > 0).reshape(-1, *[1] * (x.ndim - 1))
        return trees.weighted_sum(shares, jnp.where(present, x, 0))

    return jax.tree.map(average, stacked), state, {}


def _weigh(
    geometry: Geometry, rows: Rows, state: State, key: Key
) -> tuple[jax.Array, Metrics]:
    """The mean after a mixing."""
    del geometry, state, key
    return normalised(rows.weights), {}


_KERNEL = GramKernel(_weigh, needs="nothing")


@functools.cache
def mean() -> Aggregator:
    """The mean of the messages, weighted (McMahan et al., 2017, arXiv:1602.05629).

    Breakdown point 0: one malicious client moves it anywhere.
    """
    return Aggregator(
        _init, _update, accept_any, linear=True, depends_on="gram", kernel=_KERNEL
    )
