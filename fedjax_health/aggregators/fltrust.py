"""FLTrust: rows are believed as far as they point along the server's own update."""

import functools

import jax
import jax.numpy as jnp

from fedjax_health.aggregators.gram import Geometry, GramKernel, gram_update
from fedjax_health.aggregators.rows import Rows, accept_any, no_state
from fedjax_health.aggregators.similarity import inner_products
from fedjax_health.core.types import (
    AggregationContext,
    Aggregator,
    Key,
    Metrics,
    State,
    Updates,
)


def _root(state: State, context: AggregationContext | None) -> tuple[Updates, ...]:
    del state
    if context is None or context.root_updates is None:
        raise ValueError(
            "fltrust needs context.root_updates, the server's own updates: give the "
            "plan root_batches, the server's data"
        )
    return (context.root_updates,)


def _weigh(
    geometry: Geometry, rows: Rows, state: State, key: Key
) -> tuple[jax.Array, Metrics]:
    del state, key
    own = geometry.norms[-1]
    norms = geometry.norms[:-1]
    lengths = jnp.where(norms > 0, norms, 1.0)
    products = inner_products(geometry)[:-1, -1]
    cosines = products / (lengths * jnp.where(own > 0, own, 1.0))
    trust = jnp.where(rows.valid, jnp.maximum(cosines, 0.0), 0.0)
    total = jnp.sum(trust)
    shares = trust / jnp.where(total > 0, total, 1.0)
    return jnp.append(shares * own / lengths, 0.0), {"trust": trust}


_KERNEL = GramKernel(_weigh, vectors=_root, selects=True)


@functools.cache
def fltrust() -> Aggregator:
    """The rows, scaled to the root update's norm, weighted by their cosine with it.

    Cao et al., 2021, "FLTrust: Byzantine-robust Federated Learning via Trust
    Bootstrapping" (arXiv:2012.13995): ``sum(relu(cos(x, g0)) norm(g0) x / norm(x)) /
    sum(relu(cos(x, g0)))``. g0 is what the server's own data
    (``RoundPlan.root_batches``) make of the model in the round, by the clients' local
    training. If no row points its way the aggregate is zero and the model stays.

    It assumes no number of malicious rows; it is as good as the root data. Weights are
    not used, but for a weight of 0, which marks an absent row. Nothing is traced.

    Raises:
      ValueError: of ``update`` without ``context.root_updates``.
    """
    update = gram_update(_KERNEL)
    return Aggregator(no_state, update, accept_any, False, "gram", _KERNEL)
