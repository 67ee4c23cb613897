"""The one form in which every source of data reaches the rest of the package.

A ``Dataset`` is a table in NumPy with one row per time step of one entity (a device,
a patient, a connection stream) or per record of a static table. Rows of one client
stand together, within them rows of one entity, within those time does not decrease.
"""

from typing import NamedTuple

import numpy as np


class DataError(ValueError):
    """Input that cannot be used; the text says what is wrong, where, what to do."""


class Dataset(NamedTuple):
    """A labelled table with clients, entities and time.

    Attributes:
      features: modality name -> float32 ``[rows, features]``. A value that was not
        observed is NaN.
      feature_names: modality name -> names of its columns.
      label: float32 ``[rows]``, 0 or 1.
      attack: int32 ``[rows]``, an index into ``attack_names``; 0 is "normal".
      attack_names: names of the attack types, ``attack_names[0] == "normal"``.
      client: int32 ``[rows]``, an index into ``client_names``; does not decrease.
      client_names: names of the clients.
      entity: int64 ``[rows]``, a stream inside its client; equal values stand together.
      time: float64 ``[rows]``, seconds or any unit that orders the rows of an entity.
      masked: modalities in which values may be missing; their models are told which
        values were observed. The others hold no NaN.
      oracle: float32 ``[rows]`` score of an observer that knows how the data was
        generated, or None for data whose truth is not known.
    """

    features: dict[str, np.ndarray]
    feature_names: dict[str, tuple[str, ...]]
    label: np.ndarray
    attack: np.ndarray
    attack_names: tuple[str, ...]
    client: np.ndarray
    client_names: tuple[str, ...]
    entity: np.ndarray
    time: np.ndarray
    masked: frozenset[str] = frozenset()
    oracle: np.ndarray | None = None

    @property
    def num_rows(self) -> int:
        """Rows of the table."""
        return len(self.label)

    @property
    def num_clients(self) -> int:
        """Clients, those without rows included."""
        return len(self.client_names)


def take_rows(dataset: Dataset, rows: np.ndarray) -> Dataset:
    """Returns the dataset of the given rows (a boolean mask or increasing indices)."""
    return dataset._replace(
        features={name: values[rows] for name, values in dataset.features.items()},
        label=dataset.label[rows],
        attack=dataset.attack[rows],
        client=dataset.client[rows],
        entity=dataset.entity[rows],
        time=dataset.time[rows],
        oracle=None if dataset.oracle is None else dataset.oracle[rows],
    )


def select_modalities(dataset: Dataset, names: tuple[str, ...]) -> Dataset:
    """Returns the dataset with the named modalities alone, in that order.

    Args:
      dataset: the rows.
      names: which; none for all.

    Raises:
      DataError: for a modality that the data does not have.
    """
    if not names:
        return dataset
    unknown = [name for name in names if name not in dataset.features]
    if unknown:
        raise DataError(
            f"the data has no modality {unknown[0]!r}: it has "
            f"{', '.join(dataset.features)}"
        )
    return dataset._replace(
        features={name: dataset.features[name] for name in names},
        feature_names={name: dataset.feature_names[name] for name in names},
        masked=dataset.masked & set(names),
    )


def segment_starts(dataset: Dataset) -> np.ndarray:
    """Returns the first row of every run of one entity of one client, int64."""
    if dataset.num_rows == 0:
        return np.zeros(0, np.int64)
    change = (np.diff(dataset.client) != 0) | (np.diff(dataset.entity) != 0)
    return np.concatenate([[0], np.flatnonzero(change) + 1]).astype(np.int64)
