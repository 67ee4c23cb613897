"""UNSW TON_IoT telemetry: sensor readings of household devices under attack.

Source: Alsaedi, Moustafa, Tari, Mahmood, Anwar, "TON_IoT Telemetry Dataset: A New
Generation Dataset of IoT and IIoT for Data-Driven Intrusion Detection Systems", IEEE
Access 8, 2020. One file a device; the device is the client.

What gives the label away is taken out, none of it being a property of an attack:

- Date and time: normal and attacked rows come from different weeks, at different rates.
  Rows have no time here, each stands alone, and there is no delay to be measured.
- How values are written: attacked rows hold 0 and 1 where normal ones hold "false  "
  and "true  " (Garage_Door), and normal ones alone have blanks after words (Fridge).
  Numbers and words are compared without that.
"""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from fedjax_health.data.loaders.cells import (
    as_float32,
    as_number,
    as_texts,
    distinct,
    index_names,
    is_missing,
    read_attack,
    read_categories,
    read_label,
    read_numbers,
)
from fedjax_health.data.loaders.loaded import Loaded, trainable
from fedjax_health.data.loaders.reading import (
    Place,
    check_file,
    list_folder,
    open_table,
    require_columns,
)
from fedjax_health.data.loaders.tabular import is_table
from fedjax_health.data.schema import DataError, Dataset, DataWarning

# Columns of the published devices; those of others are told from their cells.
NUMBERS = (
    "fridge_temperature",
    "sphone_signal",
    "latitude",
    "longitude",
    "FC1_Read_Input_Register",
    "FC2_Read_Discrete_Value",
    "FC3_Read_Holding_Register",
    "FC4_Read_Coil",
    "motion_status",
    "current_temperature",
    "thermostat_status",
    "temperature",
    "pressure",
    "humidity",
)
WORDS = ("temp_condition", "door_state", "light_status")

_TIMES = ("date", "time", "ts")
_LABEL, _TYPE = "label", "type"
_PREFIX = "Train_Test_IoT_"


class _Device(NamedTuple):
    """Rows of one file; ``label`` is NaN where it is not known, ``row`` their place."""

    name: str
    columns: dict[str, np.ndarray]
    categories: dict[str, tuple[str, ...]]
    label: np.ndarray
    attack: np.ndarray
    attack_names: tuple[str, ...]
    repeated: int
    row: np.ndarray


def load_ton_iot(
    path: str | os.PathLike[str], *, drop_duplicates: bool = True
) -> Dataset:
    """Loads the telemetry of some or all devices.

    Args:
      path: the folder of ``Train_Test_IoT_*.csv`` (gzipped or not), or one of them.
      drop_duplicates: whether of rows of a device that are equal in everything, date
        and time included, the first alone is kept; a warning tells how many were not.

    Returns:
      One row an entity, in the order of the files, without time; modality "telemetry"
      with the columns of all devices, of which a row has those of its own.

    Raises:
      DataError: if the files cannot be used.
    """
    loaded = _load(path, drop_duplicates=drop_duplicates, labelled=True)
    return trainable(loaded, str(path))


def read_ton_iot(
    path: str | os.PathLike[str],
    *,
    drop_duplicates: bool = False,
    feature_names: Sequence[str] | None = None,
) -> Loaded:
    """Loads telemetry to score, with or without labels; see ``load_ton_iot``.

    Args:
      path: as in ``load_ton_iot``.
      drop_duplicates: as in ``load_ton_iot``; every row is scored by default.
      feature_names: columns in training, others being left out; those of devices that
        the new files lack are not observed.

    Raises:
      DataError: if the files cannot be used.
    """
    return _load(
        path,
        drop_duplicates=drop_duplicates,
        labelled=False,
        feature_names=feature_names,
    )


def files(path: str | os.PathLike[str]) -> tuple[Path, ...]:
    """Returns the files that ``load_ton_iot`` reads, in order.

    Raises:
      DataError: if there are none.
    """
    if not os.path.isdir(path):
        return (check_file(path, wanted="a file of telemetry or their folder"),)
    found = [file for file in list_folder(path) if is_table(file)]
    if not found:
        raise DataError(f"{path} holds no {_PREFIX}*.csv and no other table")
    return tuple(found)


def _load(
    path: str | os.PathLike[str],
    *,
    drop_duplicates: bool,
    labelled: bool,
    feature_names: Sequence[str] | None = None,
) -> Loaded:
    devices = [
        _read(file, drop_duplicates=drop_duplicates, labelled=labelled)
        for file in files(path)
    ]
    _say_repeated(devices, str(path))
    sizes = [len(device.row) + device.repeated for device in devices]
    starts = np.cumsum([0, *sizes[:-1]])
    # As if the files were one.
    devices = [
        device._replace(row=device.row + start)
        for device, start in zip(devices, starts, strict=True)
    ]
    client_names, client = index_names([device.name for device in devices])
    if len(client_names) < len(devices):
        raise DataError(f"{path}: two files are of one device; remove one")
    devices = [devices[number] for number in np.argsort(client)]
    names = tuple(
        feature_names or dict.fromkeys(name for d in devices for name in d.columns)
    )
    categories = {
        name: index_names([c for d in devices for c in d.categories.get(name, ())])[0]
        for name in names
        if name in WORDS or any(name in d.categories for d in devices)
    }
    types = sorted({name for d in devices for name in d.attack_names[1:]})
    attack_names = ("normal", *types)
    sizes = [len(device.attack) for device in devices]
    values = np.full((sum(sizes), len(names)), np.nan, np.float32)
    attack = np.zeros(sum(sizes), np.int32)
    label = np.full(sum(sizes), np.nan, np.float32)
    start = 0
    for device, size in zip(devices, sizes, strict=True):
        rows = slice(start, start + size)
        for position, name in enumerate(names):
            if name in device.columns:
                values[rows, position] = _column(device, name, categories)
        place = np.asarray([attack_names.index(n) for n in device.attack_names])
        attack[rows] = place[device.attack]
        label[rows] = device.label
        start += size
    known = ~np.isnan(label)
    dataset = Dataset(
        features={"telemetry": values},
        feature_names={"telemetry": names},
        label=np.where(known, label, np.float32(0)),
        attack=attack,
        attack_names=attack_names,
        client=np.repeat(np.arange(len(devices), dtype=np.int32), sizes),
        client_names=client_names,
        entity=np.arange(len(values), dtype=np.int64),
        time=np.zeros(len(values)),
        masked=frozenset({"telemetry"}),
        categories={"telemetry": categories} if categories else {},
        row=np.concatenate([device.row for device in devices]).astype(np.int64),
    )
    return Loaded(dataset, known)


def _read(file: Path, *, drop_duplicates: bool, labelled: bool) -> _Device:
    source = open_table(file)
    if labelled:
        require_columns(source, (_LABEL, _TYPE))
    frame = source.read(source.columns, source.columns)
    rows = np.arange(len(frame))
    if drop_duplicates:
        rows = np.flatnonzero(~frame.duplicated().to_numpy())
    repeated = len(frame) - len(rows)
    frame = frame.iloc[rows]
    place = Place(source.name, lambda row: source.locate(int(rows[row])))
    label = np.full(len(frame), np.nan, np.float32)
    attack, attack_names = np.zeros(len(frame), np.int32), ("normal",)
    if _LABEL in frame:
        label = read_label(frame[_LABEL], place, unknown=not labelled)
    if not np.isnan(label).all():
        attack, attack_names = (label == 1).astype(np.int32), ("normal", "attack")
        if _TYPE in frame:
            attack, attack_names = read_attack(
                frame[_TYPE], label, place, normal="normal"
            )
    columns, categories = {}, {}
    for name in source.columns:
        if name in (*_TIMES, _LABEL, _TYPE):
            continue
        if name in WORDS or (name not in NUMBERS and not _is_numeric(frame[name])):
            columns[name], categories[name] = read_categories(frame[name])
        else:
            columns[name] = as_float32(_numbers(frame[name], place), name, place)
    if not columns:
        raise DataError(f"{file} has no column of telemetry")
    name = file.name.split(".")[0].removeprefix(_PREFIX)
    return _Device(
        name, columns, categories, label, attack, attack_names, repeated, rows
    )


def _is_numeric(series: pd.Series) -> bool:
    texts = [text for text in distinct(series)[1] if not is_missing(text)]
    return all(as_number(text) is not None for text in texts)


def _numbers(series: pd.Series, place: Place) -> np.ndarray:
    texts = as_texts(series)
    folded = texts.str.casefold()
    texts = texts.mask(folded == "true", "1").mask(folded == "false", "0")
    return read_numbers(texts.rename(str(series.name)), place, remedy="correct it")


def _column(
    device: _Device, name: str, categories: dict[str, tuple[str, ...]]
) -> np.ndarray:
    values = device.columns[name]
    if name not in categories:
        return values
    if name not in device.categories:
        raise DataError(
            f"column {name!r} holds numbers at {device.name} and words at another "
            "device; rename one"
        )
    place = [categories[name].index(c) for c in device.categories[name]]
    codes = np.where(np.isnan(values), len(place), values).astype(np.int64)
    return np.asarray([*place, np.nan], np.float32)[codes]


def _say_repeated(devices: list[_Device], source: str):
    repeated = {d.name: d.repeated for d in devices if d.repeated}
    if repeated:
        kept = sum(len(device.attack) for device in devices)
        total = sum(repeated.values())
        parts = ", ".join(f"{name} {count:,}" for name, count in repeated.items())
        warnings.warn(
            f"{source}: {total:,} of {kept + total:,} rows repeat another one exactly "
            f"and are left out ({parts})",
            DataWarning,
            stacklevel=4,
        )
