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
import numpy as np
import optax
from jax.sharding import PartitionSpec

from fedjax_health.core import trees
from fedjax_health.core.message import CompositionError
from fedjax_health.core.rng import SERVER, Stream, key_for
from fedjax_health.core.types import (
    AggregationContext,
    AnyArray,
    AttackContext,
    ClientBatches,
    Cohort,
    Defence,
    Examples,
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

    def body(state, fields, examples, root_batches):
        cohort = _unpack_cohort(fields, examples)
        return _step(structure, state, cohort, root_batches)

    mesh = structure.mapping.mesh
    if mesh is not None:
        replicated = PartitionSpec()
        body = jax.shard_map(
            body, mesh=mesh, in_specs=replicated, out_specs=replicated, check_vma=False
        )
    return jax.jit(body, donate_argnums=0)


def pack_cohort(cohort: Cohort) -> AnyArray:
    """Returns a cohort's fields, its examples aside, as one int32 ``[7, cohort]``.

    Every array that is handed to a round is copied to every device by itself; one is
    much cheaper than seven.
    """
    batches = cohort.batches
    fields = (
        cohort.client_ids,
        cohort.mask,
        cohort.malicious,
        batches.num_examples,
        batches.num_steps,
        batches.index,
    )
    if all(isinstance(x, np.ndarray) for x in (*fields, cohort.weights)):
        weights = np.asarray(cohort.weights, np.float32).view(np.int32)
        return np.stack([np.asarray(x, np.int32) for x in (*fields, weights)])
    weights = jax.lax.bitcast_convert_type(
        jnp.asarray(cohort.weights, jnp.float32), jnp.int32
    )
    return jnp.stack([jnp.asarray(x, jnp.int32) for x in (*fields, weights)])


def _unpack_cohort(fields: jax.Array, examples: Examples) -> Cohort:
    ids, mask, malicious, num_examples, num_steps, index, weights = fields
    return Cohort(
        client_ids=ids,
        mask=mask != 0,
        weights=jax.lax.bitcast_convert_type(weights, jnp.float32),
        malicious=malicious != 0,
        batches=ClientBatches(num_examples, num_steps, index, examples),
    )


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
    # What honest training left is kept or dropped by its own merit; a forged message
    # is judged once more before it is aggregated.
    honest = deliveries.delivered & deliveries.finite
    good = honest
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
        stacked = _masked_rows(trained.stacked, honest)
        context = AggregationContext(
            client_ids=jnp.asarray(cohort.client_ids),
            mask=honest,
            round=state.round,
            root_updates=root_updates(structure, state, root_batches),
        )
        if structure.forge is not None:
            malicious = jnp.asarray(cohort.malicious) & deliveries.delivered
            sent = honest | malicious
            weights = jnp.where(sent, deliveries.weight, 0.0)
            stacked, attack = _forge(
                structure, state, malicious, stacked, weights, context
            )
            good = sent & _finite_rows(stacked)
            stacked = _masked_rows(stacked, good)
            weights = jnp.where(good, deliveries.weight, 0.0)
            total_weight = jnp.sum(weights)
        # A message that was sent and is masked counts towards those that a rule
        # assumes to be malicious.
        context = context._replace(mask=deliveries.delivered)
        aggregate, aggregator, rule_metrics = structure.aggregate(
            stacked, weights, state.aggregator, aggregate_key, context=context
        )
        if "kept" in rule_metrics:
            rule_metrics |= detection_metrics(
                deliveries.delivered, rule_metrics["kept"], cohort.malicious
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
    # A rule that let a non-finite value through, a step beyond float32, or a round
    # without any message leaves the model as it was.
    aggregate_norm = jnp.sqrt(trees.squared_norm(aggregate))
    # With a mechanism an empty round is noise alone, and its event is accounted.
    anyone = jnp.any(good) | (structure.mechanism is not None)
    accept = anyone & jnp.isfinite(aggregate_norm + trees.squared_norm(stepped))
    params = trees.select(accept, stepped, shared_params)
    server_state = trees.select(accept, server_state, state.server)
    aggregator = trees.select(accept, aggregator, state.aggregator)
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
    clients = _scatter(state, cohort, trained, honest)
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
    metrics = _metrics(cohort, deliveries, honest, good, aggregate_norm, accept)
    taken = rule_metrics.keys() & {*metrics, "round"}
    if taken:
        raise CompositionError(
            f"the aggregator reports a metric named {min(taken)!r}, which the round "
            "itself reports: give it another name"
        )
    return new_state, {**rule_metrics, **metrics}


def detection_metrics(sent: jax.Array, kept: jax.Array, malicious: AnyArray) -> Metrics:
    """Returns how well a selecting rule told malicious clients from honest ones.

    Args:
      sent: bool ``[cohort]``, clients that delivered a message.
      kept: bool ``[cohort]``, those whose message the rule used.
      malicious: bool ``[cohort]``.

    Returns:
      ``detection_precision``, the share of malicious clients among those that were
      dropped, and ``detection_recall``, the share of the malicious that were dropped;
      NaN where nobody was dropped, or nobody is malicious.
    """
    dropped = sent & ~jnp.asarray(kept)
    guilty = sent & jnp.asarray(malicious)
    caught = jnp.sum(dropped & guilty)
    return {
        "detection_precision": caught / jnp.sum(dropped),
        "detection_recall": caught / jnp.sum(guilty),
    }


def _masked_rows(stacked: Updates, keep: jax.Array) -> Updates:
    """Returns the rows that are kept and zeros for the others."""
    return jax.tree.map(
        lambda x: jnp.where(keep.reshape(-1, *[1] * (x.ndim - 1)), x, 0), stacked
    )


def _finite_rows(stacked: Updates) -> jax.Array:
    """Returns which rows have a finite norm, bool ``[cohort]``."""
    return jnp.isfinite(jax.vmap(trees.squared_norm)(stacked))


def _forge(
    structure: Structure,
    state: RoundState,
    malicious: jax.Array,
    stacked: Updates,
    weights: jax.Array,
    context: AggregationContext,
) -> tuple[Updates, Any]:
    assert structure.forge is not None
    ids = jnp.asarray(context.client_ids)
    of_clients = key_for(state.key, Stream.ATTACK, SERVER)
    forged, attack_state = structure.forge(
        stacked,
        malicious,
        state.attack["state"],
        AttackContext(
            key=key_for(state.key, Stream.ATTACK, state.round, SERVER),
            round=state.round,
            params=shared_leaves(structure.personal, state.params),
            previous_aggregate=state.attack["previous"],
            defence=Defence(
                structure.aggregate,
                weights,
                state.aggregator,
                context._replace(mask=weights > 0),
                structure.depends_on,
            ),
            client_ids=ids,
            client_keys=jax.vmap(lambda i: jax.random.fold_in(of_clients, i))(ids),
            mask=context.mask,
            weights=weights,
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
    honest: jax.Array,
):
    """Writes the memories of the clients that delivered back into the table."""
    if not jax.tree.leaves(state.clients):
        return state.clients
    population = jax.tree.leaves(state.clients)[0].shape[0]
    rows = jnp.where(honest, cohort.client_ids, population)
    return jax.tree.map(
        lambda table, new: table.at[rows].set(new, mode="drop", unique_indices=False),
        state.clients,
        trained.memory,
    )


def _metrics(
    cohort: Cohort,
    deliveries: Delivery,
    honest: jax.Array,
    good: jax.Array,
    aggregate_norm: jax.Array,
    accepted: jax.Array,
) -> Metrics:
    """Returns the round's metrics, unnoised: for the simulation's own eyes."""
    bad = deliveries.delivered & ~good
    weights = jnp.where(honest, deliveries.weight, 0.0)
    total = jnp.maximum(jnp.sum(weights), 1e-30)
    averages = {
        name: jnp.where(
            jnp.any(honest),
            jnp.sum(jnp.where(honest, value, 0.0) * weights) / total,
            jnp.nan,
        )
        for name, value in deliveries.metrics.items()
    }
    lossy = deliveries.delivered & ~jnp.isfinite(deliveries.metrics["loss"])
    order = jnp.argsort(~(bad | lossy), stable=True)[:NAMED_CLIENTS]
    named = jnp.where((bad | lossy)[order], cohort.client_ids[order], -1)
    num_good = jnp.sum(good)
    norms = jnp.where(honest, deliveries.update_norm, 0.0)
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
        "update_norm": jnp.sum(norms) / jnp.maximum(jnp.sum(honest), 1),
        "aggregate_norm": aggregate_norm,
        "accepted": accepted,
    }
