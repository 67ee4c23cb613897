"""A random permutation of ``range(n)`` that is evaluated one position at a time.

Clients are ragged, and a shuffled epoch by sorting would need a buffer as long as the
largest client. The swap-or-not network (Hoang, Morris and Rogaway, "An enciphering
scheme based on a card shuffle", CRYPTO 2012) is a bijection of any ``range(n)``, needs
no memory, and is elementwise: a batch pays for its own positions only. Sixteen rounds
are far from enough for a cipher and plenty for stochastic gradients: a position misses
being moved uniformly with probability 2**-16.
"""

import jax
import jax.numpy as jnp

ROUNDS = 16


def _scramble(x: jax.Array) -> jax.Array:
    # The 32-bit finaliser of MurmurHash3 (Appleby), which is in the public domain.
    x = x ^ (x >> 16)
    x = x * jnp.uint32(0x85EBCA6B)
    x = x ^ (x >> 13)
    x = x * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def permutation_words(key: jax.Array) -> jax.Array:
    """Returns the random words, uint32 ``[2, ROUNDS]``, that fix a permutation.

    They are hashed from the key's own 64 bits: drawing them would cost more than all
    else that orders an epoch.
    """
    data = jax.random.key_data(key)
    counters = jnp.arange(2 * ROUNDS, dtype=jnp.uint32).reshape(2, ROUNDS)
    mixed = _scramble(data[0] + counters * jnp.uint32(0x9E3779B9))
    return _scramble(mixed ^ data[1])


def permute(
    words: jax.Array, epoch: jax.Array, positions: jax.Array, n: jax.Array
) -> jax.Array:
    """Returns where a shuffled epoch sends its positions.

    Args:
      words: uint32 ``[2, ROUNDS]`` from ``permutation_words``.
      epoch: int32 ``[]``; every epoch has a permutation of its own.
      positions: int32, any shape; one beyond the last counts as the last.
      n: int32 ``[]``, at least 1.

    Returns:
      int32 of the shape of ``positions``: a bijection of ``range(n)``.
    """
    mixed = _scramble(words + epoch.astype(jnp.uint32) * jnp.uint32(0x9E3779B9))
    n = n.astype(jnp.uint32)
    pivots = mixed[0] % n
    # The filler of a short batch must not reach into another client's examples.
    x = jnp.minimum(positions.astype(jnp.uint32), n - 1)
    for i in range(ROUNDS):
        partner = pivots[i] + jnp.where(x > pivots[i], n, jnp.uint32(0)) - x
        chooser = jnp.maximum(x, partner) + mixed[1, i]
        chooser = (chooser ^ (chooser >> 15)) * jnp.uint32(0x2C1B3C6D)
        chooser = (chooser ^ (chooser >> 12)) * jnp.uint32(0x297A2D39)
        x = jnp.where(chooser >> 31 == 1, partner, x)
    return x.astype(jnp.int32)
