"""Marvell: noise on cotangents that hides labels best for its power.

Li et al., 2022, "Label leakage and protection in two-party split learning"
(arXiv:2102.08504), section 4.2. The gradients of a class are taken to be Gaussian, of
label 0 ``N(m0, u I)`` and of label 1 ``N(m1, v I)``; gap is ``|m1 - m0|^2``. Noise of
label c has variance ``parallel_c`` along ``m1 - m0`` and ``across_c`` in the other
``width - 1`` directions. With ``a_0 = u + parallel_0``, ``b_0 = u + across_0`` and the
same of v, the two divergences of what is sent sum to

    KL(0|1) + KL(1|0) = 1/2 [ a_0/a_1 + a_1/a_0 - 2 + gap (1/a_0 + 1/a_1)
                              + (width - 1) (b_0/b_1 + b_1/b_0 - 2) ]

(``tr S1^-1 S0 + tr S0^-1 S1 + d' (S0^-1 + S1^-1) d - 2 width`` over 2). By Pinsker's
inequality it bounds the AUROC of whatever score is made of one gradient. It is least
under ``(1 - p) tr(noise_0) + p tr(noise_1) <= power * gap``, p the share of label 1:

* all power is used: a_0 and a_1 grown by one factor keep their ratio;
* across the difference one class alone is noised, that of the smaller variance and at
  most up to the larger: what both get there would serve better along the difference.

Two numbers are left, the noise across and the share of the rest that label 0 gets; they
are searched on a grid that is refined around its best point.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_health.core.rng import normal
from fedjax_health.core.types import Key

_POINTS = 33
_REFINEMENTS = 6
# Least within-class variance, in units of the gap: 1/a stays finite.
_LEAST = 1e-9
_TINY = np.float32(np.finfo(np.float32).tiny)


class LabelNoise(NamedTuple):
    """Variances of the noise of each label, float32 ``[]`` each.

    Attributes:
      parallel_0: of label 0, along the difference of the means.
      across_0: of label 0, in each other direction.
      parallel_1: of label 1, along the difference.
      across_1: of label 1, in each other direction.
    """

    parallel_0: jax.Array
    across_0: jax.Array
    parallel_1: jax.Array
    across_1: jax.Array


def divergence(noise: LabelNoise, u, v, gap, width) -> jax.Array:
    """Returns the sum of the two KL divergences, in nats.

    Args:
      noise: of each label.
      u: variance of each number within label 0.
      v: variance of each number within label 1.
      gap: squared distance of the classes' means.
      width: numbers of a gradient.
    """
    a_0, b_0 = u + noise.parallel_0, u + noise.across_0
    a_1, b_1 = v + noise.parallel_1, v + noise.across_1
    along = (a_0 - a_1) ** 2 / (a_0 * a_1) + gap / a_0 + gap / a_1
    return 0.5 * (along + (width - 1) * (b_0 - b_1) ** 2 / (b_0 * b_1))


def label_noise(u, v, gap, positive, *, width, power) -> LabelNoise:
    """Returns the noise of least divergence; see the module.

    Args:
      u: variance of each number within label 0.
      v: variance of each number within label 1.
      gap: squared distance of the classes' means; without one there is no noise.
      positive: share of label 1, in (0, 1).
      width: numbers of a gradient.
      power: expected squared norm of the noise over the gap.
    """
    unit = jnp.where(gap < _TINY, 1, gap)
    u = jnp.maximum(u / unit, _LEAST)
    v = jnp.maximum(v / unit, _LEAST)
    low_is_0 = u <= v
    frequency = jnp.where(low_is_0, 1 - positive, positive)
    price = frequency * jnp.maximum(width - 1, 1)
    widest = jnp.minimum(jnp.abs(v - u), power / price)

    def noise(across: jax.Array, share: jax.Array) -> LabelNoise:
        left = jnp.maximum(power - price * across, 0)
        return LabelNoise(
            share * left / (1 - positive),
            jnp.where(low_is_0, across, 0),
            (1 - share) * left / positive,
            jnp.where(low_is_0, 0, across),
        )

    def refine(box, _):
        (low_x, high_x), (low_s, high_s) = box
        x = jnp.linspace(low_x, high_x, _POINTS)
        s = jnp.linspace(low_s, high_s, _POINTS)
        table = divergence(noise(x[:, None], s[None, :]), u, v, 1.0, width)
        best = jnp.argmin(table)
        i, j = best // _POINTS, best % _POINTS
        # Three cells to either side, should the valley be narrow and oblique.
        step_x = 3 * (high_x - low_x) / (_POINTS - 1)
        step_s = 3 * (high_s - low_s) / (_POINTS - 1)
        box = (
            (jnp.maximum(x[i] - step_x, 0), jnp.minimum(x[i] + step_x, widest)),
            (jnp.maximum(s[j] - step_s, 0), jnp.minimum(s[j] + step_s, 1)),
        )
        return box, (x[i], s[j], table[i, j])

    box = (
        (jnp.zeros(()), jnp.asarray(widest, jnp.float32)),
        (jnp.zeros(()), jnp.ones(())),
    )
    _, (x, s, value) = jax.lax.scan(refine, box, length=_REFINEMENTS)
    best = jnp.argmin(value)
    found = noise(x[best], s[best])
    return LabelNoise(*(jnp.where(gap < _TINY, 0, part * unit) for part in found))


def hide_labels(
    rows: jax.Array, positive: jax.Array, counts: jax.Array, key: Key, *, power: float
) -> jax.Array:
    """Returns gradients with the noise of their label.

    Means and variances are the batch's own. A batch of one class, or of two with the
    same mean, gets no noise: there is nothing to tell apart in it, or nothing known of
    how.

    Args:
      rows: ``[rows, width]``.
      positive: bool ``[rows]``, whether a row's label is 1.
      counts: bool ``[rows]``; the others neither count nor change.
      key: of the noise.
      power: expected squared norm of the noise, weighted by class frequency, over the
        squared distance of the classes' means.
    """
    width = rows.shape[1]
    counted = jnp.where(counts[:, None], rows, 0)
    scale = jnp.max(jnp.abs(counted), initial=0)
    scale = jnp.where(scale < _TINY, 1, scale)
    # Squares of small gradients would be 0.
    scaled = counted / scale
    ones = (counts & positive).astype(rows.dtype)
    zeros = (counts & ~positive).astype(rows.dtype)
    n_0, n_1 = jnp.sum(zeros), jnp.sum(ones)
    m_0 = jnp.sum(zeros[:, None] * scaled, axis=0) / jnp.maximum(n_0, 1)
    m_1 = jnp.sum(ones[:, None] * scaled, axis=0) / jnp.maximum(n_1, 1)

    def variance(weight, mean, number):
        squares = weight[:, None] * (scaled - mean) ** 2
        return jnp.sum(squares) / (jnp.maximum(number, 1) * width)

    gap = jnp.sum((m_1 - m_0) ** 2)
    both = (n_0 > 0) & (n_1 > 0)
    share = jnp.where(both, n_1 / jnp.maximum(n_0 + n_1, 1), 0.5)
    found = label_noise(
        variance(zeros, m_0, n_0),
        variance(ones, m_1, n_1),
        jnp.where(both, gap, 0),
        share,
        width=width,
        power=power,
    )
    parallel = jnp.sqrt(jnp.where(positive, found.parallel_1, found.parallel_0))
    across = jnp.sqrt(jnp.where(positive, found.across_1, found.across_0))
    direction = (m_1 - m_0) * jax.lax.rsqrt(jnp.where(gap < _TINY, 1, gap))
    drawn = normal(key, rows.size).reshape(rows.shape).astype(rows.dtype)
    along = (parallel - across) * jnp.sum(drawn * direction, axis=1)
    noise = across[:, None] * drawn + along[:, None] * direction
    return jnp.where(counts[:, None], rows + scale * noise, rows)
