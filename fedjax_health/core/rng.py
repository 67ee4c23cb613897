"""Every random number of a run comes from one root key by ``fold_in``.

No key is split and carried: a draw depends on the root key, the purpose, the round
and the global client id alone, never on a row number or a device index, so the same
client sees the same numbers however the cohort is laid out over devices.
"""

import enum

import jax
import jax.numpy as jnp

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


# Numbers that are made at a time: XLA would spread the work on more over threads, which
# the engine's devices keep busy already.
_CHUNK = 1024

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))

# Normal number over 2 p - 1 as a polynomial, highest power first, after Giles, 2010,
# "Approximating the erfinv function"; fitted anew, for his tails end at 5.4. With
# w = -log(4 p (1 - p)): in w - 2.5 where w < 5, else in sqrt(w) - 3; to 4e-7.
_MIDDLE = (
    4.4636579e-07,
    -4.5054871e-06,
    -5.7899724e-06,
    3.0735933e-04,
    -1.7743172e-03,
    -5.9061213e-03,
    3.4880364e-01,
    2.1233132,
)
_TAILS = (
    -2.3956444e-04,
    1.6368869e-03,
    -4.7495938e-03,
    8.1956144e-03,
    -1.0935221e-02,
    1.3338361e-02,
    1.4165951,
    4.0064349,
)


def words(key: Key, counters: jax.Array, draw: jax.Array | int = 0) -> jax.Array:
    """Returns one random word for each counter: the first of its Threefry block.

    The twenty rounds of Threefry-2x32 (Salmon et al., 2011) stand one after the other,
    so that XLA makes one loop of them; JAX's own are a loop over all numbers.

    Args:
      key: a typed threefry key.
      counters: uint32, any shape.
      draw: uint32 ``[]``, which of the key's draws this is.

    Returns:
      uint32 of the shape of ``counters``.
    """
    data = jax.random.key_data(key)
    parts = (data[0], data[1], data[0] ^ data[1] ^ jnp.uint32(0x1BD11BDA))
    x, y = counters + parts[0], jnp.asarray(draw, jnp.uint32) + parts[1]
    for i in range(5):
        for rotation in _ROTATIONS[i % 2]:
            x = x + y
            y = ((y << rotation) | (y >> (32 - rotation))) ^ x
        x = x + parts[(i + 1) % 3]
        y = y + parts[(i + 2) % 3] + jnp.uint32(i + 1)
    return x


def normal(key: Key, size: int, draw: jax.Array | int = 0) -> jax.Array:
    """Returns standard normal numbers, float32 ``[size]``.

    By the inverse of the distribution function of all 32 bits of a word: 2**32 values
    up to 6.3 from zero, where ``jax.random.normal`` has 2**23 up to 5.4.

    Args:
      key: a typed threefry key.
      size: how many.
      draw: uint32 ``[]``, which of the key's draws this is; all are independent.
    """
    on_cpu = jax.default_backend() == "cpu"
    chunk = min(size, _CHUNK) if on_cpu else size
    lanes = jnp.arange(chunk, dtype=jnp.uint32)

    def body(i: jax.Array, carry):
        ready, numbers = carry
        # Carried over: in one kernel with what is made of them, the words' rounds would
        # be gone through once for every use.
        ahead = words(key, (i + 1).astype(jnp.uint32) * chunk + lanes, draw)
        own = _inverse_normal(ready)
        return ahead, jax.lax.dynamic_update_slice(numbers, own, (i * chunk,))

    count = -(-size // max(chunk, 1))
    start = (words(key, lanes, draw), jnp.zeros(count * chunk))
    return jax.lax.fori_loop(0, count, body, start)[1][:size]


def _inverse_normal(word: jax.Array) -> jax.Array:
    """Returns the normal number below which lie ``(word + 1/2) / 2**32`` of all."""
    unit = jnp.float32(2.0**-31)
    # 2 min(p, 1 - p), exact in both tails, and 2 p - 1.
    tail = jnp.minimum(word, ~word).astype(jnp.int32).astype(jnp.float32) + 0.5
    tail = tail * unit
    signed = (word ^ jnp.uint32(0x80000000)).astype(jnp.int32).astype(jnp.float32)
    w = -jnp.log(tail * (2.0 - tail))
    middle = w < 5.0
    at = jnp.where(middle, w - 2.5, jnp.sqrt(w) - 3.0)
    value = jnp.where(middle, _MIDDLE[0], _TAILS[0])
    for a, b in zip(_MIDDLE[1:], _TAILS[1:], strict=True):
        value = jnp.where(middle, a, b) + value * at
    return value * (signed * unit + 0.5 * unit)
