"""How far a defence lets a forged message move the aggregate, tried many times.

By what the rule depends on (``Aggregator.depends_on``). A rule of inner products
commutes with isometries: the messages, the honest mean and the direction are laid into
a space of as many dimensions as there are rows, where every trial costs next to
nothing. A rule of single coordinates is tried on a sample of them; if it is the median,
a trial looks up where the forged value falls between two honest ones. Any other rule is
tried on the messages themselves.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_health.attacks import rows
from fedjax_health.attacks.line import Line, mean_and_direction, products
from fedjax_health.core import trees
from fedjax_health.core.ranks import ordered_rows
from fedjax_health.core.types import (
    AttackContext,
    Defence,
    Key,
    Params,
    Updates,
)

# Coordinates on which a rule of single coordinates is tried; all where there are fewer.
SAMPLED = 65_536

# Rows up to which their median comes from a selection network.
_NETWORK = 64

# Neighbours that are sampled together: what the cache fetches at once.
_RUN = 128

Response = Callable[[jax.Array], jax.Array]


def response_of(
    stacked: Updates, malicious: jax.Array, context: AttackContext, line: Line
) -> Response:
    """Returns ``strength [] -> distance []`` of the aggregate from the honest mean.

    Attackers send ``mean + strength * direction``; the defence draws from the
    attacker's key, the same in every trial.

    Args:
      stacked: leaves ``[cohort, ...]``, the honest messages.
      malicious: bool ``[cohort]``.
      context: holds the defence.
      line: the direction.
    """
    defence = context.defence
    if isinstance(defence, Defence) and defence.depends_on == "gram":
        return _in_span(stacked, malicious, context, defence, line)
    alone = ("coordinates", "median")
    if isinstance(defence, Defence) and defence.depends_on in alone:
        key = jax.random.fold_in(context.key, 1)
        stacked, counts = sampled_coordinates(key, stacked)
    else:
        counts = [1.0] * len(jax.tree.leaves(stacked))
    honest = rows.visible("honest", malicious, context)
    origin, direction = mean_and_direction(stacked, honest, line)

    def distance(strength: jax.Array) -> jax.Array:
        message = rows.along(origin, strength, direction)
        aggregate = defence(rows.put(stacked, malicious, message), context.key)
        return _length(trees.subtract(aggregate, origin), counts)

    few = malicious.shape[0] <= _NETWORK
    if few and isinstance(defence, Defence) and defence.depends_on == "median":
        pair = origin, direction
        return _of_median(stacked, malicious, defence, pair, counts, distance)
    return distance


def _length(tree: Updates, counts: list[float]) -> jax.Array:
    """Returns the norm of a tree of which each number stands for so many."""
    leaves = zip(counts, jax.tree.leaves(tree), strict=True)
    squares = (count * trees.squared_norm(leaf) for count, leaf in leaves)
    return jnp.sqrt(sum(squares, jnp.float32(0)))


def _of_median(
    stacked: list[jax.Array],
    malicious: jax.Array,
    defence: Defence,
    pair: tuple[list[jax.Array], list[jax.Array]],
    counts: list[float],
    plainly: Response,
) -> Response:
    """Returns the response of the median, from order statistics of the honest rows.

    Of f equal values v among honest ones, the value of a rank is v, clipped to the
    rank's value with v below all of them and with v above them. That holds where every
    row is there and finite; ``plainly`` serves elsewhere.
    """
    n = malicious.shape[0]
    ranks = (n - 1) // 2, n // 2

    def ordered(x: jax.Array, forged: float) -> list[jax.Array]:
        each = [jnp.where(malicious[i], forged, x[i]) for i in range(n)]
        return ordered_rows([row.astype(jnp.float32) for row in each], ranks)

    infinite = float("inf")
    bounds = [(ordered(x, -infinite), ordered(x, infinite)) for x in stacked]
    sizes = [jnp.sum(jnp.where(malicious[:, None], 0.0, x)) for x in stacked]
    every = jnp.all(defence.weights > 0) & jnp.isfinite(sum(sizes, jnp.float32(0)))
    origin, direction = pair

    def quickly(strength: jax.Array) -> jax.Array:
        moved = []
        for (low, high), start, away in zip(bounds, origin, direction, strict=True):
            forged = start + strength * away
            middle = [jnp.clip(forged, *ends) for ends in zip(low, high, strict=True)]
            moved.append(0.5 * (middle[0] + middle[1]) - start)
        return _length(moved, counts)

    return lambda strength: jax.lax.cond(every, quickly, plainly, strength)


def sampled_coordinates(
    key: Key, stacked: Updates
) -> tuple[list[jax.Array], list[float]]:
    """Returns some coordinates of every leaf, ``[cohort, coordinates]`` each.

    Of a leaf with ``m`` coordinates short runs are taken, one at random from each of
    equal strata; with 65,536 coordinates or fewer in all, every coordinate.

    Returns:
      ``(sample, counts)``; ``counts`` says how many coordinates each one of a leaf's
      sample stands for.
    """
    leaves = [x.reshape(x.shape[0], -1) for x in jax.tree.leaves(stacked)]
    stride = math.ceil(sum(x.shape[1] for x in leaves) / SAMPLED)
    taken = []
    for number, x in enumerate(leaves):
        groups = x.shape[1] // (stride * _RUN)
        if stride > 1 and groups > 0:
            x = _runs(jax.random.fold_in(key, number), x, groups)
        taken.append(x)
    pairs = zip(leaves, taken, strict=True)
    return taken, [x.shape[1] / part.shape[1] for x, part in pairs]


def _runs(key: Key, x: jax.Array, groups: int) -> jax.Array:
    size = x.shape[1]
    drawn = jax.random.uniform(key, (groups,))
    step = size // groups
    within = (drawn * (step - _RUN + 1)).astype(jnp.int32)
    starts = jnp.minimum(jnp.arange(groups) * step + within, size - _RUN)

    # Copied run by run: a gather looks every single number up.
    def copy(i: jax.Array, held: jax.Array) -> jax.Array:
        run = jax.lax.dynamic_slice_in_dim(x, starts[i], _RUN, 1)
        return jax.lax.dynamic_update_slice_in_dim(held, run, i * _RUN, 1)

    empty = jnp.zeros((x.shape[0], groups * _RUN), x.dtype)
    return jax.lax.fori_loop(0, groups, copy, empty)


def _in_span(
    stacked: Updates,
    malicious: jax.Array,
    context: AttackContext,
    defence: Defence,
    line: Line,
) -> Response:
    honest = rows.visible("honest", malicious, context)
    # What the rule remembers or is told in the parameters' shape turns with the rows.
    kept, structure = jax.tree.flatten(
        (defence.state, defence.context.root_updates),
        is_leaf=lambda tree: _like(tree, context.params),
    )
    turned = [i for i, tree in enumerate(kept) if _like(tree, context.params)]
    gram = products(stacked, honest, line, *(kept[i] for i in turned))
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
