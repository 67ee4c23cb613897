"""What a window of a stream has shown of each feature, in a few numbers."""

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_health.core.types import InputLayout
from fedjax_health.models.inputs import Part, num_inputs, num_values


def num_statistics(layout: InputLayout) -> int:
    """Returns the width of ``window_statistics``."""
    return num_inputs(layout) + sum(
        (3 if columns.observed is None else 4) * num_values(columns)
        for columns in layout
    )


def window_statistics(parts: tuple[Part, ...], *, causal: bool) -> jax.Array:
    """Returns what a window shows of each feature, in a few numbers.

    That is, for each part: its values, flags and times at the step (the last observed
    values, where one answer is asked of the window), the mean, the least and the
    greatest of the observed values (0 where there is none) and, for a part with flags,
    log(1 + number of observations). Rows that fill up the window do not count.

    Args:
      parts: ``[time, examples, features]``.
      causal: whether there is an answer at each step, from the steps up to it.

    Returns:
      ``[time, examples, statistics]``, or ``[examples, statistics]``.
    """
    return jnp.concatenate([_statistics(part, causal) for part in parts], axis=-1)


def _statistics(part: Part, causal: bool) -> jax.Array:
    values = part.values
    counted = jnp.ones_like(values) if part.observed is None else part.observed
    if part.valid is not None:
        counted = counted * part.valid[..., None]
    seen = counted > 0
    kept = jnp.where(seen, values, 0)
    low = jnp.where(seen, values, jnp.inf)
    high = jnp.where(seen, values, -jnp.inf)
    now = [a for a in part[:3] if a is not None]
    if causal:
        count, total = lax.cumsum(counted, axis=0), lax.cumsum(kept, axis=0)
        low, high = lax.cummin(low, axis=0), lax.cummax(high, axis=0)
    else:
        count, total = jnp.sum(counted, axis=0), jnp.sum(kept, axis=0)
        low, high = jnp.min(low, axis=0), jnp.max(high, axis=0)
        now = [a[-1] for a in now]
        if part.elapsed is None and part.observed is not None:
            now[0] = _last_observed(values, seen)
    known = count > 0
    numbers = [
        *now,
        total / jnp.maximum(count, 1),
        jnp.where(known, low, 0),
        jnp.where(known, high, 0),
    ]
    if part.observed is not None:
        numbers.append(jnp.log1p(count))
    return jnp.concatenate(numbers, axis=-1)


def _last_observed(values: jax.Array, seen: jax.Array) -> jax.Array:
    step = jnp.arange(1, len(values) + 1)[:, None, None]
    latest = jnp.max(jnp.where(seen, step, 0), axis=0)
    return jnp.sum(jnp.where(seen & (step == latest), values, 0), axis=0)
