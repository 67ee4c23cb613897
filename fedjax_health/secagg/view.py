"""What the server sees under ideal masks, drawn inside a compiled round.

Every client sends uniform integers, but the sum of a group's is its true sum: to the
server, n - 1 rows that say nothing and one that is fixed by the sum. Costs one pass of
random numbers over the messages and no cryptography.
"""

from typing import Any

import jax
import jax.numpy as jnp

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
    rows = jnp.where(present, jnp.arange(n), -1)
    if groups is None:
        last = rows == jnp.max(rows)
    else:
        last = rows == jax.ops.segment_max(rows, groups, num_segments=n)[groups]
    last &= present

    def one(x: jax.Array, key: Key) -> jax.Array:
        shape = (-1, *[1] * (x.ndim - 1))
        bits = jax.random.bits(key, x.shape, jnp.uint32).astype(jnp.int32)
        uniform = jnp.where((present & ~last).reshape(shape), bits, 0)
        missing = jnp.where(present.reshape(shape), x, 0) - uniform
        if groups is None:
            closing = jnp.sum(missing, axis=0, keepdims=True, dtype=jnp.int32)
        else:
            closing = jax.ops.segment_sum(missing, groups, num_segments=n)[groups]
        return jnp.where(last.reshape(shape), closing, uniform)

    leaves, treedef = jax.tree.flatten(integers)
    return treedef.unflatten(
        [one(x, jax.random.fold_in(key, i)) for i, x in enumerate(leaves)]
    )


def sum_groups(
    rows: Any, present: jax.Array, groups: jax.Array | None, count: int
) -> Any:
    """Returns the sum of each group's present rows, ``[count, ...]``."""

    def one(x: jax.Array) -> jax.Array:
        x = jnp.where(present.reshape(-1, *[1] * (x.ndim - 1)), x, 0)
        if groups is None:
            return jnp.sum(x, axis=0, keepdims=True, dtype=x.dtype)
        return jax.ops.segment_sum(x, groups, num_segments=count)

    return jax.tree.map(one, rows)
