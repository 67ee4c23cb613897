"""Centred clipping: the mean of what remains of each row around the last aggregate."""

import functools

import jax
import jax.numpy as jnp

from fedjax_health.aggregators.columns import (
    squared_distances_to,
    stack_of,
    vectors_of,
    weighted_rows,
    zeros,
)
from fedjax_health.aggregators.geometric_median import distances_to
from fedjax_health.aggregators.gram import Geometry, GramKernel, gram_update
from fedjax_health.aggregators.rows import (
    Rows,
    accept_any,
    check_count,
    check_number,
    normalised,
    row_metrics,
    rows_of,
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

_FEW_STEPS = 2


def _center(state: State, context: AggregationContext | None) -> tuple[Updates, ...]:
    del context
    return (state["center"],)


def _remember(
    aggregate: Updates, geometry: Geometry, rows: Rows, state: State, key: Key
) -> tuple[Updates, State]:
    del geometry, rows, key
    center = jax.tree.map(lambda x: x.astype(jnp.float32), aggregate)
    return aggregate, {**state, "center": center}


def _kernel_weigh(steps: int):
    def weigh(
        geometry: Geometry, rows: Rows, state: State, key: Key
    ) -> tuple[jax.Array, Metrics]:
        del key
        alpha = jnp.append(normalised(rows.weights), 0.0)
        center = jnp.arange(alpha.shape[0]) == alpha.shape[0] - 1

        def step(_, weights: jax.Array) -> jax.Array:
            distance = distances_to(geometry, weights)
            share = alpha * _factor(distance, state)
            return weights * (1.0 - jnp.sum(share)) + share

        start = center.astype(jnp.float32)
        return jax.lax.fori_loop(0, steps, step, start), {}

    return weigh


@functools.cache
def _kernel(steps: int) -> GramKernel:
    return GramKernel(_kernel_weigh(steps), vectors=_center, finish=_remember)


def _factor(distance: jax.Array, state: State) -> jax.Array:
    """Returns how much of the rows' differences to the centre remains."""
    tiny = jnp.finfo(jnp.float32).tiny
    return jnp.minimum(1.0, state["radius"] / jnp.maximum(distance, tiny))


@functools.cache
def _direct(steps: int):
    """Returns the update that walks the rows for every step."""

    @jax.jit
    def update(
        stacked: Updates, weights: jax.Array, state: State, key: Key, *, context=None
    ) -> tuple[Updates, State, Metrics]:
        del key
        stack = stack_of(stacked)
        v = vectors_of(stacked, state["center"])
        squared = squared_distances_to(stack, v)
        rows = rows_of(weights, squared, context)
        # Distances to a finite centre are finite where the rows are.
        clean = jnp.all(jnp.isfinite(squared))
        alpha = normalised(rows.weights)
        for number in range(steps):
            if number:
                squared = squared_distances_to(stack, v)
            distance = jnp.sqrt(jnp.where(rows.valid, squared, 0.0))
            share = jnp.where(rows.valid, alpha * _factor(distance, state), 0.0)
            own = [(1.0 - jnp.sum(share), v)]
            v = weighted_rows(stack, share, clean, own)
        aggregate = stack.build(v)
        center = jax.tree.map(lambda x: x.astype(jnp.float32), aggregate)
        return aggregate, {**state, "center": center}, row_metrics(rows)

    return update


def centered_clip(*, radius: float = 10.0, steps: int = 1) -> Aggregator:
    """Moves the last aggregate by the mean of the rows' clipped differences to it.

    Karimireddy et al., 2021, "Learning from History for Byzantine Robust Optimization"
    (arXiv:2012.10333): L times ``v += sum(alpha (x - v) min(1, tau / norm(x - v)))``,
    alpha the normalised weights. v is carried over the rounds in the state, and is 0 at
    the start of a run; rounds that the engine does not accept leave it as it was.

    A malicious share delta of the weight moves the result by at most ``delta L tau``
    a round; no breakdown point by itself. With weights by examples a client that lies
    about its number of them weighs more, which ``weighting="uniform"`` rules out.
    Static: L; traced: tau.

    Args:
      radius: tau, in the unit of the updates' norm.
      steps: L, clipping steps.

    Raises:
      ValueError: if ``radius`` is not positive or ``steps`` below 1.
    """
    tau = check_number("centered_clip", "radius", radius, above=0)
    count = check_count("centered_clip", "steps", steps, least=1)
    kernel = _kernel(count)

    def init(params: Params) -> State:
        return {"radius": jnp.float32(tau), "center": zeros(params)}

    # A step or two are cheaper over the rows than by their inner products.
    update = _direct(count) if count <= _FEW_STEPS else gram_update(kernel)
    return Aggregator(init, update, accept_any, False, "gram", kernel)
