"""The Walsh-Hadamard transform and the random rotation that is built on it.

A random sign flip followed by the transform (Ailon and Chazelle, 2009; Suresh et al.,
2017, arXiv:1611.00429) spreads any vector evenly over its coordinates: they become
nearly normal, whatever the vector was. It is orthogonal, costs ``d log2(d)`` additions
and needs no matrix.
"""

import jax
import jax.numpy as jnp
import numpy as np


def padded_size(n: int) -> int:
    """Returns the smallest power of two that is at least ``n``; 1 for an empty vector.

    Args:
      n: numbers in a vector, 0 or more.
    """
    return 1 << max(n - 1, 0).bit_length()


def pad(flat: jax.Array) -> jax.Array:
    """Returns a flat vector with zeros after it, up to a power of two."""
    return jnp.pad(flat, (0, padded_size(flat.size) - flat.size))


def hadamard(flat: jax.Array) -> jax.Array:
    """Returns the orthonormal Walsh-Hadamard transform of a vector.

    The transform is its own inverse and keeps the L2 norm. Additions alone, in a stated
    order: the bits do not depend on how a contraction is split.

    Args:
      flat: float32 ``[2**m]``.

    Raises:
      ValueError: if it is not flat or its size is no power of two.
    """
    n = flat.size
    if flat.ndim != 1 or n != padded_size(n):
        raise ValueError(
            f"hadamard needs a flat vector of 2**m numbers, not shape {flat.shape}: "
            "use pad"
        )
    # Sums of neighbours, then their differences: XLA's CPU code for it takes half as
    # long as the usual butterflies, and it is the same matrix.
    for _ in range(n.bit_length() - 1):
        pairs = flat.reshape(-1, 2)
        even, odd = pairs[:, 0], pairs[:, 1]
        flat = jnp.concatenate([even + odd, even - odd])
    return flat * np.float32(n**-0.5)


def random_signs(key: jax.Array, n: int) -> jax.Array:
    """Returns ``n`` independent fair signs, float32 ``[n]`` of -1 and 1."""
    words = jax.random.bits(key, (-(-n // 32),), jnp.uint32)
    shifts = jnp.arange(32, dtype=jnp.uint32)
    bits = (words[:, None] >> shifts) & 1
    return 1 - 2 * bits.reshape(-1)[:n].astype(jnp.float32)


def rotate(flat: jax.Array, key: jax.Array) -> jax.Array:
    """Returns a vector in random orthonormal coordinates: pad, flip signs, transform.

    Args:
      flat: float32 ``[d]``.
      key: of the rotation; whoever turns back needs the same.

    Returns:
      float32 ``[padded_size(d)]`` of the same norm.
    """
    padded = pad(flat)
    return hadamard(padded * random_signs(key, padded.size))


def rotate_back(rotated: jax.Array, key: jax.Array, size: int) -> jax.Array:
    """Undoes ``rotate``.

    Args:
      rotated: float32 ``[padded_size(size)]``.
      key: the key of the rotation.
      size: numbers of the vector that was rotated.
    """
    return (hadamard(rotated) * random_signs(key, rotated.size))[:size]
