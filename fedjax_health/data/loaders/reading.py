"""Opens CSV (plain or gzipped) and Parquet files, and says what is wrong with them.

The kind of a file is told from its content. Every error is one ``DataError`` line that
names the file and, where there is one, the line or row in it.
"""

import csv
import difflib
import gzip
import io
import os
import stat
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet

from fedjax_health.data.schema import DataError

# pyarrow's own list of cells that stand for "no value", in lower case.
MISSING = ("", "#n/a", "#n/a n/a", "#na", "-nan", "n/a", "na", "nan", "null", "none")
_MISSING_SPELLINGS = sorted(
    {spelling for text in MISSING for spelling in (text, text.upper())}
    | {"NaN", "-NaN", "Null", "None"}
)


_AGAIN = "export or fetch it again"

ENDINGS = (".csv", ".csv.gz", ".parquet", ".pq")


class Source(NamedTuple):
    """An opened table: names known, body not yet read.

    Attributes:
      name: the file, for error messages.
      columns: names of its columns.
      read: (columns, columns to keep as text) -> the table of these columns.
      locate: row from 0 -> "line 7" of a CSV or "row 6" of a Parquet file.
    """

    name: str
    columns: tuple[str, ...]
    read: Callable[[Sequence[str], Sequence[str]], pd.DataFrame]
    locate: Callable[[int], str]


class Place(NamedTuple):
    """Where an error message says that a cell stands."""

    source: str
    locate: Callable[[int], str]

    def cell(self, row: int, column: str) -> str:
        """Returns "file, line 7, column 'a'"."""
        return f"{self.source}, {self.locate(int(row))}, column {column!r}"


def record_number(row: int) -> str:
    """Returns how a row is called where there are no lines."""
    return f"row {row + 1}"


def check_file(path: str | os.PathLike[str], *, wanted: str) -> Path:
    """Refuses what is no readable, regular, non-empty file.

    Args:
      path: the file.
      wanted: what to give instead, for the message.

    Raises:
      DataError: naming the path.
    """
    file = Path(path)
    try:
        status = file.stat()
        if stat.S_ISDIR(status.st_mode):
            raise DataError(f"{file} is a folder; give {wanted}")
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{file} is no regular file; give {wanted}")
        if status.st_size == 0:
            raise DataError(f"{file} is empty; {_AGAIN}")
        with file.open("rb"):
            pass
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
    return file


def list_folder(path: str | os.PathLike[str]) -> list[Path]:
    """Returns what a folder holds, sorted by name, without hidden files.

    Raises:
      DataError: if it cannot be read.
    """
    try:
        found = sorted(Path(path).iterdir())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    return [entry for entry in found if not entry.name.startswith(".")]


def find_table(folder: str | os.PathLike[str], name: str) -> Path | None:
    """Returns the table of that name in a folder, in whatever form, or None."""
    for ending in ENDINGS:
        file = Path(folder) / f"{name}{ending}"
        if os.path.exists(file):
            return file
    return None


def require_folder(path: str | os.PathLike[str], *, wanted: str) -> Path:
    """Refuses what is no folder.

    Args:
      path: the folder.
      wanted: what to give, for the message.

    Raises:
      DataError: naming the path.
    """
    folder = Path(path)
    if not os.path.exists(folder):
        where = "" if folder.is_absolute() else f" in the current folder {Path.cwd()}"
        raise DataError(f"{folder} does not exist{where}; check the path")
    if not os.path.isdir(folder):
        raise DataError(f"{folder} is no folder; give {wanted}")
    return folder


def open_table(path: str | os.PathLike[str], *, delimiter: str = ",") -> Source:
    """Opens a CSV, gzipped CSV or Parquet file; its body is read later.

    Args:
      path: the file.
      delimiter: the character between the cells of a CSV.

    Raises:
      DataError: if the file is no such table or has no rows.
    """
    file = check_file(path, wanted="a CSV or Parquet file")
    with file.open("rb") as stream:
        head = stream.read(4096)
    if head.startswith(b"PAR1") or file.suffix.lower() in (".parquet", ".pq"):
        return _open_parquet(file)
    if head.startswith(b"\x1f\x8b"):
        return _open_csv(file, pa.py_buffer(gunzip(file)), delimiter)
    if file.suffix.lower() == ".gz":
        raise DataError(f"{file} is named .gz but is not gzipped; rename or fetch it")
    return _open_csv(file, pa.memory_map(str(file)).read_buffer(), delimiter)


def gunzip(file: Path, *, limit: int | None = None) -> bytes:
    """Returns the content of a gzip file.

    Args:
      file: the file.
      limit: most bytes that are unpacked.

    Raises:
      DataError: if it is truncated, corrupt or unpacks to more than the limit.
    """
    try:
        with gzip.open(file, "rb") as stream:
            content = stream.read(-1 if limit is None else limit + 1)
    except (EOFError, zlib.error, OSError) as error:
        raise DataError(
            f"{file} is a truncated or corrupt gzip file ({first_line(error)}); "
            "fetch it again"
        ) from None
    if limit is not None and len(content) > limit:
        raise DataError(
            f"{file} unpacks to more than {limit >> 20:,} MiB, far more than it "
            "should; check where it comes from"
        )
    return content


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's text."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _open_parquet(file: Path) -> Source:
    def broken(error: Exception) -> DataError:
        return DataError(
            f"{file} is a truncated or corrupt Parquet file ({first_line(error)}); "
            "fetch it again"
        )

    try:
        # Without a mapping, a truncated file is an error instead of a bus fault.
        parquet = pa_parquet.ParquetFile(str(file), memory_map=False)
        columns = tuple(parquet.schema_arrow.names)
        num_rows = parquet.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise broken(error) from None
    refuse_duplicates(columns, source=str(file))
    if num_rows == 0:
        raise DataError(f"{file} has columns but no rows; {_AGAIN}")

    def read(wanted: Sequence[str], text: Sequence[str] = ()) -> pd.DataFrame:
        try:
            table = parquet.read(columns=list(wanted))
        except (pa.ArrowException, OSError) as error:
            raise broken(error) from None
        return table.to_pandas(
            split_blocks=True, self_destruct=True, ignore_metadata=True
        )

    return Source(str(file), columns, read, record_number)


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


def _open_csv(file: Path, buffer: pa.Buffer, delimiter: str) -> Source:
    if buffer.size == 0:
        raise DataError(f"{file} is empty; {_AGAIN}")
    if b"\0" in buffer.slice(0, min(4096, buffer.size)).to_pybytes():
        raise DataError(
            f"{file} is neither text nor Parquet; save it as a UTF-8 CSV or as Parquet"
        )
    records = _records(file, buffer, delimiter)
    header = next(records, None)
    if header is None:
        raise DataError(f"{file} is empty; {_AGAIN}")
    columns = tuple(header[1])
    refuse_duplicates(columns, source=str(file))
    if next(records, None) is None:
        raise DataError(f"{file} has a header but no rows; {_AGAIN}")

    def locate(row: int) -> str:
        # Counted again only for a message: blank lines and quoted line breaks
        # make the line differ from the row.
        for index, (line, _) in enumerate(_records(file, buffer, delimiter)):
            if index == row + 1:
                return f"line {line}"
        return record_number(row)

    def explain(error: Exception) -> DataError:
        for line, cells in _records(file, buffer, delimiter):
            if len(cells) != len(columns):
                return DataError(
                    f"{file}, line {line}: {len(cells)} cells where the header has "
                    f"{len(columns)}; the row is cut off or badly quoted"
                )
        return DataError(f"{file} is no valid CSV ({first_line(error)})")

    def read(wanted: Sequence[str], text: Sequence[str] = ()) -> pd.DataFrame:
        try:
            table = pa_csv.read_csv(
                pa.BufferReader(buffer),
                parse_options=pa_csv.ParseOptions(
                    delimiter=delimiter, newlines_in_values=True
                ),
                convert_options=pa_csv.ConvertOptions(
                    include_columns=list(wanted),
                    column_types={name: pa.string() for name in text},
                    null_values=_MISSING_SPELLINGS,
                    strings_can_be_null=False,
                ),
            )
        except (pa.ArrowException, OSError) as error:
            raise explain(error) from None
        return table.to_pandas(split_blocks=True, self_destruct=True)

    return Source(str(file), columns, read, locate)


def refuse_duplicates(columns: Sequence[str], *, source: str) -> None:
    """Refuses a table with two columns of one name."""
    twice = [name for name, count in Counter(columns).items() if count > 1]
    if twice:
        raise DataError(
            f"{source} has two columns named {twice[0]!r}; rename or remove one"
        )


def require_columns(source: Source, names: Sequence[str]) -> None:
    """Refuses a table that lacks one of the columns.

    Raises:
      DataError: with the nearest name that it has.
    """
    for name in names:
        if name not in source.columns:
            raise DataError(
                f"{source.name} has no column {name!r}{suggest(name, source.columns)}; "
                f"columns: {shorten(source.columns)}{other_delimiter(source.columns)}"
            )


def suggest(name: str, names: Sequence[str]) -> str:
    """Returns ", did you mean 'x'?", or nothing where no name is near."""
    folded = {other.strip().casefold(): other for other in reversed(names)}
    near = difflib.get_close_matches(name.strip().casefold(), folded, n=1, cutoff=0.5)
    return f", did you mean {folded[near[0]]!r}?" if near else ""


def other_delimiter(columns: Sequence[str]) -> str:
    """Returns a hint where a header looks as if it were cut at another character."""
    for sign, written in ((";", ";"), ("\t", r"\t"), ("|", "|")):
        if len(columns) == 1 and sign in columns[0]:
            return f'; its cells stand between {written!r}: set delimiter = "{written}"'
    return ""


def shorten(names: Sequence[str], *, limit: int = 12) -> str:
    """Returns the first names, and how many more there are."""
    shown = ", ".join(names[:limit])
    hidden = len(names) - limit
    return shown if hidden <= 0 else f"{shown} and {hidden} more"
