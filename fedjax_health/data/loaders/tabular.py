"""Any CSV (plain or gzipped) or Parquet table, read by the roles of its columns.

``ColumnRoles`` says what each column means; ``load_table`` checks the file against
it and returns a ``Dataset``. What cannot be used is refused with one line that names
the place in the file and what to do.
"""

import csv
import difflib
import gzip
import io
import os
import stat
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet

from fedjax_health.data.schema import DataError, Dataset

REST = "rest"
# pyarrow's own list of cells that stand for "no value", in lower case.
_MISSING = ("", "#n/a", "#n/a n/a", "#na", "-nan", "n/a", "na", "nan", "null", "none")
_MISSING_SPELLINGS = sorted(
    {spelling for text in _MISSING for spelling in (text, text.upper())}
    | {"NaN", "-NaN", "Null", "None"}
)
_EPOCH = pd.Timestamp(0, tz="UTC")


def _default_modalities() -> dict[str, tuple[str, ...] | Literal["rest"]]:
    return {"features": REST}


class ColumnRoles(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """What the columns of a table mean.

    Attributes:
      label: column of the label.
      positive: values of the label that are positive, all others being negative;
        empty for a label that is written as 0 and 1 (or false and true).
      attack: column of the attack type, or None.
      normal: the value of the attack column that stands for no attack.
      client: column that names the client, or None for a single client.
      entity: column that names the stream (device, patient) inside its client, or
        None where all rows of a client are one stream.
      time: column of the time, numbers or dates, or None for the order of the file.
      time_format: strptime format of a time that is written as text, or None to
        let pandas infer it.
      drop: columns that must not be used, such as identifiers.
      modalities: name -> numeric columns, or "rest" for all columns without a role.
      allow_missing: whether a feature may be empty (it is then NaN, not observed);
        all modalities are then masked ones.
      delimiter: the character between the cells of a CSV.

    Raises:
      DataError: if the roles contradict each other.
    """

    label: str
    positive: tuple[bool | int | float | str, ...] = ()
    attack: str | None = None
    normal: str = "normal"
    client: str | None = None
    entity: str | None = None
    time: str | None = None
    time_format: str | None = None
    drop: tuple[str, ...] = ()
    modalities: dict[str, tuple[str, ...] | Literal["rest"]] = msgspec.field(
        default_factory=_default_modalities
    )
    allow_missing: bool = False
    delimiter: str = ","

    def __post_init__(self):
        if isinstance(self.drop, str):
            raise DataError(f"drop is {self.drop!r}; give a list of columns")
        if isinstance(self.positive, str):
            raise DataError(f"positive is {self.positive!r}; give a list of values")
        if len(self.delimiter) != 1:
            raise DataError(f"delimiter is {self.delimiter!r}; give one character")
        if not self.modalities:
            raise DataError(
                'modalities is empty; name at least one, e.g. {features = "rest"}'
            )
        for name, columns in self.modalities.items():
            if isinstance(columns, str) and columns != REST:
                raise DataError(
                    f"modalities.{name} is {columns!r}; give a list of columns or "
                    '"rest"'
                )
            if not columns:
                raise DataError(f"modalities.{name} has no column; name one or drop it")
        if list(self.modalities.values()).count(REST) > 1:
            raise DataError(
                'only one modality can be "rest"; list the columns of the others'
            )
        named: dict[str, str] = {}
        for role, column in _named_columns(self):
            if column in named:
                raise DataError(
                    f"column {column!r} has two roles, {named[column]} and {role}; "
                    "keep one"
                )
            named[column] = role


def _named_columns(roles: ColumnRoles) -> Iterator[tuple[str, str]]:
    """Yields (role, column) of every column that the roles name."""
    for role in ("label", "attack", "client", "entity", "time"):
        column = getattr(roles, role)
        if column is not None:
            yield role, column
    for column in roles.drop:
        yield "drop", column
    for name, columns in roles.modalities.items():
        if columns != REST:
            for column in columns:
                yield f"modalities.{name}", column


class _Source(NamedTuple):
    """An opened table: names known, body not yet read."""

    columns: tuple[str, ...]
    read: Callable[[Sequence[str]], pd.DataFrame]
    locate: Callable[[int], str]


def load_table(path: str | os.PathLike[str], roles: ColumnRoles) -> Dataset:
    """Loads a CSV, gzipped CSV or Parquet file.

    The kind is told from the content, so that a wrong file name does no harm. The
    header is checked against the roles before the body is read; of a Parquet file
    only the columns with a role are read.

    Args:
      path: the file.
      roles: what its columns mean.

    Returns:
      The rows sorted by client, entity and time; rows of equal time keep their order
      in the file. Clients are sorted by name, numbers as numbers.

    Raises:
      DataError: if the file cannot be read or does not fit the roles.
    """
    file = Path(path)
    source = _open(file, roles)
    modalities = _resolve(source.columns, roles, source=str(file))
    wanted = [
        column
        for column in (
            roles.label,
            roles.attack,
            roles.client,
            roles.entity,
            roles.time,
        )
        if column is not None
    ]
    wanted += [column for columns in modalities.values() for column in columns]
    frame = source.read(wanted)
    return _build(
        _columns(frame),
        len(frame),
        roles,
        modalities,
        source=str(file),
        locate=source.locate,
    )


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
    _refuse_duplicates(columns, source=source)
    frame = frame.set_axis(columns, axis="columns").reset_index(drop=True)
    modalities = _resolve(columns, roles, source=source)
    return _build(
        _columns(frame),
        len(frame),
        roles,
        modalities,
        source=source,
        locate=_record_number,
    )


def _columns(frame: pd.DataFrame) -> dict[str, pd.Series]:
    return {str(name): values for name, values in frame.items()}


def _record_number(row: int) -> str:
    return f"row {row + 1}"


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _open(file: Path, roles: ColumnRoles) -> _Source:
    try:
        status = file.stat()
        if stat.S_ISDIR(status.st_mode):
            raise DataError(f"{file} is a folder; give a CSV or Parquet file")
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{file} is no regular file; give a CSV or Parquet file")
        if status.st_size == 0:
            raise DataError(f"{file} is empty")
        with file.open("rb") as stream:
            head = stream.read(4096)
    except DataError:
        raise
    except FileNotFoundError:
        where = "" if file.is_absolute() else f" in the current folder {Path.cwd()}"
        raise DataError(f"{file} does not exist{where}; check the path") from None
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        # A name that no file can have, such as one with a null character.
        raise DataError(f"{str(file)!r} cannot be read: {error}") from None
    if head.startswith(b"PAR1") or file.suffix.lower() in (".parquet", ".pq"):
        return _open_parquet(file)
    if head.startswith(b"\x1f\x8b"):
        return _open_csv(file, _gunzip(file), roles)
    if file.suffix.lower() == ".gz":
        raise DataError(f"{file} is named .gz but is not gzipped; rename or fetch it")
    return _open_csv(file, pa.memory_map(str(file)).read_buffer(), roles)


def _gunzip(file: Path) -> pa.Buffer:
    try:
        with gzip.open(file, "rb") as stream:
            return pa.py_buffer(stream.read())
    except (EOFError, zlib.error, OSError) as error:
        raise DataError(
            f"{file} is a truncated or corrupt gzip file ({_first_line(error)}); "
            "fetch it again"
        ) from None


def _open_parquet(file: Path) -> _Source:
    def broken(error: Exception) -> DataError:
        return DataError(
            f"{file} is a truncated or corrupt Parquet file ({_first_line(error)}); "
            "fetch it again"
        )

    try:
        # Without a mapping, a truncated file is an error instead of a bus fault.
        parquet = pa_parquet.ParquetFile(str(file), memory_map=False)
        columns = tuple(parquet.schema_arrow.names)
        num_rows = parquet.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise broken(error) from None
    _refuse_duplicates(columns, source=str(file))
    if num_rows == 0:
        raise DataError(f"{file} has columns but no rows")

    def read(wanted: Sequence[str]) -> pd.DataFrame:
        try:
            table = parquet.read(columns=list(wanted))
        except (pa.ArrowException, OSError) as error:
            raise broken(error) from None
        return table.to_pandas(
            split_blocks=True, self_destruct=True, ignore_metadata=True
        )

    return _Source(columns, read, _record_number)


def _records(
    file: Path, buffer: pa.Buffer, delimiter: str
) -> Iterator[tuple[int, list[str]]]:
    """Yields (line from 1, cells) of each record that is not blank."""
    # pyarrow's rules, read record by record: for the header and for error messages.
    text = io.TextIOWrapper(
        io.BufferedReader(pa.BufferReader(buffer)),
        encoding="utf-8-sig",
        newline="",
    )
    reader = csv.reader(text, delimiter=delimiter)
    line = 1
    try:
        for cells in reader:
            if cells:
                yield line, cells
            line = reader.line_num + 1
    except UnicodeDecodeError:
        raise DataError(
            f"{file}, near line {line}: not UTF-8 text; save it as a UTF-8 CSV"
        ) from None
    except csv.Error as error:
        raise DataError(f"{file}, line {line}: broken CSV ({error})") from None


def _open_csv(file: Path, buffer: pa.Buffer, roles: ColumnRoles) -> _Source:
    if buffer.size == 0:
        raise DataError(f"{file} is empty")
    if b"\0" in buffer.slice(0, min(4096, buffer.size)).to_pybytes():
        raise DataError(
            f"{file} is neither text nor Parquet; save it as a UTF-8 CSV or as Parquet"
        )
    records = _records(file, buffer, roles.delimiter)
    header = next(records, None)
    if header is None:
        raise DataError(f"{file} is empty")
    columns = tuple(header[1])
    _refuse_duplicates(columns, source=str(file))
    if next(records, None) is None:
        raise DataError(f"{file} has a header but no rows")

    def locate(row: int) -> str:
        # Counted again only for a message: blank lines and quoted line breaks
        # make the line differ from the row.
        for index, (line, _) in enumerate(_records(file, buffer, roles.delimiter)):
            if index == row + 1:
                return f"line {line}"
        return f"row {row + 1}"

    def explain(error: Exception) -> DataError:
        for line, cells in _records(file, buffer, roles.delimiter):
            if len(cells) != len(columns):
                return DataError(
                    f"{file}, line {line}: {len(cells)} cells where the header has "
                    f"{len(columns)}; the row is cut off or badly quoted"
                )
        return DataError(f"{file} is no valid CSV ({_first_line(error)})")

    def read(wanted: Sequence[str]) -> pd.DataFrame:
        # Names are never numbers: hospital 007 is not hospital 7.
        text = [roles.label, roles.attack, roles.client, roles.entity]
        if roles.time_format is not None:
            text.append(roles.time)
        try:
            table = pa_csv.read_csv(
                pa.BufferReader(buffer),
                parse_options=pa_csv.ParseOptions(
                    delimiter=roles.delimiter, newlines_in_values=True
                ),
                convert_options=pa_csv.ConvertOptions(
                    include_columns=list(wanted),
                    column_types={name: pa.string() for name in text if name},
                    null_values=_MISSING_SPELLINGS,
                    strings_can_be_null=False,
                ),
            )
        except (pa.ArrowException, OSError) as error:
            raise explain(error) from None
        return table.to_pandas(split_blocks=True, self_destruct=True)

    return _Source(columns, read, locate)


def _refuse_duplicates(columns: Sequence[str], *, source: str) -> None:
    twice = [name for name, count in Counter(columns).items() if count > 1]
    if twice:
        raise DataError(
            f"{source} has two columns named {twice[0]!r}; rename or remove one"
        )


def _resolve(
    columns: Sequence[str], roles: ColumnRoles, *, source: str
) -> dict[str, tuple[str, ...]]:
    """Returns the columns of each modality; refuses roles that the table lacks."""
    known = set(columns)
    taken = set()
    for role, column in _named_columns(roles):
        if column not in known:
            raise DataError(
                f"{source} has no column {column!r} ({role})"
                f"{_suggest(column, columns)}; columns: {_shorten(columns)}"
            )
        taken.add(column)
    rest = tuple(column for column in columns if column not in taken)
    modalities: dict[str, tuple[str, ...]] = {}
    for name, named in roles.modalities.items():
        modalities[name] = rest if named == REST else tuple(named)
        if not modalities[name]:
            raise DataError(
                f"{source}: no column is left for modalities.{name}; "
                f"columns: {_shorten(columns)}"
            )
    return modalities


def _suggest(name: str, names: Sequence[str]) -> str:
    folded = {other.strip().casefold(): other for other in reversed(names)}
    near = difflib.get_close_matches(name.strip().casefold(), folded, n=1, cutoff=0.5)
    return f", did you mean {folded[near[0]]!r}?" if near else ""


def _shorten(names: Sequence[str], *, limit: int = 12) -> str:
    shown = ", ".join(names[:limit])
    hidden = len(names) - limit
    return shown if hidden <= 0 else f"{shown} and {hidden} more"


class _Place(NamedTuple):
    """Where an error message says that a cell stands."""

    source: str
    locate: Callable[[int], str]

    def cell(self, row: int, column: str) -> str:
        return f"{self.source}, {self.locate(int(row))}, column {column!r}"


def _build(
    frame: Mapping[str, pd.Series],
    num_rows: int,
    roles: ColumnRoles,
    modalities: dict[str, tuple[str, ...]],
    *,
    source: str,
    locate: Callable[[int], str],
) -> Dataset:
    place = _Place(source, locate)
    if num_rows == 0:
        raise DataError(f"{source} has no rows")
    label = _label(frame[roles.label], roles, place)
    if roles.attack is None:
        attack, attack_names = label.astype(np.int32), ("normal", "attack")
    else:
        attack, attack_names = _attack(frame[roles.attack], label, roles, place)
    client, client_names = np.zeros(num_rows, np.int32), ("all",)
    if roles.client is not None:
        codes, client_names = _categories(frame[roles.client], place)
        client = codes.astype(np.int32)
    entity = np.zeros(num_rows, np.int64)
    if roles.entity is not None:
        entity, _ = _categories(frame[roles.entity], place)
    time = np.arange(num_rows, dtype=np.float64)
    if roles.time is not None:
        time = _time(frame[roles.time], roles.time_format, place)
    features = {
        name: _features(
            frame, num_rows, columns, place, allow_missing=roles.allow_missing
        )
        for name, columns in modalities.items()
    }
    order = np.lexsort((time, entity, client))
    return Dataset(
        features={name: values[order] for name, values in features.items()},
        feature_names=modalities,
        label=label[order],
        attack=attack[order],
        attack_names=attack_names,
        client=client[order],
        client_names=client_names,
        entity=entity[order],
        time=time[order],
        # By the roles, not by the values: a model must fit the next file too.
        masked=frozenset(modalities) if roles.allow_missing else frozenset(),
    )


def _text(value: object) -> str:
    """Returns a value as it reads in a table: 3.0 of a nullable integer is "3"."""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value).strip()


def _number(text: str) -> float | None:
    folded = text.casefold()
    if folded in ("true", "false"):
        return float(folded == "true")
    try:
        return float(text)
    except ValueError:
        return None


def _is_missing(text: str) -> bool:
    return text.casefold() in _MISSING


def _distinct(series: pd.Series) -> tuple[np.ndarray, list[str]]:
    """Returns (codes [rows], -1 for a null; texts of the codes)."""
    codes, values = pd.factorize(series)
    return np.asarray(codes), [_text(value) for value in values]


def _first(codes: np.ndarray, code: int) -> int:
    return int(np.argmax(codes == code))


def _categories(series: pd.Series, place: _Place) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns (int64 [rows] index into the names, sorted names)."""
    codes, texts = _distinct(series)
    for code in [-1, *(code for code, text in enumerate(texts) if not text)]:
        if np.any(codes == code):
            raise DataError(
                f"{place.cell(_first(codes, code), str(series.name))}: no value; "
                "every row needs one"
            )
    try:
        names = sorted(set(texts), key=int)
    except ValueError:
        names = sorted(set(texts))
    index = {name: position for position, name in enumerate(names)}
    return np.asarray([index[text] for text in texts], np.int64)[codes], tuple(names)


def _label(series: pd.Series, roles: ColumnRoles, place: _Place) -> np.ndarray:
    codes, texts = _distinct(series)
    column = str(series.name)
    values = np.zeros(len(texts), np.float32)
    positive = [_text(value) for value in roles.positive]
    numbers = {_number(text) for text in positive} - {None}
    for code, text in enumerate(texts):
        number = _number(text)
        if _is_missing(text):
            codes = np.where(codes == code, -1, codes)
        elif roles.positive:
            values[code] = text in positive or (
                number is not None and number in numbers
            )
        elif number in (0.0, 1.0):
            values[code] = number
        else:
            raise DataError(
                f"{place.cell(_first(codes, code), column)}: label {text!r} is not 0 "
                "or 1; list the positive values in positive"
            )
    if np.any(codes == -1):
        raise DataError(
            f"{place.cell(_first(codes, -1), column)}: no label; remove the row"
        )
    label = values[codes]
    if label.min() == label.max():
        found = _shorten([repr(text) for text in texts if not _is_missing(text)])
        kind = "positive" if label[0] else "negative"
        raise DataError(
            f"{place.source}: label column {column!r} holds one class, all "
            f"{len(label)} rows are {kind} (values {found}); a detector needs both"
        )
    return label


def _attack(
    series: pd.Series, label: np.ndarray, roles: ColumnRoles, place: _Place
) -> tuple[np.ndarray, tuple[str, ...]]:
    codes, names = _categories(series, place)
    normal = roles.normal.strip()
    if normal not in names:
        raise DataError(
            f"{place.source}: attack column {str(series.name)!r} has no value "
            f"{normal!r} (normal){_suggest(normal, names)}; values: {_shorten(names)}"
        )
    types = [name for name in names if name != normal]
    if "normal" in types:
        raise DataError(
            f"{place.source}: attack column {str(series.name)!r} holds 'normal' beside "
            f"the normal value {normal!r}; make them one"
        )
    order = {name: position + 1 for position, name in enumerate(types)}
    attack = np.asarray([order.get(name, 0) for name in names], np.int32)[codes]
    wrong = (attack > 0) != (label > 0)
    if wrong.any():
        row = int(np.argmax(wrong))
        kind = "positive" if label[row] else "negative"
        raise DataError(
            f"{place.cell(row, str(series.name))}: attack {names[codes[row]]!r} on a "
            f"row with a {kind} label; correct one of the two or leave attack out"
        )
    return attack, ("normal", *types)


def _time(series: pd.Series, time_format: str | None, place: _Place) -> np.ndarray:
    """Returns numbers as they are and dates as seconds since 1970 UTC, float64."""
    column = str(series.name)
    if time_format is None and pd.api.types.is_numeric_dtype(series.dtype):
        values = series.to_numpy(np.float64, na_value=np.nan)
    else:
        values = _dates(series, time_format)
    bad = ~np.isfinite(values)
    if bad.any():
        row = int(np.argmax(bad))
        expected = f"a time of format {time_format!r}" if time_format else "a time"
        raise DataError(
            f"{place.cell(row, column)}: {_shown(series.iloc[row])} is not {expected}; "
            "correct it, give time_format, or leave time out to use the file's order"
        )
    return values


def _dates(series: pd.Series, time_format: str | None) -> np.ndarray:
    if not pd.api.types.is_datetime64_any_dtype(series.dtype):
        texts = _texts(series)
        if time_format is None:
            numbers = _parse_numbers(texts)
            # A clock time without a date would be read as today's.
            clock = texts.str.fullmatch(r"\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?")
            if np.isfinite(numbers).mean() >= 0.5 or clock.any():
                return numbers
        series = texts
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        dates = pd.to_datetime(
            pd.Index(series), errors="coerce", utc=True, format=time_format
        )
    seconds = (dates - _EPOCH) / pd.Timedelta(seconds=1)
    return np.asarray(seconds, np.float64)


def _texts(series: pd.Series) -> pd.Series:
    """Returns the cells as stripped strings, "" for a null."""
    return series.astype("string").fillna("").str.strip()


def _parse_numbers(texts: pd.Series) -> np.ndarray:
    """Returns float64 [rows]; NaN for what is not a number."""
    cells = texts.to_numpy(object)
    return np.asarray(pd.to_numeric(cells, errors="coerce"), np.float64)


def _shown(value: object) -> str:
    return repr(value) if isinstance(value, str) else str(value)


def _features(
    frame: Mapping[str, pd.Series],
    num_rows: int,
    columns: Sequence[str],
    place: _Place,
    *,
    allow_missing: bool,
) -> np.ndarray:
    """Returns float32 ``[rows, columns]``."""
    result = np.empty((num_rows, len(columns)), np.float32)
    for position, column in enumerate(columns):
        numbers = _numbers(frame[column], place)
        with np.errstate(over="ignore"):
            result[:, position] = numbers
        values = result[:, position]
        infinite = np.isinf(values)
        if infinite.any():
            row = int(np.argmax(infinite))
            raise DataError(
                f"{place.cell(row, column)}: {numbers[row]} is infinite or too large "
                "for 32-bit floats; correct it or drop the column"
            )
        missing = np.isnan(values)
        if not allow_missing and missing.any():
            row = int(np.argmax(missing))
            raise DataError(
                f"{place.cell(row, column)}: no value; fill it in, drop the column or "
                "set allow_missing = true"
            )
    return result


def _numbers(series: pd.Series, place: _Place) -> np.ndarray:
    """Returns float64 [rows]; NaN for a missing cell."""
    dtype = series.dtype
    if pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_complex_dtype(
        dtype
    ):
        return series.to_numpy(np.float64, na_value=np.nan)
    texts = _texts(series)
    missing = texts.str.casefold().isin(_MISSING).to_numpy(bool)
    numbers = _parse_numbers(texts)
    if pd.api.types.is_datetime64_any_dtype(dtype):
        numbers[:] = np.nan
    numbers[missing] = np.nan
    bad = np.isnan(numbers) & ~missing
    if bad.any():
        row = int(np.argmax(bad))
        raise DataError(
            f"{place.cell(row, str(series.name))}: {_shown(series.iloc[row])} is not a "
            "number; correct it or list the column in drop"
        )
    return numbers
