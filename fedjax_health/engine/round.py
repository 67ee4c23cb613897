"""One federated round as a pure function ``step(state, cohort) -> (state, metrics)``.

The whole step runs inside one ``shard_map``: every device trains its share of the
clients, gathers what the others made, and goes on with the same replicated numbers.
No sum is left to a collective, whose order of addition depends on the device count.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec

from fedjax_health.client import visited_examples
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
    Gathered,
    Metrics,
    RoundState,
    Updates,
)
from fedjax_health.engine.cohort import (
    Delivery,
    Trained,
    bound_of,
    client_keys,
    codec_state,
    known_bound,
    local_steps,
    message_like,
    modular_sum,
    root_updates,
    train_cohort,
)
from fedjax_health.engine.parts import part_weights, scale_by_part
from fedjax_health.engine.places import leaves_without
from fedjax_health.engine.structure import Structure

# Clients named when their loss or message is not finite; the rest are counted.
NAMED_CLIENTS = 8


class Sent(NamedTuple):
    """What lies between the two halves of a round: all that clients have sent.

    Attributes:
      trained: what the training left; its messages are masked, forged and encoded.
      honest: bool ``[cohort]``, honest messages that count.
      good: bool ``[cohort]``, messages that count.
      weights: float32 ``[cohort]``, 0 for those that do not.
      attack: the attack's state.
      context: what the aggregator may know.
    """

    trained: Trained
    honest: jax.Array
    good: jax.Array
    weights: jax.Array
    attack: Any
    context: AggregationContext


Step = Callable[..., tuple[RoundState, Metrics]]


@functools.lru_cache(maxsize=128)
def compiled_step(structure: Structure) -> Step:
    """Returns the step of a structure; the same one for equal structures.

    It is one jitted program, or two with the host between them where the aggregator
    gathers on the host.
    """

    def whole(state, fields, devices, examples, root_batches):
        cohort = _unpack_cohort(structure, fields, devices, examples)
        sent = _send(structure, state, cohort, root_batches)
        return _receive(structure, state, cohort, sent, _gather(structure, state, sent))

    def first(state, fields, devices, examples, root_batches):
        cohort = _unpack_cohort(structure, fields, devices, examples)
        return _send(structure, state, cohort, root_batches)

    def second(state, fields, devices, examples, sent, gathered):
        cohort = _unpack_cohort(structure, fields, devices, examples)
        return _receive(structure, state, cohort, sent, gathered)

    secure = structure.secure
    if secure is None or not secure.on_host:
        return jax.jit(_on_mesh(structure, whole), donate_argnums=0)
    send = jax.jit(_on_mesh(structure, first))
    receive = jax.jit(_on_mesh(structure, second), donate_argnums=0)

    def halves(state, fields, devices, examples, root_batches):
        sent = send(state, fields, devices, examples, root_batches)
        gathered = _gather_on_host(structure, state, sent, fields[1])
        return receive(state, fields, devices, examples, sent, gathered)

    return halves


def _on_mesh(structure: Structure, body: Callable) -> Callable:
    """Runs a body on every device of the mapping, with the same arguments."""
    mesh = structure.mapping.mesh
    if mesh is None:
        return body
    replicated = PartitionSpec()
    return jax.shard_map(
        body, mesh=mesh, in_specs=replicated, out_specs=replicated, check_vma=False
    )


def pack_cohort(cohort: Cohort) -> AnyArray:
    """Returns a cohort's fields, examples and devices aside, as one int32 array.

    ``[7, cohort]``, and one row more for each part of the model that has shares.

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
    numbers = [cohort.weights]
    if cohort.part_shares is not None:
        numbers += list(cohort.part_shares.T)
    if all(isinstance(x, np.ndarray) for x in (*fields, *numbers)):
        bits = [np.asarray(x, np.float32).view(np.int32) for x in numbers]
        return np.stack([*(np.asarray(x, np.int32) for x in fields), *bits])
    bits = [
        jax.lax.bitcast_convert_type(jnp.asarray(x, jnp.float32), jnp.int32)
        for x in numbers
    ]
    return jnp.stack([*(jnp.asarray(x, jnp.int32) for x in fields), *bits])


def _unpack_cohort(
    structure: Structure,
    fields: jax.Array,
    devices: jax.Array | None,
    examples: Examples,
) -> Cohort:
    ids, mask, malicious, num_examples, num_steps, index = fields[:6]
    numbers = jax.lax.bitcast_convert_type(fields[6:], jnp.float32)
    shares = numbers[1:].T if len(numbers) > 1 else None
    if shares is None and structure.parts is not None:
        shares = jnp.ones((len(ids), len(structure.parts.names)))
    return Cohort(
        client_ids=ids,
        mask=mask != 0,
        weights=numbers[0],
        malicious=malicious != 0,
        batches=ClientBatches(num_examples, num_steps, index, examples, devices),
        part_shares=shares,
    )


def _send(
    structure: Structure,
    state: RoundState,
    cohort: Cohort,
    root_batches: ClientBatches | None,
) -> Sent:
    """The clients' half of a round, on one device of the mesh."""
    num_steps = local_steps(structure, state, cohort)
    trained = train_cohort(structure, state, cohort, num_steps)
    deliveries = trained.deliveries
    # What honest training left is kept or dropped by its own merit; a forged message
    # is judged once more before it is aggregated.
    honest = deliveries.delivered & deliveries.finite
    good = honest
    weights = jnp.where(good, deliveries.weight, 0.0)
    context = AggregationContext(
        client_ids=jnp.asarray(cohort.client_ids),
        mask=honest,
        round=state.round,
        root_updates=root_updates(structure, state, root_batches),
        part_shares=(
            None if cohort.part_shares is None else jnp.asarray(cohort.part_shares)
        ),
    )
    attack = state.attack
    if trained.stacked is not None:
        stacked = _masked_rows(trained.stacked, honest)
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
            if structure.codec is not None:
                stacked, saturated = _encode_rows(
                    structure, state, cohort, stacked, weights
                )
                stacked = _masked_rows(stacked, good)
                trained = trained._replace(
                    deliveries=deliveries._replace(saturated=saturated)
                )
        trained = trained._replace(stacked=stacked)
    # A message that was sent and is masked counts towards those that a rule assumes to
    # be malicious.
    context = context._replace(mask=deliveries.delivered)
    return Sent(trained, honest, good, weights, attack, context)


def _encode_rows(
    structure: Structure,
    state: RoundState,
    cohort: Cohort,
    stacked: Updates,
    weights: jax.Array,
) -> tuple[Any, jax.Array]:
    """Encodes messages among which there are forged ones.

    Where messages are bounded, the sum is taken to be one that proves the bound of each
    of them, as RoFL does (Lycklama et al., 2023, arXiv:2107.03311): a forged message is
    clipped like an honest one.
    """
    assert structure.codec is not None
    bound = known_bound(structure, state)
    own_state = codec_state(structure, state)
    encode = structure.codec.encode

    def one(row: Updates, weight: jax.Array, key: jax.Array):
        if bound is not None:
            norm = jnp.sqrt(trees.squared_norm(row))
            row = trees.scale(row, bound / jnp.maximum(norm, bound))
        return encode(row, weight, own_state, key, bound)

    return jax.vmap(one)(stacked, weights, client_keys(state, Stream.MASK, cohort))


def _gather(structure: Structure, state: RoundState, sent: Sent) -> Gathered | None:
    """Returns what the server learns of encoded messages; None of any others."""
    secure = structure.secure
    if structure.codec is None:
        return None
    if secure is not None and secure.gather is not None:
        return secure.gather(
            sent.trained.stacked,
            sent.weights,
            state.aggregator,
            key_for(state.key, Stream.AGGREGATE, state.round, SERVER),
            sent.context,
        )
    total = sent.trained.total
    if sent.trained.stacked is not None:
        total = jax.tree.map(modular_sum, sent.trained.stacked)
    if structure.codec.collect is not None:
        total = structure.codec.collect(total)
    released = jnp.bool_(True)
    if secure is not None:
        released = jnp.sum(sent.good) >= secure.threshold(state.aggregator)
    weights = sent.weights
    if secure is not None and secure.weigh is not None:
        weights = secure.weigh(weights, state.aggregator)
    sums = jax.tree.map(lambda x: jnp.where(released, x, 0)[None], total)
    return Gathered(sums, jnp.sum(weights)[None], released[None], {})


def _gather_on_host(
    structure: Structure, state: RoundState, sent: Sent, drawn: AnyArray
) -> Gathered:
    """Runs the protocol on what the clients have sent; NumPy in and out.

    Clients that were drawn and delivered nothing dropped out on the way; slots that are
    not ``drawn`` (``[cohort]``, 0 or 1) hold nobody.
    """
    assert structure.secure is not None
    assert structure.secure.gather is not None
    key = key_for(state.key, Stream.AGGREGATE, state.round, SERVER)
    stacked, weights, own_state, data, context = jax.device_get(
        (
            sent.trained.stacked,
            sent.weights,
            state.aggregator,
            jax.random.key_data(key),
            sent.context._replace(root_updates=None),
        )
    )
    ids = np.where(np.asarray(drawn) != 0, context.client_ids, -1)
    context = context._replace(client_ids=ids)
    return structure.secure.gather(stacked, weights, own_state, data, context)


class Combined(NamedTuple):
    """What the server makes of the messages of a round.

    Attributes:
      aggregate: of a message's structure.
      aggregator: the rule's new state.
      mechanism: the mechanism's new state.
      released: bool ``[]``, whether enough messages came in for it to be known.
      metrics: of the rule.
    """

    aggregate: Updates
    aggregator: Any
    mechanism: Any
    released: jax.Array
    metrics: Metrics


def _combine(
    structure: Structure, state: RoundState, sent: Sent, gathered: Gathered | None
) -> Combined:
    """Aggregates, and adds the server's noise: to sums, before they are divided."""
    metrics: Metrics = {}
    aggregator, mechanism = state.aggregator, state.mechanism
    released = jnp.bool_(True)
    key = key_for(state.key, Stream.AGGREGATE, state.round, SERVER)
    if gathered is not None and structure.secure and structure.secure.finish:
        return _combine_groups(structure, state, sent, gathered)
    total_weight = jnp.sum(sent.weights)
    if gathered is not None:
        released, total_weight = gathered.released[0], gathered.weights[0]
        total = jax.tree.map(lambda x: x[0], gathered.sums)
        metrics = gathered.metrics
    elif sent.trained.stacked is None:
        total = sent.trained.total
    else:
        aggregate, aggregator, metrics = structure.aggregate(
            sent.trained.stacked, sent.weights, aggregator, key, context=sent.context
        )
        if structure.mechanism is None or not structure.linear:
            return Combined(aggregate, aggregator, mechanism, released, metrics)
        total = trees.scale(aggregate, total_weight)
    if structure.mechanism is not None and structure.mechanism[2] is not None:
        total, mechanism = structure.mechanism[2](
            total,
            mechanism,
            key_for(state.key, Stream.MECHANISM, state.round, SERVER),
            bound_of(structure, state),
        )
    if structure.codec is not None:
        total = _decode(structure, state, total)
    # A mechanism's denominator is one that no client can move.
    denominator = jnp.maximum(total_weight, 1e-30)
    if structure.mechanism is not None:
        denominator = state.hyper["expected"]
    aggregate = trees.scale(total, 1.0 / denominator)
    if structure.parts is not None:
        assert sent.context.part_shares is not None
        own = part_weights(
            sent.weights, sent.context.part_shares, weighting=structure.weighting
        )
        # A part whose data nobody in the round has stays as it is.
        own = 1.0 / jnp.maximum(jnp.sum(own, axis=0), 1e-30)
        aggregate = scale_by_part(structure.parts, total, 1.0 / denominator, own)
    return Combined(aggregate, aggregator, mechanism, released, metrics)


def _combine_groups(
    structure: Structure, state: RoundState, sent: Sent, gathered: Gathered
) -> Combined:
    """Applies the rule to the means of groups whose sums alone are known."""
    assert structure.secure is not None
    assert structure.secure.finish is not None
    sums, weights = gathered.sums, jnp.asarray(gathered.weights)
    released = jnp.asarray(gathered.released)
    if structure.mechanism is not None and structure.mechanism[1] is not None:
        sums = structure.mechanism[1](
            sums,
            state.mechanism,
            key_for(state.key, Stream.MECHANISM, state.round, SERVER),
            bound_of(structure, state),
        )
    totals = jax.vmap(functools.partial(_decode, structure, state))(sums)
    denominators = jnp.maximum(weights, 1e-30)
    if structure.mechanism is not None:
        expected = state.hyper["expected"] / weights.shape[0]
        denominators = jnp.full_like(weights, expected)
        weights = jnp.ones_like(weights)
    weights = jnp.where(released, weights, 0.0)
    means = jax.tree.map(
        lambda x: x / denominators.reshape(-1, *[1] * (x.ndim - 1)).astype(x.dtype),
        totals,
    )
    aggregate, aggregator, metrics = structure.secure.finish(
        means,
        weights,
        state.aggregator,
        key_for(state.key, Stream.AGGREGATE, state.round, SERVER),
        sent.context,
    )
    # Which groups a rule kept says nothing of single clients.
    metrics = {k: v for k, v in metrics.items() if k != "kept"}
    return Combined(
        aggregate,
        aggregator,
        state.mechanism,
        jnp.any(released),
        {**metrics, **gathered.metrics},
    )


def _decode(structure: Structure, state: RoundState, total: Any) -> Updates:
    assert structure.codec is not None
    memory = jax.eval_shape(
        lambda table: trees.take_row(table, jnp.int32(0)), state.clients["transform"]
    )
    like = message_like(
        structure.transform,
        leaves_without(structure.unsent, state.params),
        memory,
        state.shared["transform"],
    )
    return structure.codec.decode(
        total, codec_state(structure, state), known_bound(structure, state), like
    )


def _receive(
    structure: Structure,
    state: RoundState,
    cohort: Cohort,
    sent: Sent,
    gathered: Gathered | None,
) -> tuple[RoundState, Metrics]:
    """The server's half of a round, on one device of the mesh."""
    trained, deliveries = sent.trained, sent.trained.deliveries
    shared_params = leaves_without(structure.unsent, state.params)
    combined = _combine(structure, state, sent, gathered)
    aggregate, released = combined.aggregate, combined.released
    rule_metrics = combined.metrics
    if "kept" in rule_metrics:
        rule_metrics = rule_metrics | detection_metrics(
            deliveries.delivered, rule_metrics["kept"], cohort.malicious
        )
    aggregate_norm = jnp.sqrt(trees.squared_norm(aggregate))
    transform_shared = state.shared["transform"]
    updates = aggregate
    if structure.restore is not None:
        updates, transform_shared = structure.restore(
            aggregate, transform_shared, shared_params
        )

    server = structure.server_optimizer.build(state.hyper["server"], state.round)
    change, server_state = server.update(updates, state.server, shared_params)
    stepped = optax.apply_updates(shared_params, change)
    # A rule that let a non-finite value through, a step beyond float32, a round without
    # any message, or one with too few for their sum to be released, leaves the model as
    # it was. With a mechanism an empty round is noise alone, and is accounted for.
    anyone = jnp.any(sent.good) | (structure.mechanism is not None)
    usable = released & anyone
    accept = usable & jnp.isfinite(aggregate_norm + trees.squared_norm(stepped))
    params = trees.select(accept, stepped, shared_params)
    server_state = trees.select(accept, server_state, state.server)
    aggregator = trees.select(accept, combined.aggregator, state.aggregator)
    attack, mechanism = sent.attack, combined.mechanism
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
            transform_shared, trained.reports["transform"], transform_key
        ),
    }
    if structure.secure is not None:
        # Of an aborted round nobody learns anything, and no client counts as heard.
        shared = trees.select(released, shared, state.shared)
        mechanism = trees.select(released, mechanism, state.mechanism)
    clients = _scatter(state, cohort, trained, sent.honest & released)
    unsent = state.params
    if structure.relayed is not None:
        passed = trees.join(trained.relayed, state.params)
        unsent = trees.select(accept, passed, state.params)
    new_state = RoundState(
        round=state.round + 1,
        params=trees.join(params, unsent),
        hyper=state.hyper,
        server=server_state,
        shared=shared,
        aggregator=aggregator,
        mechanism=mechanism,
        attack=attack,
        clients=clients,
        key=state.key,
    )
    metrics = _metrics(
        cohort, deliveries, sent.honest, sent.good, aggregate_norm, accept
    )
    if structure.wire is not None:
        visits = _visits(structure, cohort, deliveries.steps)
        for name, size in zip(("wire_up", "wire_down"), structure.wire, strict=True):
            metrics[f"{name}_bytes"] = visits * jnp.float32(size)
    if structure.codec is not None:
        metrics["saturation"] = _mean_of(deliveries.saturated, sent.good)
    if structure.secure is not None:
        metrics["aborted"] = (~released).astype(jnp.int32)
    if structure.measure is not None:
        count = jnp.sum(sent.honest).astype(jnp.float32)
        said = structure.measure(
            trained.reports["transform"], state.shared["transform"], count
        )
        if "uplink_bytes" in said:
            # Of a coded message too, the server's half crosses no wire.
            said["uplink_bytes"] *= 1.0 - structure.hosted
        if structure.secure is not None:
            # What a coder would make of a message is not what hides it.
            said = {name: x for name, x in said.items() if name != "uplink_bytes"}
        _refuse_taken("a transform", said, metrics)
        metrics = metrics | said
    _refuse_taken("the aggregator", rule_metrics, metrics)
    return new_state, {**rule_metrics, **metrics}


def _refuse_taken(who: str, said: Metrics, metrics: Metrics) -> None:
    """Refuses a stage's metric under a name that the round has given already."""
    taken = said.keys() & {*metrics, "round"}
    if taken:
        raise CompositionError(
            f"{who} reports a metric named {min(taken)!r}, which the round itself "
            "reports: give it another name"
        )


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
            params=leaves_without(structure.unsent, state.params),
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
        "update_norm": _mean_of(deliveries.update_norm, honest),
        "aggregate_norm": aggregate_norm,
        "accepted": accepted,
    }


def _visits(structure: Structure, cohort: Cohort, steps: jax.Array) -> jax.Array:
    """Returns how often an example was trained on in the round, float32 ``[]``."""
    examples = jnp.asarray(cohort.batches.num_examples)
    if cohort.batches.devices is not None:
        examples, steps = jnp.asarray(cohort.batches.devices), steps[:, None]
    return jnp.sum(visited_examples(examples, steps, structure.batch_size))


def _mean_of(values: jax.Array, chosen: jax.Array) -> jax.Array:
    total = jnp.sum(jnp.where(chosen, values, 0.0))
    return total / jnp.maximum(jnp.sum(chosen), 1)
