"""Scaling fitted on the training part.

Each client scales by its own statistics, so that nothing about its values leaves it;
what it cannot estimate it takes from the average over the others. ``scope="pooled"``
gives all clients one scaler: that of the clients' counts, sums and sums of squares,
which is what a secure sum of these would reveal and no more.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from fedjax_health.data.schema import DataError, Dataset, DataWarning

# Rows that are scaled at once: bounds the float64 copies.
CHUNK = 65_536


class Scaler(NamedTuple):
    """Mean and standard deviation of every column at every client.

    Attributes:
      mean: modality name -> float64 ``[clients, features]``; for "pooled" one row.
      std: the same for the standard deviation, positive everywhere. It is infinite in
        columns that did not vary at any client: their scaled values are 0. Where
        nothing at all was observed the mean is NaN, and so are they.
      unseen_mean: modality name -> float64 ``[features]``, for clients without
        statistics of their own.
      unseen_std: the same for the standard deviation.
      feature_names: modality name -> names of the columns.
      client_names: clients of the rows of ``mean``; empty for "pooled".
      scope: "client" or "pooled".
    """

    mean: dict[str, np.ndarray]
    std: dict[str, np.ndarray]
    unseen_mean: dict[str, np.ndarray]
    unseen_std: dict[str, np.ndarray]
    feature_names: dict[str, tuple[str, ...]]
    client_names: tuple[str, ...]
    scope: str


class _Moments(NamedTuple):
    """Of the observed values, each ``[clients, features]``."""

    count: np.ndarray
    mean: np.ndarray
    squares: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray


def fit_scaler(
    train: Dataset, *, scope: Literal["client", "pooled"] = "client"
) -> Scaler:
    """Fits mean and standard deviation to the observed values, in float64.

    A column that is constant at a client has standard deviation 1 there. A column of
    which a client observed fewer than two values takes the average of the other
    clients' means and of their standard deviations (constant columns left out of the
    latter).

    A column that does not vary at any client has weights that were never trained, and
    no scale that another value could be measured by: it scales to 0 whatever it holds.
    One of which no client has a value is not observed later either.

    Args:
      train: the training part, and nothing else.
      scope: whether each client has its own statistics or all share the pooled ones.

    Returns:
      The scaler; standard deviations divide by the count, as ``np.nanstd``.

    Raises:
      DataError: if ``scope`` is unknown or there are no rows.
    """
    if scope not in ("client", "pooled"):
        raise DataError(f'scope is {scope!r}; give "client" or "pooled"')
    if train.num_rows == 0:
        raise DataError("the scaler has no training rows; check the split")
    mean, std, unseen_mean, unseen_std = {}, {}, {}, {}
    for name, values in train.features.items():
        moments = _moments(values, train.client, train.num_clients)
        if scope == "pooled":
            moments = _pool(moments)
        mean[name], std[name], unseen_mean[name], unseen_std[name] = _statistics(
            moments, least=1 if scope == "pooled" else 2
        )
    return Scaler(
        mean=mean,
        std=std,
        unseen_mean=unseen_mean,
        unseen_std=unseen_std,
        feature_names=dict(train.feature_names),
        client_names=train.client_names if scope == "client" else (),
        scope=scope,
    )


def apply_scaler(scaler: Scaler, dataset: Dataset, *, clip: float = 8.0) -> Dataset:
    """Returns the dataset with scaled features.

    Clients are matched by name; a client that was not in training is scaled by the
    average of the training clients' statistics.

    Args:
      scaler: fitted on the training part.
      dataset: rows with the same modalities and columns.
      clip: bound on the magnitude of a scaled value, in standard deviations.

    Returns:
      float32 features within ``[-clip, clip]``; what was NaN stays NaN. Columns that
      did not vary in training are 0, or NaN where they had no value; a warning names
      those that hold something else here.

    Raises:
      DataError: if the columns differ or ``clip`` is not positive.
    """
    if not clip > 0:
        raise DataError(f"clip is {clip}; give a positive number of deviations")
    check_features(scaler, dataset)
    # The pooled scaler names no clients: all are unseen ones and take its row 0.
    row = rows_of_clients(scaler.client_names, dataset)
    features = {}
    for name, values in dataset.features.items():
        mean = np.vstack([scaler.mean[name], scaler.unseen_mean[name]])
        std = np.vstack([scaler.std[name], scaler.unseen_std[name]])
        scaled = np.empty(values.shape, np.float32)
        still = np.isinf(scaler.unseen_std[name])
        unused = np.zeros(values.shape[1], bool)
        for start in range(0, dataset.num_rows, CHUNK):
            chunk = slice(start, start + CHUNK)
            index = row[dataset.client[chunk]]
            apart = values[chunk] - mean[index]
            scaled[chunk] = np.clip(apart / std[index], -clip, clip)
            if still.any():
                unused |= (~np.isnan(values[chunk]) & (apart != 0)).any(axis=0)
        features[name] = scaled
        _warn_of_unused(name, scaler.feature_names[name], unused & still)
    return dataset._replace(features=features)


def _warn_of_unused(modality: str, names: Sequence[str], unused: np.ndarray) -> None:
    columns = [names[position] for position in np.flatnonzero(unused).tolist()]
    if columns:
        warnings.warn(
            f"modality {modality!r}: columns that varied at no client in training are "
            f"not used: {listed(columns)}",
            DataWarning,
            stacklevel=3,
        )


def listed(names: Sequence[str]) -> str:
    """Returns the first few names in quotes, and how many more there are."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(repr(name) for name in names[:5]) + more


def leave_columns(scaler: Scaler, columns: Mapping[str, Sequence[str]]) -> Scaler:
    """Returns the scaler that leaves the named columns as they are.

    Args:
      scaler: fitted.
      columns: modality name -> columns; unknown ones are no error.
    """

    def filled(arrays: dict[str, np.ndarray], value: float) -> dict[str, np.ndarray]:
        kept = {}
        for name, array in arrays.items():
            mask = np.isin(scaler.feature_names[name], list(columns.get(name, ())))
            kept[name] = np.where(mask, value, array)
        return kept

    return scaler._replace(
        mean=filled(scaler.mean, 0.0),
        std=filled(scaler.std, 1.0),
        unseen_mean=filled(scaler.unseen_mean, 0.0),
        unseen_std=filled(scaler.unseen_std, 1.0),
    )


def check_features(scaler: Scaler, dataset: Dataset) -> None:
    """Refuses a dataset whose modalities or columns are not those of the scaler.

    Raises:
      DataError: with the difference.
    """
    for name in scaler.feature_names:
        if name not in dataset.feature_names:
            raise DataError(
                f"the data has no modality {name!r}, which the scaler was fitted on; "
                f"modalities of the data: {', '.join(dataset.feature_names)}"
            )
    for name, columns in dataset.feature_names.items():
        fitted = scaler.feature_names.get(name)
        if fitted is None:
            raise DataError(
                f"the scaler knows no modality {name!r}; it was fitted on: "
                f"{', '.join(scaler.feature_names)}"
            )
        missing = [column for column in fitted if column not in columns]
        extra = [column for column in columns if column not in fitted]
        if missing or extra:
            raise DataError(
                f"modality {name!r} differs from the one the scaler was fitted on: "
                f"missing columns {missing}, unknown columns {extra}"
            )
        if tuple(columns) != tuple(fitted):
            position = next(
                index
                for index, pair in enumerate(zip(fitted, columns, strict=True))
                if pair[0] != pair[1]
            )
            raise DataError(
                f"modality {name!r} has its columns in another order: column "
                f"{position + 1} is {columns[position]!r}, the scaler expects "
                f"{fitted[position]!r}"
            )


def _moments(values: np.ndarray, client: np.ndarray, num_clients: int) -> _Moments:
    """Returns the moments of each client's rows, which stand together."""
    shape = (num_clients, values.shape[1])
    moments = _Moments(
        count=np.zeros(shape, np.int64),
        mean=np.zeros(shape),
        squares=np.zeros(shape),
        lowest=np.full(shape, np.inf),
        highest=np.full(shape, -np.inf),
    )
    starts = np.flatnonzero(np.diff(client, prepend=-1))
    present = client[starts]
    position = np.repeat(
        np.arange(len(starts)), np.diff(np.append(starts, len(client)))
    )
    for column in range(values.shape[1]):
        value = values[:, column].astype(np.float64)
        observed = ~np.isnan(value)
        filled = np.where(observed, value, 0.0)
        count = np.add.reduceat(observed, starts, dtype=np.int64)
        mean = np.add.reduceat(filled, starts) / np.maximum(count, 1)
        # A second pass over the deviations: squares of large values would cancel.
        deviation = np.where(observed, value - mean[position], 0.0)
        moments.count[present, column] = count
        moments.mean[present, column] = mean
        moments.squares[present, column] = np.add.reduceat(deviation**2, starts)
        moments.lowest[present, column] = np.minimum.reduceat(
            np.where(observed, value, np.inf), starts
        )
        moments.highest[present, column] = np.maximum.reduceat(
            np.where(observed, value, -np.inf), starts
        )
    return moments


def _pool(moments: _Moments) -> _Moments:
    """Returns the moments of all rows together, ``[1, features]``.

    Chan, Golub, LeVeque's combination: equal to the one from sums and sums of
    squares, without its cancellation.
    """
    count = moments.count.sum(axis=0)
    mean = (moments.count * moments.mean).sum(axis=0) / np.maximum(count, 1)
    between = moments.count * (moments.mean - mean) ** 2
    return _Moments(
        count=count[None],
        mean=mean[None],
        squares=(moments.squares + between).sum(axis=0)[None],
        lowest=moments.lowest.min(axis=0)[None],
        highest=moments.highest.max(axis=0)[None],
    )


def _statistics(
    moments: _Moments, *, least: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns (mean, std, mean for the unseen, std for the unseen)."""
    known = moments.count >= least
    # Equal extremes, since the deviations of a constant may differ from 0 by rounding.
    constant = known & (moments.lowest == moments.highest)
    varied = known & ~constant
    std = np.where(varied, np.sqrt(moments.squares / np.maximum(moments.count, 1)), 1.0)
    mean = np.where(constant, moments.lowest, moments.mean)
    nothing = np.where(moments.count.sum(axis=0) > 0, 0.0, np.nan)
    unseen_mean = average(mean, known, otherwise=nothing)
    unseen_std = average(std, varied, otherwise=np.inf)
    return (
        np.where(known, mean, unseen_mean),
        np.where(known & np.isfinite(unseen_std), std, unseen_std),
        unseen_mean,
        unseen_std,
    )


def average(
    values: np.ndarray, mask: np.ndarray, *, otherwise: float | np.ndarray
) -> np.ndarray:
    """Returns the mean over the clients that the mask names, ``[features]``.

    Args:
      values: ``[clients, features]``.
      mask: bool of the same shape.
      otherwise: where no client has a value.
    """
    count = mask.sum(axis=0)
    total = np.where(mask, values, 0.0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), otherwise)


def rows_of_clients(client_names: Sequence[str], dataset: Dataset) -> np.ndarray:
    """Returns where each client of a dataset stands among those of the training.

    Args:
      client_names: of the clients that something was fitted on.
      dataset: rows of any clients.

    Returns:
      int64 ``[clients of the dataset]``; ``len(client_names)`` for an unseen one.
    """
    if dataset.client_names == client_names:
        return np.arange(dataset.num_clients)
    known = {name: position for position, name in enumerate(client_names)}
    unseen = len(client_names)
    return np.asarray(
        [known.get(name, unseen) for name in dataset.client_names], np.int64
    )
