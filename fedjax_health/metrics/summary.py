"""The figures of one detector: thresholds from validation, everything else from test.

What each figure means is written in ``docs/metrics.md``.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from fedjax_health.metrics import host, threshold
from fedjax_health.metrics.delay import detection_delay


class Scored(NamedTuple):
    """Rows of one split with the probability that a detector gives them.

    Attributes:
      score: ``[rows]``, probabilities of an attack in [0, 1].
      label: ``[rows]``, 0 or 1.
      segment: ``[rows]``, integers; equal neighbours belong to one stream, in the
        order of time. None for records without time.
    """

    score: ArrayLike
    label: ArrayLike
    segment: ArrayLike | None = None


def evaluate_scores(
    validation: Scored,
    test: Scored,
    *,
    window: int,
    false_alarm_rate: float = 0.01,
    client: ArrayLike | None = None,
) -> dict[str, float]:
    """Returns the metrics of one detector on its test rows.

    Args:
      validation: rows that thresholds are chosen on, and nothing else.
      test: rows that are measured.
      window: the detector's window in steps; see ``metrics.delay``.
      false_alarm_rate: the validation rate at which the delay is measured.
      client: ``[test rows]``, integers; adds the spread of AUROC over clients.

    Returns:
      ``accuracy``, ``f1``, ``mcc``, ``precision``, ``recall`` at ``threshold`` (the
      best validation F1); ``auroc``, ``auprc``, ``prevalence``, ``ece``, ``brier``;
      where the test rows have segments, ``delay_threshold`` and what
      ``detection_delay`` returns at it; with ``client`` what ``client_auroc`` returns.

    Raises:
      ValueError: for NaN, scores outside [0, 1], shapes that differ, or a split with
        one class.
    """
    valid_score, valid_label = host.checked(
        validation[0], validation[1], name="validation"
    )
    score, label = host.checked(test[0], test[1], name="test")
    segment = test[2] if len(test) > 2 else None

    at_f1 = threshold.threshold_at_f1(valid_score, valid_label)
    counts = threshold.confusion(score, label, threshold=at_f1)
    result = {
        "accuracy": threshold.accuracy(counts),
        "f1": threshold.f1(counts),
        "mcc": threshold.mcc(counts),
        "precision": threshold.precision(counts),
        "recall": threshold.recall(counts),
        "threshold": at_f1,
        "auroc": host.auroc(score, label),
        "auprc": host.auprc(score, label),
        "prevalence": float(np.mean(label)),
        "ece": host.calibration_error(score, label),
        "brier": host.brier(score, label),
    }
    if segment is not None:
        at_rate = threshold.threshold_at_far(
            valid_score, valid_label, rate=false_alarm_rate
        )
        result["delay_threshold"] = at_rate
        result |= detection_delay(
            score, label, segment, threshold=at_rate, window=window
        )
    if client is not None:
        result |= host.client_auroc(score, label, client)
    return result
