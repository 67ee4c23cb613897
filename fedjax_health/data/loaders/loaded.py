"""What a file holds, whether or not a detector could be trained on it."""

from typing import NamedTuple

from fedjax_health.data.schema import DataError, Dataset


class Loaded(NamedTuple):
    """Rows with or without labels.

    Attributes:
      dataset: the rows; their labels are all 0 where there are none.
      has_labels: whether the labels mean anything.
    """

    dataset: Dataset
    has_labels: bool


def trainable(loaded: Loaded, source: str) -> Dataset:
    """Returns the dataset, refusing what no detector can be trained on.

    Args:
      loaded: what a file holds.
      source: what error messages call it.

    Raises:
      DataError: without labels, or with labels of one class.
    """
    dataset, has_labels = loaded
    if not has_labels:
        raise DataError(f"{source} has no labels; a detector needs them to be trained")
    if dataset.label.min() == dataset.label.max():
        kind = "positive" if dataset.label[0] else "negative"
        raise DataError(
            f"{source}: the labels are of one class, all {kind}; a detector needs both"
        )
    return dataset
