"""FoolsGold: clients that push the same way again and again count less."""

import functools

import jax
import jax.numpy as jnp

from fedjax_health.aggregators.columns import row_norms, stack_of, weighted_rows
from fedjax_health.aggregators.gram import (
    Geometry,
    GramKernel,
    gram_update,
    measure,
)
from fedjax_health.aggregators.rows import (
    Rows,
    accept_any,
    check_count,
    no_state,
    normalised,
    row_metrics,
    rows_of,
)
from fedjax_health.aggregators.similarity import cosine_distances
from fedjax_health.core.message import CompositionError, Message
from fedjax_health.core.types import Aggregator, Key, Metrics, Params, State, Updates


def learning_rates(cosines: jax.Array, valid: jax.Array) -> jax.Array:
    """Returns how much each client counts, in [0, 1].

    Args:
      cosines: float32 ``[n, n]`` between the clients' accumulated updates.
      valid: bool ``[n]``.
    """
    n = valid.shape[0]
    both = valid[:, None] & valid[None, :] & ~jnp.eye(n, dtype=bool)
    cosines = jnp.where(both, cosines, 0.0)
    most = jnp.max(cosines, axis=1)
    # Pardoning: a client that is less alike to others than its neighbour is to some
    # is not blamed for the neighbour.
    milder = (most[:, None] < most[None, :]) & both
    ratio = most[:, None] / jnp.where(milder, most[None, :], 1.0)
    cosines = jnp.where(milder, cosines * ratio, cosines)
    rates = jnp.clip(1.0 - jnp.max(cosines, axis=1), 0.0, 1.0)
    rates = jnp.where(valid, rates, 0.0)
    largest = jnp.max(rates)
    rates = rates / jnp.where(largest > 0, largest, 1.0)
    rates = jnp.where(rates == 1.0, 0.99, rates)
    logits = jnp.log(rates) - jnp.log1p(-rates) + 0.5
    return jnp.where(valid, jnp.clip(logits, 0.0, 1.0), 0.0)


def _weigh(
    geometry: Geometry, rows: Rows, state: State, key: Key
) -> tuple[jax.Array, Metrics]:
    del state, key
    n = rows.valid.shape[0]
    cosines = 1.0 - cosine_distances(geometry)[:n, :n]
    return normalised(learning_rates(cosines, rows.valid)), {}


_KERNEL = GramKernel(_weigh, selects=True)


@jax.jit
def _update(
    stacked: Updates, weights: jax.Array, state: State, key: Key, *, context=None
) -> tuple[Updates, State, Metrics]:
    stack = stack_of(stacked)
    squares = row_norms(stack)
    rows = rows_of(weights, squares, context)
    population = jax.tree.leaves(state)[0].shape[0]
    place = jnp.where(rows.valid, rows.client_ids, population)

    def accumulate(table: jax.Array, x: jax.Array) -> jax.Array:
        there = rows.valid.reshape(-1, *[1] * (x.ndim - 1))
        message = jnp.where(there, x, 0).astype(jnp.float32)
        return table.at[place].add(message, mode="drop")

    history = jax.tree.map(accumulate, state, stacked)
    own = jax.tree.map(
        lambda table: jnp.take(table, place, axis=0, mode="fill", fill_value=0),
        history,
    )
    # Who has sent anything in this round is judged by all that they ever sent.
    present = rows.valid.astype(jnp.float32)
    geometry, judged, _ = measure(stack_of(own), present, [], None, "gram")
    shares, _ = _weigh(geometry, judged, (), key)
    pieces = weighted_rows(stack, shares, jnp.all(jnp.isfinite(squares)))
    metrics = {**row_metrics(rows), "kept": shares != 0}
    return stack.build(pieces), history, metrics


@functools.cache
def foolsgold(*, population: int | None = None) -> Aggregator:
    """Weighs clients by how little their accumulated updates resemble any other's.

    Fung et al., 2020, "The Limitations of Federated Learning in Sybil Settings" (RAID),
    and the authors' code: the largest cosine with another client, pardoning, ``logit +
    0.5`` clipped to [0, 1]. The aggregate is the so weighted mean (the authors' code
    returns the weighted sum), over all parameters alike. If no client counts it is zero
    and the model stays.

    Made against sybils that push the same way; a single malicious client passes, so the
    breakdown point is 0. Weights are not used, but for a weight of 0, which marks an
    absent row. Static: ``population``.

    Args:
      population: clients in all, whose accumulated updates the state then holds
        (float32, ``population`` times the model); None judges each round by its own
        messages.

    Raises:
      ValueError: if the population is below 1; a ``CompositionError`` of ``check`` if
        it is smaller than the cohort.
    """
    if population is None:
        update = gram_update(_KERNEL)
        return Aggregator(no_state, update, accept_any, False, "gram", _KERNEL)
    clients = check_count("foolsgold", "population", population, least=1)

    def init(params: Params) -> State:
        return jax.tree.map(
            lambda x: jnp.zeros((clients, *jnp.shape(x)), jnp.float32), params
        )

    def check(message: Message, cohort_size: int) -> Message:
        if cohort_size > clients:
            raise CompositionError(
                f"foolsgold: population={clients} is smaller than the cohort of "
                f"{cohort_size}: it is the number of all clients"
            )
        return message

    return Aggregator(init, _update, check, False, "rows")
