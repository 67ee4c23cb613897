"""Every random number of a run comes from one root key by ``fold_in``.

No key is split and carried: a draw depends on the root key, the purpose, the round
and the global client id alone, never on a row number or a device index, so the same
client sees the same numbers however the cohort is laid out over devices.
"""

import enum
import math

import jax
import jax.numpy as jnp
from jax.extend.random import threefry_2x32

Key = jax.Array

# Stands where a client's id would, for the server's own draws; client ids are int32.
SERVER = 2**32 - 1


class Stream(enum.IntEnum):
    """The purposes for which random numbers are drawn."""

    INIT = 0
    DATA = 1
    SAMPLE = 2
    DROPOUT = 3
    TRAIN = 4
    TRANSFORM = 5
    ATTACK = 6
    AGGREGATE = 7
    MASK = 8
    MECHANISM = 9
    EXAMPLE = 10
    ORDER = 11


def root_key(seed: int) -> Key:
    """Returns the typed threefry key from which a run draws everything.

    Args:
      seed: a non-negative integer below 2**32.

    Raises:
      ValueError: if ``seed`` is outside that range.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must lie in [0, 2**32), not {seed}")
    return jax.random.key(seed, impl="threefry2x32")


def key_for(
    root: Key,
    stream: Stream,
    round: jax.Array | int | None = None,
    client_id: jax.Array | int | None = None,
    step: jax.Array | int | None = None,
) -> Key:
    """Returns the key of one purpose, folded in the order of the arguments.

    Args:
      root: the run's root key.
      stream: the purpose.
      round: the round, or None for a draw outside rounds.
      client_id: the client's id in the population (not its row in the cohort), or
        ``SERVER``: a draw without an id would be the parent of the clients' keys.
      step: the local step.
    """
    key = jax.random.fold_in(root, int(stream))
    for number in (round, client_id, step):
        if number is not None:
            key = jax.random.fold_in(key, jnp.asarray(number, jnp.uint32))
    return key


def normal(key: Key, size: int) -> jax.Array:
    """Returns standard normal numbers, float32 ``[size]``.

    By the inverse of the distribution function, as ``jax.random.normal`` does, of one
    Threefry word each: JAX draws two words for every number and keeps one.

    Args:
      key: a typed threefry key.
      size: how many.
    """
    words = threefry_2x32(jax.random.key_data(key), jnp.arange(size, dtype=jnp.uint32))
    # 23 random bits make a float32 in [1, 2).
    ones = jax.lax.bitcast_convert_type(
        (words >> 9) | jnp.uint32(0x3F800000), jnp.float32
    )
    low = jnp.nextafter(jnp.float32(-1), jnp.float32(0))
    uniform = jnp.maximum((ones - 1.0) * (1.0 - low) + low, low)
    return jnp.float32(math.sqrt(2)) * jax.lax.erf_inv(uniform)
