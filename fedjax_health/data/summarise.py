"""Stays as records: the course of each variable in a few numbers.

On clinical series of one or two days with one label a stay, such numbers say most of
what is to be known (Harutyunyan et al. 2019, "Multitask learning and benchmarking with
clinical time series data", build their linear baselines on them). Each stay is
summarised by itself, so nothing is fitted and nothing can leak.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from fedjax_health.data.schema import (
    DataError,
    Dataset,
    last_rows,
    segment_starts,
    take_rows,
)

Statistic = Literal[
    "last", "first", "mean", "min", "max", "std", "slope", "late", "count", "since"
]
STATISTICS: tuple[Statistic, ...] = get_args(Statistic)


def summarise(
    dataset: Dataset,
    *,
    statistics: Sequence[Statistic],
    modalities: Sequence[str] = (),
) -> Dataset:
    """Returns a dataset with one row for each entity.

    Of each variable, over the rows at which it was observed:

    - ``last``, ``first``, ``mean``, ``min``, ``max``, ``std`` (divided by the count);
    - ``slope``: of the least-squares line, per row;
    - ``late``: mean over the later half of the entity's rows;
    - ``count``: log(1 + observations), 0 for none;
    - ``since``: log(1 + rows) from the last observation to the end.

    Without an observation all but ``count`` are NaN; so is ``slope`` with one.

    Args:
      dataset: rows whose label belongs to their entity.
      statistics: which, in the order of the new columns.
      modalities: which are summarised; those with values that may be missing and are
        carried where it is empty. Of the others the last observed values stay.

    Returns:
      The records, with columns such as "HR mean"; summarised modalities are masked.

    Raises:
      DataError: if labels belong to rows, or for an unknown statistic or modality.
    """
    if dataset.target != "entity":
        raise DataError(
            "summarise needs labels that belong to whole entities (stays); this data "
            "has one for each row: leave summarise out"
        )
    for name in statistics:
        if name not in STATISTICS:
            raise DataError(
                f"unknown statistic {name!r}; valid: {', '.join(STATISTICS)}"
            )
    chosen = tuple(modalities) or tuple(
        n for n in dataset.features if n in dataset.carried
    )
    for name in chosen:
        if name not in dataset.features:
            raise DataError(
                f"summarise names modality {name!r}; the data has "
                f"{', '.join(dataset.features)}"
            )
        if dataset.categories.get(name):
            raise DataError(
                f"summarise names modality {name!r}, which holds categories: they have "
                "no mean; name another"
            )
    starts = segment_starts(dataset)
    features, names = {}, {}
    for name, values in dataset.features.items():
        columns = dataset.feature_names[name]
        if name in chosen:
            parts = _statistics(values.astype(np.float64), starts, statistics)
            features[name] = np.concatenate(parts, axis=1).astype(np.float32)
            names[name] = tuple(f"{c} {s}" for s in statistics for c in columns)
        else:
            features[name] = _last(values, ~np.isnan(values), starts)
            names[name] = columns
    return take_rows(dataset, last_rows(dataset))._replace(
        features=features,
        feature_names=names,
        masked=dataset.masked | set(chosen),
        carried=frozenset(),
        target="row",
    )


def _statistics(
    values: np.ndarray, starts: np.ndarray, wanted: Sequence[Statistic]
) -> list[np.ndarray]:
    """Returns float64 ``[entities, variables]`` for each statistic."""
    rows = len(values)
    lengths = np.diff(np.append(starts, rows))
    segment = np.repeat(np.arange(len(starts)), lengths)
    position = (np.arange(rows) - starts[segment])[:, None].astype(np.float64)
    seen = ~np.isnan(values)
    filled = np.where(seen, values, 0)

    def total(x: np.ndarray) -> np.ndarray:
        return np.add.reduceat(x, starts, axis=0)

    def per(x: np.ndarray, count: np.ndarray) -> np.ndarray:
        return np.where(count > 0, x / np.maximum(count, 1), np.nan)

    count = total(seen.astype(np.float64))
    mean = per(total(filled), count)
    apart = np.where(seen, values - mean[segment], 0)
    found: list[np.ndarray] = []
    for name in wanted:
        match name:
            case "last":
                found.append(_last(values, seen, starts))
            case "first":
                back = _last(values[::-1], seen[::-1], _reversed(starts, rows))
                found.append(back[::-1])
            case "mean":
                found.append(mean)
            case "min" | "max":
                fill, extreme = (
                    (np.inf, np.minimum) if name == "min" else (-np.inf, np.maximum)
                )
                ends = extreme.reduceat(np.where(seen, values, fill), starts, axis=0)
                found.append(np.where(count > 0, ends, np.nan))
            case "std":
                found.append(np.sqrt(per(total(apart**2), count)))
            case "slope":
                middle = per(total(np.where(seen, position, 0)), count)
                lever = np.where(seen, position - middle[segment], 0)
                spread = total(lever**2)
                rise = total(lever * apart)
                found.append(
                    np.where(spread > 0, rise / np.where(spread > 0, spread, 1), np.nan)
                )
            case "late":
                half = seen & (position >= (lengths // 2)[segment][:, None])
                found.append(per(total(np.where(half, values, 0)), total(half * 1.0)))
            case "count":
                found.append(np.log1p(count))
            case "since":
                latest = np.maximum.reduceat(
                    np.where(seen, position, -1), starts, axis=0
                )
                since = np.log1p((lengths - 1)[:, None] - latest)
                found.append(np.where(count > 0, since, np.nan))
    return found


def _reversed(starts: np.ndarray, rows: int) -> np.ndarray:
    """Returns where the entities begin when rows are read from last to first."""
    ends = np.append(starts[1:], rows)
    return (rows - ends)[::-1]


def _last(values: np.ndarray, seen: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Returns the last observed value of each entity, NaN for none."""
    row = np.where(seen, np.arange(len(values))[:, None], -1)
    latest = np.maximum.reduceat(row, starts, axis=0)
    last = np.take_along_axis(values, np.maximum(latest, 0), axis=0)
    return np.where(latest >= 0, last, np.nan).astype(values.dtype)
