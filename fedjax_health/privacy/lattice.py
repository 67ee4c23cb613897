"""Messages on a lattice, so that integer noise can be added to integer sums.

The step of the lattice is ``bound * 2**-k``: a message of L2 norm ``bound`` becomes
integers of norm ``2**k``, and the noise in lattice units does not depend on the bound,
which may vary between rounds (adaptive clipping).
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_health.core import noise, trees
from fedjax_health.core.message import CompositionError, Message
from fedjax_health.core.types import Codec, Key, Updates

# Finer lattices gain nothing: a float32 has 24 bits.
MOST_BITS = 22

# Noise beyond this many standard deviations may wrap around: 1e-23 a coordinate.
TAIL = 10.0

Table = noise.NoiseTable


class Lattice(NamedTuple):
    """How fine a lattice is, and what one message can move on it.

    Attributes:
      bits: k; the step is ``bound * 2**-k``.
      sensitivity: L2 norm of the integers of one message at most.
      sigma: standard deviation of the noise, in lattice units.
    """

    bits: int
    sensitivity: float
    sigma: float


def clip_slack(num_params: int) -> float:
    """Returns by what share a clipped float32 message may exceed its bound.

    A sum of squares in float32 errs by some ``sqrt(d)`` roundings (Higham and Mary,
    2019), and scaling by a few more.
    """
    return (32 + math.sqrt(num_params)) * 2.0**-24


def integer_norm(bits: int, num_params: int) -> float:
    """Returns the largest L2 norm of a message on the lattice: nearest rounding."""
    return 2.0**bits * (1 + clip_slack(num_params)) + math.sqrt(num_params) / 2


def choose_lattice(
    name: str,
    message: Message,
    summands: int,
    noise_multiplier: float,
    *,
    releases: float = 1.0,
) -> Lattice:
    """Chooses the finest lattice on which a sum and its noise cannot wrap around.

    Args:
      name: of the mechanism, for the message.
      message: what is summed.
      summands: messages in a sum at most.
      noise_multiplier: standard deviation over the bound of one message.
      releases: times the noise's standard deviation that the sum must hold.

    Raises:
      CompositionError: if the modulus leaves no room.
    """
    modulus = min(message.modulus_bits or 32, 32)
    room = 2.0 ** (modulus - 1)
    for bits in range(MOST_BITS, 0, -1):
        sensitivity = integer_norm(bits, message.num_params)
        sigma = noise_multiplier * sensitivity
        reach = summands * (2.0**bits + 1) + TAIL * releases * sigma
        # Below twice the bound, rounding would cost more than the message is worth.
        if sensitivity > 2.0 ** (bits + 1):
            break
        if reach < room and noise.MIN_SIGMA <= sigma <= noise.MAX_SIGMA:
            return Lattice(bits, sensitivity, sigma)
    raise CompositionError(
        f"{name}: {summands:,} messages of {message.num_params:,} numbers and noise of "
        f"{noise_multiplier:g} bounds do not fit a modulus of 2**{modulus}: use a "
        "larger modulus or a smaller cohort"
    )


@functools.cache
def nearest_codec() -> Codec:
    """Returns the codec that rounds each number to the nearest lattice point.

    Its state is a mapping with ``scale``, ``2**k``. Deterministic.

    Formal guarantees: the integers of a message of norm ``bound`` (up to float32
    rounding) have norm at most ``integer_norm(k, d)``.
    """
    return Codec(_encode, _decode)


def _encode(
    updates: Updates, weight: jax.Array, state: Any, key: Key, bound: jax.Array | None
) -> tuple[Any, jax.Array]:
    del key
    assert bound is not None
    integers = round_to_lattice(trees.scale(updates, weight), bound, state["scale"])
    limit = state["scale"].astype(jnp.int32) + 1
    count = max(trees.num_params(integers), 1)
    outside = sum(
        (jnp.sum(jnp.abs(x) > limit) for x in jax.tree.leaves(integers)), jnp.int32(0)
    )
    cut = jax.tree.map(lambda x: jnp.clip(x, -limit, limit), integers)
    return cut, outside.astype(jnp.float32) / count


def _decode(total: Any, state: Any, bound: jax.Array | None, like: Updates) -> Updates:
    assert bound is not None
    step = bound / state["scale"]
    return jax.tree.map(
        lambda x, y: (x.astype(jnp.float32) * step).astype(y.dtype), total, like
    )


def round_to_lattice(updates: Updates, bound: jax.Array, scale: jax.Array) -> Any:
    """Returns the nearest lattice points as int32; what is huge is cut."""
    factor = scale / bound

    def one(x: jax.Array) -> jax.Array:
        scaled = jnp.round(x.astype(jnp.float32) * factor)
        return jnp.clip(scaled, -(2.0**30), 2.0**30).astype(jnp.int32)

    return jax.tree.map(one, updates)


def add_noise(integers: Any, key: Key, table: Table) -> Any:
    """Adds independent integer noise to every number of an int32 tree."""
    leaves, treedef = jax.tree.flatten(integers)
    drawn = noise.draw(key, sum(x.size for x in leaves), table)
    ends = np.cumsum([x.size for x in leaves])[:-1]
    parts = jnp.split(drawn, ends)
    return treedef.unflatten(
        [x + n.reshape(x.shape) for x, n in zip(leaves, parts, strict=True)]
    )


def add_float_noise(updates: Updates, key: Key, sigma: jax.Array) -> Updates:
    """Adds independent float32 normal noise: good for simulations alone."""
    leaves, treedef = jax.tree.flatten(updates)
    keys = [jax.random.fold_in(key, i) for i in range(len(leaves))]
    return treedef.unflatten(
        [
            x + (sigma * jax.random.normal(k, x.shape, jnp.float32)).astype(x.dtype)
            for x, k in zip(leaves, keys, strict=True)
        ]
    )


def add_rounded_noise(integers: Any, key: Key, sigma: jax.Array) -> Any:
    """Adds rounded float32 normal noise to an int32 tree."""
    noises = add_float_noise(
        jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), integers), key, sigma
    )
    return jax.tree.map(
        lambda x, n: x + jnp.round(n).astype(jnp.int32), integers, noises
    )
