"""Columns without any value are allowed where values may be missing, and said."""

import warnings
from collections.abc import Container, Mapping, Sequence

import numpy as np
import pandas as pd

from fedjax_health.data.loaders.reading import shorten
from fedjax_health.data.schema import AbsentWarning, Dataset


def warn_of_empty_columns(dataset: Dataset, *, source: str, strict: bool) -> None:
    """Warns of modalities and columns without any value, once a modality.

    Args:
      dataset: as a loader returns it.
      source: what the warning calls it.
      strict: whether the data is to be trained on; the few rows that are scored may
        well have columns without a value, and modalities alone are said.
    """
    for modality, values in dataset.features.items():
        empty = np.all(np.isnan(values), axis=0)
        if empty.all():
            _say(f"{source}: no column of modality {modality!r} holds a value: it is")
        elif empty.any() and strict:
            columns = dataset.feature_names[modality]
            names = [columns[position] for position in np.flatnonzero(empty)]
            _say(f"{source}: {_columns(names)} of modality {modality!r} without value:")


def warn_of_absent_columns(
    modalities: Mapping[str, Sequence[str]], columns: Container[str], *, source: str
) -> None:
    """Warns of columns that a file to score lacks, once a modality.

    Args:
      modalities: name -> columns that it should have.
      columns: that the file has.
      source: what the warning calls it.
    """
    for modality, names in modalities.items():
        absent = [name for name in names if name not in columns]
        if absent and len(absent) < len(names):
            _say(f"{source} has no {_columns(absent)} of modality {modality!r}:")


def add_absent_columns(
    frame: pd.DataFrame, names: Sequence[str], *, source: str
) -> pd.DataFrame:
    """Returns a table to score with empty columns in place of those that it lacks.

    Args:
      frame: the table.
      names: columns of features that it should have.
      source: what the warning calls it.
    """
    absent = [name for name in names if name not in frame]
    if absent:
        _say(f"{source} has no {_columns(absent)}:")
    return frame.assign(**dict.fromkeys(absent, ""))


def _columns(names: Sequence[str]) -> str:
    return f"column{'s' * (len(names) > 1)} {shorten([repr(name) for name in names])}"


def _say(problem: str) -> None:
    warnings.warn(f"{problem} not observed", AbsentWarning, stacklevel=5)
