"""Columns with a long tail (counts, bytes, laboratory values) on a log scale."""

import difflib
import fnmatch
from collections.abc import Mapping, Sequence

import numpy as np

from fedjax_health.data.schema import DataError, Dataset


def match_columns(
    dataset: Dataset, patterns: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """Returns the columns that patterns name: modality name -> columns, in order.

    Args:
      dataset: rows with numeric columns.
      patterns: names such as "Urine" or "series.Urine", with * and ? as wildcards.

    Raises:
      DataError: for a pattern that names no numeric column.
    """
    chosen: dict[str, set[str]] = {}
    for pattern in patterns:
        found = [
            (modality, column)
            for modality, columns in dataset.feature_names.items()
            for column in columns
            if fnmatch.fnmatchcase(column, pattern)
            or fnmatch.fnmatchcase(f"{modality}.{column}", pattern)
        ]
        found = [
            (modality, column)
            for modality, column in found
            if column not in dataset.categories.get(modality, {})
        ]
        if not found:
            known = [c for columns in dataset.feature_names.values() for c in columns]
            near = difflib.get_close_matches(pattern, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise DataError(f"log names {pattern!r}, which is no numeric column{hint}")
        for modality, column in found:
            chosen.setdefault(modality, set()).add(column)
    return {
        modality: tuple(column for column in columns if column in chosen[modality])
        for modality, columns in dataset.feature_names.items()
        if modality in chosen
    }


def apply_logs(logged: Mapping[str, Sequence[str]], dataset: Dataset) -> Dataset:
    """Returns the dataset with ``sign(x) log(1 + abs(x))`` in the named columns.

    Args:
      logged: modality name -> columns.
      dataset: rows; other columns stay as they are.
    """
    if not logged:
        return dataset
    features = dict(dataset.features)
    for modality, columns in logged.items():
        names = dataset.feature_names[modality]
        places = [names.index(column) for column in columns]
        values = features[modality].copy()
        long = values[:, places]
        values[:, places] = np.sign(long) * np.log1p(np.abs(long))
        features[modality] = values
    return dataset._replace(features=features)
