"""One federated round as a pure function ``step(state, cohort) -> (state, metrics)``.

The whole step runs inside one ``shard_map``: every device trains its share of the
clients, gathers what the others made, and goes on with the same replicated numbers.
No sum is left to a collective, whose order of addition depends on the device count.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from fedjax_health.core import trees
from fedjax_health.core.rng import SERVER, Key, Stream, key_for
from fedjax_health.core.types import (
    AggregationContext,
    AttackContext,
    ClientBatches,
    Cohort,
    Metrics,
    RoundState,
    Updates,
)
from fedjax_health.engine.cohort import (
    Delivery,
    Trained,
    bound_of,
    local_steps,
    root_updates,
    train_cohort,
)
from fedjax_health.engine.plan import personal_leaves, shared_leaves
from fedjax_health.engine.structure import Structure

# Clients named when their loss or message is not finite; the rest are counted.
NAMED_CLIENTS = 8


@functools.lru_cache(maxsize=128)
def compiled_step(structure: Structure) -> Callable[..., tuple[RoundState, Metrics]]:
    """Returns the jitted step of a structure; the same one for equal structures."""
    body = functools.partial(_step, structure)
    mesh = structure.mapping.mesh
    if mesh is not None:
        replicated = PartitionSpec()
        body = jax.shard_map(
            body, mesh=mesh, in_specs=replicated, out_specs=replicated, check_vma=False
        )
    return jax.jit(body, donate_argnums=0)


def _step(
    structure: Structure,
    state: RoundState,
    cohort: Cohort,
    root_batches: ClientBatches | None,
) -> tuple[RoundState, Metrics]:
    """One round, on one device of the mesh."""
    shared_params = shared_leaves(structure.personal, state.params)
    num_steps = local_steps(structure, state, cohort)
    trained = train_cohort(structure, state, cohort, num_steps)
    deliveries = trained.deliveries
    good = deliveries.delivered & deliveries.finite
    weights = jnp.where(good, deliveries.weight, 0.0)
    total_weight = jnp.sum(weights)

    attack = state.attack
    aggregate_key = key_for(state.key, Stream.AGGREGATE, state.round, SERVER)
    rule_metrics: Metrics = {}
    aggregator = state.aggregator
    if trained.stacked is None:
        total = trained.total
        aggregate = trees.scale(total, 1.0 / jnp.maximum(total_weight, 1e-30))
    else:
        stacked = trained.stacked
        context = AggregationContext(
            client_ids=jnp.asarray(cohort.client_ids),
            mask=deliveries.delivered,
            round=state.round,
            root_updates=root_updates(structure, state, root_batches),
        )
        if structure.forge is not None:
            stacked, attack = _forge(
                structure, state, cohort, stacked, deliveries, context
            )
        finite = _finite_rows(stacked)
        deliveries = deliveries._replace(finite=finite)
        good = deliveries.delivered & finite
        weights = jnp.where(good, deliveries.weight, 0.0)
        total_weight = jnp.sum(weights)
        stacked = jax.tree.map(
            lambda x: jnp.where(good.reshape(-1, *[1] * (x.ndim - 1)), x, 0), stacked
        )
        aggregate, aggregator, rule_metrics = structure.aggregate(
            stacked, weights, state.aggregator, aggregate_key, context=context
        )
        total = trees.scale(aggregate, total_weight)

    mechanism = state.mechanism
    if structure.mechanism is not None and structure.linear:
        # Privatise the sum, then divide by a denominator that no client can move.
        server_noise = structure.mechanism[2]
        if server_noise is not None:
            total, mechanism = server_noise(
                total,
                mechanism,
                key_for(state.key, Stream.MECHANISM, state.round, SERVER),
                bound_of(structure, state),
            )
        aggregate = trees.scale(total, 1.0 / state.hyper["expected"])

    server = structure.server_optimizer.build(state.hyper["server"], state.round)
    change, server_state = server.update(aggregate, state.server, shared_params)
    stepped = optax.apply_updates(shared_params, change)
    # A rule that let a non-finite value through, or a round without any message,
    # leaves the model as it was.
    aggregate_norm = jnp.sqrt(trees.squared_norm(aggregate))
    # With a mechanism an empty round is noise alone, and its event is accounted.
    anyone = jnp.any(good) | (structure.mechanism is not None)
    accept = jnp.isfinite(aggregate_norm) & anyone
    params = trees.select(accept, stepped, shared_params)
    server_state = trees.select(accept, server_state, state.server)
    if structure.forge is not None:
        previous = trees.select(accept, aggregate, attack["previous"])
        attack = {**attack, "previous": previous}

    transform_key = key_for(state.key, Stream.TRANSFORM, state.round, SERVER)
    shared = {
        "algorithm": structure.reduce_algorithm(
            state.shared["algorithm"],
            trained.reports["algorithm"],
            state.hyper["population"],
        ),
        "transform": structure.reduce_transform(
            state.shared["transform"], trained.reports["transform"], transform_key
        ),
    }
    clients = _scatter(state, cohort, trained, num_steps, good)
    new_state = RoundState(
        round=state.round + 1,
        params=trees.join(params, personal_leaves(structure.personal, state.params)),
        hyper=state.hyper,
        server=server_state,
        shared=shared,
        aggregator=aggregator,
        mechanism=mechanism,
        attack=attack,
        clients=clients,
        key=state.key,
    )
    metrics = _metrics(cohort, deliveries, good, aggregate_norm, accept)
    return new_state, {**rule_metrics, **metrics}


def _finite_rows(stacked: Updates) -> jax.Array:
    """Returns which rows have a finite norm, bool ``[cohort]``."""
    return jnp.isfinite(jax.vmap(trees.squared_norm)(stacked))


def _forge(
    structure: Structure,
    state: RoundState,
    cohort: Cohort,
    stacked: Updates,
    deliveries: Delivery,
    context: AggregationContext,
) -> tuple[Updates, Any]:
    assert structure.forge is not None
    weights = jnp.where(deliveries.delivered, deliveries.weight, 0.0)

    def defence(messages: Updates, key: Key) -> Updates:
        return structure.aggregate(
            messages, weights, state.aggregator, key, context=context
        )[0]

    malicious = cohort.malicious & deliveries.delivered
    forged, attack_state = structure.forge(
        stacked,
        malicious,
        state.attack["state"],
        AttackContext(
            key=key_for(state.key, Stream.ATTACK, state.round, SERVER),
            round=state.round,
            params=shared_leaves(structure.personal, state.params),
            previous_aggregate=state.attack["previous"],
            defence=defence,
        ),
    )
    stacked = jax.tree.map(
        lambda f, h: jnp.where(malicious.reshape(-1, *[1] * (h.ndim - 1)), f, h),
        forged,
        stacked,
    )
    return stacked, {**state.attack, "state": attack_state}


def _scatter(
    state: RoundState,
    cohort: Cohort,
    trained: Trained,
    num_steps: jax.Array,
    good: jax.Array,
):
    """Writes the memories of the clients that delivered back into the table."""
    if not jax.tree.leaves(state.clients):
        return state.clients
    del num_steps
    population = jax.tree.leaves(state.clients)[0].shape[0]
    rows = jnp.where(good, cohort.client_ids, population)
    return jax.tree.map(
        lambda table, new: table.at[rows].set(new, mode="drop", unique_indices=False),
        state.clients,
        trained.memory,
    )


def _metrics(
    cohort: Cohort,
    deliveries: Delivery,
    good: jax.Array,
    aggregate_norm: jax.Array,
    accepted: jax.Array,
) -> Metrics:
    """Returns the round's metrics, unnoised: for the simulation's own eyes."""
    bad = deliveries.delivered & ~deliveries.finite
    weights = jnp.where(good, deliveries.weight, 0.0)
    total = jnp.maximum(jnp.sum(weights), 1e-30)
    averages = {
        name: jnp.where(
            jnp.any(good),
            jnp.sum(jnp.where(good, value, 0.0) * weights) / total,
            jnp.nan,
        )
        for name, value in deliveries.metrics.items()
    }
    lossy = deliveries.delivered & ~jnp.isfinite(deliveries.metrics["loss"])
    order = jnp.argsort(~(bad | lossy), stable=True)[:NAMED_CLIENTS]
    named = jnp.where((bad | lossy)[order], cohort.client_ids[order], -1)
    num_good = jnp.sum(good)
    norms = jnp.where(good, deliveries.update_norm, 0.0)
    return {
        **averages,
        "num_clients": num_good.astype(jnp.int32),
        "num_examples": jnp.sum(jnp.where(good, cohort.batches.num_examples, 0)).astype(
            jnp.int32
        ),
        "num_steps": jnp.sum(deliveries.steps).astype(jnp.int32),
        "dropped": jnp.sum(cohort.mask & ~deliveries.delivered).astype(jnp.int32),
        "non_finite": jnp.sum(bad).astype(jnp.int32),
        "bad_clients": named.astype(jnp.int32),
        "update_norm": jnp.sum(norms) / jnp.maximum(num_good, 1),
        "aggregate_norm": aggregate_norm,
        "accepted": accepted,
    }
