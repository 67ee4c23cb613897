"""CAF: rows are weighed down along the direction in which they spread most."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_health.aggregators.columns import EXACT
from fedjax_health.aggregators.gram import Geometry, GramKernel, gram_update
from fedjax_health.aggregators.rows import (
    Rows,
    check_majority,
    check_malicious,
    normalised,
)
from fedjax_health.core.message import Message
from fedjax_health.core.types import Aggregator, Key, Metrics, Params, State

# Steps after which the search ends in any case, in multiples of the cohort.
_STEPS = 100


class _Search(NamedTuple):
    """Where the search stands.

    Attributes:
      step: int32 ``[]``.
      weights: float32 ``[n]``, c.
      spread: float32 ``[]``, the least top eigenvalue so far.
      best: float32 ``[n]``, the weights that had it.
      stuck: bool ``[]``, all rows that count are the same in the direction.
    """

    step: jax.Array
    weights: jax.Array
    spread: jax.Array
    best: jax.Array
    stuck: jax.Array


def _weigh(
    geometry: Geometry, rows: Rows, state: State, key: Key
) -> tuple[jax.Array, Metrics]:
    del key
    n = rows.valid.shape[0]
    gram = geometry.gram[:n, :n]
    least = rows.count - 2 * rows.malicious(state["num_malicious"])

    def goes_on(search: _Search) -> jax.Array:
        more = jnp.sum(search.weights) > least
        return more & ~search.stuck & (search.step < _STEPS * n)

    def step(search: _Search) -> _Search:
        c, total = search.weights, jnp.sum(search.weights)
        moved = jnp.eye(n) - normalised(c)
        centred = jnp.matmul(moved, gram, precision=EXACT)
        centred = jnp.matmul(centred, moved.T, precision=EXACT)
        root = jnp.sqrt(c)
        covariance = root[:, None] * centred * root[None, :] / total
        values, vectors = jnp.linalg.eigh(covariance)
        top = values[-1]
        along = jnp.matmul(centred, root * vectors[:, -1], precision=EXACT)
        # tau up to a factor: the direction's length cancels in tau / max(tau).
        tau = jnp.where(rows.valid, along**2, 0.0)
        largest = jnp.max(tau)
        better = top < search.spread
        # Exactly 0 for the largest, whatever way the quotient is rounded.
        left = jnp.where(tau < largest, jnp.maximum(1.0 - tau / largest, 0.0), 0.0)
        return _Search(
            search.step + 1,
            c * left,
            jnp.where(better, top, search.spread),
            jnp.where(better, c, search.best),
            largest <= 0,
        )

    ones = rows.valid.astype(jnp.float32)
    start = _Search(jnp.int32(0), ones, jnp.float32(jnp.inf), ones, jnp.zeros((), bool))
    found = jax.lax.while_loop(goes_on, step, start)
    return normalised(found.best), {}


_KERNEL = GramKernel(_weigh, selects=True)


@functools.cache
def _check(f: int):
    def check(message: Message, cohort_size: int) -> Message:
        check_majority("caf", f, cohort_size)
        return message

    return check


def caf(num_malicious: int) -> Aggregator:
    """Covariance-bound-agnostic filter: the weighted mean of least spread.

    Allouah et al., 2025, "Towards Trustworthy Federated Learning with Untrusted
    Participants" (arXiv:2505.01874). With weights c = 1, while sum(c) > n - 2 f: v is
    the top eigenvector of the weighted covariance around the weighted mean mu,
    ``tau = ((x - mu) . v)^2`` and ``c *= 1 - tau / max(tau)``, the maximum over all
    rows. Of all mu the one with the least top eigenvalue is returned. Eigenvectors are
    exact, from n x n matrices; ByzFL takes one power step from a random start. The
    search ends after 100 n steps in any case.

    Breakdown point: f malicious rows, for f < n / 2. Weights are not used, but for a
    weight of 0, which marks an absent row. Traced: f.

    Args:
      num_malicious: f, the malicious rows that are assumed.

    Raises:
      ValueError: if f is negative; a ``CompositionError`` of ``check`` if 2 f >= n.
    """
    f = check_malicious("caf", num_malicious)

    def init(params: Params) -> State:
        del params
        return {"num_malicious": jnp.int32(f)}

    return Aggregator(init, gram_update(_KERNEL), _check(f), False, "gram", _KERNEL)
