"""Distance correlation: how much two sets of vectors depend on one another.

Szekely, Rizzo and Bakirov, 2007, "Measuring and testing dependence by correlation of
distances" (Annals of Statistics 35(6):2769-2794), the biased sample statistic.
"""

import jax
import jax.numpy as jnp
import numpy as np

_TINY = np.float32(np.finfo(np.float32).tiny)
# Squared distances below this share of the squared lengths are rounding.
_SAME = 1e-6


def distance_correlation(
    x: jax.Array, y: jax.Array, counts: jax.Array | None = None
) -> jax.Array:
    """Returns the squared distance correlation ``R_n^2(x, y)``, in [0, 1].

    ``V(x, y) / sqrt(V(x, x) V(y, y))`` with ``V(x, y) = mean_ij A_ij B_ij`` and A, B
    the matrices of Euclidean distances, centred by row, column and as a whole. It is 1
    where the distances of one are a multiple of the other's, and 0 where either does
    not vary. The correlation itself is the root; its square is what has a gradient
    everywhere. The statistic is biased: independent samples of n examples have about
    1/n or, in many dimensions, much more. Neither is anything above 0 a proof.

    The gradient is finite, and that of two rows at the same place is 0. Memory is
    ``n^2``.

    Args:
      x: ``[n, ...]``, one example a row; axes after the first are flattened.
      y: ``[n, ...]``.
      counts: ``[n]``, 0 for examples that do not count, whatever they hold. None for
        all.

    Raises:
      ValueError: for numbers of examples that differ.
    """
    if x.shape[:1] != y.shape[:1] or not x.shape:
        raise ValueError(f"x {x.shape} and y {y.shape} must have examples in common")
    there = jnp.ones(x.shape[0]) if counts is None else (counts > 0).astype(jnp.float32)
    a, b = (_centred(_distances(rows, there), there) for rows in (x, y))
    total = jnp.maximum(jnp.sum(there), 1) ** 2
    of_x, of_y, of_both = (jnp.sum(p) / total for p in (a * a, b * b, a * b))
    varies = (of_x > _TINY) & (of_y > _TINY)
    # Roots of each: their product could be too small a number.
    roots = [jnp.sqrt(jnp.where(varies, v, 1)) for v in (of_x, of_y)]
    return jnp.where(varies, jnp.maximum(of_both, 0) / roots[0] / roots[1], 0)


def _distances(rows: jax.Array, there: jax.Array) -> jax.Array:
    """Returns distances ``[n, n]`` in units of the largest number, gradient included.

    By inner products of centred rows: distances of single pairs that are a thousandth
    of the rows' lengths are lost, which the mean does not notice.
    """
    flat = rows.reshape(rows.shape[0], -1).astype(jnp.float32)
    flat = jnp.where(there[:, None] > 0, flat, 0)
    number = jnp.maximum(jnp.sum(there), 1)
    flat = jnp.where(there[:, None] > 0, flat - jnp.sum(flat, axis=0) / number, 0)
    scale = jax.lax.stop_gradient(jnp.max(jnp.abs(flat), initial=0))
    flat = flat / jnp.where(scale < _TINY, 1, scale)
    products = jnp.matmul(flat, flat.T, precision=jax.lax.Precision.HIGHEST)
    lengths = jnp.diagonal(products)
    lengths = lengths[:, None] + lengths[None, :]
    squares = lengths - 2 * products
    apart = squares > _SAME * lengths
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, squares, 1)), 0)


def _centred(distances: jax.Array, there: jax.Array) -> jax.Array:
    number = jnp.maximum(jnp.sum(there), 1)
    pairs = there[:, None] * there[None, :]
    mean = distances @ there / number
    whole = mean @ there / number
    return pairs * (distances - mean[:, None] - mean[None, :] + whole)
