"""Training a cohort: one function for one client, mapped over blocks of clients."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_health.client import ClientData, LocalContext, build_train
from fedjax_health.core import trees
from fedjax_health.core.permutation import permutation_words
from fedjax_health.core.rng import SERVER, Stream, key_for
from fedjax_health.core.types import (
    ClientBatches,
    ClientContext,
    Cohort,
    DataAttackContext,
    Metrics,
    RoundState,
    Updates,
)
from fedjax_health.engine.parallel import AXIS, Mapping, arrange
from fedjax_health.engine.plan import personal_leaves, shared_leaves
from fedjax_health.engine.structure import Structure
from fedjax_health.transforms.compose import bound_leaf

# Numbers of a leaf up to which it is sent together with others.
PACKED_SIZE = 1 << 17


class Delivery(NamedTuple):
    """What one client's work leaves behind beside its updates."""

    delivered: jax.Array
    finite: jax.Array
    weight: jax.Array
    steps: jax.Array
    update_norm: jax.Array
    metrics: Metrics


class Trained(NamedTuple):
    """What the cohort's training leaves, the same on every device.

    Attributes:
      total: the weighted sum of the messages, or None where they are stacked.
      stacked: the messages ``[cohort, ...]``, or None where they are summed.
      reports: summed reports of the algorithm and the transforms.
      memory: new client memories ``[cohort, ...]``.
      deliveries: ``[cohort]`` each.
    """

    total: Updates
    stacked: Updates
    reports: dict[str, Any]
    memory: Any
    deliveries: Delivery


def train_cohort(
    structure: Structure, state: RoundState, cohort: Cohort, num_steps: jax.Array
) -> Trained:
    """Trains a cohort, each client ``num_steps`` (int32 ``[cohort]``) local steps."""
    mapping = structure.mapping
    cohort_size = cohort.client_ids.shape[0]
    keep_stack = structure.forge is not None or not structure.linear
    layout, place = arrange(num_steps, mapping)
    mine = layout[jax.lax.axis_index(AXIS)] if mapping.mesh is not None else layout[0]
    client = _build_client(structure, state, cohort, num_steps)

    def chunk(slots: jax.Array):
        """Trains the clients in ``slots`` ``[chunk]``; sums what is summed."""
        if mapping.chunk == 1:
            updates, reports, memory, delivery = client(slots[0])
            good = delivery.delivered & delivery.finite
            weight = jnp.where(good, delivery.weight, 0.0)
            sums = {"reports": _where_tree(good, reports)}
            if not keep_stack:
                sums["total"] = jax.tree.map(
                    lambda x: jnp.where(good, x * weight.astype(x.dtype), 0), updates
                )
            rows = jax.tree.map(lambda x: x[None], (memory, delivery))
            stack = jax.tree.map(lambda x: x[None], updates) if keep_stack else ()
            return sums, (rows, stack)
        updates, reports, memory, delivery = jax.vmap(client)(slots)
        good = delivery.delivered & delivery.finite
        weight = jnp.where(good, delivery.weight, 0.0)

        def total(x: jax.Array, factors: jax.Array) -> jax.Array:
            present = good.reshape(-1, *[1] * (x.ndim - 1))
            return trees.weighted_sum(factors, jnp.where(present, x, 0))

        ones = good.astype(jnp.float32)
        sums = {"reports": jax.tree.map(lambda x: total(x, ones), reports)}
        if not keep_stack:
            sums["total"] = jax.tree.map(lambda x: total(x, weight), updates)
        return sums, ((memory, delivery), updates if keep_stack else ())

    def block(slots: jax.Array):
        """Trains the chunks of one block ``[per_block, chunk]`` one after the other."""
        shapes = jax.eval_shape(chunk, slots[0])[0]
        start = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

        def accumulate(carry, chunk_slots):
            sums, rows = chunk(chunk_slots)
            return trees.add(carry, sums), rows

        return jax.lax.scan(accumulate, start, slots)

    sums, (rows, stack) = jax.lax.map(block, mine)
    sums, rows, stack = _collect(mapping, (sums, rows, stack))
    # [devices, blocks / devices, ...]: block b sits on device b % devices.
    partial = [
        jax.tree.map(
            lambda x, b=b: x[b % mapping.num_devices, b // mapping.num_devices], sums
        )
        for b in range(mapping.blocks)
    ]
    total = trees.ordered_sum(partial)
    slots = mapping.slots

    def by_slot(x: jax.Array) -> jax.Array:
        return x.reshape(slots, *x.shape[4:])[place]

    memory, deliveries = jax.tree.map(by_slot, rows)
    assert deliveries.weight.shape == (cohort_size,)
    return Trained(
        total=total.get("total"),
        stacked=jax.tree.map(by_slot, stack) if keep_stack else None,
        reports=total["reports"],
        memory=memory,
        deliveries=deliveries,
    )


def _collect(mapping: Mapping, tree):
    """Returns every device's part, stacked in device order.

    Every collective is a rendezvous of all devices, so small leaves travel together.
    """
    if mapping.mesh is None:
        return jax.tree.map(lambda x: x[None], tree)
    leaves, treedef = jax.tree.flatten(tree)
    gathered: list[jax.Array | None] = [None] * len(leaves)
    for dtype in dict.fromkeys(leaf.dtype for leaf in leaves):
        small = [
            i
            for i, leaf in enumerate(leaves)
            if leaf.dtype == dtype and leaf.size <= PACKED_SIZE
        ]
        if small:
            packed = jnp.concatenate([leaves[i].reshape(-1) for i in small])
            ends = np.cumsum([leaves[i].size for i in small])[:-1]
            parts = jnp.split(jax.lax.all_gather(packed, AXIS), ends, axis=1)
            for i, part in zip(small, parts, strict=True):
                gathered[i] = part.reshape(-1, *leaves[i].shape)
    return treedef.unflatten(
        [
            jax.lax.all_gather(leaf, AXIS) if got is None else got
            for leaf, got in zip(leaves, gathered, strict=True)
        ]
    )


def _where_tree(condition: jax.Array, tree):
    return jax.tree.map(lambda x: jnp.where(condition, x, jnp.zeros_like(x)), tree)


def _client_keys(state: RoundState, stream: Stream, cohort: Cohort) -> jax.Array:
    """Returns the keys ``[cohort]`` of one stream, folded with the global client id."""
    key = key_for(state.key, stream, state.round)
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(
        jnp.asarray(cohort.client_ids)
    )


def _build_client(
    structure: Structure, state: RoundState, cohort: Cohort, num_steps: jax.Array
):
    """Returns ``slot -> (updates, reports, memory, delivery)`` for one client."""
    round = state.round
    optimizer = structure.optimizer.build(state.hyper["local"], round)
    rate = structure.optimizer.learning_rate(state.hyper["local"], round)
    train = build_train(
        structure.loss_fn, optimizer, structure.batch_size, structure.data_attack
    )
    # Keys of the whole cohort at once: one vectorised draw is much cheaper than one
    # small draw per client inside the scan.
    keys = {
        stream: _client_keys(state, stream, cohort)
        for stream in (
            Stream.DATA,
            Stream.DROPOUT,
            Stream.TRAIN,
            Stream.TRANSFORM,
            Stream.ATTACK,
            Stream.MECHANISM,
        )
    }
    words = jax.vmap(permutation_words)(keys[Stream.DATA])
    delivers = jnp.ones(len(cohort.mask), bool)
    if structure.has_dropout:
        chance = jax.vmap(jax.random.uniform)(keys[Stream.DROPOUT])
        delivers = chance >= state.hyper["dropout"]
    shared_params = shared_leaves(structure.personal, state.params)
    batches = cohort.batches

    def client(slot: jax.Array):
        def at(x) -> jax.Array:
            return jnp.take(x, slot, mode="clip")

        filled = (slot < cohort.mask.shape[0]) & at(cohort.mask)
        client_id = at(cohort.client_ids)
        memory = trees.take_row(state.clients, client_id)
        params = trees.join(memory["personal"], state.params)
        own = {stream: trees.take_row(of_all, slot) for stream, of_all in keys.items()}
        data = ClientData(
            examples=batches.arrays,
            first=at(batches.index),
            num_examples=at(batches.num_examples),
            num_steps=jnp.where(filled, at(num_steps), 0),
            words=trees.take_row(words, slot),
            train_key=own[Stream.TRAIN],
            attack=DataAttackContext(
                own[Stream.ATTACK], client_id, at(cohort.malicious), round
            ),
        )
        result = structure.run(
            functools.partial(train, data),
            params,
            memory["algorithm"],
            LocalContext(state.shared["algorithm"], data.num_steps, rate),
        )
        updates = trees.subtract(
            shared_params, shared_leaves(structure.personal, result.params)
        )
        weight = at(cohort.weights) if structure.weighting == "examples" else 1.0
        weight = jnp.where(filled, weight, 0.0).astype(jnp.float32)
        context = ClientContext(
            own[Stream.TRANSFORM],
            round,
            weight,
            shared_params,
            state.shared["transform"],
        )
        raw = updates
        updates, kept, report = structure.transform(
            updates, memory["transform"], context
        )
        shaped = updates
        if structure.mechanism is not None and structure.mechanism[0] is not None:
            updates = structure.mechanism[0](
                updates,
                state.mechanism,
                own[Stream.MECHANISM],
                bound_of(structure, state),
            )
        norm_squared = trees.squared_norm(updates)
        new_memory = {
            "algorithm": result.memory,
            "transform": kept,
            "personal": personal_leaves(structure.personal, result.params),
        }
        # A flag in a report is counted, as a number is added up.
        reports = jax.tree.map(
            lambda x: x.astype(jnp.int32) if x.dtype == bool else x,
            {"algorithm": result.report, "transform": report},
        )
        # A transform may hide what training broke, so all that leaves its mark counts.
        finite = jnp.isfinite(norm_squared) & trees.all_finite((new_memory, reports))
        if any(
            a is not b
            for a, b in zip(jax.tree.leaves(raw), jax.tree.leaves(shaped), strict=False)
        ):
            finite &= trees.all_finite(raw)
        delivery = Delivery(
            # A straggler without a single step has nothing to deliver.
            delivered=filled & at(delivers) & (data.num_steps > 0),
            finite=finite,
            weight=weight,
            steps=data.num_steps,
            update_norm=jnp.sqrt(norm_squared),
            metrics=result.metrics,
        )
        return updates, reports, new_memory, delivery

    return client


def root_updates(
    structure: Structure, state: RoundState, root_batches: ClientBatches | None
) -> Updates | None:
    """Trains on the server's own data, as a client without memory would."""
    if not structure.has_root:
        return None
    assert root_batches is not None
    optimizer = structure.optimizer.build(state.hyper["local"], state.round)
    train = build_train(structure.loss_fn, optimizer, structure.batch_size, None)
    data_key = key_for(state.key, Stream.DATA, state.round, SERVER)
    train_key = key_for(state.key, Stream.TRAIN, state.round, SERVER)
    steps = _planned_steps(structure, state, root_batches)
    data = ClientData(
        examples=root_batches.arrays,
        first=jnp.reshape(root_batches.index, ()),
        num_examples=jnp.reshape(root_batches.num_examples, ()),
        num_steps=steps.reshape(()),
        words=permutation_words(data_key),
        train_key=train_key,
        attack=DataAttackContext(
            train_key, jnp.int32(-1), jnp.bool_(False), state.round
        ),
    )
    trained, _ = train(data, state.params)
    shared = functools.partial(shared_leaves, structure.personal)
    return trees.subtract(shared(state.params), shared(trained))


def local_steps(structure: Structure, state: RoundState, cohort: Cohort) -> jax.Array:
    """Returns the local steps of each slot, int32 ``[cohort]``."""
    return _planned_steps(structure, state, cohort.batches) * cohort.mask


def _planned_steps(
    structure: Structure, state: RoundState, batches: ClientBatches
) -> jax.Array:
    passes = state.hyper["passes"]
    per_epoch = -(-batches.num_examples // structure.batch_size)
    planned = passes
    if structure.by_epochs:
        limit = jnp.iinfo(jnp.int32).max
        fits = passes <= limit // jnp.maximum(per_epoch, 1)
        planned = jnp.where(fits, passes * per_epoch, limit)
    planned = jnp.where(batches.num_examples > 0, planned, 0)
    return jnp.minimum(planned, batches.num_steps).astype(jnp.int32)


def bound_of(structure: Structure, state: RoundState) -> jax.Array:
    """Returns the L2 bound of a message of this round, float32 ``[]``."""
    assert structure.bound is not None
    return bound_leaf(state.shared["transform"], structure.bound)
