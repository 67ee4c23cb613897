"""Metrics of alarms at a threshold, and thresholds chosen on validation rows.

A row is an alarm if its score is at or above the threshold. Everything is computed on
the host in float64.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from fedjax_health.metrics.host import checked


class Confusion(NamedTuple):
    """Counts of rows by alarm and label."""

    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int


def confusion(score: ArrayLike, label: ArrayLike, *, threshold: float) -> Confusion:
    """Counts alarms and misses.

    Args:
      score: ``[rows]``.
      label: ``[rows]``, 0 or 1.
      threshold: the lowest score that is an alarm.

    Raises:
      ValueError: for NaN in scores or threshold, or no rows.
    """
    scores, positive = checked(score, label, classes=1)
    if np.isnan(threshold):
        raise ValueError("the threshold is NaN")
    alarm = scores >= threshold
    hits = int(np.sum(alarm & positive))
    alarms = int(alarm.sum())
    positives = int(positive.sum())
    return Confusion(
        hits,
        alarms - hits,
        positives - hits,
        len(scores) - alarms - positives + hits,
    )


def accuracy(counts: Confusion) -> float:
    """Returns the share of rows that are judged rightly."""
    return (counts.true_positives + counts.true_negatives) / sum(counts)


def precision(counts: Confusion) -> float:
    """Returns the share of alarms that are attacks; 0 without an alarm."""
    alarms = counts.true_positives + counts.false_positives
    return counts.true_positives / alarms if alarms else 0.0


def recall(counts: Confusion) -> float:
    """Returns the share of attack rows that are alarms; 0 without an attack."""
    positives = counts.true_positives + counts.false_negatives
    return counts.true_positives / positives if positives else 0.0


def f1(counts: Confusion) -> float:
    """Returns the harmonic mean of precision and recall; 0 where both are 0."""
    wrong = counts.false_positives + counts.false_negatives
    total = 2 * counts.true_positives + wrong
    return 2 * counts.true_positives / total if total else 0.0


def mcc(counts: Confusion) -> float:
    """Returns Matthews' correlation; 0 where alarms or labels are all the same."""
    tp, fp, fn, tn = counts
    # Python integers: the product of four counts leaves float64's exact range.
    product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return (tp * tn - fp * fn) / product**0.5 if product else 0.0


def threshold_at_f1(score: ArrayLike, label: ArrayLike) -> float:
    """Returns the score at which F1 is greatest; the highest of several.

    Args:
      score: ``[rows]`` of the validation part.
      label: ``[rows]``, both classes.

    Raises:
      ValueError: for NaN, no rows or one class.
    """
    scores, positive = checked(score, label, name="validation")
    order = np.argsort(-scores, kind="stable")
    falling = scores[order]
    last = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))
    hits = np.cumsum(positive[order])[last]
    # F1 = 2 hits / (alarms + positives)
    values = 2 * hits / (last + 1 + positive.sum())
    return float(falling[last[np.argmax(values)]])


def threshold_at_far(score: ArrayLike, label: ArrayLike, *, rate: float) -> float:
    """Returns the lowest threshold whose false-alarm rate is at most ``rate``.

    It lies just above the highest score of a normal row that must not be an alarm.

    Args:
      score: ``[rows]`` of the validation part.
      label: ``[rows]``, with normal rows.
      rate: alarms per normal row, in [0, 1); 0.01 is 1 %.

    Raises:
      ValueError: for a rate outside [0, 1), NaN, or no normal rows.
    """
    if not 0 <= rate < 1:
        raise ValueError(
            f"a false-alarm rate must lie in [0, 1), not {rate}: 1 % is 0.01"
        )
    scores, positive = checked(score, label, name="validation", classes=1)
    normal = scores[~positive]
    if not len(normal):
        raise ValueError("a false-alarm rate needs normal validation rows: none given")
    # rate * rows may lie a rounding error below the whole number that it stands for.
    allowed = int(np.floor(rate * len(normal) + 1e-9))
    refused = len(normal) - 1 - allowed
    return float(np.nextafter(np.partition(normal, refused)[refused], np.inf))
