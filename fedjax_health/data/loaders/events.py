"""Irregular event series in long form: one row an observation, one table of entities.

The form in which records of hospitals are kept: (entity, time, variable, value) in one
table; label, client, patient and what holds for the whole entity in another, one row
each. Observations are put on a regular grid; see ``gridding``.
"""

import os
from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np
import pandas as pd

from fedjax_health.data.loaders.absent import (
    warn_of_absent_columns,
    warn_of_empty_columns,
)
from fedjax_health.data.loaders.cells import (
    as_float32,
    read_categories,
    read_label,
    read_names,
    read_numbers,
    read_times,
    sort_names,
)
from fedjax_health.data.loaders.gridding import grid_observations, implausible
from fedjax_health.data.loaders.loaded import FeatureNames, Loaded, trainable
from fedjax_health.data.loaders.reading import (
    Place,
    Source,
    open_table,
    require_columns,
    shorten,
    suggest,
)
from fedjax_health.data.loaders.stays import Series, Static, stays_dataset
from fedjax_health.data.loaders.units import (
    warn_of_unit_changes,
    warn_of_unit_changes_in_events,
)
from fedjax_health.data.schema import DataError, Dataset


class EventRoles(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the columns of the two tables mean, and the grid.

    Attributes:
      entity: column of both tables that names the entity (a stay).
      time: column of the observation's time, numbers or dates.
      time_format: strptime format of times that are written as text.
      unit_seconds: seconds in a unit of time, where times are numbers.
      variable: column that names what was observed.
      value: column of what was found, a number; an empty one is no observation.
      label: column of the label in the table of entities.
      positive: values of the label that are positive; empty for 0 and 1.
      client: its column of the client, or None for a single one.
      patient: its column of the person, or None where every entity is another one.
      origin: its column of the time at which the grid begins, or None for the
        entity's first observation.
      static: its columns that are features, with missing values allowed.
      categorical: those of them that hold categories.
      bin_seconds: width of a bin.
      length: bins; what lies before the origin or after the last bin is not used.
      aggregate: what a bin with several values of a variable holds, the last or the
        mean.
      duplicates: what becomes of two values of one variable at one time: the one
        further down counts ("last"), or they are refused ("refuse").
      variables: the variables that are features, or empty for all that are observed.
      ranges: variable -> smallest and largest value that can be true; what lies outside
        is not observed.
      modalities: "series", "static" (which needs ``static``), or both.
      delimiter: the character between the cells of a CSV.

    Raises:
      DataError: if the roles contradict each other.
    """

    entity: str = "entity"
    time: str = "time"
    time_format: str | None = None
    unit_seconds: float = 1.0
    variable: str = "variable"
    value: str = "value"
    label: str = "label"
    positive: tuple[bool | int | float | str, ...] = ()
    client: str | None = None
    patient: str | None = None
    origin: str | None = None
    static: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    bin_seconds: float = 3600.0
    length: int = 48
    aggregate: Literal["last", "mean"] = "last"
    duplicates: Literal["last", "refuse"] = "last"
    variables: tuple[str, ...] = ()
    ranges: dict[str, tuple[float, float]] = msgspec.field(default_factory=dict)
    modalities: tuple[str, ...] = ("series",)
    delimiter: str = ","

    def __post_init__(self):
        for name in ("unit_seconds", "bin_seconds", "length"):
            if not getattr(self, name) > 0:
                raise DataError(f"{name} is {getattr(self, name)}; give more than 0")
        if not self.modalities:
            raise DataError('modalities is empty; name "series", "static" or both')
        for name in self.modalities:
            if name not in ("series", "static"):
                raise DataError(f'modality {name!r} is unknown; "series" or "static"')
        if "static" in self.modalities and not self.static:
            raise DataError('modality "static" needs static, a list of its columns')
        roles = [self.entity, self.label, self.client, self.patient, self.origin]
        named = [*(name for name in roles if name is not None), *self.static]
        for name in named:
            if named.count(name) > 1:
                raise DataError(f"column {name!r} of the entities has two roles")
        for name, (low, high) in self.ranges.items():
            if not low <= high:
                raise DataError(f"ranges.{name} is {low}, {high}; the smallest first")
        for name in self.categorical:
            if name not in self.static:
                raise DataError(f"categorical column {name!r} is not in static")


def load_events(
    path: str | os.PathLike[str],
    entities: str | os.PathLike[str],
    roles: EventRoles,
) -> Dataset:
    """Loads observations and the table of entities.

    Args:
      path: the observations, a CSV (gzipped or not) or Parquet file. Their order does
        not matter: they are sorted by time; those of one time keep their order.
      entities: the table of entities, one row each. An entity without observations is
        kept.
      roles: what the columns mean, and the grid.

    Returns:
      One entity after another, with as many rows as the grid has bins and one label;
      modality "series" is carried. Without the series an entity is one row.

    Raises:
      DataError: if a table cannot be used, an entity stands twice in its table, or an
        observation is of an entity that the table lacks.
    """
    loaded = _load(path, entities, roles, None, labelled=True)
    return trainable(loaded, str(entities))


def read_events(
    path: str | os.PathLike[str],
    entities: str | os.PathLike[str],
    roles: EventRoles,
    *,
    feature_names: FeatureNames | None = None,
) -> Loaded:
    """Loads entities to score, with or without labels; see ``load_events``.

    Args:
      path: the observations.
      entities: the table of entities; columns of ``static`` may be absent.
      roles: what the columns meant in training, and the grid.
      feature_names: modality name -> its columns in training: the variables, where
        ``roles`` does not list them.

    Raises:
      DataError: as ``load_events``.
    """
    return _load(path, entities, roles, feature_names, labelled=False)


def _load(
    path: str | os.PathLike[str],
    entities: str | os.PathLike[str],
    roles: EventRoles,
    feature_names: FeatureNames | None,
    *,
    labelled: bool,
) -> Loaded:
    source = open_table(entities, delimiter=roles.delimiter)
    frame = _entities(source, roles, labelled=labelled)
    place = Place(source.name, source.locate)
    codes, names = read_names(frame[roles.entity], place)
    count = np.bincount(codes)
    if count.max() > 1:
        row = int(np.flatnonzero(codes == np.argmax(count))[1])
        raise DataError(
            f"{place.cell(row, roles.entity)}: entity {names[codes[row]]!r} occurs "
            "twice; remove one"
        )
    stays = [names[code] for code in codes]
    client = ["all"] * len(stays)
    if roles.client is not None:
        client_codes, client_names = read_names(frame[roles.client], place)
        client = [client_names[code] for code in client_codes]
    patient = None
    if roles.patient is not None:
        patient_codes, patient_names = read_names(frame[roles.patient], place)
        patient = [patient_names[code] for code in patient_codes]
    modalities: dict[str, Series | Static] = {}
    for name in roles.modalities:
        if name == "static":
            modalities[name] = _static(frame, roles, place)
            warn_of_absent_columns({name: roles.static}, frame, source=source.name)
        else:
            origin = None
            if roles.origin is not None:
                origin = read_times(
                    frame[roles.origin], place, time_format=roles.time_format
                )
            known = None if feature_names is None else feature_names.get("series")
            modalities[name] = _series(path, stays, client, origin, known, roles)
    label = np.full(len(stays), np.nan, np.float32)
    if roles.label in frame:
        label = read_label(
            frame[roles.label], place, positive=roles.positive, unknown=not labelled
        )
    loaded = stays_dataset(
        modalities,
        stay=stays,
        client=client,
        label=label,
        positive="positive",
        bin_seconds=roles.bin_seconds,
        patient=patient,
    )
    dataset = loaded.dataset
    warn_of_empty_columns(dataset, source=str(path), strict=labelled)
    if "static" in roles.modalities:
        static = dataset._replace(features={"static": dataset.features["static"]})
        warn_of_unit_changes(static, source=source.name, in_time=False)
    return loaded


def _entities(source: Source, roles: EventRoles, *, labelled: bool) -> pd.DataFrame:
    required = [
        name
        for name in (roles.entity, roles.client, roles.patient, roles.origin)
        if name is not None
    ]
    wanted = [*required, roles.label, *roles.static]
    require_columns(source, wanted if labelled else required)
    held = [name for name in wanted if name in source.columns]
    text = {roles.entity, roles.client, roles.patient, roles.label, *roles.categorical}
    if roles.time_format is not None:
        text.add(roles.origin)
    return source.read(held, [name for name in held if name in text])


def _static(frame: pd.DataFrame, roles: EventRoles, place: Place) -> Static:
    values = np.full((len(frame), len(roles.static)), np.nan, np.float32)
    categories: dict[str, tuple[str, ...]] = {}
    for position, name in enumerate(roles.static):
        if name in roles.categorical:
            categories[name] = ()
        if name not in frame:
            continue
        if name in roles.categorical:
            values[:, position], categories[name] = read_categories(frame[name])
        else:
            numbers = read_numbers(
                frame[name], place, remedy="correct it, or list it in categorical"
            )
            values[:, position] = as_float32(numbers, name, place)
    return Static(roles.static, values, categories)


def _series(
    path: str | os.PathLike[str],
    stays: Sequence[str],
    client: Sequence[str],
    origin: tuple[np.ndarray, bool] | None,
    known: Sequence[str] | None,
    roles: EventRoles,
) -> Series:
    source = open_table(path, delimiter=roles.delimiter)
    columns = (roles.entity, roles.time, roles.variable, roles.value)
    require_columns(source, columns)
    text = [roles.entity, roles.variable]
    if roles.time_format is not None:
        text.append(roles.time)
    frame = source.read(columns, text)
    place = Place(source.name, source.locate)
    entity = _entity_rows(frame[roles.entity], stays, place)
    time, dated = read_times(frame[roles.time], place, time_format=roles.time_format)
    value = read_numbers(
        frame[roles.value], place, remedy="correct it, or remove the row"
    )
    as_float32(value, roles.value, place)
    codes, found = read_names(frame[roles.variable], place)
    outside = implausible(codes, value, found, roles.ranges)
    value = np.where(outside, np.nan, value)
    observed = ~np.isnan(value)
    names = _variables(codes, found, observed, known, roles, source)
    column = np.asarray([names.index(n) if n in names else -1 for n in found])[codes]
    kept = np.flatnonzero(observed & (column >= 0))
    entity, time, value, column = entity[kept], time[kept], value[kept], column[kept]
    if roles.duplicates == "refuse":
        _refuse_duplicates(entity, time, column, names, stays, place, kept)
    client_names = sort_names(client)
    index = {name: number for number, name in enumerate(client_names)}
    warn_of_unit_changes_in_events(
        column,
        value,
        np.asarray([index[name] for name in client])[entity],
        time,
        names=names,
        client_names=client_names,
        modality="series",
        source=source.name,
    )
    start = _starts(entity, time, len(stays)) if origin is None else origin[0]
    if origin is not None and origin[1] != dated:
        kinds = ("dates", "numbers") if dated else ("numbers", "dates")
        raise DataError(
            f"{source.name}: the times are {kinds[0]} and column {roles.origin!r} of "
            f"the entities holds {kinds[1]}; give both in one way"
        )
    grid = grid_observations(
        entity,
        column,
        (time - start[entity]) * (1.0 if dated else roles.unit_seconds),
        value,
        num_entities=len(stays),
        num_variables=len(names),
        length=roles.length,
        bin_seconds=roles.bin_seconds,
        aggregate=roles.aggregate,
    )
    return Series(names, grid)


def _entity_rows(series: pd.Series, stays: Sequence[str], place: Place) -> np.ndarray:
    """Returns int64 [observations], the row of each one's entity."""
    codes, names = read_names(series, place)
    row = {name: position for position, name in enumerate(stays)}
    table = np.asarray([row.get(name, -1) for name in names], np.int64)
    rows = table[codes]
    if (rows < 0).any():
        first = int(np.argmax(rows < 0))
        missing = [name for name in names if name not in row]
        more = f" (nor {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise DataError(
            f"{place.cell(first, str(series.name))}: the table of entities has no "
            f"{names[codes[first]]!r}{more}; the two belong together"
        )
    return rows


def _variables(
    codes: np.ndarray,
    found: tuple[str, ...],
    observed: np.ndarray,
    known: Sequence[str] | None,
    roles: EventRoles,
    source: Source,
) -> tuple[str, ...]:
    if roles.variables:
        # A variable that nobody has observed in training is a misspelt one.
        for name in roles.variables if known is None else ():
            if name not in found:
                raise DataError(
                    f"{source.name} has no variable {name!r} (variables)"
                    f"{suggest(name, found)}; variables: {shorten(found)}"
                )
        return roles.variables
    if known is not None:
        return tuple(known)
    names = tuple(found[code] for code in np.unique(codes[observed]))
    if not names:
        raise DataError(f"{source.name}: no variable is observed with a value in range")
    return names


def _refuse_duplicates(
    entity: np.ndarray,
    time: np.ndarray,
    column: np.ndarray,
    names: Sequence[str],
    stays: Sequence[str],
    place: Place,
    kept: np.ndarray,
) -> None:
    order = np.lexsort((time, column, entity))
    again = np.zeros(len(order), bool)
    again[1:] = True
    for key in (entity, column, time):
        again[1:] &= np.diff(key[order]) == 0
    if again.any():
        row = int(order[np.argmax(again)])
        raise DataError(
            f"{place.source}, {place.locate(int(kept[row]))}: a second value of "
            f"{names[column[row]]!r} for entity {stays[entity[row]]!r} at one time; "
            'remove one, or set duplicates = "last"'
        )


def _starts(entity: np.ndarray, time: np.ndarray, num_entities: int) -> np.ndarray:
    """Returns float64 [entities], the time of the first observation; 0 for none."""
    start = np.full(num_entities, np.inf)
    np.minimum.at(start, entity, time)
    return np.where(np.isfinite(start), start, 0.0)
