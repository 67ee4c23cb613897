"""How far a defence lets a forged message move the aggregate, tried many times.

Three ways, by what the rule depends on (``Aggregator.depends_on``). A rule of inner
products commutes with isometries: the messages, the honest mean and the direction are
laid into a space of as many dimensions as there are rows, where every trial costs next
to nothing. A rule of single coordinates is tried on a sample of them. Any other rule is
tried on the messages themselves.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_health.attacks import rows
from fedjax_health.core import trees
from fedjax_health.core.types import (
    AttackContext,
    Defence,
    Key,
    Params,
    Updates,
)

# Coordinates on which a rule of single coordinates is tried; all where there are fewer.
SAMPLED = 65_536

# Neighbours that are sampled together: what the cache fetches at once.
_RUN = 128

Response = Callable[[jax.Array], jax.Array]


def response_of(
    stacked: Updates,
    malicious: jax.Array,
    context: AttackContext,
    origin: Updates,
    direction: Updates,
) -> Response:
    """Returns ``strength [] -> distance []`` of the aggregate from ``origin``.

    Attackers send ``origin + strength * direction``; the defence draws from the
    attacker's key, the same in every trial.

    Args:
      stacked: leaves ``[cohort, ...]``, the honest messages.
      malicious: bool ``[cohort]``.
      context: holds the defence.
      origin: float32, without the cohort axis.
      direction: likewise.
    """
    defence = context.defence
    if isinstance(defence, Defence) and defence.depends_on == "gram":
        return _in_span(stacked, malicious, context, defence, origin, direction)
    if isinstance(defence, Defence) and defence.depends_on == "coordinates":
        key = jax.random.fold_in(context.key, 1)
        stacked, origin, direction, counts = sampled_coordinates(
            key, stacked, origin, direction
        )
    else:
        counts = [1.0] * len(jax.tree.leaves(stacked))

    def distance(strength: jax.Array) -> jax.Array:
        message = rows.along(origin, strength, direction)
        aggregate = defence(rows.put(stacked, malicious, message), context.key)
        moved = jax.tree.leaves(trees.subtract(aggregate, origin))
        squares = (
            count * trees.squared_norm(leaf)
            for count, leaf in zip(counts, moved, strict=True)
        )
        return jnp.sqrt(sum(squares, jnp.float32(0)))

    return distance


def sampled_coordinates(
    key: Key, stacked: Updates, *trees_: Updates
) -> tuple[Any, ...]:
    """Returns the same coordinates of several trees, as lists of flat leaves.

    Of a leaf with ``m`` coordinates short runs are taken, one at random from each of
    equal strata; with 65,536 coordinates or fewer in all, every coordinate.

    Returns:
      ``(stacked, *trees_, counts)``; ``counts`` says how many coordinates each one of a
      leaf's sample stands for.
    """
    leaves = jax.tree.leaves(stacked)
    others = [jax.tree.leaves(tree) for tree in trees_]
    stride = math.ceil(sum(x[0].size for x in leaves) / SAMPLED)
    taken: list[list[jax.Array]] = [[] for _ in range(1 + len(others))]
    counts = []
    for number, x in enumerate(leaves):
        flat = [x.reshape(x.shape[0], -1), *(o[number].reshape(1, -1) for o in others)]
        size = flat[0].shape[1]
        groups = size // (stride * _RUN)
        if stride > 1 and groups > 0:
            drawn = jax.random.uniform(jax.random.fold_in(key, number), (groups,))
            step = size // groups
            within = (drawn * (step - _RUN + 1)).astype(jnp.int32)
            starts = jnp.minimum(jnp.arange(groups) * step + within, size - _RUN)
            columns = (starts[:, None] + jnp.arange(_RUN)).reshape(-1)
            flat = [jnp.take(f, columns, axis=1) for f in flat]
        counts.append(size / flat[0].shape[1])
        taken[0].append(flat[0])
        for held, f in zip(taken[1:], flat[1:], strict=True):
            held.append(f[0])
    return (*taken, counts)


def _in_span(
    stacked: Updates,
    malicious: jax.Array,
    context: AttackContext,
    defence: Defence,
    origin: Updates,
    direction: Updates,
) -> Response:
    honest = rows.visible("honest", malicious, context)
    # What the rule remembers or is told in the parameters' shape turns with the rows.
    kept, structure = jax.tree.flatten(
        (defence.state, defence.context.root_updates),
        is_leaf=lambda tree: _like(tree, context.params),
    )
    turned = [i for i, tree in enumerate(kept) if _like(tree, context.params)]
    gram = rows.gram_around(
        stacked, honest, origin, direction, origin, *(kept[i] for i in turned)
    )
    coordinates = embedding(gram)
    n = malicious.shape[0]
    to_direction, to_origin = coordinates[n], coordinates[n + 1]
    messages = jnp.where(honest[:, None], coordinates[:n] + to_origin, 0.0)
    for place, i in enumerate(turned, start=n + 2):
        kept[i] = coordinates[place]
    state, root = structure.unflatten(kept)
    inner = defence._replace(
        state=state, context=defence.context._replace(root_updates=root)
    )

    def distance(strength: jax.Array) -> jax.Array:
        forged = to_origin + strength * to_direction
        moved = inner(rows.put(messages, malicious, forged), context.key) - to_origin
        return jnp.sqrt(trees.squared_norm(moved))

    return distance


def _like(tree: Any, params: Params) -> bool:
    if jax.tree.structure(tree) != jax.tree.structure(params):
        return False
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(params), strict=True)
    return all(jnp.shape(a) == jnp.shape(b) for a, b in pairs)


def embedding(gram: jax.Array) -> jax.Array:
    """Returns vectors ``[r, r]`` that have the given inner products ``[r, r]``.

    Vectors are brought to unit length first, so that the rounding in a short one's
    coordinates is in proportion to its own length, whatever the others' is. What
    depends on others does so up to a part in a thousand of its length: the roots of
    eigenvalues that should be 0.
    """
    lengths = jnp.sqrt(jnp.maximum(jnp.diagonal(gram), 0.0))
    safe = jnp.where(lengths > 0, lengths, 1.0)
    values, vectors = jnp.linalg.eigh(gram / (safe[:, None] * safe[None, :]))
    unit = vectors * jnp.sqrt(jnp.maximum(values, 0.0))
    return lengths[:, None] * unit
