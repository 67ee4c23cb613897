"""The geometric median by smoothed Weiszfeld steps."""

import jax
import jax.numpy as jnp

from fedjax_health.aggregators.columns import EXACT
from fedjax_health.aggregators.gram import Geometry, GramKernel, gram_update
from fedjax_health.aggregators.rows import (
    Rows,
    accept_any,
    check_count,
    check_number,
    normalised,
)
from fedjax_health.core.types import Aggregator, Key, Metrics, Params, State


def distances_to(geometry: Geometry, weights: jax.Array) -> jax.Array:
    """Returns the distances of all points to the point that weights make of them.

    Args:
      geometry: of m points.
      weights: float32 ``[m]``, which sum to 1.
    """
    gram = geometry.gram[:-1, :-1]
    products = jnp.matmul(gram, weights, precision=EXACT)
    square = jnp.dot(weights, products, precision=EXACT)
    squared = jnp.diagonal(gram) - 2.0 * products + square
    return jnp.sqrt(jnp.maximum(squared, 0.0))


def _weigh(
    geometry: Geometry, rows: Rows, state: State, key: Key
) -> tuple[jax.Array, Metrics]:
    del key
    alpha = normalised(rows.weights)

    def weights_at(distance: jax.Array) -> jax.Array:
        return normalised(alpha / jnp.maximum(distance, state["smoothing"]))

    def step(_, weights: jax.Array) -> jax.Array:
        return weights_at(distances_to(geometry, weights))

    # The start is the origin, to which the distances are the norms.
    first = weights_at(geometry.norms)
    return jax.lax.fori_loop(1, state["steps"], step, first), {}


_KERNEL = GramKernel(_weigh)


def geometric_median(*, steps: int = 8, smoothing: float = 1e-6) -> Aggregator:
    """The point of least weighted sum of distances to the rows: RFA.

    Pillutla et al., 2022, "Robust Aggregation for Federated Learning"
    (arXiv:1912.13445), the smoothed Weiszfeld algorithm: T times ``z = sum(beta x) /
    sum(beta)`` with ``beta = alpha / max(norm(x - z), nu)``, from z = 0. Alpha are the
    weights.

    Breakdown point: 1/2 of the weight; with weights by examples a client that lies
    about its number of them takes part of it, which ``weighting="uniform"`` rules out.
    Traced: both numbers.

    Args:
      steps: T, Weiszfeld steps.
      smoothing: nu, the distance below which rows weigh no more; in the unit of the
        updates' norm.

    Raises:
      ValueError: if ``steps`` is below 1 or ``smoothing`` is not positive.
    """
    count = check_count("geometric_median", "steps", steps, least=1)
    nu = check_number("geometric_median", "smoothing", smoothing, above=0)

    def init(params: Params) -> State:
        del params
        return {"steps": jnp.int32(count), "smoothing": jnp.float32(nu)}

    return Aggregator(init, gram_update(_KERNEL), accept_any, False, "gram", _KERNEL)
