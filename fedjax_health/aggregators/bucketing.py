"""Bucketing: means of a few rows each, dealt out at random."""

import functools

import jax
import jax.numpy as jnp

from fedjax_health.aggregators.gram import Geometry
from fedjax_health.aggregators.mixing import MixingKernel, build_mixing
from fedjax_health.aggregators.rows import Rows, check_count
from fedjax_health.core.message import CompositionError, Message
from fedjax_health.core.types import Key, Mixing, State


@functools.cache
def _kernel(size: int) -> MixingKernel:
    def build(
        geometry: Geometry, rows: Rows, numbers: State, key: Key
    ) -> tuple[jax.Array, jax.Array]:
        del geometry, numbers
        n = rows.valid.shape[0]
        # By client, so that the order of the rows changes nothing.
        drawn = jax.vmap(
            lambda client: jax.random.uniform(jax.random.fold_in(key, client))
        )(rows.client_ids)
        order = jnp.argsort(jnp.where(rows.valid, drawn, 2.0))
        rank = jnp.zeros(n, jnp.int32).at[order].set(jnp.arange(n, dtype=jnp.int32))
        buckets = jnp.arange(-(-n // size))[:, None]
        inside = (rank[None, :] // size == buckets) & rows.valid[None, :]
        number = jnp.sum(inside, axis=1, keepdims=True)
        return inside / jnp.maximum(number, 1), jnp.any(inside, axis=1)

    return MixingKernel(build, "nothing")


def bucketing(size: int = 2) -> Mixing:
    """Deals the rows at random into buckets of s and averages each bucket.

    Karimireddy et al., 2022, "Byzantine-Robust Learning on Heterogeneous Datasets via
    Bucketing" (arXiv:2006.09365). The short last bucket is kept, ceil(n / s) in all; up
    to f of them hold a malicious row, which the rule after it must stand. Rows are
    dealt by client id and key, whatever their order. Weights are not used. Static: s.

    Args:
      size: s, rows of a bucket.

    Raises:
      ValueError: if it is below 1; a ``CompositionError`` of ``check`` if it is larger
        than the cohort.
    """
    rows = check_count("bucketing", "size", size, least=1)

    def check(message: Message, cohort_size: int) -> tuple[Message, int]:
        if rows > cohort_size:
            raise CompositionError(
                f"bucketing: a bucket of {rows} is larger than the cohort of "
                f"{cohort_size}: at most {cohort_size}"
            )
        return message, -(-cohort_size // rows)

    return build_mixing(_kernel(rows), (), check)
