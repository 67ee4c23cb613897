"""How well a backdoor works."""

import jax
import jax.numpy as jnp

from fedjax_health.core.types import AnyArray


def attack_success_rate(
    predicted: AnyArray,
    label: AnyArray,
    *,
    target: int,
    weight: AnyArray | None = None,
) -> jax.Array:
    """Returns the share of triggered records of other classes given the target's.

    Records that are of the target's class anyway say nothing and do not count.

    Args:
      predicted: class given to each record with the trigger on it, any shape.
      label: true class of the same records.
      target: the class that the trigger shall mean.
      weight: 0 for records that do not count, such as fillers or steps of a stream
        before the trigger (``affected_steps``); broadcast to ``label``. None counts
        all.

    Returns:
      float32 ``[]``; NaN where no record counts.
    """
    label = jnp.asarray(label)
    counted = (label != target).astype(jnp.float32)
    if weight is not None:
        counted = counted * jnp.broadcast_to(jnp.asarray(weight), label.shape)
    hit = jnp.sum(counted * (jnp.asarray(predicted) == target))
    total = jnp.sum(counted)
    return jnp.where(total > 0, hit / jnp.where(total > 0, total, 1.0), jnp.nan)
