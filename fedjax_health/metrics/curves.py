"""Curves of a detector over all thresholds, thinned so that a page can hold them."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from fedjax_health.metrics.host import checked, ranking_counts

POINTS = 400


class RocCurve(NamedTuple):
    """Corners of the ROC curve; both run from 0 to 1 and never fall.

    Attributes:
      false_alarm_rate: float64 ``[points]``, alarms per normal row.
      recall: float64 ``[points]``, alarms per attack row.
    """

    false_alarm_rate: np.ndarray
    recall: np.ndarray


class PrecisionRecallCurve(NamedTuple):
    """Steps of the precision-recall curve.

    Attributes:
      recall: float64 ``[points]``, from 0 to 1, never falling.
      precision: float64 ``[points]``, that of the step which ends at this recall; the
        first is repeated at recall 0.
    """

    recall: np.ndarray
    precision: np.ndarray


def roc_curve(score: ArrayLike, label: ArrayLike, *, points: int = POINTS) -> RocCurve:
    """Returns the ROC curve with straight lines between its points.

    Points on a straight line are dropped, which changes nothing. Of more corners than
    ``points``, those are kept that lie nearest to equal steps along the curve.

    Args:
      score: ``[rows]``.
      label: ``[rows]``, both classes.
      points: how many to keep at most, 2 or more.

    Raises:
      ValueError: for NaN, one class or fewer than 2 points.
    """
    true, false = ranking_counts(*checked(score, label))
    # As whole numbers: a cross product of 0 is a straight line without rounding.
    true, false = np.append(0, true), np.append(0, false)
    rise, run = np.diff(true), np.diff(false)
    turns = rise[1:] * run[:-1] != rise[:-1] * run[1:]
    corner = np.flatnonzero(np.concatenate([[True], turns, [True]]))
    false_alarm_rate, recall = false[corner] / false[-1], true[corner] / true[-1]
    kept = _thinned(false_alarm_rate, recall, points)
    return RocCurve(false_alarm_rate[kept], recall[kept])


def precision_recall_curve(
    score: ArrayLike, label: ArrayLike, *, points: int = POINTS
) -> PrecisionRecallCurve:
    """Returns the precision-recall curve, one point for each step of recall.

    The area under its steps is ``host.auprc``, as long as nothing was thinned: of more
    steps than ``points``, those are kept that lie nearest to equal steps along it.

    Args:
      score: ``[rows]``.
      label: ``[rows]``, both classes.
      points: how many to keep at most, 2 or more.

    Raises:
      ValueError: for NaN, one class or fewer than 2 points.
    """
    true, false = ranking_counts(*checked(score, label))
    step = np.flatnonzero(np.diff(true, prepend=0) > 0)
    precision = true[step] / (true[step] + false[step])
    recall = np.append(0, true[step] / true[-1])
    precision = np.append(precision[0], precision)
    kept = _thinned(recall, precision, points)
    return PrecisionRecallCurve(recall[kept], precision[kept])


def _thinned(x, y, points) -> np.ndarray:
    """Returns indices of both ends and of points at equal steps between them."""
    if points < 2:
        raise ValueError(f"a curve needs 2 points or more, not {points}")
    if len(x) <= points:
        return np.arange(len(x))
    along = np.cumsum(
        np.abs(np.diff(x, prepend=x[0])) + np.abs(np.diff(y, prepend=y[0]))
    )
    sought = np.linspace(0, along[-1], points)
    after = np.clip(np.searchsorted(along, sought), 1, len(x) - 1)
    nearer = sought - along[after - 1] < along[after] - sought
    return np.unique(np.append(after - nearer, [0, len(x) - 1]))
