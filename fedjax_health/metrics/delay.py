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
