"""FLAME: the cluster of a majority, clipped to the median norm, with noise."""

import jax
import jax.numpy as jnp

from fedjax_health.aggregators.gram import Geometry, GramKernel, gram_update
from fedjax_health.aggregators.rows import (
    Rows,
    accept_any,
    median_of,
    normalised,
)
from fedjax_health.aggregators.similarity import cosine_distances
from fedjax_health.core.types import Aggregator, Key, Metrics, Params, State, Updates


def majority_cluster(distances: jax.Array, valid: jax.Array) -> jax.Array:
    """Returns the first cluster that holds a majority as single linkage grows clusters.

    That is what HDBSCAN with clusters of n // 2 + 1 or more and one neighbour finds:
    there can be no second cluster of that size.

    Args:
      distances: float32 ``[n, n]``.
      valid: bool ``[n]``.

    Returns:
      bool ``[n]``.
    """
    n = valid.shape[0]
    both = valid[:, None] & valid[None, :]
    start = jnp.where(both, distances, jnp.inf)
    start = jnp.where(jnp.eye(n, dtype=bool) & both, 0.0, start)

    def through(k: jax.Array, reach: jax.Array) -> jax.Array:
        # The largest gap on the way from i to j, over k where that is better.
        return jnp.minimum(reach, jnp.maximum(reach[:, k, None], reach[None, k, :]))

    reach = jax.lax.fori_loop(0, n, through, start)
    half = jnp.sum(valid) // 2
    needed = jax.lax.dynamic_index_in_dim(
        jnp.sort(reach, axis=1), half, 1, keepdims=False
    )
    needed = jnp.where(valid, needed, jnp.inf)
    first = jnp.argmin(needed)
    return valid & (reach[first] <= needed[first])


def _bound(geometry: Geometry, rows: Rows) -> jax.Array:
    return median_of(geometry.norms, rows.valid)


def _weigh(
    geometry: Geometry, rows: Rows, state: State, key: Key
) -> tuple[jax.Array, Metrics]:
    del state, key
    cluster = majority_cluster(cosine_distances(geometry), rows.valid)
    bound = _bound(geometry, rows)
    norms = jnp.where(geometry.norms > 0, geometry.norms, 1.0)
    clip = jnp.minimum(1.0, bound / norms)
    # A row that the median norm clips to nothing is still in the cluster.
    clip = jnp.maximum(clip, jnp.finfo(jnp.float32).tiny)
    return normalised(cluster.astype(jnp.float32)) * clip, {"clip_norm": bound}


def _add_noise(
    aggregate: Updates, geometry: Geometry, rows: Rows, state: State, key: Key
) -> tuple[Updates, State]:
    std = state["noise"] * _bound(geometry, rows)
    leaves, structure = jax.tree.flatten(aggregate)
    noised = [
        x
        + (std * jax.random.normal(jax.random.fold_in(key, i), x.shape)).astype(x.dtype)
        for i, x in enumerate(leaves)
    ]
    return structure.unflatten(noised), state


_SILENT = GramKernel(_weigh, selects=True)
_NOISED = GramKernel(_weigh, finish=_add_noise, selects=True)


def flame(*, noise: float = 0.001) -> Aggregator:
    """Averages the cluster of a majority, clipped to the median norm, and adds noise.

    Nguyen et al., 2022, "FLAME: Taming Backdoors in Federated Learning" (USENIX
    Security; arXiv:2101.02281). Cosine distances are clustered as HDBSCAN does with
    clusters of n // 2 + 1 or more (see ``majority_cluster``); rows are clipped to the
    median of all norms; Gaussian noise of ``lambda`` times that median is added to each
    coordinate. Cosines are of the updates, where the paper takes those of the clients'
    models. Distances of rows that are all alike tie: the larger cluster is then taken.

    Breakdown point 1/2 of the rows. Weights are not used, but for a weight of 0, which
    marks an absent row. Traced: the noise; none at all is a structure of its own.

    Args:
      noise: lambda, 0 or more.

    Raises:
      ValueError: if the noise is negative or not finite.
    """
    real = isinstance(noise, int | float) and not isinstance(noise, bool)
    if not real or not 0 <= noise < float("inf"):
        raise ValueError(f"flame: noise must be finite and 0 or more, not {noise!r}")
    if noise == 0:
        update = gram_update(_SILENT)
        return Aggregator(_no_noise, update, accept_any, False, "gram", _SILENT)

    def init(params: Params) -> State:
        del params
        return {"noise": jnp.float32(noise)}

    return Aggregator(init, gram_update(_NOISED), accept_any, False, "rows", _NOISED)


def _no_noise(params: Params) -> State:
    del params
    return ()
