"""Bootstrap intervals over units of rows that belong together.

Rows of one patient, or neighbours in a stream, resemble each other: resampling rows
would make intervals too narrow. So whole units are drawn with replacement, as many as
there are, and a row counts as often as its unit was drawn. An interval reaches between
percentiles of the resamples (Efron and Tibshirani, "An Introduction to the Bootstrap",
1993, chapters 8 and 13; blocks for time series: Kunsch, "The jackknife and the
bootstrap for general stationary observations", 1989, here without overlap).

What depends on ranks sorts the rows once and counts with multiplicities; the rest is
linear in them, so a table of sums for each unit is enough. Resamples are worked through
a few at a time, so memory does not grow with their number.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from fedjax_health.metrics.delay import find_episodes
from fedjax_health.metrics.host import bin_edges, checked, per_row, probabilities_of

# Multiplicities [resamples, rows] that are held at a time.
CELLS = 2**22

# Multiplicities int32 [resamples, units] -> metric -> [resamples], NaN for no answer.
Statistic = Callable[[np.ndarray], dict[str, np.ndarray]]


class Intervals(NamedTuple):
    """Percentile intervals of metrics.

    Attributes:
      bounds: metric -> low and high end; a metric that no resample could answer, or
        data of a single unit, has none.
      resamples: how many were drawn.
      left_out: how many of them held one class only and said nothing of ranks, F1 and
        MCC.
    """

    bounds: dict[str, tuple[float, float]]
    resamples: int
    left_out: int


class Difference(NamedTuple):
    """By how much one detector is better than another on the same rows.

    Attributes:
      difference: of all rows, first minus second.
      low: lower end of the interval.
      high: upper end of the interval.
      p_value: two-sided, for "the difference is 0"; at least 2 / (resamples + 1).
      left_out: resamples of one class, which were not used.
    """

    difference: float
    low: float
    high: float
    p_value: float
    left_out: int


def blocks(segment: ArrayLike, length: int) -> np.ndarray:
    """Returns the block of consecutive rows that each row belongs to, int64 ``[rows]``.

    A segment of n rows is cut into n // length blocks, as equal as they can be; one
    shorter than ``length`` is a block of its own. No block reaches over its end.

    Args:
      segment: ``[rows]``, integers; equal neighbours belong to one stream.
      length: the least rows of a block, 1 or more.

    Raises:
      ValueError: for a length below 1 or segments that are no vector.
    """
    segments = np.asarray(segment)
    if segments.ndim != 1:
        raise ValueError(f"segments must be a vector, not {segments.shape}")
    if length < 1:
        raise ValueError(f"a block must have 1 row or more, not {length}")
    if not len(segments):
        return np.zeros(0, np.int64)
    starts = np.flatnonzero(np.append(True, segments[1:] != segments[:-1]))
    rows = np.diff(np.append(starts, len(segments)))
    many = np.maximum(1, rows // length)
    before = np.cumsum(many) - many
    inside = np.arange(len(segments)) - np.repeat(starts, rows)
    return np.repeat(before, rows) + inside * np.repeat(many, rows) // np.repeat(
        rows, rows
    )


def resample(
    unit: np.ndarray, statistics: Sequence[Statistic], *, resamples: int, seed: int
) -> dict[str, np.ndarray]:
    """Returns what statistics are on resamples of units, the same for all of them.

    Args:
      unit: ``[rows]``, integers 0 to units - 1, none left out.
      statistics: functions of the multiplicities of units.
      resamples: how many to draw, 1 or more.
      seed: of ``numpy.random.default_rng``.

    Returns:
      Metric -> float64 ``[resamples]``, NaN where a resample has no answer.

    Raises:
      ValueError: for fewer than 1 resample.
    """
    if resamples < 1:
        raise ValueError(f"resamples must be 1 or more, not {resamples}")
    rng = np.random.default_rng(seed)
    units = int(unit.max()) + 1
    chunk = max(1, CELLS // len(unit))
    found: dict[str, list[np.ndarray]] = {}
    for first in range(0, resamples, chunk):
        many = min(chunk, resamples - first)
        drawn = rng.integers(units, size=(many, units), dtype=np.int32)
        drawn += np.arange(many, dtype=np.int32)[:, None] * np.int32(units)
        counts = np.bincount(drawn.reshape(-1), minlength=many * units)
        counts = counts.astype(np.int32).reshape(many, units)
        for statistic in statistics:
            for name, values in statistic(counts).items():
                found.setdefault(name, []).append(values)
    return {name: np.concatenate(values) for name, values in found.items()}


def bootstrap_intervals(
    score: ArrayLike,
    label: ArrayLike,
    unit: ArrayLike,
    *,
    threshold: float,
    delay_threshold: float | None = None,
    segment: ArrayLike | None = None,
    window: int = 0,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Intervals:
    """Returns intervals of the metrics of one detector.

    Args:
      score: ``[rows]``, probabilities in [0, 1].
      label: ``[rows]``, 0 or 1.
      unit: ``[rows]``, integers; rows of one number are drawn together: patients, or
        what ``blocks`` returns.
      threshold: where accuracy, F1 and MCC are taken.
      delay_threshold: where the false-alarm rate and the delays are taken, or None.
      segment: ``[rows]``; equal neighbours belong to one stream. None for records
        without time, which have no delays. An episode is drawn with the unit of its
        onset.
      window: the detector's window in steps; see ``metrics.delay``.
      resamples: how many to draw.
      seed: of the draws.
      level: share of the resamples between the ends.

    Returns:
      Intervals of ``auroc``, ``auprc``, ``accuracy``, ``f1``, ``mcc``, ``ece`` (over
      the bins of all rows, kept), ``brier``, with a delay threshold ``achieved_far``,
      and with segments ``mean_delay``, ``median_delay`` and ``missed_episodes``.

    Raises:
      ValueError: for NaN, scores outside [0, 1], shapes that differ, fewer than 1
        resample or a level outside (0, 1).
    """
    scores, positive = probabilities_of(score, label)
    codes = _numbered(unit, len(scores))
    _check_level(level)
    statistics = [
        _ranks(scores, positive, codes),
        _alarms(scores >= threshold, positive, codes),
        _calibration(scores, positive, codes),
    ]
    if delay_threshold is not None:
        alarm = scores >= delay_threshold
        statistics.append(_false_alarms(alarm, positive, codes))
        if segment is not None:
            episodes = find_episodes(alarm, label, segment, window=window)
            statistics.append(_delays(episodes, codes))
    drawn = resample(codes, statistics, resamples=resamples, seed=seed)
    left_out = int(np.isnan(drawn["auroc"]).sum())
    if codes.max() == 0:
        return Intervals({}, resamples, left_out)
    bounds = {name: _percentiles(values, level) for name, values in drawn.items()}
    known = {name: ends for name, ends in bounds.items() if ends is not None}
    return Intervals(known, resamples, left_out)


def paired_difference(
    score_a: ArrayLike,
    score_b: ArrayLike,
    label: ArrayLike,
    unit: ArrayLike,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Difference]:
    """Returns how two detectors differ on the same rows, by a paired bootstrap.

    Every resample judges both, so that what makes rows hard for both cancels. With n
    usable resamples, the p value is 2 (1 + m) / (n + 1), at most 1, where m is the
    number of resamples whose difference is 0 or of the rarer sign (Davison and
    Hinkley, "Bootstrap Methods and their Application", 1997, chapter 4).

    Args:
      score_a: ``[rows]`` of the first detector, on any scale.
      score_b: ``[rows]`` of the second.
      label: ``[rows]``, 0 or 1, both classes.
      unit: ``[rows]``, as in ``bootstrap_intervals``.
      resamples: how many to draw.
      seed: of the draws.
      level: share of the resamples between the ends.

    Returns:
      ``auroc`` and ``auprc``, each a ``Difference``.

    Raises:
      ValueError: for NaN, one class, shapes that differ, one unit only, or classes
        that no resample holds both of.
    """
    first, positive = checked(score_a, label, name="first detector's")
    second, _ = checked(score_b, label, name="second detector's")
    codes = _numbered(unit, len(first))
    _check_level(level)
    if codes.max() == 0:
        raise ValueError("all rows are of one unit: a bootstrap needs several")
    judges = [_ranks(scores, positive, codes) for scores in (first, second)]
    whole = np.ones((1, codes.max() + 1), np.int32)

    def difference(counts):
        one, two = (judge(counts) for judge in judges)
        return {name: one[name] - two[name] for name in one}

    drawn = resample(codes, [difference], resamples=resamples, seed=seed)
    found = {}
    for name, observed in difference(whole).items():
        usable = drawn[name][~np.isnan(drawn[name])]
        ends = _percentiles(usable, level)
        if ends is None:
            raise ValueError(
                f"none of {resamples} resamples held both classes: draw more of them"
            )
        rarer = min(np.sum(usable <= 0), np.sum(usable >= 0))
        found[name] = Difference(
            float(observed[0]),
            *ends,
            p_value=float(min(1.0, 2 * (1 + rarer) / (len(usable) + 1))),
            left_out=resamples - len(usable),
        )
    return found


def holm(p_values: ArrayLike) -> np.ndarray:
    """Returns p values adjusted for being several, float64 of the same order.

    Holm, "A simple sequentially rejective multiple test procedure", 1979: reject those
    that are at most the error rate, which then holds for all tests together.

    Args:
      p_values: ``[tests]`` in [0, 1].

    Raises:
      ValueError: for values outside [0, 1] or NaN.
    """
    values = np.asarray(p_values, np.float64)
    if values.ndim != 1 or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"p values must be a vector in [0, 1], not {values}")
    order = np.argsort(values, kind="stable")
    scaled = values[order] * np.arange(len(values), 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return adjusted


def _ranks(score, positive, unit) -> Statistic:
    """Returns AUROC and AUPRC from running counts over rows sorted once.

    Both areas change at scores that positives have: only there are counts looked up.
    """
    order = np.argsort(-score, kind="stable")
    hits, others = order[positive[order]], order[~positive[order]]
    falling = score[hits]
    last = np.flatnonzero(np.append(falling[1:] != falling[:-1], True)[: len(hits)])
    rising, sought = -score[others], -falling[last]
    above = np.searchsorted(rising, sought, side="left")
    up_to = np.searchsorted(rising, sought, side="right")
    hit_unit, other_unit = unit[hits], unit[others]

    def statistic(counts):
        nothing = np.zeros((len(counts), 1), np.int32)
        true = _running(counts, hit_unit)
        false = np.concatenate([nothing, _running(counts, other_unit)], axis=1)
        positives = true[:, -1] if len(hits) else nothing[:, 0]
        negatives = false[:, -1]
        both = (positives > 0) & (negatives > 0)
        found = true[:, last].astype(np.float64)
        step = np.diff(found, axis=1, prepend=0)
        at, before = false[:, up_to], false[:, above]
        beaten = negatives[:, None] - (at + before.astype(np.float64)) / 2
        pairs = np.where(both, positives.astype(np.float64) * negatives, 1)
        # 0 / 0 where neither has weight yet: the step is 0 too.
        precision = found / np.maximum(found + at, 1)
        recalled = np.where(both, positives, 1)
        return {
            "auroc": np.where(both, np.sum(step * beaten, axis=1) / pairs, np.nan),
            "auprc": np.where(
                both, np.sum(step * precision, axis=1) / recalled, np.nan
            ),
        }

    return statistic


def _running(counts, unit):
    return np.cumsum(counts[:, unit], axis=1, dtype=np.int32)


def _alarms(alarm, positive, unit) -> Statistic:
    """Returns accuracy, F1 and MCC from each unit's confusion counts."""
    table = _table(
        unit,
        [alarm & positive, alarm & ~positive, ~alarm & positive, ~alarm & ~positive],
    )

    def statistic(counts):
        tp, fp, fn, tn = (counts @ table).T
        both = (tp + fn > 0) & (fp + tn > 0)
        product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
        agreement = (tp * tn - fp * fn) / np.sqrt(np.where(product > 0, product, 1))
        return {
            "accuracy": (tp + tn) / (tp + fp + fn + tn),
            "f1": np.where(both, 2 * tp / np.maximum(2 * tp + fp + fn, 1), np.nan),
            "mcc": np.where(both, np.where(product > 0, agreement, 0), np.nan),
        }

    return statistic


def _false_alarms(alarm, positive, unit) -> Statistic:
    table = _table(unit, [alarm & ~positive, ~positive])

    def statistic(counts):
        alarms, normal = (counts @ table).T
        rate = alarms / np.maximum(normal, 1)
        return {"achieved_far": np.where(normal > 0, rate, np.nan)}

    return statistic


def _calibration(probability, positive, unit, *, bins: int = 15) -> Statistic:
    """Returns Brier score and calibration error from sums over each unit and bin.

    Bins are those of all rows. Rows of one probability that lie in several bins count
    in each by the share of them that lies there, as in ``host.calibration_bins``.
    """
    gap = probability - positive
    table = _table(unit, [np.ones(len(gap)), gap**2])
    order = np.argsort(probability, kind="stable")
    group = np.unique(probability, return_inverse=True)[1]
    sizes = np.bincount(group)
    ends = np.cumsum(sizes)
    edges = bin_edges(len(gap), bins)
    columns = []
    for low, high in itertools.pairwise(edges.tolist()):
        reached = slice(group[order[low]], group[order[high - 1]] + 1)
        starts = ends[reached] - sizes[reached]
        inside = np.minimum(ends[reached], high) - np.maximum(starts, low)
        share = np.repeat(inside / sizes[reached], sizes[reached])
        rows = order[starts[0] : ends[reached][-1]]
        columns.append(np.bincount(unit[rows], share * gap[rows], len(table)))
    binned = np.stack(columns, axis=1)

    def statistic(counts):
        rows, squares = (counts @ table).T
        return {
            "ece": np.abs(counts @ binned).sum(axis=1) / rows,
            "brier": squares / rows,
        }

    return statistic


def _delays(episodes, unit) -> Statistic:
    order = np.argsort(episodes.delay, kind="stable")
    delay = episodes.delay[order]
    owner = unit[episodes.onset[order]]
    units = int(unit.max()) + 1
    sums = (None, delay, episodes.missed[order])
    table = np.stack([np.bincount(owner, values, units) for values in sums], axis=1)

    def statistic(counts):
        many, total, missed = (counts @ table).T
        some = many > 0
        result = {
            "mean_delay": np.where(some, total / np.maximum(many, 1), np.nan),
            "missed_episodes": np.where(some, missed, np.nan),
        }
        if len(delay):
            running = _running(counts, owner)
            # The middle one of the episodes drawn, or the mean of the middle two.
            middle = [
                np.sum(running <= ((many - odd) // 2)[:, None], axis=1)
                for odd in (1, 0)
            ]
            pair = [delay[np.minimum(place, len(delay) - 1)] for place in middle]
            result["median_delay"] = np.where(some, (pair[0] + pair[1]) / 2, np.nan)
        return result

    return statistic


def _table(unit, columns) -> np.ndarray:
    """Returns sums of columns over the rows of each unit, ``[units, columns]``."""
    return np.stack([np.bincount(unit, values) for values in columns], axis=1)


def _numbered(unit, rows) -> np.ndarray:
    return np.unique(per_row(unit, rows, name="units"), return_inverse=True)[1]


def _percentiles(values, level) -> tuple[float, float] | None:
    usable = values[~np.isnan(values)]
    if not len(usable):
        return None
    tail = (1 - level) / 2
    low, high = np.quantile(usable, [tail, 1 - tail])
    return float(low), float(high)


def _check_level(level):
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), not {level}: 95 % is 0.95")
