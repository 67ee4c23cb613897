"""Krum and Multi-Krum: the rows that lie closest to their nearest neighbours."""

import functools

import jax
import jax.numpy as jnp

from fedjax_health.aggregators.gram import Geometry, GramKernel, gram_update
from fedjax_health.aggregators.rows import (
    Rows,
    check_count,
    check_malicious,
    normalised,
    smallest,
)
from fedjax_health.core.message import CompositionError, Message
from fedjax_health.core.types import Aggregator, Key, Metrics, Params, State

# Stands for the number that follows from the cohort.
_BY_COHORT = -1


def krum_scores(
    squared: jax.Array, valid: jax.Array, neighbors: jax.Array
) -> jax.Array:
    """Returns each row's sum of squared distances to its nearest others.

    Args:
      squared: float32 ``[n, n]``, infinite to rows that do not count.
      valid: bool ``[n]``.
      neighbors: int32 ``[]``, at least 1.

    Returns:
      float32 ``[n]``, infinite for rows that do not count.
    """
    n = valid.shape[0]
    others = jnp.where(jnp.eye(n, dtype=bool), jnp.inf, squared)
    taken = smallest(others, neighbors)
    sums = jnp.sum(jnp.where(taken > 0, taken * others, 0.0), axis=1)
    return jnp.where(valid, sums, jnp.inf)


def _scores(geometry: Geometry, rows: Rows, state: State) -> jax.Array:
    by_cohort = rows.count - rows.malicious(state["num_malicious"]) - 2
    asked = state["neighbors"]
    neighbors = jnp.where(asked == _BY_COHORT, by_cohort, asked)
    neighbors = jnp.maximum(neighbors, 1)
    return krum_scores(geometry.squared_distances(), rows.valid, neighbors)


def _weigh_one(
    geometry: Geometry, rows: Rows, state: State, key: Key
) -> tuple[jax.Array, Metrics]:
    del key
    order = rows.by_client()
    best = order[jnp.argmin(_scores(geometry, rows, state)[order])]
    picked = jnp.arange(rows.valid.shape[0]) == best
    return (picked & rows.valid).astype(jnp.float32), {}


def _weigh_many(
    geometry: Geometry, rows: Rows, state: State, key: Key
) -> tuple[jax.Array, Metrics]:
    del key
    by_cohort = rows.count - rows.malicious(state["num_malicious"])
    keep = jnp.where(state["keep"] == _BY_COHORT, by_cohort, state["keep"])
    return normalised(smallest(_scores(geometry, rows, state), keep)), {}


_KRUM = GramKernel(_weigh_one, selects=True)
_MULTI_KRUM = GramKernel(_weigh_many, selects=True)


def check_krum(rule: str, f: int, cohort_size: int) -> None:
    """Refuses a cohort for which Krum is not defined.

    Raises:
      CompositionError: if n <= 2 f + 2.
    """
    if cohort_size <= 2 * f + 2:
        raise CompositionError(
            f"{rule} needs more than 2 num_malicious + 2 clients, and a cohort of "
            f"{cohort_size} with num_malicious={f} has not: assume at most "
            f"{max((cohort_size - 3) // 2, 0)}, or draw {2 * f + 3} clients or more"
        )


def _check_at_most(rule: str, name: str, value: int, most: int) -> None:
    if value > most:
        raise CompositionError(
            f"{rule}: {name}={value} is more than the cohort has to offer: at most "
            f"{most}"
        )


@functools.cache
def _checks(rule: str, f: int, neighbors: int, keep: int):
    def check(message: Message, cohort_size: int) -> Message:
        check_krum(rule, f, cohort_size)
        _check_at_most(rule, "neighbors", neighbors, cohort_size - 1)
        _check_at_most(rule, "keep", keep, cohort_size)
        return message

    return check


def _numbers(rule: str, name: str, value: int | None) -> int:
    return _BY_COHORT if value is None else check_count(rule, name, value, least=1)


def krum(num_malicious: int, *, neighbors: int | None = None) -> Aggregator:
    """The row with the least sum of squared distances to its nearest others.

    Blanchard et al., 2017, "Machine Learning with Adversaries: Byzantine Tolerant
    Gradient Descent" (NeurIPS). The paper's variant sums over n - f - 2 others; ByzFL's
    over n - f - 1. Of several rows with the least sum that of the lowest client id is
    taken.

    Breakdown point: f malicious rows, for n > 2 f + 2. Weights are not used, but for a
    weight of 0, which marks an absent row. Traced: f and ``neighbors``.

    Args:
      num_malicious: f, the malicious rows that are assumed.
      neighbors: how many others are summed over; None for n - f - 2.

    Raises:
      ValueError: if f is negative or ``neighbors`` below 1; a ``CompositionError`` of
        ``check`` if n <= 2 f + 2 or ``neighbors`` >= n.
    """
    f = check_malicious("krum", num_malicious)
    others = _numbers("krum", "neighbors", neighbors)

    def init(params: Params) -> State:
        del params
        return {"num_malicious": jnp.int32(f), "neighbors": jnp.int32(others)}

    check = _checks("krum", f, others, 1)
    return Aggregator(init, gram_update(_KRUM), check, False, "gram", _KRUM)


def multi_krum(
    num_malicious: int, *, keep: int | None = None, neighbors: int | None = None
) -> Aggregator:
    """The mean of the rows with the least Krum scores.

    Blanchard et al., 2017, "Machine Learning with Adversaries: Byzantine Tolerant
    Gradient Descent" (NeurIPS); see ``krum`` for the scores. Rows that tie for the last
    place share it.

    Breakdown point: f malicious rows, for n > 2 f + 2. Weights are not used, but for a
    weight of 0, which marks an absent row. Traced: all three numbers.

    Args:
      num_malicious: f, the malicious rows that are assumed.
      keep: m, how many rows are averaged; None for n - f, as in ByzFL.
      neighbors: how many others a score sums over; None for n - f - 2.

    Raises:
      ValueError: if f is negative, ``keep`` or ``neighbors`` below 1; a
        ``CompositionError`` of ``check`` if n <= 2 f + 2, ``keep`` > n or
        ``neighbors`` >= n.
    """
    f = check_malicious("multi_krum", num_malicious)
    others = _numbers("multi_krum", "neighbors", neighbors)
    kept = _numbers("multi_krum", "keep", keep)

    def init(params: Params) -> State:
        del params
        return {
            "num_malicious": jnp.int32(f),
            "neighbors": jnp.int32(others),
            "keep": jnp.int32(kept),
        }

    check = _checks("multi_krum", f, others, kept)
    update = gram_update(_MULTI_KRUM)
    return Aggregator(init, update, check, False, "gram", _MULTI_KRUM)
