"""Attack episodes, and the streams of a run that a person should look at first."""

from typing import NamedTuple

import numpy as np

from fedjax_health.report.predictions import Predictions

PANELS = 6
# Rows on one time line: more would be drawn into each other.
SPAN = 300


class Episodes(NamedTuple):
    """One row for each attack episode, a run of attack rows inside one stream.

    Attributes:
      onset: int64, first row.
      end: int64, one past the last row.
      delay: int64, steps until it was noticed; its length where missed.
      missed: bool.
    """

    onset: np.ndarray
    end: np.ndarray
    delay: np.ndarray
    missed: np.ndarray


class Panel(NamedTuple):
    """A piece of one stream that is worth a look.

    Attributes:
      why: what it shows.
      first: first row.
      end: one past the last row.
    """

    why: str
    first: int
    end: int


def find_episodes(predictions: Predictions, *, window: int) -> Episodes:
    """Returns the episodes by the rule of ``docs/metrics.md``.

    Args:
      predictions: with labels and alarms.
      window: steps for which an alarm may have been on at the onset.

    Raises:
      ValueError: without labels or alarms.
    """
    if predictions.label is None or predictions.alarm is None:
        raise ValueError("episodes need labels and alarms")
    rows = len(predictions.score)
    first = np.zeros(rows, bool)
    first[predictions.segment_starts] = True
    # As in the figures, a row without a label cuts a stream in two.
    unknown = predictions.label < 0
    first |= unknown | np.append(False, unknown[:-1])[:rows]
    onset, end = _runs(predictions.label == 1, first)
    begun, over = _runs(predictions.alarm & ~unknown, first)
    delay, missed = end - onset, np.zeros(len(onset), bool)
    for i, (start, stop) in enumerate(zip(onset, end, strict=True)):
        current = np.searchsorted(begun, start, side="right") - 1
        early = current >= 0 and over[current] > start
        if early and start - begun[current] <= window:
            delay[i] = 0
            continue
        following = np.searchsorted(begun, start)
        if following < len(begun) and begun[following] < stop:
            delay[i] = begun[following] - start
        else:
            missed[i] = True
    return Episodes(onset, end, delay, missed)


def choose_panels(
    predictions: Predictions, *, window: int, one: str = "attack"
) -> tuple[Panel, ...]:
    """Returns up to six pieces: the worst first, then what is usual.

    Each stream is shown once. The choice depends on the predictions alone.

    Args:
      predictions: with alarms; labels where there are any.
      window: steps for which an alarm may have been on at the onset.
      one: what the data calls a positive.
    """
    if predictions.alarm is None or not len(predictions.score):
        return ()
    starts = predictions.segment_starts
    ends = np.append(starts[1:], len(predictions.score))
    if predictions.label is None:
        wanted = _without_labels(predictions, starts, ends)
    else:
        wanted = _with_labels(predictions, starts, ends, window, one)
    panels, used = [], set()
    for why, rows in wanted:
        for row in rows:
            stream = int(np.searchsorted(starts, row, side="right") - 1)
            if stream not in used:
                used.add(stream)
                piece = _around(int(row), int(starts[stream]), int(ends[stream]))
                panels.append(Panel(why, *piece))
                break
        if len(panels) == PANELS:
            break
    return tuple(panels)


def _with_labels(
    predictions: Predictions,
    starts: np.ndarray,
    ends: np.ndarray,
    window: int,
    one: str,
) -> list[tuple[str, np.ndarray]]:
    """Returns what to look for and rows that show it, the best first."""
    episodes = find_episodes(predictions, window=window)
    false = (predictions.label == 0) & (predictions.alarm == 1)
    length = episodes.end - episodes.onset
    delayed = np.where(episodes.missed, -1, episodes.delay)
    missed = np.flatnonzero(episodes.missed)
    caught = np.flatnonzero(~episodes.missed)
    missed = missed[np.argsort(-length[missed], kind="stable")]
    late = caught[np.argsort(-delayed[caught], kind="stable")]
    late = late[delayed[late] > 0]
    # Long episodes show an early alarm best.
    early = caught[np.argsort(-length[caught], kind="stable")]
    early = early[delayed[early] == 0]
    middle = np.median(delayed[caught]) if len(caught) else 0
    usual = caught[np.argsort(np.abs(delayed[caught] - middle), kind="stable")]
    attack = np.add.reduceat(predictions.label == 1, starts)
    quiet = np.flatnonzero((attack == 0) & (ends - starts > 1))
    quietest = quiet[np.argsort(_counts(false, starts)[quiet], kind="stable")]
    return [
        ("missed episode", episodes.onset[missed]),
        ("late alarm", episodes.onset[late]),
        ("most false alarms", _busiest(false, starts, ends)),
        ("early alarm", episodes.onset[early]),
        ("usual delay", episodes.onset[usual]),
        (f"no {one}", starts[quietest]),
        ("missed episode", episodes.onset[missed]),
        ("late alarm", episodes.onset[late]),
        ("early alarm", episodes.onset[early]),
    ]


def _without_labels(
    predictions: Predictions, starts: np.ndarray, ends: np.ndarray
) -> list[tuple[str, np.ndarray]]:
    alarm = predictions.alarm == 1
    highest = np.argsort(-np.nan_to_num(predictions.score), kind="stable")
    calm = starts[np.argsort(_counts(alarm, starts), kind="stable")]
    busiest = _busiest(alarm, starts, ends)
    return [
        ("most alarms", busiest),
        ("highest score", highest[: 50 * PANELS]),
        *[("many alarms", busiest)] * 3,
        ("fewest alarms", calm),
    ]


def _busiest(flag: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Returns one row of each stream with flagged rows, the fullest stream first.

    The row is the middle one of those flagged.
    """
    counts = _counts(flag, starts)
    order = np.argsort(-counts, kind="stable")
    rows = []
    for stream in order[counts[order] > 0][: 2 * PANELS]:
        flagged = np.flatnonzero(flag[starts[stream] : ends[stream]])
        rows.append(starts[stream] + flagged[len(flagged) // 2])
    return np.array(rows, np.int64)


def _counts(flag: np.ndarray, starts: np.ndarray) -> np.ndarray:
    return np.add.reduceat(flag.astype(np.int64), starts)


def _around(row: int, start: int, end: int) -> tuple[int, int]:
    """Returns up to SPAN rows of a stream, a third of them before the row."""
    first = max(start, min(row - SPAN // 3, end - SPAN))
    return first, min(first + SPAN, end)


def _runs(flag: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns where runs of True start and end, cut where a stream starts."""
    before = np.append(False, flag[:-1])[: len(flag)]
    after = np.append(flag[1:] & ~first[1:], False)[: len(flag)]
    starts = np.flatnonzero(flag & (first | ~before))
    return starts, np.flatnonzero(flag & ~after) + 1
