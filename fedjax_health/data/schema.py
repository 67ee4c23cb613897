"""The one form in which every source of data reaches the rest of the package.

A ``Dataset`` is a table in NumPy with one row per time step of one entity (a device,
a patient, a connection stream) or per record of a static table. Rows of one client
stand together, within them rows of one entity, within those time does not decrease.
"""

import hashlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np


class DataError(ValueError):
    """Input that cannot be used; the text says what is wrong, where, what to do."""


class DataWarning(UserWarning):
    """Input that can be used but looks wrong; the text says what, where, what to do."""


class AbsentWarning(DataWarning):
    """Columns that are not there, or hold nothing, and count as not observed."""


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
      target: what a label belongs to: "row", each time step or record, or "entity",
        all rows of one entity together (a stay), which then is one example.
      carried: masked modalities whose models see the last observed value and the time
        since then in place of a gap.
      categories: modality name -> column -> names of its categories. Such a column
        holds indices into the names, NaN for none, until preprocessing encodes it.
      patient: int64 ``[rows]``, equal for all rows of one person in the whole dataset
        (several stays, several devices), or None where every entity is its own.
      entity_names: names that ``entity`` is an index into; empty where the numbers
        have no names.
      step_seconds: seconds from one row of an entity to the next, whatever unit time
        is in; None where they are unknown.
      row: int64 ``[rows]``, where a row stands in the file that it was read from,
        counted from 0 (of several files as if they were one, in the order of their
        names); None for what is not read from rows.
      dated: whether ``time`` was read from dates and is in seconds since 1970: in UTC
        where they name a zone, else as they are written.
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
    target: Literal["row", "entity"] = "row"
    carried: frozenset[str] = frozenset()
    categories: Mapping[str, Mapping[str, tuple[str, ...]]] = MappingProxyType({})
    patient: np.ndarray | None = None
    entity_names: tuple[str, ...] = ()
    step_seconds: float | None = None
    row: np.ndarray | None = None
    dated: bool = False

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
        patient=None if dataset.patient is None else dataset.patient[rows],
        row=None if dataset.row is None else dataset.row[rows],
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
        carried=dataset.carried & set(names),
        categories={n: c for n, c in dataset.categories.items() if n in names},
    )


def segment_starts(dataset: Dataset) -> np.ndarray:
    """Returns the first row of every run of one entity of one client, int64."""
    if dataset.num_rows == 0:
        return np.zeros(0, np.int64)
    change = (np.diff(dataset.client) != 0) | (np.diff(dataset.entity) != 0)
    return np.concatenate([[0], np.flatnonzero(change) + 1]).astype(np.int64)


def device_starts(dataset: Dataset) -> np.ndarray:
    """Returns the first row of every device of every client, int64.

    That is an entity; one whose stream is cut into several (as a split by blocks of
    time does) is known by its name.
    """
    starts = segment_starts(dataset)
    if not dataset.entity_names or not len(starts):
        return starts
    entity = np.unique(np.array(dataset.entity_names), return_inverse=True)[1]
    named = entity[dataset.entity[starts]]
    same = (np.diff(named) == 0) & (np.diff(dataset.client[starts]) == 0)
    return starts[np.append(True, ~same)]


def last_rows(dataset: Dataset) -> np.ndarray:
    """Returns the last row of every run of one entity of one client, int64."""
    return np.append(segment_starts(dataset)[1:], dataset.num_rows) - 1


def examples_of(dataset: Dataset) -> Dataset:
    """Returns one row for each thing that has a label of its own.

    That is every row, or the last row of each entity where the label belongs to the
    entity: what scores, thresholds and metrics are counted over.
    """
    if dataset.target == "row" or dataset.num_rows == 0:
        return dataset
    return take_rows(dataset, last_rows(dataset))


def separate_rows(dataset: Dataset) -> Dataset:
    """Returns the dataset with every row an entity of its own.

    For records that do not depend on each other: none follows another in a stream. The
    name of a row's entity stays.
    """
    names = dataset.entity_names
    return dataset._replace(
        entity=np.arange(dataset.num_rows, dtype=np.int64),
        entity_names=names and tuple(names[entity] for entity in dataset.entity),
    )


def patients_of(dataset: Dataset) -> np.ndarray:
    """Returns int64 ``[rows]``, the persons that rows belong to, numbered from 0.

    Where the data names no patients, every entity of a client is one.
    """
    if dataset.patient is not None:
        return np.unique(dataset.patient, return_inverse=True)[1].astype(np.int64)
    if dataset.num_rows == 0:
        return np.zeros(0, np.int64)
    pairs = np.stack([dataset.client.astype(np.int64), dataset.entity], axis=1)
    return np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)


def segment_ids(dataset: Dataset) -> np.ndarray:
    """Returns the number of each row's run of one entity of one client, int64."""
    lengths = np.diff(np.append(segment_starts(dataset), dataset.num_rows))
    return np.repeat(np.arange(len(lengths), dtype=np.int64), lengths)


def check_dataset(
    dataset: Dataset, *, source: str = "the data", one_class: bool = False
):
    """Refuses a dataset that does not keep to what ``Dataset`` says of its fields.

    Loaders of this package need no such check; data from elsewhere does.

    Args:
      dataset: the rows.
      source: what error messages call it.
      one_class: whether all labels may be the same, as in data to score.

    Raises:
      DataError: with the field and the row.
    """
    rows = dataset.num_rows
    if rows == 0:
        raise DataError(f"{source}: there are no rows")
    if not dataset.features:
        raise DataError(f"{source}: features is empty; name at least one modality")
    columns: dict[str, tuple[Any, Any]] = {
        name: (np.float32, getattr(dataset, name)) for name in ("label", "oracle")
    }
    columns["attack"] = (np.int32, dataset.attack)
    columns["client"] = (np.int32, dataset.client)
    columns["entity"] = (np.int64, dataset.entity)
    columns["time"] = (np.float64, dataset.time)
    for name, (dtype, values) in columns.items():
        if name == "oracle" and values is None:
            continue
        _check_column(name, dtype, values, rows, source)
    for name in ("patient", "row"):
        values = getattr(dataset, name)
        if values is not None:
            _check_column(name, np.int64, values, rows, source)
    _refuse_rows(~np.isin(dataset.label, (0, 1)), source, "label is not 0 or 1")
    if not one_class and dataset.label.min() == dataset.label.max():
        raise DataError(f"{source}: every label is {dataset.label[0]:g}: give both")
    if not dataset.attack_names or dataset.attack_names[0] != "normal":
        raise DataError(f'{source}: attack_names must begin with "normal"')
    for name, names in (
        ("attack", dataset.attack_names),
        ("client", dataset.client_names),
    ):
        values = getattr(dataset, name)
        outside = (values < 0) | (values >= len(names))
        _refuse_rows(outside, source, f"{name} is no index into its {len(names)} names")
    _refuse_rows(
        (dataset.attack > 0) != (dataset.label > 0), source, "attack contradicts label"
    )
    _refuse_rows(~np.isfinite(dataset.time), source, "time is not finite")
    _check_order(dataset, source)
    _check_features(dataset, source)
    _check_target(dataset, source)


def dataset_sha256(dataset: Dataset) -> str:
    """Returns the SHA-256 of everything in a dataset, in hexadecimal digits."""
    digest = hashlib.sha256()
    for name, value in _named_parts(dataset):
        digest.update(name.encode())
        if isinstance(value, np.ndarray):
            digest.update(f"{value.dtype} {value.shape}".encode())
            digest.update(np.ascontiguousarray(value).data)
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()


def _named_parts(dataset: Dataset) -> list[tuple[str, object]]:
    parts = dataset._asdict()
    features = parts.pop("features")
    # Sets and mappings have no order of their own.
    parts["masked"] = tuple(sorted(dataset.masked))
    parts["carried"] = tuple(sorted(dataset.carried))
    parts["categories"] = [
        (name, sorted(columns.items()))
        for name, columns in sorted(dataset.categories.items())
    ]
    return [*parts.items(), *((f"features.{n}", v) for n, v in features.items())]


def _check_column(name: str, dtype: Any, values: Any, rows: int, source: str):
    if np.shape(values) != (rows,) or getattr(values, "dtype", None) != dtype:
        raise DataError(
            f"{source}: {name} is {_kind(values)}; give {np.dtype(dtype)} ({rows},)"
        )


def _check_target(dataset: Dataset, source: str):
    if dataset.target not in ("row", "entity"):
        raise DataError(f'{source}: target is {dataset.target!r}: "row" or "entity"')
    if dataset.target == "entity":
        segment = segment_ids(dataset)
        first = dataset.label[segment_starts(dataset)][segment]
        what = "label changes inside an entity; set target to row"
        _refuse_rows(dataset.label != first, source, what)
    if not dataset.carried <= dataset.masked:
        name = min(dataset.carried - dataset.masked)
        raise DataError(f"{source}: carried names {name!r}, which masked does not")
    for modality, columns in dataset.categories.items():
        names = dataset.feature_names.get(modality, ())
        for column, labels in columns.items():
            if column not in names:
                raise DataError(
                    f"{source}: categories names column {column!r}, which modality "
                    f"{modality!r} does not have"
                )
            values = dataset.features[modality][:, names.index(column)]
            known = np.isnan(values) | (
                (values >= 0) & (values < len(labels)) & (values == np.floor(values))
            )
            what = f"{modality}.{column} is no index into its {len(labels)} categories"
            _refuse_rows(~known, source, what)


def _check_order(dataset: Dataset, source: str):
    falls = np.diff(dataset.client, prepend=dataset.client[0]) < 0
    _refuse_rows(falls, source, "client falls; sort the rows by client")
    starts = segment_starts(dataset)
    keys = np.stack([dataset.client[starts], dataset.entity[starts]], axis=1)
    _, first = np.unique(keys, axis=0, return_index=True)
    again = np.zeros(dataset.num_rows, bool)
    again[np.delete(starts, first)] = True
    _refuse_rows(again, source, "entity comes back; sort each client's rows by entity")
    back = np.diff(dataset.time, prepend=dataset.time[0]) < 0
    back[starts] = False
    _refuse_rows(back, source, "time falls; sort the rows of each entity by time")


def _check_features(dataset: Dataset, source: str):
    for name, values in dataset.features.items():
        names = dataset.feature_names.get(name)
        if names is None or not names:
            raise DataError(f"{source}: feature_names lacks the columns of {name!r}")
        wanted = (dataset.num_rows, len(names))
        if np.shape(values) != wanted or values.dtype != np.float32:
            raise DataError(
                f"{source}: features[{name!r}] is {_kind(values)}; give float32 "
                f"{wanted}"
            )
        infinite = np.any(np.isinf(values), axis=1)
        _refuse_rows(infinite, source, f"features[{name!r}] is infinite")
        if name not in dataset.masked:
            missing = np.any(np.isnan(values), axis=1)
            what = f"features[{name!r}] has no value; add {name!r} to masked"
            _refuse_rows(missing, source, what)


def _refuse_rows(bad: np.ndarray, source: str, what: str):
    if bad.any():
        raise DataError(f"{source}, row {int(np.argmax(bad))} (from 0): {what}")


def _kind(values: object) -> str:
    if isinstance(values, np.ndarray):
        return f"{values.dtype} {values.shape}"
    return type(values).__name__
