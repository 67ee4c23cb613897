"""How long an attack runs before the detector gives alarm.

An episode is a maximal run of attack rows inside one segment (one stream without
gaps). Its delay is the number of steps from its first row, the onset, to the first
alarm: an alarm that starts on the onset is 0. An alarm already on at the onset is
taken for an early detection with delay 0 if it has been on for at most one window; if
it has been on for longer, it is a false alarm, and the delay runs to the next alarm
that starts inside the episode. An episode without an alarm of its own is missed and
charged its full length.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from fedjax_health.metrics.host import checked
from fedjax_health.metrics.threshold import threshold_at_far

# False-alarm rates of a delay curve: the three of the protocol and a grid around them.
RATES = tuple(
    sorted({0.001, 0.01, 0.05, *np.geomspace(1e-3, 0.2, 24).round(6).tolist()})
)
DAY = 86_400.0


class Episodes(NamedTuple):
    """One row for each attack episode.

    Attributes:
      onset: int64, the episode's first row.
      length: int64, in steps.
      delay: int64, in steps; the length where missed.
      missed: bool.
    """

    onset: np.ndarray
    length: np.ndarray
    delay: np.ndarray
    missed: np.ndarray


def find_episodes(
    alarm: ArrayLike, label: ArrayLike, segment: ArrayLike, *, window: int
) -> Episodes:
    """Returns the attack episodes and when each was noticed.

    Args:
      alarm: bool ``[rows]``, in the order of time inside each segment.
      label: ``[rows]``, 0 or 1.
      segment: ``[rows]``, integers; equal neighbours belong to one stream.
      window: steps for which an alarm may have been on at the onset, 0 or more.

    Raises:
      ValueError: for shapes that differ or a negative window.
    """
    alarms = np.asarray(alarm, bool)
    attack = np.asarray(label) == 1
    segments = np.asarray(segment)
    if alarms.ndim != 1 or not alarms.shape == attack.shape == segments.shape:
        raise ValueError(
            f"alarms {alarms.shape}, labels {attack.shape} and segments "
            f"{segments.shape} must be three vectors of one length"
        )
    if window < 0:
        raise ValueError(f"window must be 0 or more steps, not {window}")
    rows = len(alarms)
    if not rows:
        nothing = np.zeros(0, np.int64)
        return Episodes(nothing, nothing, nothing, np.zeros(0, bool))
    first = np.append(True, segments[1:] != segments[:-1])

    onset = _run_starts(attack, first)
    ended = np.flatnonzero(attack & np.append(~attack[1:] | first[1:], True)) + 1
    alarm_starts = _run_starts(alarms, first)
    # A sentinel beyond the last row stands for "no further alarm".
    following = np.append(alarm_starts, rows)[np.searchsorted(alarm_starts, onset)]
    latest = np.searchsorted(alarm_starts, onset, side="right") - 1
    begun = np.append(alarm_starts, 0)[latest]
    early = alarms[onset] & (onset - begun <= window)
    caught = early | (following < ended)
    length = ended - onset
    delay = np.where(early, 0, np.where(caught, following - onset, length))
    return Episodes(onset, length, delay, ~caught)


def _run_starts(flag: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Returns the first rows of the runs of True, cut where a segment starts."""
    return np.flatnonzero(flag & (first | ~np.append(False, flag[:-1])))


def detection_delay(
    score: ArrayLike,
    label: ArrayLike,
    segment: ArrayLike,
    *,
    threshold: float,
    window: int,
    recall_within: Sequence[int] = (0, 5, 10),
) -> dict[str, float]:
    """Returns how late alarms are, beside the false-alarm rate that they cost.

    Compare methods at one achieved rate only: a lower threshold shortens every delay.

    Args:
      score: ``[rows]``, in the order of time inside each segment.
      label: ``[rows]``, 0 or 1.
      segment: ``[rows]``, integers; equal neighbours belong to one stream.
      threshold: the lowest score that is an alarm.
      window: the detector's window in steps, see the module's text.
      recall_within: numbers of steps k for ``recall_within_k``, the share of episodes
        that are noticed with a delay of k steps or fewer.

    Returns:
      ``mean_delay`` and ``median_delay`` in steps with missed episodes at full length,
      ``missed_episodes``, ``episodes``, ``achieved_far`` (alarms per normal row; 0
      without normal rows) and ``recall_within_k``. Without an episode, the delays and
      recalls are left out.

    Raises:
      ValueError: for NaN, shapes that differ or a negative window.
    """
    scores = np.asarray(score, np.float64)
    if np.isnan(scores).any() or np.isnan(threshold):
        raise ValueError("detection delay needs scores and a threshold without NaN")
    alarm = scores >= threshold
    episodes = find_episodes(alarm, label, segment, window=window)
    normal = np.asarray(label) != 1
    result = {
        "episodes": float(len(episodes.onset)),
        "missed_episodes": float(episodes.missed.sum()),
        "achieved_far": float(alarm[normal].mean()) if normal.any() else 0.0,
    }
    if len(episodes.onset):
        result["mean_delay"] = float(episodes.delay.mean())
        result["median_delay"] = float(np.median(episodes.delay))
        for steps in recall_within:
            soon = ~episodes.missed & (episodes.delay <= steps)
            result[f"recall_within_{steps}"] = float(soon.mean())
    return result


class DelayCurve(NamedTuple):
    """Delays at several thresholds, ``[rates]`` each.

    Attributes:
      rate: the false-alarm rate that was asked for.
      threshold: the lowest score that is an alarm.
      achieved_far: false alarms per normal row.
      mean_delay: in steps, missed episodes at full length.
      median_delay: likewise.
      missed_episodes: episodes without an alarm of their own.
    """

    rate: np.ndarray
    threshold: np.ndarray
    achieved_far: np.ndarray
    mean_delay: np.ndarray
    median_delay: np.ndarray
    missed_episodes: np.ndarray


def delay_curve(
    score: ArrayLike,
    label: ArrayLike,
    segment: ArrayLike,
    *,
    window: int,
    reference: tuple[ArrayLike, ArrayLike] | None = None,
    rates: Sequence[float] = RATES,
) -> DelayCurve | None:
    """Returns how delays fall as more false alarms are allowed.

    Args:
      score: ``[rows]``, in the order of time inside each segment.
      label: ``[rows]``, 0 or 1.
      segment: ``[rows]``, integers; equal neighbours belong to one stream.
      window: the detector's window in steps, see the module's text.
      reference: scores and labels of the validation rows that thresholds are taken
        from. None takes them from the very rows that are measured: such a curve serves
        to compare detectors and promises nothing for other rows.
      rates: false-alarm rates in [0, 1) on the reference.

    Returns:
      The curve, or None without an episode or without a normal row to set thresholds
      by.

    Raises:
      ValueError: for NaN, shapes that differ, a negative window or a rate outside
        [0, 1).
    """
    source = (score, label) if reference is None else reference
    _, positive = checked(*source, classes=1)
    if positive.all() or not (np.asarray(label) == 1).any():
        return None
    thresholds = [threshold_at_far(*source, rate=rate) for rate in rates]
    points = [
        detection_delay(score, label, segment, threshold=threshold, window=window)
        for threshold in thresholds
    ]
    return DelayCurve(
        np.asarray(rates, np.float64),
        np.asarray(thresholds),
        *(
            np.array([point[name] for point in points])
            for name in DelayCurve._fields[2:]
        ),
    )


def delay_at_matched_far(
    score: ArrayLike,
    label: ArrayLike,
    segment: ArrayLike,
    *,
    window: int,
    achieved: float = 0.05,
) -> dict[str, float]:
    """Returns the delays of a detector that gives false alarms at a known test rate.

    The threshold is taken from the rows that are measured, so this is for comparing
    detectors at one price and for nothing else: no ward could have set it beforehand.

    Args:
      score: ``[rows]``, in the order of time inside each segment.
      label: ``[rows]``, 0 or 1, with normal rows.
      segment: ``[rows]``, integers; equal neighbours belong to one stream.
      window: the detector's window in steps, see the module's text.
      achieved: false alarms per normal row, in [0, 1). Where ties allow no threshold
        of just that rate, the next lower one is taken.

    Returns:
      ``matched_threshold`` and what ``detection_delay`` returns at it.

    Raises:
      ValueError: for NaN, shapes that differ, no normal rows, a negative window or a
        rate outside [0, 1).
    """
    threshold = threshold_at_far(score, label, rate=achieved)
    delays = detection_delay(score, label, segment, threshold=threshold, window=window)
    return {"matched_threshold": threshold, **delays}


def alarms_per_day(rate: float, step_seconds: float) -> float:
    """Returns the false alarms that one entity raises in a day of normal rows.

    Every row counts, not only those that begin a run of alarms: 1 % of one-minute
    steps is 14.4 a day.

    Args:
      rate: false alarms per normal row.
      step_seconds: time between two rows of an entity, above 0.

    Raises:
      ValueError: for a step that is not above 0.
    """
    if not step_seconds > 0:
        raise ValueError(f"step_seconds must be above 0, not {step_seconds}")
    return rate * DAY / step_seconds
