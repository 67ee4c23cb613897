"""What attacks on data share: draws that stay with a record for good."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_health.core.types import DataAttackContext, Key

# Keeps the draws of records apart from others with the client's key.
_PURPOSE = 0x4EC04D


def draw(
    context: DataAttackContext, size: int, one: Callable[[Key], jax.Array]
) -> jax.Array:
    """Draws for each record of a batch, the same in every epoch and round.

    Args:
      context: holds the client's key and the records' numbers.
      size: records of the batch.
      one: key -> the draw of one record.

    Returns:
      ``[size, ...]``.
    """
    key = context.key if context.client_key is None else context.client_key
    key = jax.random.fold_in(key, _PURPOSE)
    index = jnp.arange(size) if context.index is None else context.index
    return jax.vmap(lambda i: one(jax.random.fold_in(key, i)))(index)
