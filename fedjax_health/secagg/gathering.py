"""How the integers of a cohort are gathered, at three levels of fidelity.

"ideal" forms the modular sums alone. "view" draws what the server sees under ideal
masks and adds that up. "protocol" runs the protocol on the host. The sums are the same
to the bit.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_health.core import trees
from fedjax_health.core.permutation import permutation_words, permute
from fedjax_health.core.types import (
    AggregationContext,
    Codec,
    Gathered,
    Key,
    Metrics,
    State,
    Updates,
)
from fedjax_health.secagg.fixed_point import counted, levels, modulus_bits
from fedjax_health.secagg.graph import COMPLETE_UP_TO, plan_graph
from fedjax_health.secagg.protocol import PHASES, run_protocol
from fedjax_health.secagg.view import sum_groups, view_sums

Fidelity = Literal["ideal", "view", "protocol"]
FIDELITIES = ("ideal", "view", "protocol")

METRICS = tuple(
    f"secagg_{what}_{phase}"
    for phase in PHASES
    for what in ("messages", "bytes_up", "bytes_down")
)


class SecureState(NamedTuple):
    """State of an aggregator of secure sums.

    Attributes:
      threshold: int32 ``[]``, fewest messages whose sum is released.
      max_weight: see ``FixedPoint``.
      value_range: see ``FixedPoint``.
      rule: state of the rule over groups.
    """

    threshold: jax.Array
    max_weight: jax.Array
    value_range: jax.Array
    rule: State = ()


class Grouping(NamedTuple):
    """How clients are put into groups; static.

    Attributes:
      size: clients of a group on average.
      population: number of all clients, or None.
    """

    size: int
    population: int | None = None


class Graph(NamedTuple):
    """What the protocol's graph is made of; static.

    Attributes:
      degree: neighbours of a client; None leaves it to the rates.
      corrupt: share of clients that work with the server.
      dropout: share of clients that drop out.
    """

    degree: int | None
    corrupt: float
    dropout: float


def num_groups(grouping: Grouping | None, cohort_size: int) -> int:
    """Returns into how many groups a cohort is put."""
    return 1 if grouping is None else -(-cohort_size // grouping.size)


def group_of(
    key: Key, client_ids: jax.Array, count: int, population: int | None
) -> jax.Array:
    """Returns each client's group, int32 ``[cohort]``, of the key and its id alone.

    Who else is there does not matter: one client that joins moves no other. With a
    population, clients are dealt out by a random permutation of it, so that groups are
    of equal size where all take part; without one, each draws its own.
    """
    ids = jnp.asarray(client_ids, jnp.int32)
    if population is not None:
        places = permute(
            permutation_words(key),
            jnp.int32(0),
            jnp.maximum(ids, 0),
            jnp.int32(population),
        )
        return places % count
    draw = jax.vmap(lambda i: jax.random.bits(jax.random.fold_in(key, i)))
    return (draw(ids.astype(jnp.uint32)) % jnp.uint32(count)).astype(jnp.int32)


@functools.cache
def _compiled_groups(count: int, population: int | None) -> Callable[..., jax.Array]:
    """Returns ``(key words, client ids) -> groups``."""

    @jax.jit
    def groups(words: jax.Array, ids: jax.Array) -> jax.Array:
        key = jax.random.wrap_key_data(words, impl="threefry2x32")
        return group_of(jax.random.fold_in(key, 0), ids, count, population)

    return groups


@functools.cache
def build_gather(
    fidelity: Fidelity, bits: int, grouping: Grouping | None, graph: Graph
) -> tuple[Callable[..., Gathered], Callable[..., Gathered]]:
    """Returns ``gather`` as the engine calls it, and as it is called under jit.

    Both are ``(integers, weights, state, key, AggregationContext) -> Gathered`` and the
    same function unless the fidelity is "protocol".
    """

    def assigned(key: Key, ids: jax.Array, n: int) -> tuple[jax.Array | None, int]:
        count = num_groups(grouping, n)
        if grouping is None:
            return None, count
        own = jax.random.fold_in(key, 0)
        return group_of(own, ids, count, grouping.population), count

    def finished(
        sums: Any,
        released: jax.Array,
        weights: jax.Array,
        groups: jax.Array | None,
        count: int,
        state: SecureState,
        metrics: Metrics,
    ) -> Gathered:
        def keep(x: jax.Array) -> jax.Array:
            return jnp.where(released.reshape(-1, *[1] * (x.ndim - 1)), x, 0)

        total = sum_groups(counted(weights, state), weights > 0, groups, count)
        if grouping is not None:
            metrics = {
                **metrics,
                "groups_released": jnp.sum(released).astype(jnp.int32),
            }
        return Gathered(jax.tree.map(keep, sums), keep(total), released, metrics)

    def inside(
        integers: Any,
        weights: jax.Array,
        state: SecureState,
        key: Key,
        context: AggregationContext,
    ) -> Gathered:
        present = weights > 0
        groups, count = assigned(key, context.client_ids, weights.shape[0])
        if fidelity == "view":
            masks = jax.random.fold_in(key, 1)
            sums = view_sums(integers, present, groups, count, masks)
        else:
            sums = sum_groups(integers, present, groups, count)
        members = sum_groups(present.astype(jnp.int32), present, groups, count)
        released = members >= state.threshold
        return finished(sums, released, weights, groups, count, state, {})

    def called_back(
        integers: Any,
        weights: jax.Array,
        state: SecureState,
        key: Key,
        context: AggregationContext,
    ) -> Gathered:
        n = weights.shape[0]
        groups, count = assigned(key, context.client_ids, n)
        leaves, treedef = jax.tree.flatten(integers)
        flat = jnp.concatenate([x.reshape(n, -1) for x in leaves], axis=1)
        shapes = (
            jax.ShapeDtypeStruct((count, flat.shape[1]), jnp.int32),
            jax.ShapeDtypeStruct((count,), jnp.bool_),
            jax.ShapeDtypeStruct((len(METRICS),), jnp.float32),
        )
        sums, released, said = jax.pure_callback(
            functools.partial(_run, count=count, bits=bits, graph=graph),
            shapes,
            flat,
            weights > 0,
            jnp.asarray(context.client_ids),
            jnp.zeros(n, jnp.int32) if groups is None else groups,
            jax.random.key_data(key),
            state.threshold,
        )
        parts, start = [], 0
        for x in leaves:
            size = x.size // n
            parts.append(sums[:, start : start + size].reshape(count, *x.shape[1:]))
            start += size
        metrics = {name: said[i] for i, name in enumerate(METRICS)}
        return finished(
            treedef.unflatten(parts), released, weights, groups, count, state, metrics
        )

    def on_host(
        integers: Any,
        weights: np.ndarray,
        state: SecureState,
        key: np.ndarray,
        context: AggregationContext,
    ) -> Gathered:
        weights = np.asarray(weights, np.float32)
        n = len(weights)
        count = num_groups(grouping, n)
        ids = np.asarray(context.client_ids)
        groups = np.zeros(n, np.int32)
        if grouping is not None:
            # The same program as inside a round: the same groups.
            groups = np.asarray(_compiled_groups(count, grouping.population)(key, ids))
        leaves, treedef = jax.tree.flatten(jax.tree.map(np.asarray, integers))
        flat = np.concatenate([x.reshape(n, -1) for x in leaves], axis=1)
        sums, released, said = _run(
            flat,
            weights > 0,
            ids,
            groups,
            key,
            np.asarray(state.threshold),
            count=count,
            bits=bits,
            graph=graph,
        )
        edges = np.cumsum([x.size // n for x in leaves])[:-1]
        parts = [
            part.reshape(count, *x.shape[1:])
            for part, x in zip(np.split(sums, edges, axis=1), leaves, strict=True)
        ]
        metrics: dict[str, Any] = dict(zip(METRICS, said, strict=True))
        if grouping is not None:
            metrics["groups_released"] = np.int32(released.sum())
        total = np.zeros(count, np.float32)
        np.add.at(total, groups, np.minimum(weights, np.asarray(state.max_weight)))
        total = np.where(released, total, np.float32(0))
        return Gathered(treedef.unflatten(parts), total, released, metrics)

    if fidelity == "protocol":
        return on_host, called_back
    return inside, inside


def _run(
    rows: np.ndarray,
    present: np.ndarray,
    client_ids: np.ndarray,
    groups: np.ndarray,
    words: np.ndarray,
    threshold: np.ndarray,
    *,
    count: int,
    bits: int,
    graph: Graph,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Runs the protocol in every group.

    Clients that are absent have shared their keys and drop out before they send.

    Returns:
      Sums int32 ``[count, size]``, which are released bool ``[count]``, and the numbers
      of ``METRICS``.
    """
    rows, present = np.asarray(rows), np.asarray(present)
    ids, groups = np.asarray(client_ids), np.asarray(groups)
    sums = np.zeros((count, rows.shape[1]), np.int32)
    released = np.zeros(count, bool)
    said = np.zeros(len(METRICS), np.float64)
    filled = _filled(ids, present)
    # A mechanism may bring integers of its own, which need the whole word.
    within = not rows.size or np.abs(rows.astype(np.int64)).max() <= levels(bits)
    width = modulus_bits(len(rows), bits) if within else 32
    for number in range(count):
        members = np.flatnonzero(filled & (groups == number))
        # In the order of ids: a run must not depend on how a cohort was laid out.
        members = members[np.argsort(ids[members], kind="stable")]
        if len(members) < 2:
            continue
        least = max(int(threshold), 1)
        degree, majority = _joined(len(members), graph)
        if least > len(members):
            continue
        transcript = run_protocol(
            rows[members],
            np.asarray(words).tobytes() + number.to_bytes(4, "big"),
            modulus_bits=width,
            threshold=None if majority is None else max(least, majority),
            degree=degree,
            corrupt=graph.corrupt,
            dropout=graph.dropout,
            min_messages=least,
            drop_out={"masked_input": np.flatnonzero(~present[members])},
            client_ids=ids[members].tolist(),
        )
        if transcript.total is not None:
            sums[number], released[number] = transcript.total, True
        kinds = transcript.messages, transcript.bytes_up, transcript.bytes_down
        said += [kind[phase] for phase in PHASES for kind in kinds]
    return sums, released, said.astype(np.float32)


def _joined(n: int, graph: Graph) -> tuple[int, int | None]:
    """Returns the degree of a round of n clients, and the majority of a complete graph.

    A round that is too small for the degree or the rates joins every pair.
    """
    complete = n - 1, n // 2 + 1
    if graph.degree is None and n <= COMPLETE_UP_TO:
        return complete
    # An odd number of clients cannot have an odd number of neighbours each.
    asked = [None] if graph.degree is None else [graph.degree, graph.degree + 1]
    for degree in asked:
        with contextlib.suppress(ValueError):
            planned = plan_graph(
                n, degree, corrupt=graph.corrupt, dropout=graph.dropout
            )
            return planned[0], None
    return complete


def _filled(ids: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Returns which slots a client fills: of one id twice, the one that is present."""
    order = np.lexsort((~present, ids))
    first = np.ones(len(ids), bool)
    first[order[1:]] = ids[order[1:]] != ids[order[:-1]]
    return first & (ids >= 0)


def encode_rows(
    codec: Codec,
    stacked: Updates,
    weights: jax.Array,
    state: State,
    key: Key,
    *,
    ranged: bool,
) -> tuple[Any, jax.Array]:
    """Encodes the rows of a stack; returns the integers and their saturated share.

    Raises:
      ValueError: without a range of its own, since no L2 bound is known here.
    """
    if not ranged:
        raise ValueError(
            "an update called by itself knows no bound of the messages: give "
            "value_range"
        )
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(weights.shape[0]))
    integers, saturated = jax.vmap(
        lambda x, weight, key: codec.encode(x, weight, state, key, None)
    )(stacked, weights, keys)
    present = weights > 0
    share = jnp.sum(jnp.where(present, saturated, 0.0)) / jnp.maximum(
        jnp.sum(present), 1
    )
    return integers, share


def decode_means(
    codec: Codec, gathered: Gathered, state: State, stacked: Updates
) -> Updates:
    """Returns each group's mean, ``[groups, ...]``; 0 where nothing is released."""
    scale = 1.0 / jnp.where(gathered.weights > 0, gathered.weights, 1.0)
    like = jax.tree.map(lambda x: jnp.zeros(x.shape[1:], jnp.float32), stacked)

    def one(total: Any, scale: jax.Array) -> Updates:
        return trees.scale(codec.decode(total, state, None, like), scale)

    means = jax.vmap(one)(gathered.sums, scale)
    return jax.tree.map(lambda x, y: x.astype(y.dtype), means, stacked)


def known(context: AggregationContext | None, weights: jax.Array) -> AggregationContext:
    """Returns the context, or what stands for it: rows numbered as they stand."""
    if context is not None:
        return context
    return AggregationContext(
        client_ids=jnp.arange(weights.shape[0], dtype=jnp.int32),
        mask=weights > 0,
        round=jnp.int32(0),
    )
