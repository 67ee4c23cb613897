"""How many of ``n`` examples lie in a Poisson batch, drawn by one word."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Counts with less probability beyond them than this are never drawn; a word has 2**-32.
_TAIL = 1e-11


class BinomialLaw(NamedTuple):
    """The law of a count, as probabilities on either side of its possible values.

    Attributes:
      least: int32 ``[]``, the first count.
      below: float32 ``[counts]``, probability of a count or less, for small ones.
      above: float32 ``[counts]``, probability of more than a count, for large ones.
      upper: bool ``[counts]``, which of the two is the smaller, and so the exact one.
    """

    least: jax.Array
    below: jax.Array
    above: jax.Array
    upper: jax.Array


def binomial_law(n: jax.Array, mean: int) -> BinomialLaw:
    """Returns the binomial law of ``n`` trials with a given mean.

    Args:
      n: int32 ``[]``, above ``mean``; traced.
      mean: of the count, 1 or more; static. No binomial law of this mean has more in
        its tails than the Poisson law has by Chernoff's bound, so that the number of
        counts that matter does not depend on ``n``.
    """
    low, high = _support(mean)
    counts = np.arange(low + 1, high + 1)
    left = jnp.maximum(n - mean, 1).astype(jnp.float32)
    # Logarithms of the ratio of each probability to the one before.
    ratios = jnp.log1p(jnp.maximum((mean - counts + 1) / left, -1))
    ratios = ratios + np.log(mean / counts)
    # Summed from the mean outwards, they stay small where the probability is large.
    middle = mean - low
    upwards = jnp.cumsum(ratios[middle:])
    downwards = -jnp.cumsum(ratios[:middle][::-1])[::-1]
    mass = jnp.exp(jnp.concatenate([downwards, jnp.zeros(1), upwards]))
    mass = mass / jnp.sum(mass)
    below = jnp.cumsum(mass)
    above = jnp.append(jnp.cumsum(mass[:0:-1])[::-1], 0)
    return BinomialLaw(jnp.int32(low), below, above, below > 0.5)


def draw_count(law: BinomialLaw, word: jax.Array) -> jax.Array:
    """Returns a count, int32 ``[]``, by inversion of a law.

    Args:
      law: of the count.
      word: uint32 ``[]``, uniform.
    """
    unit = jnp.float32(2.0**-32)
    share = (word.astype(jnp.float32) + 0.5) * unit
    rest = ((~word).astype(jnp.float32) + 0.5) * unit
    beyond = jnp.where(law.upper, rest < law.above, share > law.below)
    return law.least + jnp.sum(beyond, dtype=jnp.int32)


def _support(mean: int) -> tuple[int, int]:
    """Returns the least and the largest count that matter."""

    def bound(count: float) -> float:
        return math.exp(count - mean - count * math.log(count / mean))

    high = mean + 1
    while bound(high) > _TAIL:
        high += 1
    low = mean
    while low > 1 and bound(low) > _TAIL:
        low -= 1
    return (0 if low <= 1 else low), high
