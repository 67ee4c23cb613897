"""What the steps of a wire do to arrays; ``wire`` has the records that name them.

``messages`` are ``[examples, numbers]``, one example's message a row.
"""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_health.core.rng import normal
from fedjax_health.core.types import Key

# Below it float32 is denormal, and a device may round it to zero.
_TINY = np.float32(np.finfo(np.float32).tiny)


def clip(messages: jax.Array, max_norm: float) -> jax.Array:
    """Returns messages whose L2 norm is at most ``max_norm``; others stay as they are.

    Differentiable, the factor included; zero rows have the gradient of the identity.
    """
    # In units of the bound, whose own square may be 0 or infinite in float32.
    squares = jnp.sum((messages / max_norm) ** 2, axis=1, keepdims=True)
    long = squares > 1
    factor = jax.lax.rsqrt(jnp.where(long, squares, 1.0))
    return messages * jnp.where(long, factor, 1.0)


def add_noise(messages: jax.Array, deviation: float, key: Key) -> jax.Array:
    """Returns messages with Gaussian noise of a standard deviation on each number.

    The noise is a float32 generator's: for simulation, not for a release, since such
    noise tells some pairs of inputs apart (Mironov, 2012; see ``core.noise``).
    """
    drawn = normal(key, messages.size).reshape(messages.shape)
    return messages + (deviation * drawn).astype(messages.dtype)


def largest_level(bits: int) -> int:
    """Returns L: the levels are the integers from -L to L, 0 among them."""
    return 2 ** (bits - 1) - 1


def quantise(messages: jax.Array, bits: int, key: Key | None) -> jax.Array:
    """Returns messages on a uniform grid of ``2**bits - 1`` levels; 0 stays 0.

    A value is ``level * (scale * float32(1 / L))`` with the row's largest magnitude as
    scale, so whoever has levels and scale has the value to the last bit. With a key a
    value goes up or down at random so that its mean is kept; without, to the nearest.
    The gradient is that of the identity.
    """
    fixed = jax.lax.stop_gradient(messages)
    most = largest_level(bits)
    scale = jnp.max(jnp.abs(fixed), axis=1, keepdims=True, initial=0)
    step = scale * np.float32(1 / most)
    # A NaN stays one.
    none = step < _TINY
    ratio = fixed / jnp.where(none, 1, step)
    if key is None:
        level = jnp.round(ratio)
    else:
        below = jnp.floor(ratio)
        draw = jax.random.uniform(key, ratio.shape)
        level = below + (draw < ratio - below)
    level = jnp.clip(level, -most, most)
    return _straight_through(messages, jnp.where(none, 0, level * step))


@jax.custom_jvp
def _straight_through(values: jax.Array, stand_in: jax.Array) -> jax.Array:
    del values
    return stand_in


@_straight_through.defjvp
def _straight_through_jvp(primals, tangents):
    return primals[1], tangents[0]


def kept(keep: float, numbers: int) -> int:
    """Returns how many numbers of a message top-k keeps, one at least."""
    return min(max(1, round(keep * numbers)), numbers)


def keep_largest(messages: jax.Array, count: int) -> jax.Array:
    """Returns messages with all but the ``count`` largest magnitudes set to 0.

    Of equal magnitudes the ones that come first are kept; a NaN counts as largest. The
    gradient is that of the mask.
    """
    bits = jax.lax.bitcast_convert_type(
        jnp.abs(jax.lax.stop_gradient(messages)).astype(jnp.float32), jnp.int32
    )
    least = _largest(lambda t: jnp.sum(bits >= t, 1, keepdims=True) >= count, bits, 31)
    above, ties = bits > least, bits == least
    room = count - jnp.sum(above, axis=1, keepdims=True)
    index = jnp.arange(messages.shape[1], dtype=jnp.int32)
    # The last place before which there is still room for all ties.
    end = _largest(
        lambda e: jnp.sum(ties & (index < e), 1, keepdims=True) <= room,
        bits,
        messages.shape[1].bit_length(),
    )
    return jnp.where(above | (ties & (index < end)), messages, 0)


def _largest(holds, rows: jax.Array, bits: int) -> jax.Array:
    """Returns for each row the largest integer of so many bits for which it holds."""

    def set_bit(i, found):
        tried = found | (1 << (bits - 1 - i))
        return jnp.where(holds(tried), tried, found)

    start = jnp.zeros((rows.shape[0], 1), jnp.int32)
    return jax.lax.fori_loop(0, bits, set_bit, start)


def drop(messages: jax.Array, rate: float, key: Key) -> jax.Array:
    """Returns messages with numbers set to 0 at a rate, the others scaled up."""
    there = jax.random.bernoulli(key, 1 - rate, messages.shape)
    return jnp.where(there, messages / (1 - rate), 0)


def align_norms(rows: jax.Array, counts: jax.Array, key: Key) -> jax.Array:
    """Returns gradients whose expected squared norm is the largest of the batch.

    Each row gets Gaussian noise along its own direction (Li et al., 2022, section 4.1,
    ``max_norm``); a zero row has no direction and stays.

    Args:
      rows: ``[rows, width]``.
      counts: bool ``[rows]``; the others neither count nor change.
      key: of the noise.
    """
    counted = jnp.where(counts[:, None], rows, 0)
    # Squares of small gradients would be 0.
    scale = jnp.max(jnp.abs(counted), initial=0)
    scale = jnp.where(scale < _TINY, 1, scale)
    squares = jnp.sum((counted / scale) ** 2, axis=1)
    missing = jnp.max(squares, initial=0) - squares
    factor = jnp.sqrt(missing / jnp.where(squares > 0, squares, 1))
    drawn = normal(key, rows.shape[0]).astype(rows.dtype)
    moved = counted * (1 + (factor * drawn)[:, None])
    return jnp.where(counts[:, None], moved, rows)
