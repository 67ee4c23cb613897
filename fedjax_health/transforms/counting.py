"""The exact bytes of a message inside a jitted round: those that ``coding`` writes."""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_health.core.types import Metrics, Report, Shared
from fedjax_health.transforms.coding import Scheme, form_bytes, rice_limits
from fedjax_health.transforms.flat import pack_mask


def _rice_bits(words: jax.Array, count: jax.Array, size: int) -> jax.Array:
    """Returns the bits of the Golomb-Rice codes of a message's positions."""
    first = 32 * jnp.arange(words.size, dtype=jnp.int32)
    top = first + 31 - jax.lax.clz(words).astype(jnp.int32)
    last = jax.lax.cummax(jnp.where(words != 0, top, -1))
    before = jnp.concatenate([jnp.full(1, -1, jnp.int32), last[:-1]])
    limits = jnp.asarray(np.minimum(rice_limits(size), np.iinfo(np.int32).max))
    parameter = jnp.sum(count <= limits, dtype=jnp.int32)
    # Bit by bit of all words at once: a running maximum over all coordinates takes
    # twenty times as long.
    quotients = jnp.zeros(words.size, jnp.int32)
    for j in range(32):
        here = (words >> np.uint32(j)) & 1 == 1
        run = first + j - before - 1
        quotients = quotients + jnp.where(here, run >> parameter, 0)
        before = jnp.where(here, first + j, before)
    return jnp.sum(quotients, dtype=jnp.int32) + count * (1 + parameter)


def count_bytes(values: jax.Array, scheme: Scheme) -> jax.Array:
    """Returns ``len(encode(values, scheme))``, int32 ``[]``.

    Args:
      values: float32 ``[size]``, the message; the bit pattern of a zero is one.
      scheme: of the message.
    """
    present = jax.lax.bitcast_convert_type(values, jnp.uint32) != 0
    words = pack_mask(present)
    count = jnp.sum(jax.lax.population_count(words).astype(jnp.int32))
    sizes = form_bytes(scheme, count, _rice_bits(words, count, values.size))
    return jnp.min(jnp.stack([jnp.asarray(x, jnp.int32) for x in sizes]))


def byte_report(count: jax.Array | int) -> Report:
    """Returns a client's bytes as a report, whose sum over clients is exact.

    Args:
      count: int32 ``[]``. In two parts, KiB and what is left: one int32 would overflow
        at 2 GiB a round, and float32 loses bytes beyond 16 MiB.
    """
    count = jnp.asarray(count, jnp.int32)
    return {"kib": count >> 10, "bytes": count & 1023}


def measure_bytes(report: Report, shared: Shared, count: jax.Array) -> Metrics:
    """Says ``uplink_bytes``, the bytes of all clients, rounded once, to float32."""
    del shared, count
    total = report["kib"].astype(jnp.float32) * 1024 + report["bytes"]
    return {"uplink_bytes": total}
