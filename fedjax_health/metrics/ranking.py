"""Areas under the ROC and the precision-recall curve inside compiled programs.

Exact with ties: rows of equal score form one point of the curve. All functions run in
O(rows log rows) under jit and vmap. Counts are float32: exact up to 2**24 rows of
weight 0 or 1; ``metrics.host`` computes in float64 what goes into a report.

Clients are told apart in one of two ways, to the same values: rows padded to
``[clients, rows]`` go through ``jax.vmap(auroc)`` with weight 0 on the filling; packed
rows, each with the number of its client, go through ``client_auroc``, which sorts them
once and needs no memory beyond them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Ranking(NamedTuple):
    """A ranking metric of rows that may hold one class only.

    Attributes:
      value: float32 ``[]`` in [0, 1], or ``[clients]``; 0 where it is not valid, never
        NaN.
      valid: bool of the same shape, whether both classes have weight and no score that
        counts is NaN. Average over the valid ones, and report how many are not.
    """

    value: jax.Array
    valid: jax.Array


def auroc(
    score: jax.Array, label: jax.Array, weight: jax.Array | None = None
) -> Ranking:
    """Returns the probability that a positive outranks a negative, ties half.

    Args:
      score: ``[rows]``, higher is more suspect.
      label: ``[rows]``, 0 or 1.
      weight: ``[rows]``, 0 or more; rows of weight 0 do not count whatever they hold.
        None for ones.
    """
    curve = _curve(score, label, weight)
    return _ranking(jnp.sum(_trapezia(curve)), curve)


def auprc(
    score: jax.Array, label: jax.Array, weight: jax.Array | None = None
) -> Ranking:
    """Returns the average precision: precision summed over steps of recall.

    Args:
      score: as in ``auroc``.
      label: as in ``auroc``.
      weight: as in ``auroc``.
    """
    curve = _curve(score, label, weight)
    return _ranking(jnp.sum(_steps(curve)), curve)


def client_auroc(
    score: jax.Array,
    label: jax.Array,
    client: jax.Array,
    *,
    num_clients: int,
    weight: jax.Array | None = None,
) -> Ranking:
    """Returns the AUROC of every client's own rows.

    Args:
      score: as in ``auroc``.
      label: as in ``auroc``.
      client: int32 ``[rows]`` in [0, num_clients), in any order; rows of other numbers
        do not count.
      num_clients: length of the result; a client without rows is not valid.
      weight: as in ``auroc``.
    """
    curve = _curve(score, label, weight, client, num_clients)
    return _ranking(_sum(_trapezia(curve), curve.client, num_clients), curve)


def client_auprc(
    score: jax.Array,
    label: jax.Array,
    client: jax.Array,
    *,
    num_clients: int,
    weight: jax.Array | None = None,
) -> Ranking:
    """Returns the average precision of every client's own rows.

    Args:
      score: as in ``auroc``.
      label: as in ``auroc``.
      client: as in ``client_auroc``.
      num_clients: as in ``client_auroc``.
      weight: as in ``auroc``.
    """
    curve = _curve(score, label, weight, client, num_clients)
    return _ranking(_sum(_steps(curve), curve.client, num_clients), curve)


class Spread(NamedTuple):
    """How a ranking metric is spread over the clients where it is valid.

    Attributes:
      mean: float32 ``[]``; all four are 0 where no client is ranked, never NaN.
      worst: float32 ``[]``.
      worst_decile: float32 ``[]``, the mean of the lowest tenth of the ranked clients,
        rounded down, of at least one.
      std: float32 ``[]``, over clients as a population.
      ranked: int32 ``[]``, clients that are valid.
      excluded: int32 ``[]``, the others.
    """

    mean: jax.Array
    worst: jax.Array
    worst_decile: jax.Array
    std: jax.Array
    ranked: jax.Array
    excluded: jax.Array


def spread(ranking: Ranking) -> Spread:
    """Returns mean, worst, worst decile and deviation over valid clients.

    Args:
      ranking: values ``[clients]``.
    """
    value, valid = ranking
    ranked = jnp.sum(valid, dtype=jnp.int32)
    divisor = jnp.maximum(ranked, 1)
    mean = jnp.sum(jnp.where(valid, value, 0)) / divisor
    variance = jnp.sum(jnp.where(valid, (value - mean) ** 2, 0)) / divisor
    ordered = jnp.sort(jnp.where(valid, value, jnp.inf))
    tenth = jnp.maximum(1, ranked // 10)
    lowest = jnp.where(jnp.arange(len(ordered)) < tenth, ordered, 0)
    some = ranked > 0
    return Spread(
        mean=mean,
        worst=jnp.where(some, ordered[0], 0),
        worst_decile=jnp.where(some, jnp.sum(lowest) / tenth, 0),
        std=jnp.sqrt(variance),
        ranked=ranked,
        excluded=len(ordered) - ranked,
    )


class _Curve(NamedTuple):
    """Counts inside each client by falling score, ``[rows]`` unless said otherwise.

    ``last`` marks the last row of each distinct score; ``positives`` and ``negatives``
    are those of the row's client, 1 where there are none; ``valid`` is ``[]``, or
    ``[clients]``.
    """

    true: jax.Array
    false: jax.Array
    true_before: jax.Array
    false_before: jax.Array
    last: jax.Array
    positives: jax.Array
    negatives: jax.Array
    client: jax.Array | None
    valid: jax.Array


def _trapezia(curve: _Curve):
    # Divided before they are multiplied: products of counts leave float32's integers.
    width = (curve.false - curve.false_before) / curve.negatives
    height = (curve.true + curve.true_before) / (2 * curve.positives)
    return jnp.where(curve.last, width * height, 0)


def _steps(curve: _Curve):
    step = (curve.true - curve.true_before) / curve.positives
    found = curve.true + curve.false
    precision = curve.true / jnp.where(found > 0, found, 1)
    return jnp.where(curve.last, step * precision, 0)


def _curve(score, label, weight, client=None, num_clients=1) -> _Curve:
    score = jnp.asarray(score, jnp.float32)
    if score.ndim != 1 or score.shape[0] == 0:
        raise ValueError(f"ranking metrics need scores [rows], not {score.shape}")
    weight = jnp.ones_like(score) if weight is None else weight.astype(score.dtype)
    positive = jnp.asarray(label) > 0.5
    counted = weight > 0
    if client is not None:
        client = jnp.asarray(client, jnp.int32)
        if client.shape != score.shape:
            raise ValueError(f"clients {client.shape} must fit scores {score.shape}")
        counted &= (client >= 0) & (client < num_clients)
        client = jnp.where(counted, client, 0)
    weight = jnp.where(counted, weight, 0)
    spoilt = counted & jnp.isnan(score)
    # A row without weight is moved onto an ordinary score, where it adds nothing.
    falling = jnp.where(counted & ~jnp.isnan(score), -score, 0.0)
    of_true, of_false = jnp.where(positive, weight, 0), jnp.where(positive, 0, weight)
    if client is None:
        falling, of_true, of_false = lax.sort((falling, of_true, of_false), num_keys=1)
        new_client = jnp.zeros(len(score) - 1, bool)
        usable = ~jnp.any(spoilt)
    else:
        usable = ~(_sum(spoilt.astype(jnp.int32), client, num_clients) > 0)
        client, falling, of_true, of_false = lax.sort(
            (client, falling, of_true, of_false), num_keys=2
        )
        new_client = client[1:] != client[:-1]
    last = jnp.append((falling[1:] != falling[:-1]) | new_client, True)
    first = jnp.append(True, new_client)

    def counts(of):
        """Returns counts in the client: here, at the score above, and of all rows."""
        total = lax.cumsum(of)
        ends = jnp.append(0.0, jnp.where(last, total, 0)[:-1])
        above = lax.cummax(ends)
        if client is None:
            return total, above, total[-1], total[-1]
        start = lax.cummax(jnp.where(first, ends, 0))
        everything = _sum(of, client, num_clients)
        return total - start, above - start, everything, everything[client]

    true, true_before, all_true, positives = counts(of_true)
    false, false_before, all_false, negatives = counts(of_false)
    return _Curve(
        true,
        false,
        true_before,
        false_before,
        last,
        positives=jnp.where(positives > 0, positives, 1),
        negatives=jnp.where(negatives > 0, negatives, 1),
        client=client,
        valid=usable & (all_true > 0) & (all_false > 0),
    )


def _sum(values, client, num_clients):
    return jax.ops.segment_sum(values, client, num_segments=num_clients)


def _ranking(area, curve) -> Ranking:
    return Ranking(jnp.where(curve.valid, jnp.clip(area, 0, 1), 0.0), curve.valid)
