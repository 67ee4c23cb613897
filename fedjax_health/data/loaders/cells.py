"""Columns of a table as numbers, labels, names and times, each bad cell refused."""

import json
import re
import warnings
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from fedjax_health.data.loaders.reading import MISSING, Place, shorten, suggest
from fedjax_health.data.schema import DataError

_EPOCH = pd.Timestamp(0, tz="UTC")
# 2025-01-31, 2025/1/31 or 31.01.2025, whatever follows; no address and no number.
_DATE = (
    r"(\d{4}-\d{1,2}-\d{1,2}|\d{4}/\d{1,2}/\d{1,2}|\d{1,2}[./-]\d{1,2}[./-]\d{4})(?!\d)"
)


def as_text(value: object) -> str:
    """Returns a value as it reads in a table: 3.0 of a nullable integer is "3"."""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value).strip()


def as_number(text: str) -> float | None:
    """Returns a text's number, 0 and 1 for false and true, or None."""
    folded = text.casefold()
    if folded in ("true", "false"):
        return float(folded == "true")
    try:
        return float(text)
    except ValueError:
        return None


def is_missing(text: str) -> bool:
    """Returns whether a text stands for no value."""
    return text.casefold() in MISSING


def sort_names(names: Iterable[str]) -> list[str]:
    """Returns distinct names in order, numbers as numbers if all are."""
    distinct = set(names)
    try:
        return sorted(distinct, key=lambda name: (int(name), name))
    except ValueError:
        return sorted(distinct)


def index_names(names: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """Returns (sorted distinct names, int64 ``[len(names)]`` index into them)."""
    ordered = sort_names(names)
    index = {name: position for position, name in enumerate(ordered)}
    return tuple(ordered), np.asarray([index[name] for name in names], np.int64)


def distinct(series: pd.Series) -> tuple[np.ndarray, list[str]]:
    """Returns (codes [rows], -1 for a null; texts of the codes)."""
    codes, values = pd.factorize(series)
    return np.asarray(codes), [as_text(value) for value in values]


def _first(codes: np.ndarray, code: int) -> int:
    return int(np.argmax(codes == code))


def read_names(series: pd.Series, place: Place) -> tuple[np.ndarray, tuple[str, ...]]:
    """Reads a column in which every row has a name.

    Returns:
      (int64 [rows] index into the names, sorted names).

    Raises:
      DataError: for a cell without a name.
    """
    codes, texts = distinct(series)
    for code in [-1, *(code for code, text in enumerate(texts) if not text)]:
        if np.any(codes == code):
            raise DataError(
                f"{place.cell(_first(codes, code), str(series.name))}: no value; "
                "every row needs one"
            )
    names = sort_names(texts)
    index = {name: position for position, name in enumerate(names)}
    return np.asarray([index[text] for text in texts], np.int64)[codes], tuple(names)


def read_categories(series: pd.Series) -> tuple[np.ndarray, tuple[str, ...]]:
    """Reads a column of categories, of which a cell may have none.

    Only an empty cell has none: "none" or "NA" may well be the name of a category.

    Returns:
      (float32 [rows] index into the names, NaN for none; sorted names).
    """
    codes, texts = distinct(series)
    texts = [_category(text) for text in texts]
    names = sort_names(text for text in texts if text)
    index = {name: float(position) for position, name in enumerate(names)}
    values = [index.get(text, np.nan) for text in texts]
    # Code -1, a null, picks the last.
    return np.asarray([*values, np.nan], np.float32)[codes], tuple(names)


def _category(text: str) -> str:
    """Returns a category as any program writes it: TRUE is True, and 3.0 is 3."""
    if text.casefold() in ("true", "false"):
        return text.casefold()
    whole = re.fullmatch(r"(-?\d+)\.0+", text)
    return whole[1] if whole else text


def read_label(
    series: pd.Series,
    place: Place,
    *,
    positive: Sequence[bool | int | float | str] = (),
    unknown: bool = False,
) -> np.ndarray:
    """Reads a label.

    Args:
      series: the column.
      place: where it stands.
      positive: values that are positive; without them the column holds 0 and 1 (or
        false and true).
      unknown: whether a cell may be without a label.

    Returns:
      float32 [rows] of 0 and 1; NaN for an unknown one.

    Raises:
      DataError: for a cell without a label, if refused, or with another one.
    """
    codes, texts = distinct(series)
    column = str(series.name)
    values = np.zeros(len(texts), np.float32)
    wanted = [as_text(value) for value in positive]
    numbers = {as_number(text) for text in wanted} - {None}
    for code, text in enumerate(texts):
        number = as_number(text)
        if is_missing(text):
            codes = np.where(codes == code, -1, codes)
        elif positive:
            values[code] = text in wanted or (number is not None and number in numbers)
        elif number in (0.0, 1.0):
            values[code] = number
        else:
            held = [t for t in texts if not is_missing(t)]
            counts = np.bincount(codes[codes >= 0], minlength=len(texts))
            # Of two values that of an attack is nearly always the rarer one.
            rare = min(held, key=lambda t: counts[texts.index(t)])
            raise DataError(
                f"{place.cell(_first(codes, code), column)}: label {text!r} is not 0 "
                f"or 1; the column holds {shorten([repr(t) for t in held], limit=6)}: "
                "list the positive values in positive, such as "
                f"--set 'data.positive=[{json.dumps(rare)}]'"
            )
    if not unknown and np.any(codes == -1):
        raise DataError(
            f"{place.cell(_first(codes, -1), column)}: no label; remove the row"
        )
    # Code -1, a null, picks the last.
    return np.append(values, np.float32(np.nan))[codes]


def refuse_one_class(label: np.ndarray, series: pd.Series, source: str) -> None:
    """Refuses labels that are all the same: a detector cannot learn from them."""
    if label.min() != label.max():
        return
    found = shorten([repr(t) for t in distinct(series)[1] if not is_missing(t)])
    kind = "positive" if label[0] else "negative"
    raise DataError(
        f"{source}: label column {str(series.name)!r} holds one class, all "
        f"{len(label)} rows are {kind} (values {found}); a detector needs both"
    )


def read_attack(
    series: pd.Series, label: np.ndarray, place: Place, *, normal: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Reads the types of attack.

    Args:
      series: the column.
      label: float32 [rows] of 0 and 1, NaN for unknown: such a row is not looked at.
      place: where it stands.
      normal: the value that stands for no attack.

    Returns:
      (int32 [rows] index into the names, 0 for unknown; names with "normal" first).

    Raises:
      DataError: where the column and the label disagree.
    """
    rows = np.flatnonzero(~np.isnan(label))
    attack = np.zeros(len(label), np.int32)
    if not len(rows):
        return attack, ("normal", "attack")
    series, label = series.iloc[rows], label[rows]
    place = Place(place.source, lambda row, whole=place: whole.locate(int(rows[row])))
    codes, names = read_names(series, place)
    normal = normal.strip()
    if normal not in names and not label.all():
        raise DataError(
            f"{place.source}: attack column {str(series.name)!r} has no value "
            f"{normal!r} (normal){suggest(normal, names)}; values: {shorten(names)}"
        )
    types = [name for name in names if name != normal]
    if "normal" in types:
        raise DataError(
            f"{place.source}: attack column {str(series.name)!r} holds 'normal' beside "
            f"the normal value {normal!r}; make them one"
        )
    order = {name: position + 1 for position, name in enumerate(types)}
    found = np.asarray([order.get(name, 0) for name in names], np.int32)[codes]
    wrong = (found > 0) != (label > 0)
    if wrong.any():
        row = int(np.argmax(wrong))
        kind = "positive" if label[row] else "negative"
        raise DataError(
            f"{place.cell(row, str(series.name))}: attack {names[codes[row]]!r} on a "
            f"row with a {kind} label; correct one of the two or leave attack out"
        )
    attack[rows] = found
    return attack, ("normal", *types)


def read_times(
    series: pd.Series, place: Place, *, time_format: str | None = None
) -> tuple[np.ndarray, bool]:
    """Reads a column of times.

    Args:
      series: the column.
      place: where it stands.
      time_format: strptime format of a time that is written as text; inferred where
        it is None.

    Returns:
      (float64 [rows], numbers as they are and dates as seconds since 1970 UTC; whether
      they are dates).

    Raises:
      DataError: for a cell that is no time.
    """
    column = str(series.name)
    values, dated = _times(series, time_format)
    bad = ~np.isfinite(values)
    if bad.any():
        row = int(np.argmax(bad))
        expected = f"a time of format {time_format!r}" if time_format else "a time"
        raise DataError(
            f"{place.cell(row, column)}: {shown(series.iloc[row])} is not {expected}; "
            "correct it, give time_format, or leave time out to use the file's order"
        )
    return values, dated


def _times(series: pd.Series, time_format: str | None) -> tuple[np.ndarray, bool]:
    if time_format is None and pd.api.types.is_numeric_dtype(series.dtype):
        return series.to_numpy(np.float64, na_value=np.nan), False
    if not pd.api.types.is_datetime64_any_dtype(series.dtype):
        texts = as_texts(series)
        if time_format is None:
            numbers = parse_numbers(texts)
            # A clock time without a date would be read as today's.
            clock = texts.str.fullmatch(r"\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?")
            if np.isfinite(numbers).mean() >= 0.5 or clock.any():
                return numbers, False
        series = texts
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        dates = pd.to_datetime(
            pd.Index(series), errors="coerce", utc=True, format=time_format
        )
    seconds = (dates - _EPOCH) / pd.Timedelta(seconds=1)
    return np.asarray(seconds, np.float64), True


def as_texts(series: pd.Series) -> pd.Series:
    """Returns the cells as stripped strings, "" for a null."""
    return series.astype("string").fillna("").str.strip()


def parse_numbers(texts: pd.Series) -> np.ndarray:
    """Returns float64 [rows]; NaN for what is not a number."""
    cells = texts.to_numpy(object)
    return np.asarray(pd.to_numeric(cells, errors="coerce"), np.float64)


def shown(value: object) -> str:
    """Returns a cell for a message: text in quotes."""
    return repr(value) if isinstance(value, str) else str(value)


def read_numbers(
    series: pd.Series,
    place: Place,
    *,
    remedy: str = "correct it or list the column in drop",
) -> np.ndarray:
    """Reads a column of numbers.

    Args:
      series: the column.
      place: where it stands.
      remedy: what to do about a cell that is no number.

    Returns:
      float64 [rows]; NaN for a missing cell.

    Raises:
      DataError: for a cell that is no number.
    """
    numbers, row = _numbers(series)
    if row is not None:
        raise DataError(
            f"{place.cell(row, str(series.name))}: {shown(series.iloc[row])} is not a "
            f"number; {remedy}"
        )
    return numbers


def first_word(series: pd.Series) -> int | None:
    """Returns the first row whose cell is neither empty nor a number, or None."""
    return _numbers(series)[1]


def _numbers(series: pd.Series) -> tuple[np.ndarray, int | None]:
    dtype = series.dtype
    if pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_complex_dtype(
        dtype
    ):
        return series.to_numpy(np.float64, na_value=np.nan), None
    texts = as_texts(series)
    missing = texts.str.casefold().isin(MISSING).to_numpy(bool)
    numbers = parse_numbers(texts)
    if pd.api.types.is_datetime64_any_dtype(dtype):
        numbers[:] = np.nan
    numbers[missing] = np.nan
    bad = np.isnan(numbers) & ~missing
    return numbers, int(np.argmax(bad)) if bad.any() else None


def holds_dates(series: pd.Series) -> bool:
    """Returns whether every cell is a date, and none is empty."""
    if pd.api.types.is_datetime64_any_dtype(series.dtype):
        return not series.isna().any()
    if pd.api.types.is_numeric_dtype(series.dtype):
        return False
    texts = as_texts(series)
    if not texts.str.match(_DATE).all():
        return False
    values, dated = _times(series, None)
    return dated and bool(np.isfinite(values).all())


def as_float32(numbers: np.ndarray, column: str, place: Place) -> np.ndarray:
    """Returns float32 [rows]; refuses what is infinite or too large for it.

    Args:
      numbers: float64 [rows].
      column: its name, for the message.
      place: where it stands.

    Raises:
      DataError: naming the row.
    """
    with np.errstate(over="ignore"):
        values = numbers.astype(np.float32)
    infinite = np.isinf(values)
    if infinite.any():
        row = int(np.argmax(infinite))
        raise DataError(
            f"{place.cell(row, column)}: {numbers[row]} is infinite or too large "
            "for 32-bit floats; correct it or drop the column"
        )
    return values
