"""One flat vector from a tree of updates, and back."""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_health.core.types import Updates


def flatten(tree: Updates) -> jax.Array:
    """Returns all leaves one after the other, float32 ``[d]``."""
    leaves = [x.astype(jnp.float32).reshape(-1) for x in jax.tree.leaves(tree)]
    if len(leaves) == 1:
        return leaves[0]
    return jnp.concatenate(leaves) if leaves else jnp.zeros(0, jnp.float32)


def unflatten(flat: jax.Array, like: Updates) -> Updates:
    """Undoes ``flatten``: the structure, shapes and dtypes of ``like``."""
    leaves, treedef = jax.tree.flatten(like)
    ends = np.cumsum([x.size for x in leaves])
    parts = [
        flat[end - x.size : end].reshape(x.shape).astype(x.dtype)
        for x, end in zip(leaves, ends, strict=True)
    ]
    return treedef.unflatten(parts)


def sizes(tree: Updates) -> tuple[int, ...]:
    """Returns how many numbers each leaf holds."""
    return tuple(x.size for x in jax.tree.leaves(tree))


def kept_count(share: float, size: int) -> int:
    """Returns how many of ``size`` coordinates a share stands for: 1 at least."""
    return min(max(round(share * size), 1), max(size, 1))


def pack_mask(mask: jax.Array) -> jax.Array:
    """Returns a flat mask as words of 32 bits, the first one lowest, uint32."""
    rows = jnp.pad(mask, (0, -mask.size % 32)).reshape(-1, 32)
    shifts = jnp.arange(32, dtype=jnp.uint32)
    return jnp.sum(rows.astype(jnp.uint32) << shifts, axis=1, dtype=jnp.uint32)


def count_true(mask: jax.Array) -> jax.Array:
    """Returns how many of a flat mask are true, int32 ``[]``.

    Through words of 32 bits: XLA's CPU code for the plain sum takes twice as long.
    """
    return jnp.sum(jax.lax.population_count(pack_mask(mask)).astype(jnp.int32))
