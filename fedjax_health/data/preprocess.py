"""Scaling fitted on the training part, and a summary of a dataset.

Each client scales by its own statistics, so that nothing about its values leaves it;
what it cannot estimate it takes from the average over the others. ``scope="pooled"``
gives all clients one scaler: that of the clients' counts, sums and sums of squares,
which is what a secure sum of these would reveal and no more.
"""

import io
import json
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from fedjax_health.core import files
from fedjax_health.data.schema import DataError, Dataset

_FORMAT = "fedjax_health scaler 1"
# Rows that are scaled at once: bounds the float64 copies.
_CHUNK = 65_536
# What zipfile, zlib, NumPy and json raise on bytes that are not theirs.
_DAMAGE = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    EOFError,
    MemoryError,
    RuntimeError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


class Scaler(NamedTuple):
    """Mean and standard deviation of every column at every client.

    Attributes:
      mean: modality name -> float64 ``[clients, features]``; for "pooled" one row.
      std: the same for the standard deviation, positive everywhere.
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


class Summary(NamedTuple):
    """Size and balance of a dataset.

    Attributes:
      num_rows: rows.
      num_clients: clients, those without rows included.
      prevalence: share of positive rows; 0 without rows.
      rows_per_client: int64 ``[clients]``.
      positives_per_client: int64 ``[clients]``.
      prevalence_per_client: float64 ``[clients]``; 0 for a client without rows.
      single_class_clients: names of the clients whose rows are all of one class.
      empty_clients: names of the clients without rows.
      rows_per_attack: attack name -> rows, "normal" first.
    """

    num_rows: int
    num_clients: int
    prevalence: float
    rows_per_client: np.ndarray
    positives_per_client: np.ndarray
    prevalence_per_client: np.ndarray
    single_class_clients: tuple[str, ...]
    empty_clients: tuple[str, ...]
    rows_per_attack: dict[str, int]


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

    A column that is constant where it is observed has standard deviation 1. A column
    of which a client observed fewer than two values takes the average of the other
    clients' means and of their standard deviations (constant columns left out of the
    latter); where no client observed two, mean 0 and deviation 1.

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
      float32 features within ``[-clip, clip]``; what was NaN stays NaN.

    Raises:
      DataError: if the columns differ or ``clip`` is not positive.
    """
    if not clip > 0:
        raise DataError(f"clip is {clip}; give a positive number of deviations")
    check_features(scaler, dataset)
    row = _rows_of_clients(scaler, dataset)
    features = {}
    for name, values in dataset.features.items():
        mean = np.vstack([scaler.mean[name], scaler.unseen_mean[name]])
        std = np.vstack([scaler.std[name], scaler.unseen_std[name]])
        scaled = np.empty(values.shape, np.float32)
        for start in range(0, dataset.num_rows, _CHUNK):
            chunk = slice(start, start + _CHUNK)
            index = row[dataset.client[chunk]]
            standard = (values[chunk] - mean[index]) / std[index]
            scaled[chunk] = np.clip(standard, -clip, clip)
        features[name] = scaled
    return dataset._replace(features=features)


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


def save_scaler(scaler: Scaler, path: str | os.PathLike[str]) -> None:
    """Writes the scaler as an .npz without pickled objects, in one step.

    Args:
      scaler: what to write.
      path: the file; an old one is replaced only when the new one is complete.

    Raises:
      DataError: if the file cannot be written.
    """
    names = {
        "format": _FORMAT,
        "scope": scaler.scope,
        "client_names": scaler.client_names,
        "feature_names": scaler.feature_names,
    }
    arrays: dict[str, Any] = {
        "names": np.frombuffer(json.dumps(names).encode(), np.uint8)
    }
    for position, name in enumerate(scaler.feature_names):
        for field in _ARRAYS:
            arrays[f"{field}_{position}"] = getattr(scaler, field)[name]
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    file = Path(path)
    try:
        files.write_bytes(file, buffer.getvalue())
    except OSError as error:
        raise DataError(
            f"{file} cannot be written: {error.strerror or error}"
        ) from None


def load_scaler(path: str | os.PathLike[str]) -> Scaler:
    """Reads a scaler and checks that it is whole.

    Args:
      path: a file that ``save_scaler`` wrote.

    Raises:
      DataError: if the file is missing, damaged or something else.
    """
    file = Path(path)
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as archive:
            names = json.loads(archive["names"].tobytes())
            if names["format"] != _FORMAT:
                raise DataError(f"{file} is of another format, {names['format']!r}")
            feature_names = {
                str(name): tuple(map(str, columns))
                for name, columns in names["feature_names"].items()
            }
            fields = {
                field: {
                    name: archive[f"{field}_{position}"]
                    for position, name in enumerate(feature_names)
                }
                for field in _ARRAYS
            }
            scaler = Scaler(
                **fields,
                feature_names=feature_names,
                client_names=tuple(map(str, names["client_names"])),
                scope=str(names["scope"]),
            )
    except FileNotFoundError:
        raise DataError(f"{file} does not exist; check the path") from None
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from None
    except _DAMAGE as error:
        raise DataError(f"{file} is no scaler or is damaged ({error})") from None
    _check_arrays(scaler, str(file))
    return scaler


def summary(dataset: Dataset) -> Summary:
    """Returns size and balance, as a whole and per client."""
    rows = np.bincount(dataset.client, minlength=dataset.num_clients)
    positives = np.bincount(
        dataset.client[dataset.label > 0], minlength=dataset.num_clients
    )
    single = (rows > 0) & ((positives == 0) | (positives == rows))
    attacks = np.bincount(dataset.attack, minlength=len(dataset.attack_names))
    return Summary(
        num_rows=dataset.num_rows,
        num_clients=dataset.num_clients,
        prevalence=float(positives.sum() / max(dataset.num_rows, 1)),
        rows_per_client=rows,
        positives_per_client=positives,
        prevalence_per_client=positives / np.maximum(rows, 1),
        single_class_clients=_names_where(dataset, single),
        empty_clients=_names_where(dataset, rows == 0),
        rows_per_attack=dict(zip(dataset.attack_names, attacks.tolist(), strict=True)),
    )


_ARRAYS = ("mean", "std", "unseen_mean", "unseen_std")


def _names_where(dataset: Dataset, mask: np.ndarray) -> tuple[str, ...]:
    return tuple(dataset.client_names[client] for client in np.flatnonzero(mask))


def _check_arrays(scaler: Scaler, source: str) -> None:
    if scaler.scope not in ("client", "pooled"):
        raise DataError(f"{source} is damaged: scope {scaler.scope!r}")
    num_rows = len(scaler.client_names) if scaler.scope == "client" else 1
    for name, columns in scaler.feature_names.items():
        for field in _ARRAYS:
            array = getattr(scaler, field)[name]
            shape = (len(columns),)
            if not field.startswith("unseen"):
                shape = (num_rows, *shape)
            if array.shape != shape or array.dtype != np.float64:
                raise DataError(
                    f"{source} is damaged: {field} of {name!r} is {array.dtype} "
                    f"{array.shape}, expected float64 {shape}"
                )
            if not np.isfinite(array).all():
                raise DataError(f"{source} is damaged: {field} of {name!r} not finite")
            if field.endswith("std") and not (array > 0).all():
                raise DataError(
                    f"{source} is damaged: {field} of {name!r} not positive"
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
    unseen_mean = _average(mean, known, otherwise=0.0)
    unseen_std = _average(std, varied, otherwise=1.0)
    return (
        np.where(known, mean, unseen_mean),
        np.where(known, std, unseen_std),
        unseen_mean,
        unseen_std,
    )


def _average(values: np.ndarray, mask: np.ndarray, *, otherwise: float) -> np.ndarray:
    count = mask.sum(axis=0)
    total = np.where(mask, values, 0.0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), otherwise)


def _rows_of_clients(scaler: Scaler, dataset: Dataset) -> np.ndarray:
    """Returns [clients of the dataset]: the row of statistics, the last for unseen."""
    if scaler.scope == "pooled":
        return np.zeros(dataset.num_clients, np.int64)
    if dataset.client_names == scaler.client_names:
        return np.arange(dataset.num_clients)
    known = {name: position for position, name in enumerate(scaler.client_names)}
    unseen = len(scaler.client_names)
    return np.asarray(
        [known.get(name, unseen) for name in dataset.client_names], np.int64
    )
