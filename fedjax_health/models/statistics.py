"""What a stay has shown of each variable, in a few numbers, inside a detector."""

import jax
import jax.numpy as jnp

# Squares of outliers would drown the others.
_LARGEST = 3.0


def stay_statistics(
    values: jax.Array,
    observed: jax.Array | None,
    valid: jax.Array,
) -> jax.Array:
    """Returns what a window shows of each variable.

    For each variable, over the steps at which it was observed: the last value, the
    mean, the standard deviation, the slope of the least-squares line (per half window),
    the mean over the later half of the window (the last value before it where there is
    none in it), the squares of last value and mean (within 3 deviations); and where it
    may be missing, log(1 + observations), whether there was any, and log(1 + steps)
    since the last, both over log(1 + steps of the window). 0 where nothing was
    observed.

    Args:
      values: ``[examples, time, variables]``; anything where nothing was observed.
      observed: 1 where a value was observed, of the same shape; None for always.
      valid: ``[examples, time]``, 0 for rows that only fill up the window.

    Returns:
      ``[examples, 7 variables]``, or ``[examples, 10 variables]`` with ``observed``.
    """
    steps = values.shape[1]
    flags = jnp.broadcast_to(valid[..., None], values.shape)
    if observed is not None:
        flags = flags * observed
    seen = flags > 0
    values = jnp.where(seen, values, 0)
    count = jnp.sum(flags, axis=1)
    some = count > 0
    divisor = jnp.maximum(count, 1)
    mean = jnp.sum(values, axis=1) / divisor
    apart = jnp.where(seen, values - mean[:, None], 0)
    variance = jnp.sum(apart**2, axis=1) / divisor
    # A root has no gradient at 0.
    std = jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1)), 0)
    time = (jnp.arange(steps, dtype=values.dtype) / max(steps - 1, 1) * 2 - 1)[:, None]
    middle = jnp.sum(flags * time, axis=1) / divisor
    lever = jnp.where(seen, time - middle[:, None], 0)
    spread = jnp.sum(lever**2, axis=1)
    slope = jnp.sum(lever * apart, axis=1) / jnp.where(spread > 0, spread, 1)
    position = jnp.where(seen, jnp.arange(steps)[:, None], -1)
    latest = jnp.max(position, axis=1)
    last = jnp.take_along_axis(values, jnp.maximum(latest, 0)[:, None], axis=1)[:, 0]
    later = flags * (jnp.arange(steps) >= steps // 2)[:, None]
    late_count = jnp.sum(later, axis=1)
    late = jnp.sum(values * later, axis=1) / jnp.maximum(late_count, 1)
    late = jnp.where(late_count > 0, late, last)

    def square(x: jax.Array) -> jax.Array:
        return jnp.clip(x, -_LARGEST, _LARGEST) ** 2

    numbers = [last, mean, std, slope, late, square(last), square(mean)]
    if observed is not None:
        whole = jnp.log1p(float(steps))
        since = jnp.log1p(steps - 1.0 - latest)
        numbers += [jnp.log1p(count) / whole, some.astype(values.dtype), since / whole]
    return jnp.concatenate([jnp.where(some, number, 0) for number in numbers], axis=-1)
