"""Any CSV (plain or gzipped) or Parquet table, read by the roles of its columns.

``ColumnRoles`` says what each column means; ``load_table`` checks the file, or several
of one form, against it and returns a ``Dataset``. What cannot be used is refused with
one line that names the place in the file and what to do.
"""

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from fedjax_health.data.loaders.absent import (
    warn_of_absent_columns,
    warn_of_empty_columns,
)
from fedjax_health.data.loaders.cells import (
    as_float32,
    first_word,
    holds_dates,
    index_names,
    read_attack,
    read_categories,
    read_label,
    read_names,
    read_numbers,
    read_times,
    refuse_one_class,
    shown,
)
from fedjax_health.data.loaders.links import join_link
from fedjax_health.data.loaders.loaded import FeatureNames, Loaded
from fedjax_health.data.loaders.reading import (
    ENDINGS,
    Place,
    Source,
    list_folder,
    open_table,
    other_delimiter,
    record_number,
    refuse_duplicates,
    shorten,
    suggest,
)
from fedjax_health.data.loaders.roles import (
    REST,
    ColumnRoles,
    Link,
    key_columns,
    named_columns,
)
from fedjax_health.data.loaders.units import warn_of_unit_changes
from fedjax_health.data.schema import (
    DataError,
    Dataset,
    segment_ids,
    segment_starts,
)

__all__ = [
    "ColumnRoles",
    "Link",
    "dataset_from_frame",
    "find_tables",
    "load_table",
    "read_table",
]

# The name of the only client of data that names none.
ONLY_CLIENT = "all"


class _Table(NamedTuple):
    """A table, or several files as one, in memory.

    Attributes:
      columns: column -> its cells.
      num_rows: rows.
      place: where its cells stand.
      file: int64 ``[rows]``, which file a row comes from, or None for one file.
      stems: names of the files.
    """

    columns: dict[str, pd.Series]
    num_rows: int
    place: Place
    file: np.ndarray | None
    stems: tuple[str, ...]


def load_table(path: str | os.PathLike[str], roles: ColumnRoles) -> Dataset:
    """Loads a CSV, gzipped CSV or Parquet file, or several of one form.

    The kind is told from the content, so that a wrong file name does no harm. The
    header is checked against the roles before the body is read; of a Parquet file
    only the columns with a role are read.

    Args:
      path: the file, a folder with such files, or a pattern such as ``ward_*.csv``.
      roles: what the columns mean.

    Returns:
      The rows sorted by client, entity and time; rows of equal time keep their order
      in the file. Clients are sorted by name, numbers as numbers.

    Raises:
      DataError: if a file cannot be read or does not fit the roles.
    """
    return _load(path, roles, None, (), strict=True).dataset


def read_table(
    path: str | os.PathLike[str],
    roles: ColumnRoles,
    *,
    feature_names: FeatureNames | None = None,
    client_names: Sequence[str] = (),
) -> Loaded:
    """Loads rows to score with a detector that was trained on others.

    As ``load_table``, but the label column may be absent, empty in some rows or in all,
    or hold one class; the columns of ``drop`` and of the attack type may be absent, and
    a column of a modality or linked table whose values may be missing counts as not
    observed where it is lacking.

    Args:
      path: as in ``load_table``.
      roles: what the columns meant in training.
      feature_names: modality name -> its columns in training, which a "rest" then
        stands for; what else the file has is not used.
      client_names: the clients of the training. Where no column names the client and
        files were clients then, a file alone is named after itself too.

    Raises:
      DataError: if a file cannot be read or does not fit the roles.
    """
    return _load(path, roles, feature_names, client_names, strict=False)


def dataset_from_frame(
    frame: pd.DataFrame, roles: ColumnRoles, *, source: str = "table"
) -> Dataset:
    """Returns the dataset of a table that is already in memory.

    Args:
      frame: the table; its index is ignored.
      roles: what its columns mean.
      source: what error messages call it.

    Raises:
      DataError: as ``load_table``; rows are counted from 1.
    """
    columns = tuple(str(name) for name in frame.columns)
    refuse_duplicates(columns, source=source)
    frame = frame.set_axis(columns, axis="columns").reset_index(drop=True)
    modalities = _resolve(columns, roles, None, source=source, strict=True)
    place = Place(source, record_number)
    table = _Table(_columns(frame), len(frame), place, None, (ONLY_CLIENT,))
    return _build(table, roles, modalities, None, (), strict=True).dataset


def find_tables(path: str | os.PathLike[str], roles: ColumnRoles) -> tuple[Path, ...]:
    """Returns the files that a path stands for, sorted by name.

    Args:
      path: a file, a folder or a pattern.
      roles: whose linked tables are left out.

    Raises:
      DataError: if a folder or pattern holds no table.
    """
    place = Path(path)
    linked = {os.path.abspath(link.path) for link in roles.links}
    # Not the methods of Path, which raise for what cannot be looked at.
    if os.path.isdir(place):
        found = [file for file in list_folder(place) if is_table(file)]
        found = [file for file in found if os.path.abspath(file) not in linked]
        if not found:
            raise DataError(
                f"{place} is a folder without tables; give a CSV or Parquet file, or a "
                f"folder of files named {', '.join(ENDINGS)}"
            )
        return tuple(found)
    if any(sign in str(path) for sign in "*?[") and not os.path.exists(place):
        found = sorted(Path(name) for name in glob.glob(str(path)))
        found = [file for file in found if os.path.abspath(file) not in linked]
        if not found:
            raise DataError(f"no file is named like {path}; check the pattern")
        return tuple(found)
    return (place,)


def is_table(file: Path) -> bool:
    """Returns whether a file is named like a table."""
    return file.name.lower().endswith(ENDINGS) and file.is_file()


def _stem(file: Path) -> str:
    for ending in sorted(ENDINGS, key=len, reverse=True):
        if file.name.lower().endswith(ending):
            return file.name[: -len(ending)]
    return file.stem


def _columns(frame: pd.DataFrame) -> dict[str, pd.Series]:
    return {str(name): values for name, values in frame.items()}


def _load(
    path: str | os.PathLike[str],
    roles: ColumnRoles,
    feature_names: FeatureNames | None,
    client_names: Sequence[str],
    *,
    strict: bool,
) -> Loaded:
    files = find_tables(path, roles)
    sources = [open_table(file, delimiter=roles.delimiter) for file in files]
    found = [
        _resolve(
            source.columns, roles, feature_names, source=source.name, strict=strict
        )
        for source in sources
    ]
    for source, modalities in zip(sources, found, strict=True):
        if any(set(names) != set(found[0][m]) for m, names in modalities.items()):
            own = {name for names in modalities.values() for name in names}
            first = {name for names in found[0].values() for name in names}
            raise DataError(
                f"{source.name} has other columns than {sources[0].name}: "
                f"{shorten(sorted(own ^ first))}"
            )
    table = _read(path, files, sources, roles, found[0])
    return _build(table, roles, found[0], feature_names, client_names, strict=strict)


def _read(
    path: str | os.PathLike[str],
    files: tuple[Path, ...],
    sources: list[Source],
    roles: ColumnRoles,
    modalities: dict[str, tuple[str, ...]],
) -> _Table:
    single = [column for role, column in named_columns(roles) if _is_one(role)]
    wanted = [*single, *key_columns(roles)]
    wanted += [column for columns in modalities.values() for column in columns]
    # Names are never numbers: hospital 007 is not hospital 7.
    text = {column for column in single if column != roles.time}
    text |= {*key_columns(roles), *roles.categorical}
    if roles.time is not None and roles.time_format is not None:
        text.add(roles.time)
    frames = []
    for source in sources:
        held = [name for name in dict.fromkeys(wanted) if name in source.columns]
        frames.append(source.read(held, [name for name in held if name in text]))
    stems = tuple(_stem(file) for file in files)
    if len(files) == 1:
        place = Place(sources[0].name, sources[0].locate)
        return _Table(_columns(frames[0]), len(frames[0]), place, None, stems)
    for stem in stems:
        if stems.count(stem) > 1:
            raise DataError(f"{path}: two files are named {stem!r}; rename one")
    sizes = [len(frame) for frame in frames]
    starts = np.cumsum([0, *sizes])

    def locate(row: int) -> str:
        number = int(np.searchsorted(starts, row, side="right")) - 1
        place = sources[number].locate(row - int(starts[number]))
        return f"{files[number].name}, {place}"

    frame = pd.concat(frames, ignore_index=True)
    return _Table(
        _columns(frame),
        len(frame),
        Place(str(path), locate),
        np.repeat(np.arange(len(files)), sizes),
        stems,
    )


def _is_one(role: str) -> bool:
    return role != "drop" and not role.startswith("modalities.")


def _resolve(
    columns: Sequence[str],
    roles: ColumnRoles,
    feature_names: FeatureNames | None,
    *,
    source: str,
    strict: bool,
) -> dict[str, tuple[str, ...]]:
    """Returns the columns of each modality; refuses roles that the table lacks."""
    known = set(columns)
    taken = set(key_columns(roles))
    required = [("links.on", key) for key in key_columns(roles)]
    for role, column in named_columns(roles):
        taken.add(column)
        optional = role in ("label", "attack", "drop") or (
            roles.allow_missing and role.startswith("modalities.")
        )
        if strict or not optional:
            required.append((role, column))
    for role, column in required:
        if column not in known:
            raise DataError(
                f"{source} has no column {column!r} ({role})"
                f"{suggest(column, columns)}; columns: {shorten(columns)}"
                f"{other_delimiter(columns)}"
            )
    rest = tuple(column for column in columns if column not in taken)
    modalities: dict[str, tuple[str, ...]] = {}
    for name, named in roles.modalities.items():
        modalities[name] = tuple(named)
        if named == REST:
            modalities[name] = rest
            if feature_names is not None and name in feature_names:
                modalities[name] = tuple(feature_names[name])
                _refuse_absent(modalities[name], columns, roles, source, name)
        if not modalities[name]:
            raise DataError(
                f"{source}: no column is left for modalities.{name}; "
                f"columns: {shorten(columns)}"
            )
    features = {name for names in modalities.values() for name in names}
    for column in roles.categorical:
        if column not in features:
            raise DataError(
                f"{source} has no column {column!r} (categorical) in any modality"
                f"{suggest(column, sorted(features))}"
            )
    return modalities


def _refuse_absent(
    names: Sequence[str],
    columns: Sequence[str],
    roles: ColumnRoles,
    source: str,
    modality: str,
) -> None:
    if roles.allow_missing:
        return
    for name in names:
        if name not in columns:
            raise DataError(
                f"{source} has no column {name!r} (modalities.{modality} in training)"
                f"{suggest(name, columns)}; columns: {shorten(columns)}"
            )


def _build(
    table: _Table,
    roles: ColumnRoles,
    modalities: dict[str, tuple[str, ...]],
    feature_names: FeatureNames | None,
    trained: Sequence[str],
    *,
    strict: bool,
) -> Loaded:
    place, num_rows = table.place, table.num_rows
    if num_rows == 0:
        raise DataError(f"{place.source} has no rows")
    try:
        label, known, attack, attack_names = _labels(table, roles, strict=strict)
    except DataError as error:
        # Whoever has words for labels often has words for features too.
        if text := _words(table, modalities, roles, least=1):
            raise DataError(f"{error}; and {text}") from None
        raise
    client, client_names = _clients(table, roles, trained)
    entity, entity_names = _entities(table, roles)
    time, dated = np.arange(num_rows, dtype=np.float64), False
    if roles.time is not None:
        time, dated = read_times(
            table.columns[roles.time], place, time_format=roles.time_format
        )
    patient = None
    if roles.patient is not None:
        patient, _ = read_names(table.columns[roles.patient], place)
    # What reads a single column says it.
    if text := _words(table, modalities, roles, least=2):
        raise DataError(f"{table.place.source}: {text}")
    features, categories = {}, {}
    for name, names in modalities.items():
        features[name], categories[name] = _features(table, names, roles)
    names = dict(modalities)
    for link in roles.links:
        linked = join_link(
            link,
            [table.columns[key] for key in link.keys],
            time if roles.time is not None else None,
            dated=dated,
            columns=None if feature_names is None else feature_names.get(link.modality),
            strict=strict,
        )
        features[link.modality] = linked.values
        names[link.modality] = linked.names
        categories[link.modality] = linked.categories
    # By the roles, not by the values: a model must fit the next file too.
    masked = {link.modality for link in roles.links}
    masked |= set(modalities) if roles.allow_missing else set()
    order = np.lexsort((time, entity, client))
    dataset = Dataset(
        features={name: values[order] for name, values in features.items()},
        feature_names=names,
        label=label[order],
        attack=attack[order],
        attack_names=attack_names,
        client=client[order],
        client_names=client_names,
        entity=entity[order],
        time=time[order],
        masked=frozenset(masked),
        target=roles.target,
        carried=frozenset(roles.carried),
        categories={name: kinds for name, kinds in categories.items() if kinds},
        patient=None if patient is None else patient[order],
        entity_names=entity_names,
        step_seconds=roles.step_seconds,
        row=order.astype(np.int64),
        dated=dated,
    )
    if roles.step_seconds is None and dated:
        dataset = dataset._replace(step_seconds=_median_step(dataset))
    known = known[order]
    if roles.target == "entity":
        dataset, known = _spread(dataset, known)
        _refuse_mixed(dataset, place.source)
    warn_of_empty_columns(dataset, source=place.source, strict=strict)
    warn_of_absent_columns(modalities, table.columns, source=place.source)
    warn_of_unit_changes(dataset, source=place.source)
    return Loaded(dataset, known)


def _labels(
    table: _Table, roles: ColumnRoles, *, strict: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[str, ...]]:
    """Returns (label, whether it is known, attack, names of the attacks)."""
    label = np.full(table.num_rows, np.nan, np.float32)
    series = table.columns.get(roles.label)
    if series is not None:
        label = read_label(
            series, table.place, positive=roles.positive, unknown=not strict
        )
        if strict:
            refuse_one_class(label, series, table.place.source)
    known = ~np.isnan(label)
    attack, names = np.where(known, label, 0).astype(np.int32), ("normal", "attack")
    if roles.attack is not None and roles.attack in table.columns:
        attack, names = read_attack(
            table.columns[roles.attack], label, table.place, normal=roles.normal
        )
    return np.where(known, label, np.float32(0)), known, attack, names


def _spread(dataset: Dataset, known: np.ndarray) -> tuple[Dataset, np.ndarray]:
    """Gives rows without a label that of their entity, where another row has it."""
    if known.all() or not known.any():
        return dataset, known
    starts, segment = segment_starts(dataset), segment_ids(dataset)

    def of_entity(values: np.ndarray) -> np.ndarray:
        # What is unknown is 0.
        return np.where(known, values, np.maximum.reduceat(values, starts)[segment])

    dataset = dataset._replace(
        label=of_entity(dataset.label), attack=of_entity(dataset.attack)
    )
    return dataset, np.logical_or.reduceat(known, starts)[segment]


def _clients(
    table: _Table, roles: ColumnRoles, trained: Sequence[str]
) -> tuple[np.ndarray, tuple[str, ...]]:
    if roles.client is not None:
        codes, names = read_names(table.columns[roles.client], table.place)
        return codes.astype(np.int32), names
    only = (np.zeros(table.num_rows, np.int32), (ONLY_CLIENT,))
    if roles.files == "rows":
        return only
    if table.file is None:
        # In training, one file is one client; later, one of the files of then may come.
        files_were_clients = tuple(trained) not in ((), (ONLY_CLIENT,))
        return (only[0], table.stems) if files_were_clients else only
    names, codes = index_names(table.stems)
    return codes[table.file].astype(np.int32), names


def _entities(table: _Table, roles: ColumnRoles) -> tuple[np.ndarray, tuple[str, ...]]:
    if roles.entity is not None:
        return read_names(table.columns[roles.entity], table.place)
    if table.file is None:
        return np.zeros(table.num_rows, np.int64), ()
    # Rows of two files are never one stream by themselves.
    names, codes = index_names(table.stems)
    return codes[table.file], names


def _features(
    table: _Table, names: Sequence[str], roles: ColumnRoles
) -> tuple[np.ndarray, dict[str, tuple[str, ...]]]:
    """Returns (float32 ``[rows, columns]``, categories of the columns)."""
    result = np.full((table.num_rows, len(names)), np.nan, np.float32)
    categories: dict[str, tuple[str, ...]] = {}
    for position, name in enumerate(names):
        series = table.columns.get(name)
        if series is None:
            if name in roles.categorical:
                categories[name] = ()
            continue
        if name in roles.categorical:
            values, categories[name] = read_categories(series)
        else:
            numbers = read_numbers(
                series,
                table.place,
                remedy="correct it, list the column in categorical or in drop",
            )
            values = as_float32(numbers, name, table.place)
        missing = np.isnan(values)
        if not roles.allow_missing and missing.any():
            row = int(np.argmax(missing))
            raise DataError(
                f"{table.place.cell(row, name)}: no value; fill it in, drop the "
                "column or set allow_missing = true"
            )
        result[:, position] = values
    return result, categories


def _words(
    table: _Table,
    modalities: dict[str, tuple[str, ...]],
    roles: ColumnRoles,
    *,
    least: int,
) -> str | None:
    """Names all columns that should hold numbers and do not, if there are so many."""
    found, dates = [], []
    for name in (name for names in modalities.values() for name in names):
        series = table.columns.get(name)
        if series is None or name in roles.categorical:
            continue
        row = first_word(series)
        if row is None:
            continue
        place = table.place.locate(row)
        (dates if holds_dates(series) else found).append(
            f"{name!r} ({shown(series.iloc[row])} in {place})"
        )
    count = len(found) + len(dates)
    if count < least:
        return None
    text = "1 column holds" if count == 1 else f"{count} columns are"
    text += " no numbers: "
    if found:
        text += f"{shorten(found)}: list words in categorical and identifiers in drop"
    if dates:
        text += "; " if found else ""
        text += f"{shorten(dates)}: name the column of the time in time, or drop dates"
    return text


def _median_step(dataset: Dataset) -> float | None:
    """Returns the median time between rows of one entity that are not simultaneous."""
    step = np.diff(dataset.time)
    step = step[(np.diff(segment_ids(dataset)) == 0) & (step > 0)]
    return float(np.median(step)) if len(step) else None


def _refuse_mixed(dataset: Dataset, source: str) -> None:
    changed = np.diff(dataset.label) != 0
    changed &= np.diff(segment_ids(dataset)) == 0
    if changed.any():
        row = int(np.argmax(changed))
        number = int(dataset.entity[row])
        entity = dataset.entity_names[number] if dataset.entity_names else number
        raise DataError(
            f"{source}: the label of entity {entity!r} of client "
            f"{dataset.client_names[dataset.client[row]]!r} changes; with target = "
            '"entity" all its rows have one label'
        )
