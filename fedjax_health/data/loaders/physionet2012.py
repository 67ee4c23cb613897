"""PhysioNet / Computing in Cardiology Challenge 2012: deaths in hospital from ICU data.

Source: Silva et al., "Predicting In-Hospital Mortality of ICU Patients: The PhysioNet /
Computing in Cardiology Challenge 2012", Computing in Cardiology 39, 2012. Each stay is
one text file of (time, parameter, value) over its first 48 hours; -1 is "not known".
The tar.gz is read as it is: member by member in memory, nothing is unpacked to disk.
"""

import io
import os
import re
import tarfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

from fedjax_health.data.loaders.absent import warn_of_empty_columns
from fedjax_health.data.loaders.cells import read_label, read_names
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
    check_file,
    first_line,
    gunzip,
    list_folder,
    open_table,
    require_columns,
)
from fedjax_health.data.loaders.stays import Series, Static, stays_dataset
from fedjax_health.data.loaders.units import warn_of_unit_changes
from fedjax_health.data.schema import DataError, Dataset, DataWarning

HOURS = 48
UNITS = {
    1: "Coronary Care Unit",
    2: "Cardiac Surgery Recovery Unit",
    3: "Medical ICU",
    4: "Surgical ICU",
}
STATIC = ("Age", "Gender", "Height", "Weight")

# Smallest and largest value that can be true; what lies outside was mistyped or comes
# from a sensor that was off (a pH of 73 or 735, a temperature of -17.8, a pressure of
# 0) and counts as not observed. Wider than any normal range: extremes are signal.
SERIES_RANGES: dict[str, tuple[float, float]] = {
    "ALP": (1, 10_000),  # IU/L
    "ALT": (1, 30_000),  # IU/L
    "AST": (1, 40_000),  # IU/L
    "Albumin": (0.3, 8),  # g/dL
    "BUN": (0.5, 300),  # mg/dL
    "Bilirubin": (0.05, 90),  # mg/dL
    "Cholesterol": (10, 1_500),  # mg/dL
    "Creatinine": (0.05, 50),  # mg/dL
    "DiasABP": (5, 250),  # mmHg
    "FiO2": (0.15, 1),  # share
    "GCS": (3, 15),
    "Glucose": (5, 2_500),  # mg/dL
    "HCO3": (1, 65),  # mmol/L
    "HCT": (3, 80),  # %
    "HR": (5, 350),  # 1/min
    "K": (1, 15),  # mmol/L; more is a haemolysed sample
    "Lactate": (0.05, 50),  # mmol/L
    "MAP": (5, 300),  # mmHg
    "MechVent": (0, 1),
    "Mg": (0.1, 15),  # mmol/L
    "NIDiasABP": (5, 250),  # mmHg
    "NIMAP": (5, 300),  # mmHg
    "NISysABP": (15, 350),  # mmHg
    "Na": (80, 210),  # mmol/L
    "PaCO2": (5, 250),  # mmHg
    "PaO2": (10, 800),  # mmHg
    "Platelets": (1, 3_000),  # 1000/uL
    "RespRate": (1, 120),  # 1/min
    "SaO2": (10, 100),  # %
    "SysABP": (15, 350),  # mmHg
    "Temp": (20, 45),  # degrees Celsius
    "TroponinI": (0, 500),  # ug/L
    "TroponinT": (0, 100),  # ug/L
    "Urine": (0, 10_000),  # mL
    "WBC": (0.05, 1_000),  # 1000/uL
    "Weight": (15, 400),  # kg
    "pH": (6.3, 8),
}
STATIC_RANGES: dict[str, tuple[float, float]] = {
    "Age": (1, 120),  # years
    "Gender": (0, 1),  # 1 is male
    "Height": (100, 230),  # cm
    "Weight": (15, 400),  # kg, as on admission
}
SERIES = tuple(SERIES_RANGES)

_HEADER = b"Time,Parameter,Value"
_ARCHIVE = re.compile(r"set-(\w+)(\.tar\.gz|\.tgz|\.tar)?")
# The largest file of set A has 23 KiB, set A has 27 MiB.
_LARGEST_MEMBER = 4 << 20
_LARGEST_ARCHIVE = 2 << 30


class _Records(NamedTuple):
    """The stays' texts: names and contents, in one order."""

    names: list[str]
    texts: list[bytes]


def load_physionet2012(
    path: str | os.PathLike[str],
    *,
    outcomes: str | os.PathLike[str] | None = None,
    bin_minutes: float = 60,
    aggregate: Aggregate = "last",
    modalities: tuple[str, ...] = ("series", "static"),
) -> Dataset:
    """Loads one set of the challenge.

    Args:
      path: the folder that holds ``set-a.tar.gz`` and ``Outcomes-a.txt`` (or another
        set's), the archive itself, or the folder ``set-a`` that it unpacks to.
      outcomes: the file of outcomes; looked for beside the stays where it is None.
      bin_minutes: width of a bin of the 48 hours.
      aggregate: what a bin with several values of a variable holds: the latest, of
        those at the same minute the one that comes last in the file, or their mean.
      modalities: "series" (37 variables, carried), "static" (age, gender, height and
        weight on admission), or both; without the series a stay is one row.

    Returns:
      One entity per stay, with its death in hospital as the label and its ICU as the
      client. SAPS, SOFA, length of stay and survival are no features: they are known
      later, or computed from the features.

    Raises:
      DataError: if the files cannot be used.
    """
    loaded = _load(path, outcomes, bin_minutes, aggregate, modalities, labelled=True)
    return trainable(loaded, str(path))


def read_physionet2012(
    path: str | os.PathLike[str],
    *,
    outcomes: str | os.PathLike[str] | None = None,
    bin_minutes: float = 60,
    aggregate: Aggregate = "last",
    modalities: tuple[str, ...] = ("series", "static"),
) -> Loaded:
    """Loads stays to score, with or without outcomes; see ``load_physionet2012``.

    Raises:
      DataError: if the files cannot be used.
    """
    return _load(path, outcomes, bin_minutes, aggregate, modalities, labelled=False)


def _load(
    path: str | os.PathLike[str],
    outcomes: str | os.PathLike[str] | None,
    bin_minutes: float,
    aggregate: Aggregate,
    modalities: tuple[str, ...],
    *,
    labelled: bool,
) -> Loaded:
    length = count_bins(HOURS, bin_minutes)
    for name in modalities:
        if name not in ("series", "static"):
            raise DataError(f'modality {name!r} is unknown; "series" or "static"')
    stays, results = find_files(path, outcomes, labelled=labelled)
    records = _read_stays(stays)
    table = _parse(records, stays)
    stay, parameter, minutes, value = _columns(table, records, stays)
    num_stays = len(records.names)
    descriptors = {
        name: _first_value(table, name, stay, value, num_stays)
        for name in ("RecordID", "ICUType", *STATIC)
    }
    ids = _check_ids(descriptors["RecordID"], records, stays)
    clients = _clients(descriptors["ICUType"], ids, stays)
    built: dict[str, Series | Static] = {}
    for name in modalities:
        if name == "series":
            known = parameter >= 0
            known &= (value != -1) & ~implausible(
                np.maximum(parameter, 0), value, SERIES, SERIES_RANGES
            )
            grid = grid_observations(
                stay[known],
                parameter[known],
                60 * minutes[known],
                value[known],
                num_entities=num_stays,
                num_variables=len(SERIES),
                length=length,
                bin_seconds=60 * bin_minutes,
                aggregate=aggregate,
            )
            built[name] = Series(SERIES, grid)
        else:
            # -1 lies outside every one of these ranges.
            facts = np.stack([descriptors[fact] for fact in STATIC], axis=1)
            facts = clear_implausible(facts, STATIC, STATIC_RANGES)
            built[name] = Static(STATIC, facts.astype(np.float32))
    label = np.full(num_stays, np.nan, np.float32)
    if results is not None:
        label = _labels(results, ids, stays, labelled=labelled)
    loaded = stays_dataset(
        built,
        stay=ids,
        client=clients,
        label=label,
        positive="death in hospital",
        bin_seconds=60 * bin_minutes,
    )
    warn_of_empty_columns(loaded.dataset, source=str(stays), strict=labelled)
    warn_of_unit_changes(loaded.dataset, source=str(stays), in_time=False)
    return loaded


def find_files(
    path: str | os.PathLike[str],
    outcomes: str | os.PathLike[str] | None = None,
    *,
    labelled: bool = True,
) -> tuple[Path, Path | None]:
    """Finds the stays and their outcomes.

    Args:
      path: as in ``load_physionet2012``.
      outcomes: the file of outcomes, or None to look for it.
      labelled: whether there must be outcomes.

    Returns:
      (the archive or folder of stays, the file of outcomes or None).

    Raises:
      DataError: if one of them is missing or there are several.
    """
    place = Path(path)
    is_folder = os.path.isdir(place)
    if is_folder and not any(
        re.match(r"\d.*\.txt", f.name) for f in list_folder(place)
    ):
        place = _only_set(place)
        is_folder = place.is_dir()
    if not is_folder:
        check_file(place, wanted="set-a.tar.gz or its folder")
    if outcomes is not None:
        return place, check_file(outcomes, wanted="a file such as Outcomes-a.txt")
    named = _ARCHIVE.fullmatch(place.resolve().name)
    folders = [place, place.parent] if is_folder else [place.parent]
    pattern = f"Outcomes-{named[1]}.txt" if named else "Outcomes-*.txt"
    found = [file for folder in folders for file in sorted(folder.glob(pattern))]
    if len(found) == 1:
        return place, check_file(found[0], wanted="a file of outcomes")
    if not found and not labelled:
        return place, None
    problem = "is not there" if not found else f"is one of {len(found)} files"
    raise DataError(f"{place}: {pattern} beside it {problem}; give outcomes")


def files(
    path: str | os.PathLike[str], outcomes: str | os.PathLike[str] | None = None
) -> tuple[Path, ...]:
    """Returns every file that ``load_physionet2012`` reads, in order."""
    stays, results = find_files(path, outcomes, labelled=False)
    members = tuple(sorted(stays.glob("*.txt"))) if stays.is_dir() else (stays,)
    return (*members, *((results,) if results is not None else ()))


def _only_set(folder: Path) -> Path:
    sets: dict[str, Path] = {}
    for entry in list_folder(folder):
        named = _ARCHIVE.fullmatch(entry.name)
        if not named or not (named[2] or entry.is_dir()):
            continue
        # An archive stands before the folder that it was unpacked to.
        if named[1] not in sets or sets[named[1]].is_dir():
            sets[named[1]] = entry
    if not sets:
        raise DataError(f"{folder} holds no set-a.tar.gz and no folder set-a")
    if len(sets) > 1:
        names = ", ".join(entry.name for entry in sets.values())
        raise DataError(f"{folder} holds several sets ({names}); give one as path")
    return next(iter(sets.values()))


def _read_stays(stays: Path) -> _Records:
    names, texts = [], []
    members = _folder_members(stays) if stays.is_dir() else _archive_members(stays)
    for name, text in members:
        # Hidden files are leftovers of file systems.
        if name.endswith(".txt") and not name.split("/")[-1].startswith("."):
            names.append(name)
            texts.append(_clean(text, name, stays))
    if not names:
        raise DataError(f"{stays} holds no stays (files named like 132539.txt)")
    return _Records(names, texts)


def _clean(text: bytes, name: str, stays: Path) -> bytes:
    text = text.replace(b"\r\n", b"\n")
    header, _, body = text.partition(b"\n")
    if header.strip() != _HEADER:
        raise DataError(
            f"{stays}, {name}: does not begin with {_HEADER.decode()}; it is no stay"
        )
    if b"\n\n" in body or body.startswith(b"\n"):
        body = b"\n".join(line for line in body.split(b"\n") if line.strip())
    return body if body.endswith(b"\n") or not body else body + b"\n"


def _folder_members(folder: Path) -> Iterator[tuple[str, bytes]]:
    for file in list_folder(folder):
        if file.suffix != ".txt":
            continue
        check_file(file, wanted="a stay")
        if file.stat().st_size > _LARGEST_MEMBER:
            raise _too_large(folder, file.name, file.stat().st_size)
        yield file.name, file.read_bytes()


def _archive_members(archive: Path) -> Iterator[tuple[str, bytes]]:
    with archive.open("rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
    if packed:
        # Bounded and whole before any header is believed.
        content = gunzip(archive, limit=_LARGEST_ARCHIVE)
    elif archive.stat().st_size > _LARGEST_ARCHIVE:
        raise _too_large(archive, "the archive", archive.stat().st_size)
    else:
        content = archive.read_bytes()
    end = 0
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
            for member in tar:
                _check_member(member, archive)
                end = member.offset_data + -(-member.size // 512) * 512
                if member.isreg():
                    file = tar.extractfile(member)
                    assert file is not None
                    yield member.name, file.read()
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{archive} is a truncated or corrupt tar file ({first_line(error)}); "
            "fetch it again"
        ) from None
    # A whole archive ends with empty blocks; without them, members may be missing.
    if content[end : end + 512] != bytes(512):
        raise DataError(f"{archive} is a truncated tar file; fetch it again")


def _check_member(member: tarfile.TarInfo, archive: Path):
    name = member.name
    parts = re.split(r"[/\\]", name)
    if name.startswith(("/", "\\")) or ".." in parts or re.match(r"[A-Za-z]:", name):
        raise DataError(
            f"{archive}: member {name!r} lies outside the archive's folder; such an "
            "archive is not to be trusted"
        )
    if not (member.isdir() or member.isreg()) or member.issparse():
        raise DataError(
            f"{archive}: member {name!r} is a link, a device or a sparse file, not a "
            "plain one; such an archive is not to be trusted"
        )
    if member.size > _LARGEST_MEMBER:
        raise _too_large(archive, name, member.size)


def _too_large(archive: Path, name: str, size: int) -> DataError:
    return DataError(
        f"{archive}: {name} has {size:,} bytes, far more than a stay; check where it "
        "comes from"
    )


def _parse(records: _Records, stays: Path) -> pa.Table:
    """Returns the lines of all stays as one table, in order."""
    text = b"".join(records.texts)
    if not text:
        raise DataError(f"{stays}: all stays are empty")
    try:
        table = pa_csv.read_csv(
            pa.BufferReader(text),
            read_options=pa_csv.ReadOptions(
                column_names=["time", "parameter", "value"], use_threads=False
            ),
            parse_options=pa_csv.ParseOptions(quote_char=False),
            convert_options=pa_csv.ConvertOptions(
                column_types={
                    "time": pa.dictionary(pa.int32(), pa.string()),
                    "parameter": pa.dictionary(pa.int32(), pa.string()),
                    "value": pa.float64(),
                },
                null_values=[],
            ),
        )
    except pa.ArrowException as error:
        raise _explain(records, stays, error) from None
    return table.combine_chunks().unify_dictionaries()


def _explain(records: _Records, stays: Path, error: Exception) -> DataError:
    """Returns the error that names the first line that cannot be read."""
    for name, text in zip(records.names, records.texts, strict=True):
        for number, line in enumerate(text.splitlines(), start=2):
            place = f"{stays}, {name}, line {number}"
            try:
                cells = line.decode().split(",")
            except UnicodeDecodeError:
                return DataError(f"{place}: not UTF-8 text")
            if len(cells) != 3:
                return DataError(f"{place}: {len(cells)} cells, not 3; it is cut off")
            try:
                float(cells[2])
            except ValueError:
                return DataError(f"{place}: {cells[2]!r} is not a number")
    return DataError(f"{stays}: cannot be read ({first_line(error)})")


def _columns(
    table: pa.Table, records: _Records, stays: Path
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns (stay, variable or -1, minutes, value) of each line."""
    counts = [text.count(b"\n") for text in records.texts]
    stay = np.repeat(np.arange(len(counts)), counts)
    if len(stay) != table.num_rows:
        raise DataError(f"{stays}: lines and rows do not agree; fetch it again")
    names, codes = _dictionary(table, "parameter")
    variables = {name: position for position, name in enumerate(SERIES)}
    known = {*SERIES, *STATIC, "RecordID", "ICUType", ""}
    unknown = sorted(set(names) - known)
    if unknown:
        warnings.warn(
            f"{stays}: parameter {unknown[0]!r} is unknown and not used",
            DataWarning,
            stacklevel=2,
        )
    parameter = np.asarray([variables.get(name, -1) for name in names])[codes]
    times, time_codes = _dictionary(table, "time")
    minutes = np.asarray([_minutes(text) for text in times])[time_codes]
    if np.isnan(minutes).any():
        line = int(np.argmax(np.isnan(minutes)))
        first = int(np.searchsorted(stay, stay[line]))
        raise DataError(
            f"{stays}, {records.names[stay[line]]}, line {line - first + 2}: time "
            f"{times[time_codes[line]]!r} is not written as hours:minutes"
        )
    return stay, parameter, minutes, table["value"].to_numpy()


def _dictionary(table: pa.Table, column: str) -> tuple[list[str], np.ndarray]:
    array = table[column].combine_chunks()
    return array.dictionary.to_pylist(), array.indices.to_numpy()


def _minutes(text: str) -> float:
    matched = re.fullmatch(r"\s*(\d{1,3}):([0-5]\d)\s*", text)
    return 60.0 * int(matched[1]) + int(matched[2]) if matched else np.nan


def _first_value(
    table: pa.Table,
    name: str,
    stay: np.ndarray,
    value: np.ndarray,
    num_stays: int,
) -> np.ndarray:
    """Returns the first value of a descriptor in each stay, float64; NaN for none."""
    names, codes = _dictionary(table, "parameter")
    rows = np.flatnonzero(codes == names.index(name) if name in names else ())
    found = np.full(num_stays, np.nan)
    found[stay[rows[::-1]]] = value[rows[::-1]]
    return found


def _check_ids(numbers: np.ndarray, records: _Records, stays: Path) -> list[str]:
    seen: dict[str, str] = {}
    ids = []
    for number, name in zip(numbers, records.names, strict=True):
        if np.isnan(number):
            raise DataError(f"{stays}, {name}: has no RecordID")
        record = f"{number:.0f}"
        if record in seen:
            raise DataError(
                f"{stays}: {name} and {seen[record]} are both stay {record}; remove one"
            )
        if Path(name).stem != record:
            raise DataError(f"{stays}, {name}: says that it is stay {record}")
        seen[record] = name
        ids.append(record)
    return ids


def _clients(types: np.ndarray, ids: list[str], stays: Path) -> list[str]:
    unknown = ~np.isin(types, list(UNITS))
    if unknown.any():
        first = int(np.argmax(unknown))
        raise DataError(
            f"{stays}: stay {ids[first]} has ICUType {types[first]:g}; 1 to 4 are known"
        )
    return [UNITS[int(number)] for number in types]


def _labels(
    results: Path, ids: list[str], stays: Path, *, labelled: bool
) -> np.ndarray:
    """Returns the outcome of each stay, NaN for an unknown one.

    To train, there must be one for one.
    """
    columns = ("RecordID", "In-hospital_death")
    source = open_table(results)
    require_columns(source, columns)
    frame = source.read(columns, columns)
    place = Place(source.name, source.locate)
    death = read_label(frame[columns[1]], place, unknown=not labelled)
    codes, names = read_names(frame[columns[0]], place)
    counts = np.bincount(codes)
    if counts.max() > 1:
        twice = names[int(np.argmax(counts))]
        raise DataError(f"{results}: stay {twice} has two outcomes; remove one")
    outcome = {names[code]: value for code, value in zip(codes, death, strict=True)}
    for first, second, problem in (
        (ids, outcome, f"{results} has no outcome of stay"),
        (names, set(ids), f"{stays} has no stay for the outcome of"),
    ):
        missing = [name for name in first if name not in second]
        if missing and labelled:
            more = f" and of {len(missing) - 1} more" if len(missing) > 1 else ""
            raise DataError(f"{problem} {missing[0]}{more}; the two belong together")
    return np.asarray([outcome.get(name, np.nan) for name in ids], np.float32)
