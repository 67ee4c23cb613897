"""What a split is, and how a dataset is cut by it.

A split is an array: one ``Part`` for each row. ``split_dataset`` cuts the dataset by
it, whichever function it came from.
"""

import enum
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedjax_health.data.schema import DataError, Dataset, segment_ids, take_rows


class Part(enum.IntEnum):
    """What a row is used for."""

    EMBARGO = -1
    TRAIN = 0
    VALIDATION = 1
    TEST = 2


_USED = (Part.TRAIN, Part.VALIDATION, Part.TEST)


class Parts(NamedTuple):
    """A dataset cut in three; all parts name the same clients."""

    train: Dataset
    validation: Dataset
    test: Dataset


def split_dataset(dataset: Dataset, part: np.ndarray) -> Parts:
    """Cuts the dataset by a split.

    Args:
      dataset: the rows.
      part: ``[rows]`` of ``Part``; rows of ``Part.EMBARGO`` are left out.

    Returns:
      The three parts. ``entity`` counts the runs of rows that stood together in one
      entity before the cut, so that no window reaches over a gap.

    Raises:
      DataError: if ``part`` does not fit the dataset, a part has no rows, the training
        part has one class, or an entity with one label is cut.
    """
    part = np.asarray(part)
    if part.shape != (dataset.num_rows,):
        raise DataError(
            f"the split has shape {part.shape}; the dataset has {dataset.num_rows} rows"
        )
    if not np.isin(part, [int(known) for known in Part]).all():
        raise DataError("the split holds values that are no Part; use -1, 0, 1 or 2")
    check_parts(dataset, part)
    segment = segment_ids(dataset)
    if dataset.target == "entity":
        _refuse_cut_entities(dataset, part, segment)

    def take_part(wanted: Part) -> Dataset:
        rows = np.flatnonzero(part == wanted)
        return take_runs(dataset, rows, segment[rows])

    return Parts(*map(take_part, _USED))


def _refuse_cut_entities(dataset: Dataset, part: np.ndarray, segment: np.ndarray):
    cut = (np.diff(part) != 0) & (np.diff(segment) == 0)
    if cut.any():
        row = int(np.argmax(cut))
        client = dataset.client_names[dataset.client[row]]
        raise DataError(
            f"the split cuts an entity of client {client!r} in two, but its label is "
            "that of all its rows: use split stratified, by_client or leave_one_out"
        )


def take_runs(dataset: Dataset, rows: np.ndarray, group: np.ndarray) -> Dataset:
    """Returns rows of a dataset, each run of consecutive ones an entity of its own.

    Args:
      dataset: the rows.
      rows: ``[n]`` row numbers, in the order in which they are taken.
      group: ``[n]`` anything that a run may not mix.

    Returns:
      The rows with ``entity`` numbering the runs from 0; a run keeps the name of the
      entity that it was cut from.
    """
    taken = take_rows(dataset, rows)
    if len(rows) == 0:
        return taken._replace(entity=np.zeros(0, np.int64), entity_names=())
    first = np.concatenate([[True], (np.diff(rows) != 1) | (np.diff(group) != 0)])
    names = dataset.entity_names and tuple(
        dataset.entity_names[entity] for entity in taken.entity[first]
    )
    return taken._replace(entity=np.cumsum(first) - 1, entity_names=names)


def check_fractions(fractions: Sequence[float]) -> tuple[float, float, float]:
    """Returns the shares of the three parts.

    Raises:
      DataError: if they are not three numbers between 0 and 1 that sum to 1.
    """
    values = tuple(float(value) for value in fractions)
    if len(values) != 3 or not all(0 < value < 1 for value in values):
        raise DataError(
            f"the shares of training, validation and test are {values}; "
            "give three numbers between 0 and 1"
        )
    if abs(sum(values) - 1) > 1e-6:
        raise DataError(
            f"the shares of training, validation and test are {values} and sum to "
            f"{sum(values):.6g}; make them sum to 1"
        )
    return values


def check_parts(dataset: Dataset, part: np.ndarray) -> None:
    """Refuses a split with a part without rows or a training part of one class.

    Raises:
      DataError: with the part.
    """
    for wanted in _USED:
        if not np.any(part == wanted):
            raise DataError(
                f"the split leaves no rows for {wanted.name.lower()} out of "
                f"{dataset.num_rows}; use a larger share, a smaller embargo or "
                "smaller blocks"
            )
    label = dataset.label[part == Part.TRAIN]
    if label.min() == label.max():
        kind = "positive" if label[0] else "negative"
        raise DataError(
            f"all {len(label)} training rows are {kind}; use a larger training share "
            "or another split"
        )
