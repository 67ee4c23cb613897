"""What a file holds, whether or not a detector could be trained on it."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fedjax_health.data.schema import DataError, Dataset

# Modality name -> its columns, as a training had them.
FeatureNames = Mapping[str, Sequence[str]]


class Loaded(NamedTuple):
    """Rows of which all, some or none have labels.

    Attributes:
      dataset: the rows; a label that is not known is 0.
      known: bool ``[rows]``, whose labels are known; in an entity that has one label,
        all of its rows or none.
      absent: modalities that are not in the data and were filled in as not observed.
    """

    dataset: Dataset
    known: np.ndarray
    absent: tuple[str, ...] = ()

    @property
    def has_labels(self) -> bool:
        """Whether any label means anything."""
        return bool(self.known.any())


def trainable(loaded: Loaded, source: str) -> Dataset:
    """Returns the dataset, refusing what no detector can be trained on.

    Args:
      loaded: what a file holds.
      source: what error messages call it.

    Raises:
      DataError: without labels, or with labels of one class.
    """
    dataset = loaded.dataset
    if not loaded.has_labels:
        raise DataError(f"{source} has no labels; a detector needs them to be trained")
    if dataset.label.min() == dataset.label.max():
        kind = "positive" if dataset.label[0] else "negative"
        raise DataError(
            f"{source}: the labels are of one class, all {kind}; a detector needs both"
        )
    return dataset
