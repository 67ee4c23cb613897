"""Signed fixed point: how an update becomes integers whose sum hides it.

A coordinate of ``weight / max_weight * update`` is divided by a step, rounded to the
nearest integer and cut to ``bits`` bits with sign. Sums are taken modulo a power of
two that no sum of a cohort can pass, so decoding is exact up to the rounding.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_health.core.message import CompositionError
from fedjax_health.core.types import Codec, State, Updates

LEAST_BITS = 2
MOST_BITS = 24
"""A float32 holds integers of 24 bits; more would encode its rounding errors."""

WORD_BITS = 32
"""Sums are int32 whose addition wraps."""


class FixedPoint(NamedTuple):
    """The numbers of the encoding, which are traced.

    Attributes:
      max_weight: float32 ``[]``, the weight that counts as 1; larger are cut to it.
      value_range: float32 ``[]``, largest magnitude of a coordinate; infinite where the
        message's L2 bound alone limits it.
    """

    max_weight: jax.Array
    value_range: jax.Array


def levels(bits: int) -> int:
    """Returns the largest integer of a signed value of so many bits."""
    return 2 ** (bits - 1) - 1


def modulus_bits(num_messages: int, bits: int) -> int:
    """Returns the bits of the smallest modulus that a sum cannot pass.

    A sum of ``n`` values lies within ``n (2**(bits - 1) - 1)``, which must stay below
    half the modulus.

    Raises:
      CompositionError: if that is beyond 32 bits; the text names the largest ``bits``
        that fit.
    """
    largest = num_messages * levels(bits)
    needed = largest.bit_length() + 1
    if needed > WORD_BITS:
        fitting = [b for b in range(LEAST_BITS, bits) if _fits(num_messages, b)]
        advice = (
            f"use at most bits={fitting[-1]}" if fitting else "draw a smaller cohort"
        )
        raise CompositionError(
            f"the sum of {num_messages} messages of {bits} bits needs {needed} bits "
            f"and would wrap around a modulus of 2**{WORD_BITS}: {advice}"
        )
    return needed


def _fits(num_messages: int, bits: int) -> bool:
    return (num_messages * levels(bits)).bit_length() < WORD_BITS


def check_bits(bits: int) -> int:
    """Refuses a number of bits that float32 updates do not have.

    Raises:
      ValueError: naming the value and the range.
    """
    if not isinstance(bits, int) or isinstance(bits, bool):
        raise ValueError(f"bits must be an integer, not {bits!r}")
    if not LEAST_BITS <= bits <= MOST_BITS:
        raise ValueError(
            f"bits={bits}: choose {LEAST_BITS} to {MOST_BITS}; updates are float32, "
            f"which holds integers of {MOST_BITS} bits and no more"
        )
    return bits


def counted(weights: jax.Array, state: State) -> jax.Array:
    """Returns the weights as they count in the sum: cut to ``max_weight``."""
    return jnp.minimum(weights, state.max_weight)


def centred(total: jax.Array, num_bits: int) -> jax.Array:
    """Returns an int32 sum modulo ``2**num_bits`` as the signed number nearest 0."""
    shift = WORD_BITS - num_bits
    return jnp.right_shift(jnp.left_shift(total, shift), shift)


@functools.cache
def fixed_point(bits: int) -> Codec:
    """Codec of signed fixed point with nearest rounding.

    Its state is anything with the fields of ``FixedPoint``. The range of a coordinate
    is the smaller of the message's L2 bound, which none can pass, and ``value_range``.
    A client heavier than ``max_weight`` counts as if it weighed that, and its whole
    message counts as saturated.

    The error of the decoded sum of n messages is at most ``n / 2`` steps of
    ``max_weight * range / (2**(bits - 1) - 1)`` in each coordinate.

    Args:
      bits: of a value with its sign, 2 to 24; static.

    Raises:
      ValueError: for other bits.
    """
    check_bits(bits)
    top = float(levels(bits))

    def step(state: State, bound: jax.Array | None) -> jax.Array:
        largest = state.value_range
        if bound is not None:
            largest = jnp.minimum(largest, bound)
        # A bound of 0 lets only zeros through; the step must be a number all the same.
        return jnp.maximum(largest, 1e-30) / top

    def encode(
        updates: Updates,
        weight: jax.Array,
        state: State,
        key: jax.Array,
        bound: jax.Array | None = None,
    ) -> tuple[Updates, jax.Array]:
        del key
        share = jnp.clip(weight / state.max_weight, 0.0, 1.0)
        factor = share / step(state, bound)

        def one(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            scaled = jnp.round(x.astype(jnp.float32) * factor)
            # A NaN is neither inside nor above: it becomes 0 and counts as cut.
            inside = jnp.abs(scaled) <= top
            kept = jnp.where(inside, scaled, jnp.sign(scaled) * top)
            kept = jnp.where(jnp.isnan(scaled), 0.0, kept)
            return kept.astype(jnp.int32), jnp.sum(~inside)

        leaves, treedef = jax.tree.flatten(updates)
        made = [one(x) for x in leaves]
        size = sum(x.size for x in leaves)
        cut = sum(count for _, count in made) / max(size, 1)
        saturated = jnp.where(weight > state.max_weight, 1.0, cut)
        # Nobody sent a row of weight 0, whatever it holds.
        saturated = jnp.where(weight > 0, saturated, 0.0).astype(jnp.float32)
        integers = [jnp.where(weight > 0, x, 0) for x, _ in made]
        return treedef.unflatten(integers), saturated

    def decode(
        total: Updates, state: State, bound: jax.Array | None, like: Updates
    ) -> Updates:
        factor = step(state, bound) * state.max_weight
        return jax.tree.map(
            lambda x, y: (x.astype(jnp.float32) * factor).astype(y.dtype), total, like
        )

    return Codec(encode, decode)
