"""Messages ``mean + strength * direction``: the line on which an attack is searched.

The mean is that of the messages seen. The direction is their deviation or the mean's
opposite. Both rest on one coordinate at a time, so that a message takes one pass over
the rows, and the inner products that a search needs take another one; neither mean nor
direction is ever held as a whole.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_health.attacks import rows
from fedjax_health.core import trees
from fedjax_health.core.types import Updates

# Rows up to which they are written out one by one, which XLA makes one loop of.
_UNROLLED = 64

# Columns of a block of a message.
_MAPPED = 8192

# Accelerators round the factors of a product by default; a distance must not be.
_EXACT = jax.lax.Precision.HIGHEST


class Line(NamedTuple):
    """A direction from the mean.

    Attributes:
      deviation: whether it is the deviation of each coordinate (over n - 1); the mean
        times -1 otherwise. Static.
      sign: 1 or -1, of the deviation.
    """

    deviation: bool
    sign: jax.Array | float = 1.0


def mean_and_direction(
    stacked: Updates, seen: jax.Array, line: Line
) -> tuple[Updates, Updates]:
    """Returns both, float32, without the cohort axis.

    Args:
      stacked: leaves ``[cohort, ...]``.
      seen: bool ``[cohort]``.
      line: the direction.
    """
    mean = rows.mean_of(stacked, seen)
    if not line.deviation:
        return mean, trees.scale(mean, -1.0)
    deviation = rows.deviation_of(stacked, seen, mean, 1.0)
    return mean, trees.scale(deviation, line.sign)


def message_at(
    stacked: Updates, seen: jax.Array, line: Line, strength: jax.Array
) -> Updates:
    """Returns ``mean + strength * direction``, float32.

    Args:
      stacked: leaves ``[cohort, ...]``.
      seen: bool ``[cohort]``.
      line: the direction.
      strength: float32 ``[]``.
    """
    n = seen.shape[0]
    if n > _UNROLLED:
        mean, direction = mean_and_direction(stacked, seen, line)
        return rows.along(mean, strength, direction)
    shares, factor = _factors(seen)

    def block(each: list[jax.Array]) -> jax.Array:
        each = [jnp.where(seen[i], row, 0.0) for i, row in enumerate(each)]
        mean = sum(shares[i] * row for i, row in enumerate(each))
        if not line.deviation:
            return mean - strength * mean
        away = [jnp.where(seen[i], row - mean, 0.0) for i, row in enumerate(each)]
        squares = sum(row * row for row in away)
        return mean + strength * line.sign * jnp.sqrt(factor * squares)

    return jax.tree.map(functools.partial(_by_columns, block), stacked)


def _by_columns(block: Callable[[list[jax.Array]], jax.Array], x: jax.Array):
    """Maps blocks of a leaf's rows to one row, float32.

    In a loop of its own: fused with what follows it would be computed anew for every
    row that it is put into.
    """
    flat = x.reshape(x.shape[0], -1)
    width = flat.shape[1]
    size = min(width, _MAPPED)
    if not size:
        return jnp.zeros(x.shape[1:], jnp.float32)

    def made(start: jax.Array) -> jax.Array:
        starts = [(jnp.int32(i), start) for i in range(flat.shape[0])]
        taken = [jax.lax.dynamic_slice(flat, at, (1, size)) for at in starts]
        return block([row.reshape(size).astype(jnp.float32) for row in taken])

    # The last block ends where the leaf does and repeats some columns.
    def write(i: jax.Array, held: jax.Array) -> jax.Array:
        start = jnp.minimum(i * size, width - size)
        return jax.lax.dynamic_update_slice_in_dim(held, made(start), start, 0)

    count = -(-width // size)
    row = jax.lax.fori_loop(0, count, write, jnp.zeros(width, jnp.float32))
    return row.reshape(x.shape[1:])


def products(
    stacked: Updates, seen: jax.Array, line: Line, *more: Updates
) -> jax.Array:
    """Returns the inner products of all vectors that a search rests on.

    These are ``x_i - mean`` of the rows seen (the others count as zero), the direction,
    the mean, and further trees that are not moved. Differences are formed before they
    are multiplied: distances of rows that lie close together and far from the origin
    would drown in the rounding of their norms.

    Args:
      stacked: leaves ``[cohort, ...]``.
      seen: bool ``[cohort]``.
      line: the direction.
      *more: trees without the cohort axis.

    Returns:
      float32 ``[cohort + 2 + len(more), cohort + 2 + len(more)]``.
    """
    n, extra = seen.shape[0], 2 + len(more)
    leaves = [x.reshape(n, -1) for x in jax.tree.leaves(stacked)]
    others = [[v.reshape(-1) for v in jax.tree.leaves(tree)] for tree in more]
    others = [[tree[i] for tree in others] for i in range(len(leaves))]
    # Rows that are not seen lend their places to the other vectors: a row more in a
    # block would copy the whole of it.
    lent = jnp.argsort(seen, stable=True)[:extra]
    counts = jnp.concatenate([seen, jnp.ones(extra, bool)])

    def total(places: jax.Array | None) -> jax.Array:
        parts = [
            _leaf_products(x, v, seen, line, places)
            for x, v in zip(leaves, others, strict=True)
        ]
        return sum(parts, jnp.float32(0))

    def placed() -> jax.Array:
        order = jnp.concatenate([jnp.arange(n), lent])
        return total(lent)[order][:, order]

    if extra > n:
        made = total(None)
    else:
        roomy = n - jnp.sum(seen) >= extra
        made = jax.lax.cond(roomy, placed, lambda: total(None))
    return jnp.where(counts[:, None] & counts[None, :], made, 0.0)


def _factors(seen: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns each row's share of the mean, and what makes a variance of squares."""
    count = jnp.sum(seen)
    degrees = jnp.maximum(count - 1, 1)
    factor = jnp.where(count > 1, 1.0 / degrees, 0.0)
    return seen / jnp.maximum(count, 1), factor


def _leaf_products(
    x: jax.Array,
    others: Sequence[jax.Array],
    seen: jax.Array,
    line: Line,
    places: jax.Array | None,
) -> jax.Array:
    n, width = x.shape
    # A block and what is made of it stay in the nearest cache.
    size = 2048 if n <= 32 else 8192
    shares, factor = _factors(seen)
    ones = seen.astype(jnp.float32)

    def part(start: jax.Array | int, size: int) -> jax.Array:
        def cut(v: jax.Array) -> jax.Array:
            taken = jax.lax.dynamic_slice_in_dim(v, start, size, -1)
            return taken.astype(jnp.float32)

        block = jnp.where(seen[:, None], cut(x), 0.0)
        mean = jnp.matmul(shares, block, precision=_EXACT)
        moved = block - mean
        if line.deviation:
            squares = jnp.matmul(ones, moved * moved, precision=_EXACT)
            direction = line.sign * jnp.sqrt(factor * squares)
        else:
            direction = -mean
        vectors = [direction, mean, *(cut(v) for v in others)]
        if places is None:
            block = jnp.concatenate([moved, jnp.stack(vectors)])
        else:
            block, number = moved, jnp.arange(n)[:, None]
            for place, vector in zip(places, vectors, strict=True):
                block = jnp.where(number == place, vector, block)
        contracted = (((1,), (1,)), ((), ()))
        return jax.lax.dot_general(block, block, contracted, precision=_EXACT)

    whole, left = divmod(width, size)
    total = part(whole * size, left)
    if whole == 0:
        return total
    return jax.lax.fori_loop(
        0, whole, lambda i, held: held + part(i * size, size), total
    )
