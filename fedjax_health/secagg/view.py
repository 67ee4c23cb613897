"""What the server sees under ideal masks, drawn inside a compiled round.

Every client sends uniform integers, but the sum of a group's is its true sum: to the
server, n - 1 rows that say nothing and one that is fixed by the sum. Costs one pass of
random numbers over the messages and no cryptography.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.random import threefry_2x32

from fedjax_health.core.types import Key


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

    def one(i: int, x: jax.Array) -> jax.Array:
        words = jax.random.key_data(jax.random.fold_in(own, i))
        # Both words of a block are used, which jax.random.bits does not do.
        counts = jnp.arange(x[0].size, dtype=jnp.uint32)
        return threefry_2x32(words, counts).astype(jnp.int32).reshape(x.shape[1:])

    return treedef.unflatten([one(i, x) for i, x in enumerate(leaves)])
