"""Distributed noise under a secure sum: no one is trusted with a message.

The distributed discrete Gaussian (Kairouz et al., 2021, arXiv:2102.06387) and the
Skellam mechanism (Agarwal et al., 2021, arXiv:2110.04995): each client turns its
clipped message by a random sign flip and a Walsh-Hadamard transform, scales it, rounds
it at random until its norm is within a bound, and adds integer noise of its own; the
server sees the modular sum, whose noise is that of all clients together.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from fedjax_health.core import hadamard
from fedjax_health.core import noise as laws
from fedjax_health.core.message import CompositionError, Message
from fedjax_health.core.types import (
    BoundMechanism,
    Codec,
    Key,
    Mechanism,
    Params,
    Sampling,
    State,
    Updates,
)
from fedjax_health.privacy import lattice
from fedjax_health.privacy.accounting import Accounting, Target, check_multiplier
from fedjax_health.privacy.central import own_noise

# Below, a sum of discrete Gaussians is not near enough to one; from here on they differ
# by less than 1e-16 for 10,000 clients (Kairouz et al., 2021, theorem 1).
LEAST_LOCAL_SIGMA = 2.0

# Chance with which one try of the rounding may miss its norm bound.
_MISS = math.exp(-0.5)
_TRIES = 64

# The rotation is public and the same for ever: any fixed rotation keeps norms, which is
# all that privacy rests on, and a random one drawn apart from the data spreads each
# message evenly with the same probability in every round.
_ROTATION_SEED = 0x5EED


def distributed_discrete_gaussian(
    noise_multiplier: float | Target, *, non_contributing: int = 0
) -> Mechanism:
    """Each client adds discrete Gaussian noise to its message under a secure sum.

    Args:
      noise_multiplier: standard deviation over the bound of a message of the noise that
        the fewest messages whose sum is released carry together, or the target.
      non_contributing: clients among these that are taken to add no noise, or to tell
        theirs to the server.

    Formal guarantees: a released sum holds ``min_messages`` or more messages, so its
    noise is that of ``min_messages - non_contributing`` clients at least, a discrete
    Gaussian up to 1e-16, of scale ``noise_multiplier`` times the norm bound of a
    rounded message; accounted as the Gaussian of that multiplier.

    Raises:
      ValueError: for numbers out of range.
      CompositionError: in ``bind``, without a secure sum, or if its noise does not fit.
    """
    return _distributed(
        "distributed_discrete_gaussian",
        "discrete Gaussian, its parts added by the clients, release grade",
        laws.discrete_gaussian,
        _plain,
        noise_multiplier,
        non_contributing,
    )


def distributed_skellam(
    noise_multiplier: float | Target, *, non_contributing: int = 0
) -> Mechanism:
    """Each client adds Skellam noise to its message under a secure sum.

    A sum of Skellam numbers is one, exactly. See ``distributed_discrete_gaussian`` for
    the arguments.

    Formal guarantees: the noise is widened until its Renyi divergence is at most the
    Gaussian's of that multiplier at every integer order (Agarwal et al., 2021, theorem
    3.5); accounted as that Gaussian.

    Raises:
      ValueError: for numbers out of range.
      CompositionError: in ``bind``, without a secure sum, or if its noise does not fit.
    """
    return _distributed(
        "distributed_skellam",
        "Skellam, its parts added by the clients, release grade",
        laws.skellam,
        skellam_scale,
        noise_multiplier,
        non_contributing,
    )


def _distributed(
    name: str,
    words: str,
    law: Callable[[float], laws.NoiseTable],
    widened: Callable[[float, float, int], float],
    noise_multiplier: float | Target,
    non_contributing: int,
) -> Mechanism:
    check_multiplier(name, noise_multiplier)
    if non_contributing < 0:
        raise ValueError(
            f"{name}: non_contributing must be 0 or more, not {non_contributing}"
        )
    accounting = Accounting(
        noise_multiplier,
        words,
        "everybody, the server included, who sees secure sums alone, as long as "
        f"no more than {non_contributing} clients of a released sum withhold or tell "
        "their noise",
    )

    def bind(message: Message, sampling: Sampling) -> BoundMechanism:
        contributing = _check(name, message, non_contributing)
        z = own_noise(name, accounting, message, sampling)
        grid = _choose(name, message, sampling.cohort_size, z)
        sigma = widened(grid.sigma, grid.sensitivity, message.num_params)
        local = sigma / math.sqrt(contributing)
        if local < LEAST_LOCAL_SIGMA:
            raise CompositionError(
                f"{name}: a client's own noise would be {local:.2g} lattice units: "
                "use a smaller cohort or a larger modulus, so that the lattice is finer"
            )

        def init(params: Params) -> State:
            del params
            return {
                "scale": jnp.float32(2.0**grid.bits),
                "limit": jnp.float32(grid.sensitivity),
                "noise": jax.tree.map(jnp.asarray, law(local)),
            }

        return BoundMechanism(init, codec=_codec(min(message.modulus_bits or 32, 32)))

    return Mechanism(bind, accounting)


def _check(name: str, message: Message, non_contributing: int) -> int:
    """Returns how many clients' noise a released sum holds at least."""
    if message.modulus_bits is None:
        raise CompositionError(
            f"{name}: a client's own noise hides nothing from a server that sees each "
            "message: use secure_mean, or central_gaussian or local_gaussian"
        )
    if message.side_multiplier is not None:
        raise CompositionError(
            f"{name}: the bits of adaptive clipping reach the server unnoised: use "
            "clip_l2"
        )
    contributing = message.min_messages - non_contributing
    if contributing < 1:
        raise CompositionError(
            f"{name}: non_contributing={non_contributing} leaves no noise in a sum of "
            f"{message.min_messages} messages: raise the threshold of the secure sum"
        )
    return contributing


def rounded_norm(norm: float, size: int) -> float:
    """Returns the norm bound of a randomly rounded vector.

    ``min(L2 + sqrt(d), sqrt(L2**2 + d / 4 + sqrt(2 ln(1 / beta)) (L2 + sqrt(d) / 2)))``
    at beta = exp(-1/2) (Kairouz et al., 2021).

    Args:
      norm: L2 norm before rounding.
      size: numbers of the vector.
    """
    root = math.sqrt(size)
    spread = math.sqrt(2 * math.log(1 / _MISS)) * (norm + root / 2)
    return min(norm + root, math.sqrt(norm**2 + size / 4 + spread))


def _choose(name: str, message: Message, summands: int, z: float) -> lattice.Lattice:
    modulus = min(message.modulus_bits or 32, 32)
    room, size = 2.0 ** (modulus - 1), hadamard.padded_size(message.num_params)
    for bits in range(lattice.MOST_BITS, 0, -1):
        norm = 2.0**bits * (1 + lattice.clip_slack(message.num_params))
        limit = rounded_norm(norm, size)
        sigma = z * limit
        # A rotated message is nearly normal with norm / sqrt(d) in each coordinate; in
        # the worst case all messages of a cohort are one and the same.
        rotated = min(summands * limit, summands * (norm * 10 / math.sqrt(size) + 1))
        # Clients above the threshold add noise of their own on top.
        reach = rotated + lattice.TAIL * sigma * math.sqrt(
            max(summands / message.min_messages, 1)
        )
        if limit > 2.0 ** (bits + 1):
            break
        if reach < room and sigma <= laws.MAX_SIGMA:
            return lattice.Lattice(bits, limit, sigma)
    raise CompositionError(
        f"{name}: {summands:,} messages of {message.num_params:,} numbers and noise of "
        f"{z:g} bounds do not fit a modulus of 2**{modulus}: use a larger modulus or a "
        "smaller cohort"
    )


def _plain(sigma: float, sensitivity: float, size: int) -> float:
    del sensitivity, size
    return sigma


def skellam_divergence(
    order: int, variance: float, sensitivity: float, size: int
) -> float:
    """Returns the Renyi divergence bound of Skellam noise at an integer order.

    Args:
      order: 2 or more.
      variance: of the noise in a sum.
      sensitivity: L2 norm of one message's integers.
      size: numbers of a message.
    """
    l2, l1 = sensitivity, min(math.sqrt(size) * sensitivity, sensitivity**2)
    extra = min(
        ((2 * order - 1) * l2**2 + 6 * l1) / (4 * variance**2), 3 * l1 / (2 * variance)
    )
    return order * l2**2 / (2 * variance) + extra


def skellam_scale(sigma: float, sensitivity: float, size: int) -> float:
    """Returns the standard deviation at which Skellam noise is worth Gaussian noise.

    Args:
      sigma: standard deviation of the Gaussian noise.
      sensitivity: L2 norm of one message's integers.
      size: numbers of a message.
    """
    orders = (2, 3, 4, 8, 16, 64, 256, 1024)

    def enough(scale: float) -> bool:
        return all(
            skellam_divergence(order, scale**2, sensitivity, size)
            <= order * sensitivity**2 / (2 * sigma**2) * (1 + 1e-15)
            for order in orders
        )

    low, high = sigma, 2 * sigma
    while not enough(high):
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


@functools.cache
def _codec(modulus_bits: int) -> Codec:
    return Codec(_encode, functools.partial(_decode, modulus_bits))


def _rotation() -> Key:
    return jax.random.key(_ROTATION_SEED, impl="threefry2x32")


def _encode(
    updates: Updates, weight: jax.Array, state: Any, key: Key, bound: jax.Array | None
) -> tuple[Any, jax.Array]:
    assert bound is not None
    flat = ravel_pytree(updates)[0].astype(jnp.float32) * weight
    turned = hadamard.rotate(flat, _rotation()) * (state["scale"] / bound)
    integers = conditional_rounding(turned, state["limit"], jax.random.fold_in(key, 0))
    noise = laws.draw(jax.random.fold_in(key, 1), integers.size, state["noise"])
    # Integers keep the message's structure only in number: the sum is one vector.
    return integers + noise, jnp.float32(0)


def conditional_rounding(values: jax.Array, limit: jax.Array, key: Key) -> jax.Array:
    """Rounds at random, without bias, and again until the norm is within a limit.

    Args:
      values: float32 ``[d]``.
      limit: of the L2 norm, float32 ``[]``.
      key: of the rounding.

    Returns:
      int32 ``[d]`` of norm ``limit`` at most (up to float32 rounding); after 64 misses,
      which no bounded vector meets, the values cut towards zero, and zeros for what is
      not finite.
    """
    values = jnp.where(jnp.all(jnp.isfinite(values)), values, 0.0)
    low = jnp.floor(values)
    share = values - low

    def within(integers: jax.Array) -> jax.Array:
        squares = jnp.dot(integers, integers, precision=jax.lax.Precision.HIGHEST)
        return squares <= limit * limit

    def attempt(carry):
        tries, _, _ = carry
        chance = jax.random.uniform(jax.random.fold_in(key, tries), values.shape)
        rounded = low + (chance < share)
        return tries + 1, rounded, within(rounded)

    start = (jnp.uint32(0), low, jnp.bool_(False))
    _, rounded, good = jax.lax.while_loop(
        lambda carry: ~carry[2] & (carry[0] < _TRIES), attempt, start
    )
    cut = jnp.trunc(values)
    norm = jnp.sqrt(jnp.dot(cut, cut, precision=jax.lax.Precision.HIGHEST))
    cut = jnp.trunc(cut * jnp.minimum(1.0, limit / jnp.maximum(norm, 1.0)))
    return jnp.where(good, rounded, cut).astype(jnp.int32)


def _decode(
    modulus_bits: int,
    total: Any,
    state: Any,
    bound: jax.Array | None,
    like: Updates,
) -> Updates:
    assert bound is not None
    # Shapes alone cannot be raveled where a round is vmapped: nothing drops them there.
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    flat, unravel = ravel_pytree(zeros)
    summed = jnp.asarray(total)
    if modulus_bits < 32:
        shift = np.int32(32 - modulus_bits)
        summed = (summed << shift) >> shift
    turned = summed.astype(jnp.float32) * (bound / state["scale"])
    back = hadamard.rotate_back(turned, _rotation(), flat.size)
    return unravel(back.astype(flat.dtype))
