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


class Thresholds(NamedTuple):
    """The lowest scores that count as found, chosen without the rows that are measured.

    Attributes:
      threshold: where F1, accuracy and MCC are taken.
      delay_threshold: where the false-alarm rate and the delays of streams are taken;
        None for records.
    """

    threshold: float
    delay_threshold: float | None = None


# What a result and a report show, in this order.
METRICS = (
    "accuracy",
    "f1",
    "mcc",
    "auroc",
    "auprc",
    "ece",
    "brier",
    "mean_delay",
    "median_delay",
    "missed_episodes",
    "achieved_far",
)


def choose_thresholds(
    validation: Scored, *, false_alarm_rate: float = 0.01, streams: bool
) -> Thresholds:
    """Returns the threshold of the best validation F1 and that of a false-alarm rate.

    Args:
      validation: rows of both classes.
      false_alarm_rate: alarms per normal row at the second.
      streams: whether there are delays to measure; without, there is no second.

    Raises:
      ValueError: for NaN, one class, or a rate outside [0, 1).
    """
    score, label = validation[:2]
    return Thresholds(
        threshold.threshold_at_f1(score, label),
        threshold.threshold_at_far(score, label, rate=false_alarm_rate)
        if streams
        else None,
    )


def measure_scores(
    test: Scored, thresholds: Thresholds, *, window: int
) -> dict[str, float]:
    """Returns the metrics of a detector whose thresholds are known.

    Args:
      test: rows that are measured, of one class or two.
      thresholds: where alarms are given.
      window: the detector's window in steps; see ``metrics.delay``.

    Returns:
      What ``evaluate_scores`` returns, less what has no answer: ``auroc`` and ``auprc``
      of one class, delays without an episode.

    Raises:
      ValueError: for NaN, scores outside [0, 1] or shapes that differ.
    """
    score, label = host.checked(test.score, test.label, name="test", classes=1)
    counts = threshold.confusion(score, label, threshold=thresholds.threshold)
    result = {
        "accuracy": threshold.accuracy(counts),
        "f1": threshold.f1(counts),
        "mcc": threshold.mcc(counts),
        "precision": threshold.precision(counts),
        "recall": threshold.recall(counts),
        "threshold": thresholds.threshold,
        "prevalence": float(np.mean(label)),
        "ece": host.calibration_error(score, label),
        "brier": host.brier(score, label),
    }
    if 0 < label.sum() < len(label):
        result["auroc"] = host.auroc(score, label)
        result["auprc"] = host.auprc(score, label)
    if thresholds.delay_threshold is not None and test.segment is not None:
        result["delay_threshold"] = thresholds.delay_threshold
        result |= detection_delay(
            score,
            label,
            test.segment,
            threshold=thresholds.delay_threshold,
            window=window,
        )
    return result


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
      ``detection_delay`` returns at it; with ``client`` what
      ``host.client_spread`` returns.

    Raises:
      ValueError: for NaN, scores outside [0, 1], shapes that differ, or a split with
        one class.
    """
    thresholds = choose_thresholds(
        validation,
        false_alarm_rate=false_alarm_rate,
        streams=test.segment is not None,
    )
    host.checked(test.score, test.label, name="test")
    result = measure_scores(test, thresholds, window=window)
    if client is not None:
        result |= host.client_spread(test.score, test.label, client)
    return result
