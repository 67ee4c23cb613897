"""Training a cohort: one function for one client, mapped over blocks of clients."""

import functools
from collections.abc import Callable
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
    Params,
    RoundState,
    Updates,
)
from fedjax_health.engine.hierarchy import by_device
from fedjax_health.engine.parallel import AXIS, Mapping, arrange
from fedjax_health.engine.parts import part_weights, scale_by_part
from fedjax_health.engine.places import leaves_with, leaves_without
from fedjax_health.engine.structure import Structure
from fedjax_health.transforms.compose import bound_leaf

# Numbers of a leaf up to which it is sent together with others.
PACKED_SIZE = 1 << 17


class Delivery(NamedTuple):
    """What the clients of a cohort deliver beside their updates.

    Attributes:
      delivered: bool ``[cohort]``, drawn, trained and not dropped out.
      finite: bool ``[cohort]``, all that its training left is finite.
      weight: float32 ``[cohort]``, before normalisation; 0 in empty slots.
      steps: int32 ``[cohort]``, local steps.
      update_norm: float32 ``[cohort]``, L2 norm of the message.
      saturated: float32 ``[cohort]``, share of its coordinates cut to the range of the
        integers that stand for it; 0 where floats are sent.
      metrics: float32 ``[cohort]`` each, averages over the client's examples.
    """

    delivered: jax.Array
    finite: jax.Array
    weight: jax.Array
    steps: jax.Array
    update_norm: jax.Array
    saturated: jax.Array
    metrics: Metrics


class _Slots(NamedTuple):
    """What is known of each slot before training, ``[cohort + 1]``; the last is empty.

    Attributes:
      fields: uint32 ``[cohort + 1, fields]``, see ``_FIELDS``: one row is read at once.
      keys: the keys of each stream that a client draws from.
      delivered: bool ``[cohort]``.
      weight: float32 ``[cohort]``.
    """

    fields: jax.Array
    keys: dict[Stream, jax.Array]
    delivered: jax.Array
    weight: jax.Array


class _Outcome(NamedTuple):
    """What one client's training leaves.

    Attributes:
      updates: its message; integers where a codec stands between.
      reports: of the algorithm and the transforms.
      memory: what it remembers.
      finite: bool ``[]``.
      figures: float32 ``[2 + metrics]``: the message's norm, its saturation, then the
        metrics.
      delivered: bool ``[]``.
      weight: float32 ``[]``.
      relayed: the leaves that it passes on.
    """

    updates: Updates
    reports: dict[str, Any]
    memory: Any
    finite: jax.Array
    figures: jax.Array
    delivered: jax.Array
    weight: jax.Array
    relayed: Params


_FIELDS = (
    "client_id",
    "first",
    "num_examples",
    "num_steps",
    "malicious",
    "delivered",
    "weight",
)


class Trained(NamedTuple):
    """What the cohort's training leaves, the same on every device.

    Attributes:
      total: the weighted sum of the messages, or None where they are stacked; integers
        where a codec stands between.
      stacked: the messages ``[cohort, ...]``, or None where they are summed.
      reports: summed reports of the algorithm and the transforms.
      memory: new client memories ``[cohort, ...]``.
      deliveries: ``[cohort]`` each.
      relayed: the leaves that pass from client to client, as the last one left them.
    """

    total: Updates
    stacked: Updates
    reports: dict[str, Any]
    memory: Any
    deliveries: Delivery
    relayed: Params


def train_cohort(
    structure: Structure, state: RoundState, cohort: Cohort, num_steps: jax.Array
) -> Trained:
    """Trains a cohort, each client ``num_steps`` (int32 ``[cohort]``) local steps."""
    mapping = structure.mapping
    keep_stack = structure.keeps_stack
    encoded = _encodes(structure)
    if mapping.in_turn:
        layout, place = _drawn_order(state, len(num_steps), mapping)
    else:
        layout, place = arrange(num_steps, mapping)
    mine = layout[jax.lax.axis_index(AXIS)] if mapping.mesh is not None else layout[0]
    slots_known = _describe_slots(structure, state, cohort, num_steps)
    names: list[str] = []
    client = _build_client(structure, state, cohort, slots_known, names)

    def weigh(updates: Updates, weight: jax.Array, slots: jax.Array) -> Updates:
        """Multiplies messages by their weights, part by part where there are parts."""
        if structure.parts is None:
            return jax.tree.map(lambda x: x * weight.astype(x.dtype), updates)
        assert cohort.part_shares is not None
        shares = jnp.take(jnp.asarray(cohort.part_shares), slots, axis=0, mode="clip")
        own = part_weights(weight, shares, weighting=structure.weighting)
        return scale_by_part(structure.parts, updates, weight, own)

    def chunk(slots: jax.Array, relayed: Params):
        """Trains the clients in ``slots`` ``[chunk]``; sums what is summed."""
        if mapping.chunk == 1:
            one = client(slots[0], relayed)
            good = one.delivered & one.finite
            weight = jnp.where(good, one.weight, 0.0)
            sums = {"reports": _where_tree(good, one.reports)}
            if not keep_stack:
                # The weight of an encoded message is inside it.
                sums["total"] = _where_tree(
                    good,
                    one.updates if encoded else weigh(one.updates, weight, slots[0]),
                )
            rows = jax.tree.map(
                lambda x: x[None], (one.memory, one.finite, one.figures)
            )
            stack = jax.tree.map(lambda x: x[None], one.updates) if keep_stack else ()
            return sums, (rows, stack), trees.select(good, one.relayed, relayed)
        many = jax.vmap(client, in_axes=(0, None))(slots, relayed)
        good = many.delivered & many.finite
        weight = jnp.where(good, many.weight, 0.0)

        def total(x: jax.Array, factors: jax.Array) -> jax.Array:
            present = good.reshape(-1, *[1] * (x.ndim - 1))
            return trees.weighted_sum(factors, jnp.where(present, x, 0))

        ones = good.astype(jnp.float32)
        sums = {"reports": jax.tree.map(lambda x: total(x, ones), many.reports)}
        if not keep_stack and encoded:
            kept = _where_rows(good, many.updates)
            sums["total"] = jax.tree.map(modular_sum, kept)
        elif not keep_stack and structure.parts is not None:
            kept = jax.vmap(weigh)(_where_rows(good, many.updates), weight, slots)
            sums["total"] = jax.tree.map(lambda x: total(x, ones), kept)
        elif not keep_stack:
            sums["total"] = jax.tree.map(lambda x: total(x, weight), many.updates)
        rows = (many.memory, many.finite, many.figures)
        return sums, (rows, many.updates if keep_stack else ()), relayed

    def block(slots: jax.Array):
        """Trains the chunks of one block ``[per_block, chunk]`` one after the other."""
        shapes = jax.eval_shape(chunk, slots[0], first)[0]
        start = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

        def accumulate(carry, chunk_slots):
            sums, rows, relayed = chunk(chunk_slots, carry[1])
            return (trees.add(carry[0], sums), relayed), rows

        return jax.lax.scan(accumulate, (start, first), slots)

    first = leaves_with(structure.relayed, state.params)
    (sums, relayed), (rows, stack) = jax.lax.map(block, mine)
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

    memory, finite, figures = jax.tree.map(by_slot, rows)
    deliveries = Delivery(
        delivered=slots_known.delivered,
        finite=finite,
        weight=slots_known.weight,
        steps=num_steps,
        update_norm=figures[:, 0],
        saturated=figures[:, 1],
        metrics={name: figures[:, 2 + i] for i, name in enumerate(names)},
    )
    return Trained(
        total=total.get("total"),
        stacked=jax.tree.map(by_slot, stack) if keep_stack else None,
        reports=total["reports"],
        memory=memory,
        deliveries=deliveries,
        # There is one block where anything is passed on.
        relayed=trees.take_row(relayed, jnp.int32(0)),
    )


def _drawn_order(
    state: RoundState, slots: int, mapping: Mapping
) -> tuple[jax.Array, jax.Array]:
    """Returns what ``arrange`` does, the slots in an order drawn for the round."""
    key = key_for(state.key, Stream.ORDER, state.round, SERVER)
    order = jax.random.permutation(key, slots).astype(jnp.int32)
    place = jnp.zeros(slots, jnp.int32).at[order].set(jnp.arange(slots))
    return order.reshape(1, mapping.blocks, mapping.per_block, mapping.chunk), place


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


def modular_sum(rows: jax.Array) -> jax.Array:
    """Returns the sum of int32 rows modulo 2**32."""
    return jnp.sum(rows, axis=0, dtype=rows.dtype)


def _encodes(structure: Structure) -> bool:
    """Whether clients encode; what an attack forges is encoded after it."""
    return structure.codec is not None and structure.forge is None


def _where_rows(keep: jax.Array, tree):
    return jax.tree.map(
        lambda x: jnp.where(keep.reshape(-1, *[1] * (x.ndim - 1)), x, 0), tree
    )


def _where_tree(condition: jax.Array, tree):
    return jax.tree.map(lambda x: jnp.where(condition, x, jnp.zeros_like(x)), tree)


def client_keys(state: RoundState, stream: Stream, cohort: Cohort) -> jax.Array:
    """Returns the keys ``[cohort]`` of one stream, folded with the global client id."""
    key = key_for(state.key, stream, state.round)
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(
        jnp.asarray(cohort.client_ids)
    )


def _describe_slots(
    structure: Structure, state: RoundState, cohort: Cohort, num_steps: jax.Array
) -> _Slots:
    """Works out for the whole cohort at once what each client needs to start.

    One vectorised draw, and one row to read, are much cheaper than many small ones for
    every client inside the scan.
    """
    streams = (Stream.TRAIN, Stream.TRANSFORM, Stream.ATTACK, Stream.MECHANISM)
    if structure.codec is not None:
        streams = (*streams, Stream.MASK)
    if structure.microbatch is not None:
        streams = (*streams, Stream.EXAMPLE)
    keys = {stream: client_keys(state, stream, cohort) for stream in streams}
    words = jax.vmap(permutation_words)(client_keys(state, Stream.DATA, cohort))
    # A straggler without a single step has nothing to deliver.
    delivered = jnp.asarray(cohort.mask) & (num_steps > 0)
    if structure.has_dropout:
        dropout_keys = client_keys(state, Stream.DROPOUT, cohort)
        chance = jax.vmap(jax.random.uniform)(dropout_keys)
        delivered &= chance >= state.hyper["dropout"]
    weight = jnp.asarray(cohort.mask).astype(jnp.float32)
    if structure.weighting == "examples":
        weight = weight * cohort.weights
    columns = {
        "client_id": cohort.client_ids,
        "first": cohort.batches.index,
        "num_examples": cohort.batches.num_examples,
        "num_steps": num_steps,
        "malicious": cohort.malicious,
        "delivered": delivered,
        "weight": jax.lax.bitcast_convert_type(weight, jnp.uint32),
    }
    fixed = jnp.stack([jnp.asarray(columns[n]).astype(jnp.uint32) for n in _FIELDS], 1)
    fields = jnp.concatenate([fixed, words.reshape(len(words), -1)], axis=1)
    return _Slots(jnp.pad(fields, ((0, 1), (0, 0))), keys, delivered, weight)


def _build_client(
    structure: Structure,
    state: RoundState,
    cohort: Cohort,
    slots: _Slots,
    names: list[str],
) -> Callable[[jax.Array, Params], _Outcome]:
    """Returns ``(slot, relayed leaves) -> outcome``; fills in the names of metrics."""
    round = state.round
    optimizer = structure.optimizer.build(state.hyper["local"], round)
    rate = structure.optimizer.learning_rate(state.hyper["local"], round)
    train = build_train(
        structure.loss_fn,
        optimizer,
        structure.batch_size,
        structure.data_attack,
        microbatch=structure.microbatch,
        numbers=state.hyper["example_privacy"],
    )
    shared_params = leaves_without(structure.unsent, state.params)

    def client(slot: jax.Array, relayed: Params) -> _Outcome:
        row = jax.lax.dynamic_index_in_dim(slots.fields, slot, 0, keepdims=False)
        known = {name: row[i].astype(jnp.int32) for i, name in enumerate(_FIELDS)}
        weight = jax.lax.bitcast_convert_type(known["weight"], jnp.float32)
        own = {stream: trees.take_row(k, slot) for stream, k in slots.keys.items()}
        memory = trees.take_row(state.clients, known["client_id"])
        params = trees.join(memory["personal"], trees.join(relayed, state.params))
        data = ClientData(
            examples=cohort.batches.arrays,
            first=known["first"],
            num_examples=known["num_examples"],
            num_steps=known["num_steps"],
            words=row[len(_FIELDS) :].reshape(2, -1),
            train_key=own[Stream.TRAIN],
            attack=DataAttackContext(
                own[Stream.ATTACK],
                known["client_id"],
                known["malicious"] != 0,
                round,
                key_for(state.key, Stream.ATTACK, SERVER, known["client_id"]),
                numbers=state.hyper["data_attack"],
            ),
            example_key=own.get(Stream.EXAMPLE),
        )
        own_train = train
        if structure.has_devices:
            sizes = trees.take_row(cohort.batches.devices, slot)
            every = state.hyper["device_steps"]
            own_train = by_device(train, sizes, every, structure.batch_size)
        result = structure.run(
            functools.partial(own_train, data),
            params,
            memory["algorithm"],
            LocalContext(state.shared["algorithm"], data.num_steps, rate),
        )
        updates = trees.subtract(
            shared_params, leaves_without(structure.unsent, result.params)
        )
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
        saturated = jnp.float32(0)
        if _encodes(structure):
            assert structure.codec is not None
            updates, saturated = structure.codec.encode(
                updates,
                weight,
                codec_state(structure, state),
                own[Stream.MASK],
                known_bound(structure, state),
            )
        new_memory = {
            "algorithm": result.memory,
            "transform": kept,
            "personal": leaves_with(structure.personal, result.params),
        }
        # A flag in a report is counted, as a number is added up.
        reports = jax.tree.map(
            lambda x: x.astype(jnp.int32) if x.dtype == bool else x,
            {"algorithm": result.report, "transform": report},
        )
        # A transform may hide what training broke, so all that leaves its mark counts.
        passed = leaves_with(structure.relayed, result.params)
        finite = jnp.isfinite(norm_squared) & trees.all_finite(
            (new_memory, reports, passed)
        )
        if any(
            a is not b
            for a, b in zip(jax.tree.leaves(raw), jax.tree.leaves(shaped), strict=False)
        ):
            finite &= trees.all_finite(raw)
        names[:] = sorted(result.metrics)
        norm = jnp.sqrt(norm_squared)
        figures = [norm, saturated, *(result.metrics[n] for n in names)]
        return _Outcome(
            updates,
            reports,
            new_memory,
            finite,
            jnp.stack([jnp.asarray(x, jnp.float32).reshape(()) for x in figures]),
            known["delivered"] != 0,
            weight,
            passed,
        )

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
    shared = functools.partial(leaves_without, structure.unsent)
    return trees.subtract(shared(state.params), shared(trained))


def local_steps(structure: Structure, state: RoundState, cohort: Cohort) -> jax.Array:
    """Returns the local steps of each slot, int32 ``[cohort]``."""
    return _planned_steps(structure, state, cohort.batches) * cohort.mask


def _planned_steps(
    structure: Structure, state: RoundState, batches: ClientBatches
) -> jax.Array:
    passes = state.hyper["passes"]
    counted = batches.num_examples
    if batches.devices is not None:
        counted = jnp.max(batches.devices, axis=1)
    per_epoch = -(-counted // structure.batch_size)
    planned = passes
    if structure.by_epochs:
        limit = jnp.iinfo(jnp.int32).max
        fits = passes <= limit // jnp.maximum(per_epoch, 1)
        planned = jnp.where(fits, passes * per_epoch, limit)
    planned = jnp.where(batches.num_examples > 0, planned, 0)
    return jnp.minimum(planned, batches.num_steps).astype(jnp.int32)


def message_like(
    update: Callable[..., Any], params: Params, memory: Any, shared: Any
) -> Updates:
    """Returns the shapes of one client's message, before it is encoded.

    Args:
      update: of the chain of client transforms.
      params: the shared leaves of the model, or their shapes.
      memory: what one client's transforms remember, or its shapes.
      shared: what the server broadcasts to them, or its shapes.
    """

    def message(params, memory, shared):
        key = jax.random.key(0, impl="threefry2x32")
        number = jnp.float32(1)
        context = ClientContext(key, jnp.int32(0), number, params, shared)
        return update(params, memory, context)[0]

    return jax.eval_shape(message, params, memory, shared)


def codec_state(structure: Structure, state: RoundState):
    """Returns the state of whoever brought the codec."""
    return getattr(state, structure.codec_owner)


def known_bound(structure: Structure, state: RoundState) -> jax.Array | None:
    """Returns the L2 bound of a message of this round, or None where there is none."""
    return None if structure.bound is None else bound_of(structure, state)


def bound_of(structure: Structure, state: RoundState) -> jax.Array:
    """Returns the L2 bound of a message of this round, float32 ``[]``."""
    assert structure.bound is not None
    return bound_leaf(state.shared["transform"], structure.bound)
