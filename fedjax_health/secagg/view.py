"""What the server sees under ideal masks, drawn inside a compiled round.

Every client sends uniform integers, but the sum of a group's is its true sum: to the
server, n - 1 rows that say nothing and one that is fixed by the sum. Costs one pass of
random numbers over the messages and no cryptography.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.random import threefry_2x32

from fedjax_health.core.types import Codec, Key, State, Updates


def server_view(
    integers: Any, present: jax.Array, groups: jax.Array | None, key: Key
) -> Any:
    """Returns the masked messages of a cohort.

    Args:
      integers: int32 ``[cohort, ...]``, any tree of them.
      present: bool ``[cohort]``, messages that arrive.
      groups: int32 ``[cohort]``, in ``[0, cohort)``: whose messages are summed
        together; None for all.
      key: of the masks.

    Returns:
      int32 ``[cohort, ...]``: zeros where nobody is present; in every group all rows
      but the last present one are uniform and independent, and their sum, modulo
      2**32, is that of the group.
    """
    n = present.shape[0]
    last = _last_of_groups(present, groups)
    rows = jnp.arange(n)
    uniform = jax.lax.map(lambda i: _masks(integers, i, key), rows)
    uniform = jax.tree.map(
        lambda x: jnp.where(_wide(present & ~last, x), x, 0), uniform
    )
    missing = jax.tree.map(lambda x, y: x - y, integers, uniform)
    count = 1 if groups is None else n
    closing = sum_groups(missing, present, groups, count)
    own = jnp.zeros(n, jnp.int32) if groups is None else groups
    return jax.tree.map(
        lambda x, y: jnp.where(_wide(last, x), y[own], x), uniform, closing
    )


def view_sums(
    integers: Any,
    present: jax.Array,
    groups: jax.Array | None,
    count: int,
    key: Key,
) -> Any:
    """Returns the sums of the rows of ``server_view``, int32 ``[count, ...]``.

    Row by row, without holding the view: the rows that are uniform are drawn and added
    up, and so is what is missing of the true sum, which is the row that closes it.
    """
    own = jnp.zeros(present.shape, jnp.int32) if groups is None else groups
    last = _last_of_groups(present, groups)
    zeros = jax.tree.map(
        lambda x: jnp.zeros((count, *x.shape[1:]), jnp.int32), integers
    )

    def add(totals: tuple[Any, Any], row: tuple) -> tuple[tuple[Any, Any], None]:
        i, group, is_present, is_last, message = row
        drawn = _masks(integers, i, key)
        drawn = jax.tree.map(lambda x: jnp.where(is_present & ~is_last, x, 0), drawn)
        seen = jax.tree.map(lambda t, x: t.at[group].add(x), totals[0], drawn)
        missing = jax.tree.map(
            lambda t, x, y: t.at[group].add(jnp.where(is_present, x, 0) - y),
            totals[1],
            message,
            drawn,
        )
        return (seen, missing), None

    rows = jnp.arange(present.shape[0]), own, present, last, integers
    (seen, closing), _ = jax.lax.scan(add, (zeros, zeros), rows)
    return jax.tree.map(jnp.add, seen, closing)


def sum_groups(
    rows: Any, present: jax.Array, groups: jax.Array | None, count: int
) -> Any:
    """Returns the sum of each group's present rows, ``[count, ...]``."""

    def one(x: jax.Array) -> jax.Array:
        x = jnp.where(_wide(present, x), x, 0)
        if groups is None:
            return jnp.sum(x, axis=0, keepdims=True, dtype=x.dtype)
        return jax.ops.segment_sum(x, groups, num_segments=count)

    return jax.tree.map(one, rows)


def _wide(flags: jax.Array, like: jax.Array) -> jax.Array:
    return flags.reshape(-1, *[1] * (like.ndim - 1))


def _last_of_groups(present: jax.Array, groups: jax.Array | None) -> jax.Array:
    """Returns which rows are the last present ones of their groups, bool ``[n]``."""
    n = present.shape[0]
    rows = jnp.where(present, jnp.arange(n), -1)
    if groups is None:
        return present & (rows == jnp.max(rows))
    newest = jax.ops.segment_max(rows, groups, num_segments=n)
    return present & (rows == newest[groups])


def _masks(integers: Any, row: jax.Array, key: Key) -> Any:
    """Returns the uniform integers of one row."""
    leaves, treedef = jax.tree.flatten(integers)
    own = jax.random.fold_in(key, row)
    return treedef.unflatten(
        [
            _uniform(jax.random.fold_in(own, i), x.shape[1:])
            for i, x in enumerate(leaves)
        ]
    )


def _uniform(key: Key, shape: tuple[int, ...]) -> jax.Array:
    """Returns uniform int32: both words of a block, unlike ``jax.random.bits``."""
    counts = jnp.arange(math.prod(shape), dtype=jnp.uint32)
    words = threefry_2x32(jax.random.key_data(key), counts)
    return words.astype(jnp.int32).reshape(shape)


@functools.cache
def masked(codec: Codec) -> Codec:
    """Draws the view in each client's half of a codec, whose sums need no gathering.

    A client's integers become its row, which is uniform, and what that row lacks of the
    truth. The last client's row is closed by the sum of what all rows lack: the rows
    are those of ``server_view``, with other draws, and no stack of them is held.
    """

    def encode(
        updates: Updates,
        weight: jax.Array,
        state: State,
        key: Key,
        bound: jax.Array | None = None,
    ) -> tuple[tuple[Any, Any], jax.Array]:
        integers, saturated = codec.encode(updates, weight, state, key, bound)
        leaves, treedef = jax.tree.flatten(integers)
        rows = [
            _uniform(jax.random.fold_in(key, i), x.shape) for i, x in enumerate(leaves)
        ]
        lacking = [x - row for x, row in zip(leaves, rows, strict=True)]
        return (treedef.unflatten(rows), treedef.unflatten(lacking)), saturated

    def collect(total: tuple[Any, Any]) -> Any:
        return jax.tree.map(jnp.add, *total)

    return Codec(encode, codec.decode, collect)
