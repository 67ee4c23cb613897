"""Quantisers in the coordinates of the update: sign, QSGD, TernGrad."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_health.core.message import Message
from fedjax_health.core.types import (
    ClientContext,
    ClientTransform,
    Report,
    State,
    Updates,
)
from fedjax_health.transforms.coding import Scheme
from fedjax_health.transforms.compose import keep_shared, no_memory
from fedjax_health.transforms.counting import byte_report, count_bytes, measure_bytes
from fedjax_health.transforms.flat import flatten, sizes, unflatten

# Below it float32 is denormal, and a device may round it to zero.
_TINY = np.float32(np.finfo(np.float32).tiny)

MAX_LEVELS = 32767


def _usable(scale: jax.Array) -> jax.Array:
    """Returns a scale, or 0 for one that is too small; a NaN stays."""
    return jnp.where(scale < _TINY, 0, scale)


def _divisor(scale: jax.Array) -> jax.Array:
    return jnp.where(scale == 0, 1, scale)


def _values(levels: jax.Array, scale: jax.Array, signs_of: jax.Array) -> jax.Array:
    """Returns ``+-levels * scale``, where a zero is +0: the coder leaves it out."""
    signed = jnp.where(signs_of < 0, -levels, levels)
    return jnp.where(levels == 0, 0, signed) * scale + 0 * scale


def _signs(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns sign times mean magnitude, and the scale, of a flat part."""
    scale = _usable(jnp.sum(jnp.abs(x)) / max(x.size, 1))
    return _values(jnp.where(x == 0, 0.0, 1.0), scale, x), scale


def _sign(
    per_leaf: bool, updates: Updates, memory: State, context: ClientContext
) -> tuple[Updates, State, Report]:
    del context
    flat = flatten(updates)
    segments = sizes(updates) if per_leaf else (flat.size,)
    ends = np.cumsum(segments)
    parts = [
        _signs(flat[end - size : end])[0]
        for size, end in zip(segments, ends, strict=True)
    ]
    sent = jnp.concatenate(parts)
    report = byte_report(count_bytes(sent, Scheme(flat.size, 1, segments)))
    return unflatten(sent, updates), memory, report


def _check_levels(
    bits: int, zero_bits: int, bucket: int | None, message: Message
) -> Message:
    """Records bits a value; the scales of leaves, whose number is not known, as one."""
    scales = 1 if bucket is None else -(-message.num_params // bucket)
    return dataclasses.replace(
        message,
        bound=None,
        bits=zero_bits if message.density == 1 else bits,
        overhead_bytes=message.overhead_bytes + 1 + 4 * scales,
    )


def sign(*, per_leaf: bool = True) -> ClientTransform:
    """Sends signs and the mean magnitude: ``sign(x) mean(|x|)``.

    Karimireddy et al., 2019, "Error Feedback Fixes SignSGD" (arXiv:1901.09847), scaled
    sign; biased, so it wants ``error_feedback``. A coordinate that is exactly zero
    stays zero. One bit a coordinate where none is zero.

    Args:
      per_leaf: one scale for each leaf, or one for the whole update.
    """
    return _build_sign(per_leaf)


@functools.cache
def _build_sign(per_leaf: bool) -> ClientTransform:
    return ClientTransform(
        no_memory,
        no_memory,
        functools.partial(_sign, per_leaf),
        keep_shared,
        functools.partial(_check_levels, 1, 1, None),
        measure=measure_bytes,
    )


def _round_at_random(ratio: jax.Array, levels: int, key: jax.Array) -> jax.Array:
    """Returns non-negative ratios rounded up or down so that their mean is kept."""
    draw = jax.random.uniform(key, ratio.shape)
    rounded = jnp.floor(ratio + draw)
    return jnp.where(rounded > levels, levels, rounded)


def bucket_sizes(size: int, bucket: int) -> tuple[int, ...]:
    """Returns the sizes of the buckets that a vector is cut into."""
    rest = size % bucket
    return (bucket,) * (size // bucket) + ((rest,) if rest else ())


def quantise_qsgd(
    flat: jax.Array, key: jax.Array, *, levels: int, bucket: int
) -> tuple[jax.Array, jax.Array]:
    """Returns what QSGD makes of a flat vector, and the scale of each bucket.

    Args:
      flat: float32 ``[d]``.
      key: of the random rounding.
      levels: s, non-negative levels beside 0.
      bucket: coordinates that share a norm.

    Returns:
      float32 ``[d]``, integers times their scales, and float32 ``[buckets]``.
    """
    rows = jnp.pad(flat, (0, -flat.size % bucket)).reshape(-1, bucket)
    norms = jnp.sqrt(jnp.sum(rows * rows, axis=1))
    scales = _usable(norms / levels)
    spread = scales[:, None]
    rounded = _round_at_random(jnp.abs(rows) / _divisor(spread), levels, key)
    return _values(rounded, spread, rows).reshape(-1)[: flat.size], scales


def _qsgd(
    levels: int, bucket: int, updates: Updates, memory: State, context: ClientContext
) -> tuple[Updates, State, Report]:
    flat = flatten(updates)
    sent, _ = quantise_qsgd(flat, context.key, levels=levels, bucket=bucket)
    scheme = Scheme(flat.size, levels, bucket_sizes(flat.size, bucket))
    report = byte_report(count_bytes(sent, scheme))
    return unflatten(sent, updates), memory, report


def qsgd(levels: int = 127, *, bucket: int = 512) -> ClientTransform:
    """Rounds to a few levels of the norm, at random, so that the mean is kept.

    Alistarh et al., 2017, "QSGD" (arXiv:1610.02132): in every bucket of coordinates
    ``norm(x) sign(x) l/s``, with l one of the two integers beside ``s |x| / norm(x)``.
    The paper's Elias code is replaced by packed bits and the coder's own positions.
    Both arguments are static.

    Args:
      levels: s, in [1, 32767]; 127 makes values of one byte.
      bucket: coordinates that share a norm, in the order of the tree's leaves.

    Formal guarantees: unbiased up to the 23 bits of the random draw; its variance is at
    most ``min(bucket / s**2, sqrt(bucket) / s) norm(x)**2``. The norm may grow, so a
    bound before it is void.

    Raises:
      ValueError: for numbers out of range.
    """
    if not 1 <= levels <= MAX_LEVELS:
        raise ValueError(f"qsgd: levels must lie in [1, {MAX_LEVELS}], not {levels}")
    if bucket < 1:
        raise ValueError(f"qsgd: bucket must be 1 or more, not {bucket}")
    return _build_qsgd(levels, bucket)


@functools.cache
def _build_qsgd(levels: int, bucket: int) -> ClientTransform:
    scheme = Scheme(1, levels)
    return ClientTransform(
        no_memory,
        no_memory,
        functools.partial(_qsgd, levels, bucket),
        keep_shared,
        functools.partial(_check_levels, scheme.sparse_bits, scheme.dense_bits, bucket),
        measure=measure_bytes,
    )


def quantise_ternary(part: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns what TernGrad makes of a flat part, and its scale ``max(|x|)``."""
    scale = _usable(jnp.max(jnp.abs(part), initial=0.0))
    rounded = _round_at_random(jnp.abs(part) / _divisor(scale), 1, key)
    return _values(rounded, scale, part), scale


def _terngrad(
    updates: Updates, memory: State, context: ClientContext
) -> tuple[Updates, State, Report]:
    flat = flatten(updates)
    segments = sizes(updates)
    parts = [
        quantise_ternary(flat[end - size : end], jax.random.fold_in(context.key, i))[0]
        for i, (size, end) in enumerate(zip(segments, np.cumsum(segments), strict=True))
    ]
    sent = jnp.concatenate(parts)
    report = byte_report(count_bytes(sent, Scheme(flat.size, 1, segments)))
    return unflatten(sent, updates), memory, report


@functools.cache
def terngrad() -> ClientTransform:
    """Sends -1, 0 or 1 times each leaf's largest magnitude, at random by magnitude.

    Wen et al., 2017, "TernGrad" (arXiv:1705.07878), layer by layer and without its
    clipping of gradients: ``max(|x|) sign(x) b`` with b = 1 with probability
    ``|x| / max(|x|)``.

    Formal guarantees: unbiased up to the 23 bits of the random draw. The norm may grow,
    so a bound before it is void.
    """
    return ClientTransform(
        no_memory,
        no_memory,
        _terngrad,
        keep_shared,
        functools.partial(_check_levels, 1, 2, None),
        measure=measure_bytes,
    )
