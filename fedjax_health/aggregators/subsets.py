"""Rules that look at every subset of n - f rows: MDA and SMEA."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_health.aggregators.columns import EXACT
from fedjax_health.aggregators.gram import Geometry, GramKernel, gram_update
from fedjax_health.aggregators.rows import (
    Rows,
    check_majority,
    check_malicious,
    no_state,
    normalised,
)
from fedjax_health.core.message import CompositionError, Message
from fedjax_health.core.types import Aggregator, Key, Metrics, State

LARGEST = 100_000
"""Most subsets that are looked at."""

# Numbers of a chunk of subsets that are held at a time.
_CHUNK = 1 << 20


@functools.cache
def _dropped(n: int, f: int) -> np.ndarray:
    """Returns the rows that each subset leaves out, bool ``[subsets, n]``."""
    kept = np.array(list(itertools.combinations(range(n), n - f)), dtype=np.int64)
    out = np.ones((len(kept), n), dtype=bool)
    np.put_along_axis(out, kept, False, axis=1)
    return out


def _least(cost, rows: Rows, f: int) -> jax.Array:
    """Returns the mask of the subset of least cost, the first by client of several.

    Args:
      cost: bool ``[n]`` -> float32 ``[]``.
      rows: rows that do not count are in no subset. Of those that were masked, each
        takes the place of a malicious one.
      f: assumed malicious rows.
    """
    n = rows.valid.shape[0]
    check_majority("a rule over subsets", f, n)
    _check_subsets("a rule over subsets", f, n)
    # Column i of the table is the i-th client's.
    rank = jnp.argsort(rows.by_client())
    dropped = jnp.asarray(_dropped(n, f))[:, rank]
    left = rows.malicious(f)

    def judge(out: jax.Array) -> jax.Array:
        fits = jnp.sum(out & rows.valid) == left
        return jnp.where(fits, cost(rows.valid & ~out), jnp.inf)

    size = max(1, min(len(dropped), _CHUNK // (n * n)))
    costs = jax.lax.map(judge, dropped, batch_size=size)
    return rows.valid & ~dropped[jnp.argmin(costs)]


def _check_subsets(rule: str, f: int, n: int) -> None:
    count = math.comb(n, f)
    if count > LARGEST:
        raise CompositionError(
            f"{rule} would look at {count:,} subsets of {n} clients, more than "
            f"{LARGEST:,}: draw fewer clients, assume fewer malicious ones, or use "
            "nnm with trimmed_mean or geometric_median"
        )


@functools.cache
def _rule(name: str, cost, f: int) -> Aggregator:
    def weigh(
        geometry: Geometry, rows: Rows, state: State, key: Key
    ) -> tuple[jax.Array, Metrics]:
        del state, key
        chosen = _least(functools.partial(cost, geometry), rows, f)
        return normalised(chosen.astype(jnp.float32)), {}

    def check(message: Message, cohort_size: int) -> Message:
        check_majority(name, f, cohort_size)
        _check_subsets(name, f, cohort_size)
        return message

    kernel = GramKernel(weigh, selects=True)
    return Aggregator(no_state, gram_update(kernel), check, False, "gram", kernel)


def _diameter(geometry: Geometry, kept: jax.Array) -> jax.Array:
    both = kept[:, None] & kept[None, :]
    return jnp.max(jnp.where(both, geometry.squared_distances(), 0.0))


def _top_variance(geometry: Geometry, kept: jax.Array) -> jax.Array:
    weights = normalised(kept.astype(jnp.float32))
    gram = geometry.gram[: kept.shape[0], : kept.shape[0]]
    moved = jnp.where(kept[:, None], jnp.eye(kept.shape[0]) - weights, 0.0)
    centred = jnp.matmul(moved, gram, precision=EXACT)
    centred = jnp.matmul(centred, moved.T, precision=EXACT)
    # The covariance's non-zero eigenvalues are those of the centred rows' products.
    return jnp.linalg.eigvalsh(centred)[-1]


def mda(num_malicious: int) -> Aggregator:
    """The mean of the n - f rows of least diameter.

    Minimum-diameter averaging: El Mhamdi et al., 2021, "Distributed Momentum for
    Byzantine-resilient Stochastic Gradient Descent" (ICLR), after Rousseeuw, 1985. Of
    several subsets of least diameter the first in lexicographic order of client ids is
    taken.

    Breakdown point: f malicious rows, for f < n / 2. It looks at all C(n, f) subsets,
    at most 100,000. Weights are not used, but for a weight of 0, which marks an absent
    row. Static: f.

    Args:
      num_malicious: f, the malicious rows that are assumed.

    Raises:
      ValueError: if f is negative; a ``CompositionError`` of ``check`` if 2 f >= n or
        there are too many subsets.
    """
    return _rule("mda", _diameter, check_malicious("mda", num_malicious))


def smea(num_malicious: int) -> Aggregator:
    """The mean of the n - f rows whose covariance has the least top eigenvalue.

    Smallest maximum eigenvalue averaging: Allouah et al., 2023, "On the
    Privacy-Robustness-Utility Trilemma in Distributed Learning" (arXiv:2302.04787). The
    eigenvalues are exact, from n x n matrices.

    Breakdown point: f malicious rows, for f < n / 2. It looks at all C(n, f) subsets,
    at most 100,000. Weights are not used, but for a weight of 0, which marks an absent
    row. Static: f.

    Args:
      num_malicious: f, the malicious rows that are assumed.

    Raises:
      ValueError: if f is negative; a ``CompositionError`` of ``check`` if 2 f >= n or
        there are too many subsets.
    """
    return _rule("smea", _top_variance, check_malicious("smea", num_malicious))
