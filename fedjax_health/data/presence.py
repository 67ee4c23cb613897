"""Which modalities an example has, as a fusion of them sees it."""

import numpy as np

from fedjax_health.data.schema import Dataset, last_rows, segment_starts


def present_modalities(dataset: Dataset, *, window: int | None = None) -> np.ndarray:
    """Returns where any value of a modality was observed, bool ``[examples, m]``.

    For a row that is in the row itself, or with a window in the rows of its entity up
    to it that the window holds; for an entity in the last rows that the window holds. A
    modality without missing values is always there. The examples are those of
    ``examples_of``.

    Args:
      dataset: prepared rows; NaN marks a missing value.
      window: time steps of an example; None for one.
    """
    row = np.arange(dataset.num_rows)
    starts = segment_starts(dataset)
    lengths = np.diff(np.append(starts, dataset.num_rows))
    oldest = np.maximum(np.repeat(starts, lengths), row - (window or 1) + 1)
    present = np.ones((dataset.num_rows, len(dataset.features)), bool)
    for place, (name, values) in enumerate(dataset.features.items()):
        if name in dataset.masked:
            seen = ~np.all(np.isnan(values), axis=1)
            latest = np.maximum.accumulate(np.where(seen, row, -1))
            present[:, place] = latest >= oldest
    return present[last_rows(dataset)] if dataset.target == "entity" else present
