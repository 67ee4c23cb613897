"""Quantisers in randomly rotated coordinates: DRIVE and EDEN."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_health.core.hadamard import padded_size, rotate, rotate_back
from fedjax_health.core.message import Message
from fedjax_health.core.types import (
    ClientContext,
    ClientTransform,
    Report,
    State,
    Updates,
)
from fedjax_health.transforms.coding import packed_bytes
from fedjax_health.transforms.compose import keep_shared, no_memory
from fedjax_health.transforms.counting import byte_report, measure_bytes
from fedjax_health.transforms.flat import flatten, unflatten

HEAD_BYTES = 12
"""The scale and the seed of the rotation."""

MAX_BITS = 4


@functools.cache
def centroids(bits: int) -> tuple[float, ...]:
    """Returns the Lloyd-Max centroids of the standard normal, ascending.

    Lloyd's iteration (Lloyd, 1982; Max, 1960): each centroid is the mean of the normal
    between the midpoints to its neighbours.

    Args:
      bits: of a code; ``2**bits`` centroids.
    """

    def density(x: float) -> float:
        return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)

    def below(x: float) -> float:
        return (1 + math.erf(x / math.sqrt(2))) / 2

    count = 2**bits
    found = [4 * (i + 0.5) / count - 2 for i in range(count)]
    for _ in range(2000):
        edges = [-math.inf, *_midpoints(found), math.inf]
        found = [
            (density(low) - density(high)) / (below(high) - below(low))
            for low, high in itertools.pairwise(edges)
        ]
    return tuple(found)


def _midpoints(values) -> list[float]:
    return [(a + b) / 2 for a, b in itertools.pairwise(values)]


def _safe(x: jax.Array) -> jax.Array:
    return jnp.where(x == 0, 1, x)


def _codebook(bits: int, codes: jax.Array) -> jax.Array:
    return jnp.asarray(np.asarray(centroids(bits), np.float32))[codes]


def compress(
    flat: jax.Array, key: jax.Array, *, bits: int, unbiased: bool
) -> tuple[jax.Array, jax.Array]:
    """Returns the codes and the scale that stand for a vector.

    Args:
      flat: float32 ``[d]``.
      key: of the rotation.
      bits: of a code.
      unbiased: which of the two scales, see ``drive``.

    Returns:
      int32 ``[padded_size(d)]`` below ``2**bits``, and float32 ``[]``; NaN for a vector
      that is not finite, 0 for zeros.
    """
    rotated = rotate(flat, key)
    # Nearly normal now; its deviation is measured, and NaN makes every code NaN's.
    squares = jnp.dot(flat, flat, precision=jax.lax.Precision.HIGHEST)
    deviation = _safe(jnp.sqrt(squares / rotated.size))
    edges = np.asarray(_midpoints(centroids(bits)), np.float32)
    codes = sum(
        ((rotated / deviation) > edge).astype(jnp.int32) for edge in edges.tolist()
    )
    values = _codebook(bits, jnp.asarray(codes))
    product = jnp.dot(rotated, values, precision=jax.lax.Precision.HIGHEST)
    if unbiased:
        scale = squares / _safe(product)
    else:
        own = jnp.dot(values, values, precision=jax.lax.Precision.HIGHEST)
        scale = product / own
    return jnp.asarray(codes), jnp.where(squares == 0, 0, scale)


def decompress(
    codes: jax.Array, scale: jax.Array, key: jax.Array, *, bits: int, size: int
) -> jax.Array:
    """Returns the vector that codes and scale stand for, float32 ``[size]``."""
    values = _codebook(bits, codes) * scale
    return jnp.where(scale == 0, 0, rotate_back(values, key, size))


def _send(
    bits: int,
    unbiased: bool,
    updates: Updates,
    memory: State,
    context: ClientContext,
) -> tuple[Updates, State, Report]:
    flat = flatten(updates)
    codes, scale = compress(flat, context.key, bits=bits, unbiased=unbiased)
    sent = decompress(codes, scale, context.key, bits=bits, size=flat.size)
    count = HEAD_BYTES + packed_bytes(padded_size(flat.size), bits)
    return unflatten(sent, updates), memory, byte_report(count)


def _check(bits: int, message: Message) -> Message:
    codes = packed_bytes(padded_size(message.num_params), bits)
    return dataclasses.replace(
        message,
        bound=None,
        density=1.0,
        bits=bits,
        index_bits=0.0,
        # Codes of the coordinates that padding adds are sent as well.
        overhead_bytes=message.overhead_bytes
        + HEAD_BYTES
        + codes
        - packed_bytes(message.num_params, bits),
    )


def drive(*, unbiased: bool = True) -> ClientTransform:
    """Sends the signs of the update in randomly rotated coordinates, and one scale.

    Vargaftik et al., 2021, "DRIVE: One-bit Distributed Mean Estimation"
    (arXiv:2105.08339), with the randomised Hadamard rotation R of the whole update:
    ``S R^-1 sign(R x)``, where ``S = norm(x)^2 / norm(Rx)_1`` is unbiased and
    ``S = norm(Rx)_1 / d`` has the least error. Every client draws its own rotation and
    sends the seed. The rotation pads to a power of two, so up to two bits a coordinate
    are sent.

    Args:
      unbiased: which scale; the biased one suits ``error_feedback``.

    Formal guarantees: with a uniformly random rotation the first scale is unbiased;
    with the Hadamard rotation nearly so. The squared error of one message is about
    pi/2 - 1 = .57 of ``norm(x)**2`` with it and 1 - 2/pi = .36 with the other. The
    norm may grow, so a bound before it is void.
    """
    return _rotated(1, unbiased)


def eden(bits: int = 2) -> ClientTransform:
    """Rounds the update to a few centroids in randomly rotated coordinates.

    Vargaftik et al., 2022, "EDEN" (arXiv:2108.08842): ``S R^-1 Q(R x)``, Q the nearest
    Lloyd-Max centroid of a normal of the coordinates' deviation and
    ``S = norm(x)^2 / <Rx, Q(Rx)>``. With one bit it is ``drive``. The paper's fractions
    of a bit are left out. The number of bits is static.

    Args:
      bits: of a coordinate, in [1, 4].

    Formal guarantees: unbiased as ``drive`` is; the squared error of one message is
    about .57, .13, .036 and .0096 of ``norm(x)**2`` at 1 to 4 bits.

    Raises:
      ValueError: for bits out of range.
    """
    if bits not in range(1, MAX_BITS + 1):
        raise ValueError(f"eden: bits must lie in [1, {MAX_BITS}], not {bits}")
    return _rotated(int(bits), True)


@functools.cache
def _rotated(bits: int, unbiased: bool) -> ClientTransform:
    return ClientTransform(
        no_memory,
        no_memory,
        functools.partial(_send, bits, unbiased),
        keep_shared,
        functools.partial(_check, bits),
        measure=measure_bytes,
    )
