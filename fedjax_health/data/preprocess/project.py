"""Principal components that all clients share.

A detector that clients train together needs one basis. It comes from the covariance of
all scaled training rows, combined from each client's count, mean and scatter matrix:
what a secure sum of these would reveal. No privacy guarantee covers it.
"""

import itertools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from fedjax_health.data.preprocess.scaling import CHUNK
from fedjax_health.data.schema import DataError, Dataset


class Projection(NamedTuple):
    """The first principal components of one modality.

    Attributes:
      mean: float64 ``[features]``.
      basis: float64 ``[features, components]``, orthonormal; the entry of largest
        magnitude of a component is positive, so that its sign is no accident.
      explained: float64 ``[components]``, shares of the variance, falling.
    """

    mean: np.ndarray
    basis: np.ndarray
    explained: np.ndarray


def fit_projections(
    train: Dataset, components: Mapping[str, int | float]
) -> dict[str, Projection]:
    """Fits principal components to scaled rows.

    Args:
      train: the scaled training part, and nothing else.
      components: modality name -> their number, or, below 1, the share of the variance
        that they explain at least.

    Returns:
      Modality name -> projection, for the modalities that were named.

    Raises:
      DataError: for an unknown modality, one with missing values, a number out of
        range, or data that do not vary.
    """
    projections = {}
    for name, wanted in components.items():
        if name not in train.features:
            raise DataError(
                f"pca names modality {name!r}; the data has {', '.join(train.features)}"
            )
        if name in train.masked:
            raise DataError(
                f"pca of modality {name!r}: values may be missing in it, and a "
                "component needs them all; leave it out of pca"
            )
        projections[name] = _fit(name, train, wanted)
    return projections


def apply_projections(
    projections: Mapping[str, Projection], dataset: Dataset
) -> Dataset:
    """Returns the dataset with components in place of columns.

    Args:
      projections: fitted on the training part.
      dataset: scaled rows of the same modalities and columns.
    """
    features = dict(dataset.features)
    feature_names = dict(dataset.feature_names)
    for name, (mean, basis, _) in projections.items():
        values = features[name]
        projected = np.empty((len(values), basis.shape[1]), np.float32)
        for start in range(0, len(values), CHUNK):
            chunk = slice(start, start + CHUNK)
            projected[chunk] = (values[chunk] - mean) @ basis
        features[name] = projected
        feature_names[name] = tuple(f"pc{i + 1}" for i in range(basis.shape[1]))
    return dataset._replace(features=features, feature_names=feature_names)


def _fit(name: str, train: Dataset, wanted: int | float) -> Projection:
    values = train.features[name]
    width = values.shape[1]
    whole = 1 <= wanted <= width and float(wanted).is_integer()
    if not (whole or 0 < wanted < 1):
        raise DataError(
            f"pca of modality {name!r}: {wanted} components; give 1 to {width}, or a "
            "share of the variance between 0 and 1"
        )
    count, mean, scatter = 0, np.zeros(width), np.zeros((width, width))
    borders = np.searchsorted(train.client, np.arange(train.num_clients + 1))
    for first, end in itertools.pairwise(borders):
        if first == end:
            continue
        own = values[first:end].astype(np.float64)
        own_mean = own.mean(axis=0)
        own -= own_mean
        apart = own_mean - mean
        total = count + len(own)
        # Chan, Golub, LeVeque: sums of squares of large values would cancel.
        scatter += own.T @ own + np.outer(apart, apart) * (count * len(own) / total)
        mean = mean + apart * (len(own) / total)
        count = total
    variance, basis = np.linalg.eigh(scatter / max(count, 1))
    variance, basis = np.maximum(variance[::-1], 0), basis[:, ::-1]
    if not variance.sum() > 0:
        raise DataError(f"pca of modality {name!r}: its training rows do not vary")
    explained = variance / variance.sum()
    number = int(wanted)
    if wanted < 1:
        # Rounding may leave the last sum a little below 1.
        number = min(int(np.searchsorted(np.cumsum(explained), wanted)) + 1, width)
    largest = np.argmax(np.abs(basis), axis=0)
    basis = basis * np.sign(basis[largest, np.arange(width)])
    return Projection(mean, basis[:, :number].copy(), explained[:number].copy())
