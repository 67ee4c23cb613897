"""Centred clipping: the mean of what remains of each row around the last aggregate."""

import jax
import jax.numpy as jnp

from fedjax_health.aggregators.columns import zeros
from fedjax_health.aggregators.geometric_median import distances_to
from fedjax_health.aggregators.gram import Geometry, GramKernel, gram_update
from fedjax_health.aggregators.rows import (
    Rows,
    accept_any,
    check_count,
    check_number,
    normalised,
)
from fedjax_health.core.types import (
    AggregationContext,
    Aggregator,
    Key,
    Metrics,
    Params,
    State,
    Updates,
)


def _center(state: State, context: AggregationContext | None) -> tuple[Updates, ...]:
    del context
    return (state["center"],)


def _weigh(
    geometry: Geometry, rows: Rows, state: State, key: Key
) -> tuple[jax.Array, Metrics]:
    del key
    alpha = jnp.append(normalised(rows.weights), 0.0)
    center = jnp.arange(alpha.shape[0]) == alpha.shape[0] - 1

    def step(_, weights: jax.Array) -> jax.Array:
        distance = distances_to(geometry, weights)
        share = alpha * jnp.minimum(
            1.0, state["radius"] / jnp.maximum(distance, jnp.finfo(jnp.float32).tiny)
        )
        return weights * (1.0 - jnp.sum(share)) + share

    start = center.astype(jnp.float32)
    return jax.lax.fori_loop(0, state["steps"], step, start), {}


def _remember(
    aggregate: Updates, geometry: Geometry, rows: Rows, state: State, key: Key
) -> tuple[Updates, State]:
    del geometry, rows, key
    center = jax.tree.map(lambda x: x.astype(jnp.float32), aggregate)
    return aggregate, {**state, "center": center}


_KERNEL = GramKernel(_weigh, vectors=_center, finish=_remember)


def centered_clip(*, radius: float = 10.0, steps: int = 1) -> Aggregator:
    """Moves the last aggregate by the mean of the rows' clipped differences to it.

    Karimireddy et al., 2021, "Learning from History for Byzantine Robust Optimization"
    (arXiv:2012.10333): L times ``v += sum(alpha (x - v) min(1, tau / norm(x - v)))``,
    alpha the normalised weights. v is carried over the rounds in the state, and is 0 at
    the start of a run; rounds that the engine does not accept leave it as it was.

    A malicious share delta of the weight moves the result by at most ``delta L tau``
    a round; no breakdown point by itself. With weights by examples a client that lies
    about its number of them weighs more, which ``weighting="uniform"`` rules out.
    Traced: both numbers.

    Args:
      radius: tau, in the unit of the updates' norm.
      steps: L, clipping steps.

    Raises:
      ValueError: if ``radius`` is not positive or ``steps`` below 1.
    """
    tau = check_number("centered_clip", "radius", radius, above=0)
    count = check_count("centered_clip", "steps", steps, least=1)

    def init(params: Params) -> State:
        return {
            "radius": jnp.float32(tau),
            "steps": jnp.int32(count),
            "center": zeros(params),
        }

    return Aggregator(init, gram_update(_KERNEL), accept_any, False, "gram", _KERNEL)
