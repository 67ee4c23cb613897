"""Top-k: the coordinates of largest magnitude."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from fedjax_health.core.message import Message
from fedjax_health.core.types import (
    ClientContext,
    ClientTransform,
    Report,
    State,
    Updates,
)
from fedjax_health.transforms.coding import Scheme, expected_index_bits
from fedjax_health.transforms.compose import keep_shared, no_memory
from fedjax_health.transforms.counting import byte_report, count_bytes, measure_bytes
from fedjax_health.transforms.flat import count_true, flatten, kept_count, unflatten

# Up to this share of the coordinates ``lax.top_k`` is the faster one, on CPU at 100,000
# coordinates; the two break even between .002 and .005.
SMALL_SHARE = 0.003


def _magnitude_bits(flat: jax.Array) -> jax.Array:
    """Returns the bits of |x|, int32, which order as the magnitudes do, NaN last."""
    return jax.lax.bitcast_convert_type(jnp.abs(flat), jnp.int32)


def select_by_bisection(flat: jax.Array, k: int) -> jax.Array:
    """Returns which k coordinates are largest in magnitude, bool ``[d]``.

    A threshold is bisected on the bits of the magnitudes until exactly k reach it, or
    until its bits are used up: then several coordinates tie for the last places, which
    go to the lowest indices. No sort and no memory beside a mask.

    Args:
      flat: float32 ``[d]``.
      k: in [1, d].
    """
    bits = _magnitude_bits(flat)

    # count(bits >= low) >= k > count(bits >= high); both counts are carried.
    def narrow(carry):
        step, low, high, least, most = carry
        # Counts fall almost linearly once the range is small: every other step reads
        # the threshold off the line, the one between halves whatever is left. The first
        # one asks whether k coordinates differ from zero at all.
        share = (least - k).astype(jnp.float32) / (least - most).astype(jnp.float32)
        ahead = (share * (high - low).astype(jnp.float32)).astype(jnp.int32)
        guess = low + jnp.where(step % 2 == 1, ahead, (high - low) // 2)
        guess = jnp.where(step == 0, 1, jnp.clip(guess, low + 1, high - 1))
        found = count_true(bits >= guess)
        enough = found >= k
        return (
            step + 1,
            jnp.where(enough, guess, low),
            jnp.where(enough, high, guess),
            jnp.where(enough, found, least),
            jnp.where(enough, most, found),
        )

    def unsettled(carry):
        _, low, high, least, _ = carry
        return (least != k) & (high - low > 1)

    largest = jnp.minimum(jnp.max(bits), 2**31 - 2)
    none, size = jnp.int32(0), jnp.int32(flat.size)
    start = none, none, largest + 1, size, none
    _, low, _, counted, _ = jax.lax.while_loop(unsettled, narrow, start)
    above = bits > low
    ties = bits == low
    room = k - count_true(above)

    # The same over indices: the least end before which there are enough ties.
    index = jnp.arange(flat.size, dtype=jnp.int32)

    def shorten(carry):
        low, high = carry
        middle = low + (high - low) // 2
        enough = count_true(ties & (index < middle)) >= room
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    # Without a tie for the last place every one of them is kept, at no cost.
    end = jnp.where(counted == k, flat.size, 0)
    first = (end, jnp.int32(flat.size))
    _, end = jax.lax.while_loop(lambda c: c[1] - c[0] > 1, shorten, first)
    return above | (ties & (index < end))


def select_by_sorting(flat: jax.Array, k: int) -> jax.Array:
    """Returns the same as ``select_by_bisection`` through ``lax.top_k``."""
    # NaN counts as larger than infinity, as its bits do.
    _, kept = jax.lax.top_k(jnp.abs(flat), k)
    return jnp.zeros(flat.size, bool).at[kept].set(True, unique_indices=True)


def _top_k(
    keep: float, updates: Updates, memory: State, context: ClientContext
) -> tuple[Updates, State, Report]:
    del context
    flat = flatten(updates)
    k = kept_count(keep, flat.size)
    small = k <= SMALL_SHARE * flat.size
    select = select_by_sorting if small else select_by_bisection
    sent = jnp.where(select(flat, k), flat, 0)
    report = byte_report(count_bytes(sent, Scheme(flat.size)))
    return unflatten(sent, updates), memory, report


def _check(keep: float, message: Message) -> Message:
    count = kept_count(keep, message.num_params)
    return dataclasses.replace(
        message,
        density=min(message.density, count / max(message.num_params, 1)),
        bits=32,
        index_bits=expected_index_bits(message.num_params, count),
        overhead_bytes=message.overhead_bytes + 5,
    )


def top_k(keep: float) -> ClientTransform:
    """Sends the coordinates of largest magnitude of the whole update; zeros elsewhere.

    Aji and Heafield, 2017 (arXiv:1704.05021); Stich et al., 2018 (arXiv:1809.07599).
    Exactly ``k = round(keep * d)`` coordinates, one at least; of equal magnitudes the
    lowest index goes first, in the order of the tree's leaves. ``keep`` is static.

    Which coordinates a client sends depends on its data and is not hidden by secure
    aggregation, whose dense masks it does not shorten either: see ``random_k``.

    Args:
      keep: the share of coordinates that is sent, in (0, 1].

    Formal guarantees: the message's norm does not exceed the update's; a NaN counts as
    the largest and is sent.

    Raises:
      ValueError: if ``keep`` lies outside that range.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"top_k: keep must lie in (0, 1], not {keep}")
    return _build(keep)


@functools.cache
def _build(keep: float) -> ClientTransform:
    return ClientTransform(
        no_memory,
        no_memory,
        functools.partial(_top_k, keep),
        keep_shared,
        functools.partial(_check, keep),
        measure=measure_bytes,
    )
