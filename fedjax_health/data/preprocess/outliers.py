"""Fences against values far outside of what a client saw in training.

Tukey's fences: a value further than ``width`` interquartile ranges below the lower or
above the upper quartile lies far out at 3 (Tukey, "Exploratory Data Analysis", 1977).
Quartiles are not moved by the outliers that they are to find. Off unless asked for: an
attack is an outlier too, and scaling bounds what a single wild value can do.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from fedjax_health.data.preprocess.scaling import CHUNK, average, rows_of_clients
from fedjax_health.data.schema import DataError, Dataset

# Observed values of a column from which a client can tell quartiles of its own.
LEAST_VALUES = 8


class Fences(NamedTuple):
    """Bounds of every column at every client.

    Attributes:
      lower: modality name -> float64 ``[clients, features]``, -inf for no bound.
      upper: the same, inf for no bound.
      unseen_lower: modality name -> float64 ``[features]``, for clients without
        bounds of their own.
      unseen_upper: the same.
      client_names: clients of the rows.
      action: "clip" or "missing".
    """

    lower: dict[str, np.ndarray]
    upper: dict[str, np.ndarray]
    unseen_lower: dict[str, np.ndarray]
    unseen_upper: dict[str, np.ndarray]
    client_names: tuple[str, ...]
    action: str


def fit_fences(
    train: Dataset,
    *,
    action: Literal["clip", "missing"] = "clip",
    width: float = 3.0,
    modalities: Sequence[str] = (),
    leave: Mapping[str, Sequence[str]] | None = None,
) -> Fences:
    """Fits fences to the observed values of each client.

    A column whose quartiles are equal at a client has no fence there: most of its
    values are one and the same, and a fence would leave nothing of the others. A
    client that observed fewer than 8 values takes the average of the other clients'
    fences.

    Args:
      train: the training part, and nothing else.
      action: what happens outside: the value becomes the fence, or missing.
      width: distance of the fences from the quartiles, in interquartile ranges.
      modalities: which have fences; all of them where it is empty.
      leave: modality name -> columns without fences.

    Returns:
      The fences.

    Raises:
      DataError: for an argument out of range, an unknown modality, or values set
        missing in a modality that was declared complete.
    """
    if action not in ("clip", "missing"):
        raise DataError(f'action is {action!r}; give "clip" or "missing"')
    if not (width > 0 and np.isfinite(width)):
        raise DataError(f"width is {width}; give a positive number of ranges")
    chosen = tuple(modalities) or tuple(train.features)
    for name in chosen:
        if name not in train.features:
            raise DataError(
                f"outliers names modality {name!r}; the data has "
                f"{', '.join(train.features)}"
            )
        if action == "missing" and name not in train.masked:
            raise DataError(
                f"outliers cannot be set missing in modality {name!r}, which was "
                'declared complete; use action = "clip" or allow missing values'
            )
    lower, upper, unseen_lower, unseen_upper = {}, {}, {}, {}
    for name, values in train.features.items():
        low, high, known = _fences(values, train.client, train.num_clients, width)
        bounded = np.full(values.shape[1], name in chosen)
        left = list((leave or {}).get(name, ()))
        bounded &= ~np.isin(train.feature_names[name], left)
        for bound, kept, unseen, none in (
            (low, lower, unseen_lower, -np.inf),
            (high, upper, unseen_upper, np.inf),
        ):
            bound = np.where(bounded, bound, none)
            unseen[name] = average(bound, known & np.isfinite(bound), otherwise=none)
            kept[name] = np.where(known, bound, unseen[name])
    return Fences(lower, upper, unseen_lower, unseen_upper, train.client_names, action)


def apply_fences(fences: Fences, dataset: Dataset) -> Dataset:
    """Returns the dataset with nothing outside of the fences.

    Clients are matched by name; one that was not in training has the average fences.

    Args:
      fences: fitted on the training part.
      dataset: rows of the same modalities and columns.
    """
    row = rows_of_clients(fences.client_names, dataset)
    features = {}
    for name, values in dataset.features.items():
        lower = np.vstack([fences.lower[name], fences.unseen_lower[name]])
        upper = np.vstack([fences.upper[name], fences.unseen_upper[name]])
        kept = np.empty(values.shape, np.float32)
        for start in range(0, dataset.num_rows, CHUNK):
            chunk = slice(start, start + CHUNK)
            index = row[dataset.client[chunk]]
            part = values[chunk]
            if fences.action == "clip":
                kept[chunk] = np.clip(part, lower[index], upper[index])
            else:
                outside = (part < lower[index]) | (part > upper[index])
                kept[chunk] = np.where(outside, np.nan, part)
        features[name] = kept
    return dataset._replace(features=features)


def _fences(
    values: np.ndarray, client: np.ndarray, num_clients: int, width: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (lower, upper, whether the client can tell), ``[clients, features]``."""
    shape = (num_clients, values.shape[1])
    lower, upper = np.full(shape, -np.inf), np.full(shape, np.inf)
    known = np.zeros(shape, bool)
    borders = np.searchsorted(client, np.arange(num_clients + 1))
    for index in range(num_clients):
        # NaN sorts to the end.
        own = np.sort(values[borders[index] : borders[index + 1]], axis=0)
        count = (~np.isnan(own)).sum(axis=0)
        known[index] = count >= LEAST_VALUES
        if not known[index].any():
            continue
        first, third = (_quantile(own, count, q) for q in (0.25, 0.75))
        spread = np.where(known[index], third - first, 0)
        wide = spread > 0
        lower[index, wide] = (first - width * spread)[wide]
        upper[index, wide] = (third + width * spread)[wide]
    return lower, upper, known


def _quantile(ordered: np.ndarray, count: np.ndarray, share: float) -> np.ndarray:
    """Returns the quantile of each column's first ``count`` values, interpolated."""
    place = share * np.maximum(count - 1, 0)
    below = np.floor(place).astype(np.int64)
    above = np.minimum(below + 1, np.maximum(count - 1, 0))
    column = np.arange(ordered.shape[1])
    low = ordered[below, column].astype(np.float64)
    high = ordered[above, column].astype(np.float64)
    return low + (place - below) * (high - low)
