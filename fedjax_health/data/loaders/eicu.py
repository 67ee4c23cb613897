"""eICU Collaborative Research Database, demo: deaths in hospital at many hospitals.

Source: Pollard et al., "The eICU Collaborative Research Database, a freely available
multi-center database for critical care research", Scientific Data 5, 2018. Tables as
CSV, gzipped or not, or Parquet, in one folder; -1 is "not known" in APACHE tables.

A stay is described by what is known 24 hours after admission to the unit. Outcomes and
what is predicted from them are no features: discharge, lengths of stay, mortality
(actual or predicted) and ``diedinhospital`` of the APACHE tables.
"""

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from fedjax_health.data.loaders.absent import (
    add_absent_columns,
    warn_of_empty_columns,
)
from fedjax_health.data.loaders.cells import (
    as_float32,
    as_texts,
    is_missing,
    read_categories,
    read_label,
    read_names,
    read_numbers,
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

STAY = "patientunitstayid"
_LABEL, _DEAD, _ALIVE = "hospitaldischargestatus", "Expired", "Alive"

# Columns that are features, with the smallest and largest value that can be true;
# what lies outside (-1 above all) is not observed.
_FLAG = (0.0, 1.0)
PATIENT_RANGES: dict[str, tuple[float, float]] = {
    "age": (0, 120),  # years; "> 89" is read as 90
    "admissionheight": (100, 230),  # cm
    "admissionweight": (15, 400),  # kg
    "hours_in_hospital": (0, 24 * 365),  # before the unit
}
PHYSIOLOGY_RANGES: dict[str, tuple[float, float]] = {
    "intubated": _FLAG,
    "vent": _FLAG,
    "dialysis": _FLAG,
    "eyes": (1, 4),  # Glasgow Coma Scale
    "motor": (1, 6),
    "verbal": (1, 5),
    "meds": _FLAG,  # unable to score the scale because of medication
    "urine": (0, 30_000),  # mL in 24 hours
    "wbc": (0.05, 1_000),  # 1000/uL
    "temperature": (20, 45),  # degrees Celsius
    "respiratoryrate": (1, 120),  # 1/min
    "sodium": (80, 210),  # mmol/L
    "heartrate": (5, 350),  # 1/min
    "meanbp": (5, 300),  # mmHg
    "ph": (6.3, 8),
    "hematocrit": (3, 80),  # %
    "creatinine": (0.05, 50),  # mg/dL
    "albumin": (0.3, 8),  # g/dL
    "pao2": (10, 800),  # mmHg
    "pco2": (5, 250),  # mmHg
    "bun": (0.5, 300),  # mg/dL
    "glucose": (5, 2_500),  # mg/dL
    "bilirubin": (0.05, 90),  # mg/dL
    "fio2": (15, 100),  # %
}
CONDITION_RANGES: dict[str, tuple[float, float]] = {
    "thrombolytics": _FLAG,
    "aids": _FLAG,
    "hepaticfailure": _FLAG,
    "lymphoma": _FLAG,
    "metastaticcancer": _FLAG,
    "leukemia": _FLAG,
    "immunosuppression": _FLAG,
    "cirrhosis": _FLAG,
    "electivesurgery": _FLAG,
    "activetx": _FLAG,  # active treatment on the first day
    "readmit": _FLAG,
    "ima": _FLAG,  # internal mammary artery graft
    "midur": _FLAG,  # myocardial infarction within six months
    "oobventday1": _FLAG,
    "oobintubday1": _FLAG,
    "diabetes": _FLAG,
    "ejectfx": (1, 100),  # %
}
SCORE_RANGES: dict[str, tuple[float, float]] = {
    "acutephysiologyscore": (0, 300),
    "apachescore": (0, 300),
}
PATIENT_CATEGORIES = (
    "gender",
    "ethnicity",
    "unittype",
    "unitadmitsource",
    "unitstaytype",
)
# The other columns of the table are empty in most stays.
SERIES_RANGES: dict[str, tuple[float, float]] = {
    "noninvasivesystolic": (15, 350),  # mmHg
    "noninvasivediastolic": (5, 250),  # mmHg
    "noninvasivemean": (5, 300),  # mmHg
}


class _Stays(NamedTuple):
    """Rows of the table ``patient``, one a stay.

    Attributes:
      frame: the table.
      place: where its cells stand.
      row: name of the stay -> its row.
    """

    frame: pd.DataFrame
    place: Place
    row: dict[str, int]


def load_eicu(
    path: str | os.PathLike[str],
    *,
    client: Literal["hospital", "region"] = "hospital",
    modalities: tuple[str, ...] = ("static",),
    hours: float = 24,
    bin_minutes: float = 60,
    aggregate: Aggregate = "last",
    apache_score: bool = False,
) -> Dataset:
    """Loads the demo's stays.

    Args:
      path: the folder that holds ``patient.csv.gz`` and the other tables.
      client: whether a client is a hospital or a region.
      modalities: "static" (age, sex, admission, APACHE physiology and conditions),
        "series" (blood pressure over time, carried), or both; without the series a
        stay is one row.
      hours: length of the series from admission to the unit; what is entered later
        is not seen.
      bin_minutes: width of a bin of the series.
      aggregate: what a bin with several values of a variable holds.
      apache_score: whether to add the APACHE IVa score and its acute physiology part,
        which are computed from the other columns and from the diagnosis.

    Returns:
      One entity per unit stay, with death in hospital as the label; stays of one
      person share ``patient``. Stays whose discharge status is not known are left
      out, with a warning.

    Raises:
      DataError: if the tables cannot be used.
    """
    settings = _check(path, client, modalities, hours, bin_minutes, aggregate)
    loaded = _load(settings, apache_score=apache_score, labelled=True)
    return trainable(loaded, str(path))


def read_eicu(
    path: str | os.PathLike[str],
    *,
    client: Literal["hospital", "region"] = "hospital",
    modalities: tuple[str, ...] = ("static",),
    hours: float = 24,
    bin_minutes: float = 60,
    aggregate: Aggregate = "last",
    apache_score: bool = False,
) -> Loaded:
    """Loads stays to score, with or without outcomes; see ``load_eicu``.

    Stays whose discharge status is not known are kept, without a label.
    Tables other than ``patient`` and columns of features may be absent: what they hold
    is not observed.

    Raises:
      DataError: if the tables cannot be used.
    """
    settings = _check(path, client, modalities, hours, bin_minutes, aggregate)
    return _load(settings, apache_score=apache_score, labelled=False)


class _Settings(NamedTuple):
    """Arguments of ``load_eicu``, checked."""

    folder: Path
    client: str
    modalities: tuple[str, ...]
    hours: float
    bin_seconds: float
    length: int
    aggregate: Aggregate


def _check(
    path: str | os.PathLike[str],
    client: str,
    modalities: tuple[str, ...],
    hours: float,
    bin_minutes: float,
    aggregate: Aggregate,
) -> _Settings:
    folder = require_folder(path, wanted="the folder of patient.csv.gz")
    length = count_bins(hours, bin_minutes)
    if client not in ("hospital", "region"):
        raise DataError(f'client is {client!r}; "hospital" or "region"')
    for name in modalities:
        if name not in ("series", "static"):
            raise DataError(f'modality {name!r} is unknown; "series" or "static"')
    return _Settings(
        folder, client, modalities, hours, 60 * bin_minutes, length, aggregate
    )


def files(
    path: str | os.PathLike[str],
    *,
    client: str = "hospital",
    modalities: Sequence[str] = ("static",),
    apache_score: bool = False,
) -> tuple[Path, ...]:
    """Returns the files that ``load_eicu`` reads, in order."""
    names = ["patient"]
    if client == "region":
        names.append("hospital")
    if "static" in modalities:
        names += ["apacheapsvar", "apachepredvar", "admissiondx"]
        names += ["apachepatientresult"] if apache_score else []
    if "series" in modalities:
        names.append("vitalaperiodic")
    found = (find_table(path, name) for name in names)
    return tuple(file for file in found if file is not None)


def _read(
    folder: Path,
    name: str,
    columns: Sequence[str],
    *,
    text: Sequence[str] = (),
    required: bool = True,
    optional: Sequence[str] = (),
    features: Sequence[str] = (),
) -> tuple[pd.DataFrame, Place] | None:
    """Reads columns of a table; None where it is absent and may be.

    Optional columns may be absent, and so may features, which then are empty.
    """
    file = find_table(folder, name)
    if file is None:
        if required:
            raise DataError(
                f"{folder} holds no {name}.csv.gz (nor {name}.csv or {name}.parquet)"
            )
        warnings.warn(
            f"{folder} holds no table {name}; what it would hold is not observed",
            DataWarning,
            stacklevel=5,
        )
        return None
    source = open_table(file)
    require_columns(source, [c for c in columns if c not in {*optional, *features}])
    held = [column for column in columns if column in source.columns]
    frame = source.read(held, [column for column in held if column in text])
    frame = add_absent_columns(frame, features, source=source.name)
    return frame, Place(source.name, source.locate)


def _load(settings: _Settings, *, apache_score: bool, labelled: bool) -> Loaded:
    stays = _stays(settings.folder, labelled=labelled)
    names = list(stays.row)
    modalities: dict[str, Series | Static] = {}
    for name in settings.modalities:
        if name == "static":
            modalities[name] = _static(settings, stays, apache_score, labelled)
        else:
            modalities[name] = _series(settings, stays, labelled)
    loaded = stays_dataset(
        modalities,
        stay=names,
        client=_clients(settings, stays),
        label=_labels(stays),
        positive="death in hospital",
        bin_seconds=settings.bin_seconds,
        patient=as_texts(stays.frame["uniquepid"]).tolist(),
    )
    if labelled:
        loaded = leave_out_unlabelled(loaded, column=_LABEL, source=stays.place.source)
    source = str(settings.folder)
    warn_of_empty_columns(loaded.dataset, source=source, strict=labelled)
    warn_of_unit_changes(loaded.dataset, source=source, in_time=False)
    return loaded


def _stays(folder: Path, *, labelled: bool) -> _Stays:
    names = (STAY, "uniquepid", "hospitalid", _LABEL)
    numbers = ("admissionheight", "admissionweight", "hospitaladmitoffset")
    features = ("age", *PATIENT_CATEGORIES, *numbers)
    read = _read(
        folder,
        "patient",
        (*names, *features),
        text=(*names, "age", *PATIENT_CATEGORIES),
        optional=() if labelled else (_LABEL,),
        features=() if labelled else features,
    )
    assert read is not None
    frame, place = read
    codes, names = read_names(frame[STAY], place)
    read_names(frame["uniquepid"], place)
    count = np.bincount(codes)
    if count.max() > 1:
        row = int(np.flatnonzero(codes == np.argmax(count))[1])
        raise DataError(
            f"{place.cell(row, STAY)}: stay {names[codes[row]]} occurs twice; remove "
            "one"
        )
    return _Stays(frame, place, {names[code]: row for row, code in enumerate(codes)})


def _labels(stays: _Stays) -> np.ndarray:
    """Returns float32 [stays] of 0 and 1, NaN where it is not known."""
    if _LABEL not in stays.frame:
        return np.full(len(stays.frame), np.nan, np.float32)
    series = stays.frame[_LABEL]
    texts = as_texts(series)
    known = ~np.asarray([is_missing(text) for text in texts])
    strange = known & ~texts.isin([_DEAD, _ALIVE]).to_numpy(bool)
    if strange.any():
        row = int(np.argmax(strange))
        raise DataError(
            f"{stays.place.cell(row, _LABEL)}: {texts.iloc[row]!r} is neither "
            f"{_ALIVE} nor {_DEAD}"
        )
    return read_label(series, stays.place, positive=(_DEAD,), unknown=True)


def _clients(settings: _Settings, stays: _Stays) -> list[str]:
    codes, hospitals = read_names(stays.frame["hospitalid"], stays.place)
    names = [hospitals[code] for code in codes]
    if settings.client == "hospital":
        return names
    columns = ("hospitalid", "region")
    read = _read(settings.folder, "hospital", columns, text=columns)
    assert read is not None
    frame, _ = read
    region = dict(
        zip(as_texts(frame["hospitalid"]), as_texts(frame["region"]), strict=True)
    )
    for name in names:
        if is_missing(region.get(name, "")):
            region[name] = "unknown region"
    return [region[name] for name in names]


def _static(
    settings: _Settings, stays: _Stays, apache_score: bool, labelled: bool
) -> Static:
    folder, count = settings.folder, len(stays.frame)
    names: list[str] = []
    parts: list[np.ndarray] = []
    categories: dict[str, tuple[str, ...]] = {}

    def add(found: Mapping[str, np.ndarray], ranges: Mapping[str, tuple[float, float]]):
        values = np.stack([found[name] for name in ranges], axis=1)
        names.extend(ranges)
        parts.append(clear_implausible(values, tuple(ranges), ranges))

    add(_patient_numbers(stays), PATIENT_RANGES)
    for name in PATIENT_CATEGORIES:
        values, categories[name] = read_categories(stays.frame[name])
        names.append(name)
        parts.append(values[:, None])
    tables = [("apacheapsvar", PHYSIOLOGY_RANGES), ("apachepredvar", CONDITION_RANGES)]
    if apache_score:
        tables.append(("apachepatientresult", SCORE_RANGES))
    for table, ranges in tables:
        add(_one_row_a_stay(folder, table, ranges, stays, labelled), ranges)
    operative, system, systems = _diagnosis(settings, stays, labelled)
    names += ["operative", "organ_system"]
    parts += [operative[:, None], system[:, None]]
    categories["organ_system"] = systems
    values = np.concatenate(parts, axis=1).astype(np.float32)
    assert values.shape == (count, len(names))
    return Static(tuple(names), values, categories)


def _patient_numbers(stays: _Stays) -> dict[str, np.ndarray]:
    frame, place = stays.frame, stays.place
    age = as_texts(frame["age"])
    age = age.mask(age.str.replace(" ", "") == ">89", "90").rename("age")
    remedy = "correct it"
    return {
        "age": read_numbers(age, place, remedy=remedy),
        "admissionheight": read_numbers(frame["admissionheight"], place, remedy=remedy),
        "admissionweight": read_numbers(frame["admissionweight"], place, remedy=remedy),
        "hours_in_hospital": -read_numbers(
            frame["hospitaladmitoffset"], place, remedy=remedy
        )
        / 60,
    }


def _one_row_a_stay(
    folder: Path,
    table: str,
    names: Sequence[str] | Mapping[str, tuple[float, float]],
    stays: _Stays,
    labelled: bool,
) -> dict[str, np.ndarray]:
    """Returns float64 [stays] of each column; rows of other stays are not used."""
    found = {name: np.full(len(stays.frame), np.nan) for name in names}
    version = ("apacheversion",) if table == "apachepatientresult" else ()
    columns = (STAY, *version, *names)
    read = _read(
        folder,
        table,
        columns,
        text=(STAY, *version),
        required=labelled,
        features=() if labelled else tuple(names),
    )
    if read is None:
        return found
    frame, place = read
    rows = np.asarray([stays.row.get(name, -1) for name in as_texts(frame[STAY])])
    if version:
        # Both versions score every stay; IVa is the later one.
        rows = np.where(as_texts(frame[version[0]]) == "IVa", rows, -1)
    known = np.flatnonzero(rows >= 0)
    first = np.unique(rows[known], return_index=True)[1]
    if len(first) < len(known):
        row = int(np.delete(known, first)[0])
        raise DataError(
            f"{place.cell(row, STAY)}: a second row for stay {frame[STAY].iloc[row]}; "
            "remove one"
        )
    for name in names:
        numbers = read_numbers(frame[name], place, remedy="correct it")
        as_float32(numbers, name, place)
        found[name][rows[known]] = numbers[known]
    return found


def _diagnosis(
    settings: _Settings, stays: _Stays, labelled: bool
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Returns (operative or not, organ system, names of the systems)."""
    operative = np.full(len(stays.frame), np.nan)
    system = pd.Series(np.full(len(stays.frame), "", object), name="organ_system")
    columns = (STAY, "admitdxpath", "admitdxenteredoffset")
    read = _read(
        settings.folder, "admissiondx", columns, text=columns[:2], required=labelled
    )
    if read is not None:
        frame, place = read
        entered = read_numbers(frame[columns[2]], place, remedy="correct it")
        parts = frame[columns[1]].str.extract(
            r"\|(Non-operative|Operative) Organ Systems\|Organ System\|(.+)$"
        )
        seen = np.flatnonzero(parts[0].notna() & (entered <= 60 * settings.hours))
        rows = np.asarray([stays.row.get(n, -1) for n in as_texts(frame[STAY])])
        seen = seen[rows[seen] >= 0]
        operative[rows[seen]] = parts[0].iloc[seen] == "Operative"
        system.iloc[rows[seen]] = parts[1].iloc[seen].to_numpy(object)
    codes, names = read_categories(system)
    return operative, codes, names


def _series(settings: _Settings, stays: _Stays, labelled: bool) -> Series:
    variables = tuple(SERIES_RANGES)
    shape = (len(stays.frame), settings.length, len(variables))
    columns = (STAY, "observationoffset", *variables)
    read = _read(
        settings.folder,
        "vitalaperiodic",
        columns,
        text=(STAY,),
        required=labelled,
        features=() if labelled else variables,
    )
    if read is None:
        return Series(variables, np.full(shape, np.nan, np.float32))
    frame, place = read
    codes, names = pd.factorize(frame[STAY])
    rows = np.asarray([*(stays.row.get(str(name).strip(), -1) for name in names), -1])
    entity = rows[codes]
    minutes = read_numbers(frame["observationoffset"], place, remedy="correct it")
    values = np.stack(
        [read_numbers(frame[v], place, remedy="correct it") for v in variables]
    )
    variable = np.repeat(np.arange(len(variables)), len(frame))
    value = values.reshape(-1)
    value = np.where(
        implausible(variable, value, variables, SERIES_RANGES), np.nan, value
    )
    value = np.where(np.tile(entity, len(variables)) < 0, np.nan, value)
    grid = grid_observations(
        np.tile(entity, len(variables)),
        variable,
        np.tile(60 * minutes, len(variables)),
        value,
        num_entities=shape[0],
        num_variables=shape[2],
        length=settings.length,
        bin_seconds=settings.bin_seconds,
        aggregate=settings.aggregate,
    )
    return Series(variables, grid)
