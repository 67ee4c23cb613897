"""Areas under the ROC and the precision-recall curve inside compiled programs.

Exact with ties: rows of equal score form one point of the curve. Both functions run
in O(rows log rows) under jit and vmap. Counts are float32: exact up to 2**24 rows of
weight 0 or 1; ``metrics.host`` computes in float64 what goes into a report.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Ranking(NamedTuple):
    """A ranking metric of rows that may hold one class only.

    Attributes:
      value: float32 ``[]`` in [0, 1]; 0 where it is not valid, never NaN.
      valid: bool ``[]``, whether both classes have weight and no score that counts is
        NaN. Average over the valid ones, and report how many are not.
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
    # Divided before they are multiplied: products of counts leave float32's integers.
    width = (curve.false - curve.false_before) / curve.negatives
    height = (curve.true + curve.true_before) / (2 * curve.positives)
    return _ranking(jnp.sum(jnp.where(curve.last, width * height, 0)), curve)


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
    step = (curve.true - curve.true_before) / curve.positives
    found = curve.true + curve.false
    precision = curve.true / jnp.where(found > 0, found, 1)
    return _ranking(jnp.sum(jnp.where(curve.last, step * precision, 0)), curve)


class _Curve(NamedTuple):
    """Counts by falling score; ``last`` marks the last row of each distinct score."""

    true: jax.Array
    false: jax.Array
    true_before: jax.Array
    false_before: jax.Array
    last: jax.Array
    positives: jax.Array
    negatives: jax.Array
    valid: jax.Array


def _curve(score, label, weight) -> _Curve:
    score = jnp.asarray(score, jnp.float32)
    if score.ndim != 1 or score.shape[0] == 0:
        raise ValueError(f"ranking metrics need scores [rows], not {score.shape}")
    weight = jnp.ones_like(score) if weight is None else weight.astype(score.dtype)
    positive = jnp.asarray(label) > 0.5
    counted = weight > 0
    weight = jnp.where(counted, weight, 0)
    usable = ~jnp.any(counted & jnp.isnan(score))
    # A row without weight is moved onto an ordinary score, where it adds nothing.
    falling = jnp.where(counted & ~jnp.isnan(score), -score, 0.0)
    falling, of_true, of_false = lax.sort(
        (falling, jnp.where(positive, weight, 0), jnp.where(positive, 0, weight)),
        num_keys=1,
    )
    true = lax.cumsum(of_true)
    false = lax.cumsum(of_false)
    last = jnp.concatenate([falling[1:] != falling[:-1], jnp.ones(1, bool)])

    def before(count):
        """Returns the count at the end of the distinct score above."""
        ends = jnp.where(last, count, 0)
        return lax.cummax(jnp.concatenate([jnp.zeros(1, count.dtype), ends[:-1]]))

    valid = usable & (true[-1] > 0) & (false[-1] > 0)
    return _Curve(
        true,
        false,
        before(true),
        before(false),
        last,
        positives=jnp.where(true[-1] > 0, true[-1], 1),
        negatives=jnp.where(false[-1] > 0, false[-1], 1),
        valid=valid,
    )


def _ranking(area, curve) -> Ranking:
    return Ranking(jnp.where(curve.valid, jnp.clip(area, 0, 1), 0.0), curve.valid)
