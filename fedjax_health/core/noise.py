"""Integer noise: the discrete Gaussian and the Skellam law, in JAX.

Noise from a float generator tells inputs apart: ``jax.random.normal`` has some 2**23
values, so that one release shows which of two known inputs it came from (Mironov,
2012). Integer noise that is added to integers has no such holes. The discrete Gaussian
is that of Canonne, Kamath and Steinke (2020, arXiv:2004.00010), the Skellam law (the
difference of two Poisson numbers) that of Agarwal et al. (2021, arXiv:2110.04995).

One sampler draws both: the integers are cut into blocks of ``2**m`` numbers, a block is
drawn from a table by its largest probability (Walker's alias method), a number in the
block uniformly, and it is kept with its probability over the block's largest. More than
97 % are kept. No Poisson number is drawn, so no intensity is too large
(``jax.random.poisson`` is wrong above about 1e5).
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

BLOCKS = 1024
_SLOT_BITS = 10
_FRACTION_BITS = 32 - _SLOT_BITS

# Up to here every integer is a block of its own and nothing is rejected.
_SMALL = 55.0

MIN_SIGMA, MAX_SIGMA = 0.3, 2.0**26

# Of the proposals at least 1 - E|x| / (32 sigma) are kept, about .975.
_SPARE = 1.03


class NoiseTable(NamedTuple):
    """A law on the integers, as arrays; laws of all widths share one program.

    Attributes:
      high: uint32 ``[blocks]``, upper bits of the probability with which a slot keeps
        its own block, in units of 2**-54.
      low: uint32 ``[blocks]``, the lower 32 bits.
      alias: int32 ``[blocks]``, the block that is taken otherwise.
      log2_width: uint32 ``[]``, m.
      inverse_sigma: float32 ``[]``.
      correction: float32 ``[3]``, how the exponent departs from the Gaussian's.
    """

    high: np.ndarray | jax.Array
    low: np.ndarray | jax.Array
    alias: np.ndarray | jax.Array
    log2_width: np.ndarray | jax.Array
    inverse_sigma: np.ndarray | jax.Array
    correction: np.ndarray | jax.Array


@functools.lru_cache(maxsize=64)
def discrete_gaussian(sigma: float) -> NoiseTable:
    """Returns the law ``p(x) ~ exp(-x**2 / (2 sigma**2))`` on the integers.

    Args:
      sigma: its scale (its standard deviation, to 1e-8 where it is 1 or more), in
        [0.3, 2**26].

    Raises:
      ValueError: outside that range.
    """
    _check("discrete_gaussian", sigma)

    def log_mass(x: np.ndarray) -> np.ndarray:
        return -0.5 * (x / sigma) ** 2

    return _table(sigma, log_mass, np.array([1, 0, 0]))


@functools.lru_cache(maxsize=64)
def skellam(sigma: float) -> NoiseTable:
    """Returns the law of the difference of two Poisson numbers.

    Args:
      sigma: its standard deviation, in [0.3, 2**26]; each Poisson number has the mean
        ``sigma**2 / 2``.

    Raises:
      ValueError: outside that range.
    """
    _check("skellam", sigma)
    s = sigma**2
    log_mass = functools.partial(_log_skellam, s=s)
    return _table(sigma, log_mass, np.array([1 + 0.5 / s, 1 / (12 * s), 0.025 / s**2]))


def _log_skellam(x: np.ndarray, s: float) -> np.ndarray:
    """The logarithm of the Skellam probability up to a constant, float64."""
    k = np.abs(x).astype(np.float64)
    if s < _SMALL**2:
        with np.errstate(divide="ignore"):
            return np.log(special.ive(k, s))
    # Debye's expansion of the Bessel function; differences would cancel in the closed
    # form of the leading term.
    t2 = (k / s) ** 2
    leading = t2 * (-1 / 2 + t2 * (1 / 24 + t2 * (-1 / 80 + t2 * 5 / 896)))
    p2 = t2 / (1 + t2)
    next_term = (3 - 5 * p2) / (24 * s * np.sqrt(1 + t2))
    return s * leading - 0.25 * np.log1p(t2) + np.log1p(next_term)


def _check(name: str, sigma: float):
    if not MIN_SIGMA <= sigma <= MAX_SIGMA:
        raise ValueError(
            f"{name}: sigma={sigma:g} lattice units: must lie in [{MIN_SIGMA}, 2**26]"
        )


def _table(sigma: float, log_mass, correction: np.ndarray) -> NoiseTable:
    log2_width = 0 if sigma < _SMALL else int(math.log2(sigma / 16))
    width = 1 << log2_width
    start = (np.arange(BLOCKS, dtype=np.int64) - BLOCKS // 2) * width
    peak = np.where(start < 0, start + width - 1, start)
    weights = np.exp(log_mass(peak) - log_mass(np.zeros(1, np.int64)))
    kept, alias = _alias(weights / weights.sum())
    units = np.minimum(kept * 2.0**54, 2.0**54).astype(np.uint64)
    return NoiseTable(
        high=(units >> np.uint64(32)).astype(np.uint32),
        low=units.astype(np.uint32),
        alias=alias,
        log2_width=np.asarray(log2_width, np.uint32),
        inverse_sigma=np.asarray(1 / sigma, np.float32),
        correction=correction.astype(np.float32),
    )


def _alias(probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vose's construction: share that each slot keeps, and whom the rest goes to."""
    n = len(probabilities)
    scaled, alias = probabilities * n, np.arange(n, dtype=np.int32)
    kept = np.ones(n)
    small = [i for i in range(n) if scaled[i] < 1]
    large = [i for i in range(n) if scaled[i] >= 1]
    while small and large:
        poor, rich = small.pop(), large[-1]
        kept[poor], alias[poor] = scaled[poor], rich
        scaled[rich] -= 1 - scaled[poor]
        if scaled[rich] < 1:
            small.append(large.pop())
    return kept, alias


def draw(key: jax.Array, size: int, table: NoiseTable) -> jax.Array:
    """Draws independent integers.

    Args:
      key: typed key.
      size: how many; static.
      table: their law.

    Returns:
      int32 ``[size]``.

    Formal guarantees: every integer that the law gives 2**-50 or more can be drawn,
    some 8 sigma and beyond, without holes. Blocks are drawn to 2**-54; within a block,
    float32 enters in the decision to keep a number alone, and bends the probability of
    one by a factor of 1 +- 1e-6 at most, smoothly.
    """
    proposals = int(size * _SPARE) + 64

    def attempt(carry):
        round, _, _ = carry
        values, kept = _propose(jax.random.fold_in(key, round), proposals, table)
        where = jnp.nonzero(kept, size=size, fill_value=0)[0]
        return round + 1, values[where], jnp.sum(kept) >= size

    # Which proposals are kept does not depend on what the kept ones are, so the first
    # of them are a fair sample, and so is a second attempt where there were too few.
    start = (jnp.uint32(0), jnp.zeros(size, jnp.int32), jnp.bool_(False))
    return jax.lax.while_loop(lambda carry: ~carry[2], attempt, start)[1]


def _propose(
    key: jax.Array, count: int, table: NoiseTable
) -> tuple[jax.Array, jax.Array]:
    """Returns proposals, int32 ``[count]``, and which of them are kept."""
    words = jax.random.bits(key, (4, count), jnp.uint32)
    slot = (words[0] >> _FRACTION_BITS).astype(jnp.int32)
    fraction = words[0] & np.uint32((1 << _FRACTION_BITS) - 1)
    high, low = jnp.asarray(table.high)[slot], jnp.asarray(table.low)[slot]
    own = (fraction < high) | ((fraction == high) & (words[1] < low))
    block = jnp.where(own, slot, jnp.asarray(table.alias)[slot]) - BLOCKS // 2
    shift = jnp.asarray(table.log2_width, jnp.uint32)
    width = jnp.int32(1) << shift.astype(jnp.int32)
    # A shift by 32 is not defined: half of it twice.
    inside = ((words[2] >> 1) >> (31 - shift)).astype(jnp.int32)
    value = block * width + inside
    peak = jnp.abs(block * width + jnp.where(block < 0, width - 1, 0))
    size = jnp.abs(value)
    x, p = size * table.inverse_sigma, peak * table.inverse_sigma
    gaussian = 0.5 * ((size - peak) * table.inverse_sigma) * (x + p)
    x2, p2 = x * x, p * p
    first, second, third = jnp.asarray(table.correction)
    bent = first - second * (x2 + p2) + third * (x2 * x2 + x2 * p2 + p2 * p2)
    chance = words[3].astype(jnp.float32) * np.float32(2.0**-32)
    kept = (size <= peak) | (chance < jnp.exp(-gaussian * bent))
    return value, kept
