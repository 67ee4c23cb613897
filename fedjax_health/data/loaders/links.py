"""Tables that belong to rows of another one, by a key and by time.

A history (vital signs by patient and time) is joined backward: each of its columns
gives a row the latest value that was observed when the row was, and that is not older
than the tolerance. What comes later is never seen.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from fedjax_health.data.loaders.absent import warn_of_absent_columns
from fedjax_health.data.loaders.cells import (
    as_float32,
    distinct,
    is_missing,
    read_categories,
    read_numbers,
    read_times,
)
from fedjax_health.data.loaders.reading import (
    Place,
    Source,
    open_table,
    require_columns,
    shorten,
)
from fedjax_health.data.loaders.roles import REST, Link
from fedjax_health.data.schema import DataError


class Linked(NamedTuple):
    """A linked table, joined to the rows of the main one.

    Attributes:
      names: of its columns.
      values: float32 ``[rows, columns]``; NaN where nothing was joined.
      categories: column -> names of its categories.
    """

    names: tuple[str, ...]
    values: np.ndarray
    categories: dict[str, tuple[str, ...]]


def join_link(
    link: Link,
    keys: Sequence[pd.Series],
    times: np.ndarray | None,
    *,
    dated: bool,
    columns: Sequence[str] | None = None,
    strict: bool = True,
) -> Linked:
    """Joins a linked table to the rows of the main one.

    Args:
      link: what to join and how.
      keys: the columns of the main table that ``link.keys`` names, ``[rows]`` each. A
        row without a key joins nothing, nor does one whose key the other table lacks.
      times: float64 ``[rows]`` of the main table; None for a link without time.
      dated: whether these times are dates.
      columns: the columns of a "rest", as an earlier table had them; None to take
        what is there.
      strict: whether the table is to be trained on; otherwise columns other than keys
        and time may be lacking, with a warning: they are not observed.

    Raises:
      DataError: if the linked table cannot be used, or has two rows for one key and
        no time.
    """
    source = open_table(link.path, delimiter=link.delimiter)
    names = _columns(source, link, columns, strict=strict)
    here = list(link.keys.values())
    text = [*here, *link.categorical]
    if link.time_format is not None and link.time is not None:
        text.append(link.time)
    wanted = [*here, *([link.time] if link.time else []), *names]
    held = [name for name in dict.fromkeys(wanted) if name in source.columns]
    frame = source.read(held, [name for name in held if name in text])
    warn_of_absent_columns({link.modality: names}, source.columns, source=source.name)
    place = Place(source.name, source.locate)
    values, categories = _values(frame, names, link, place)
    main, other = _match_keys(keys, [frame[key] for key in here])
    if link.time is None:
        _refuse_twice(other, frame, here, place)
        return Linked(names, _take(main, other, values), categories)
    other_times, other_dated = read_times(
        frame[link.time], place, time_format=link.time_format
    )
    if other_dated != dated:
        kinds = ("dates", "numbers") if dated else ("numbers", "dates")
        raise DataError(
            f"{link.path}: the times of the table are {kinds[0]} and those of column "
            f"{link.time!r} are {kinds[1]}; give both in one way"
        )
    assert times is not None
    joined = _take_latest(main, times, other, other_times, values, link.tolerance)
    return Linked(names, joined, categories)


def _columns(
    source: Source, link: Link, columns: Sequence[str] | None, *, strict: bool
) -> tuple[str, ...]:
    roles = [*link.keys.values(), *([link.time] if link.time else [])]
    named = [*link.drop, *link.categorical] if strict else []
    require_columns(source, [*roles, *named])
    if link.columns != REST:
        names = tuple(link.columns)
    elif columns is not None:
        names = tuple(columns)
    else:
        names = tuple(
            name for name in source.columns if name not in {*roles, *link.drop}
        )
    require_columns(source, names if strict else ())
    if not names:
        raise DataError(
            f"{link.path}: no column is left for modality {link.modality!r}; columns: "
            f"{shorten(source.columns)}"
        )
    return names


def _values(
    frame: pd.DataFrame, names: Sequence[str], link: Link, place: Place
) -> tuple[np.ndarray, dict[str, tuple[str, ...]]]:
    values = np.full((len(frame), len(names)), np.nan, np.float32)
    categories = {}
    for position, name in enumerate(names):
        if name not in frame:
            if name in link.categorical:
                categories[name] = ()
        elif name in link.categorical:
            values[:, position], categories[name] = read_categories(frame[name])
        else:
            numbers = read_numbers(
                frame[name],
                place,
                remedy="correct it, list the column in categorical or in drop",
            )
            values[:, position] = as_float32(numbers, name, place)
    return values, categories


def _match_keys(
    main: Sequence[pd.Series], other: Sequence[pd.Series]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns codes of both tables' keys, equal where the keys are; -1 for no key."""
    codes = np.zeros(len(main[0]) + len(other[0]), np.int64)
    for left, right in zip(main, other, strict=True):
        parts, names = [], {}
        for series in (left, right):
            found, texts = distinct(series)
            table = [
                -1 if is_missing(text) else names.setdefault(text, len(names))
                for text in texts
            ]
            # Code -1, a null, picks the last.
            parts.append(np.asarray([*table, -1], np.int64)[found])
        code = np.concatenate(parts)
        missing = (code < 0) | (codes < 0)
        # Numbered anew, so that many keys do not overflow.
        pair = np.where(missing, -1, codes * (len(names) + 1) + code)
        codes = np.unique(pair, return_inverse=True)[1].reshape(-1)
        codes = np.where(missing, -1, codes)
    return codes[: len(main[0])], codes[len(main[0]) :]


def _refuse_twice(
    other: np.ndarray, frame: pd.DataFrame, keys: list[str], place: Place
) -> None:
    _, first = np.unique(other, return_index=True)
    again = np.ones(len(other), bool)
    again[first] = False
    again &= other >= 0
    if again.any():
        row = int(np.argmax(again))
        key = ", ".join(str(frame[name].iloc[row]) for name in keys)
        raise DataError(
            f"{place.cell(row, keys[0])}: a second row for {key}; remove one, or name "
            "the column of the time"
        )


def _take(main: np.ndarray, other: np.ndarray, values: np.ndarray) -> np.ndarray:
    row = np.full(max(main.max(initial=-1), other.max(initial=-1)) + 2, -1, np.int64)
    known = other >= 0
    row[other[known]] = np.flatnonzero(known)
    row[-1] = -1
    found = row[main]
    joined = np.full((len(main), values.shape[1]), np.nan, np.float32)
    joined[found >= 0] = values[found[found >= 0]]
    return joined


def _take_latest(
    main: np.ndarray,
    times: np.ndarray,
    other: np.ndarray,
    other_times: np.ndarray,
    values: np.ndarray,
    tolerance: float | None,
) -> np.ndarray:
    """Returns float32 [rows, columns], the latest value of each column in time."""
    key = np.concatenate([other, main])
    time = np.concatenate([other_times, times])
    late = np.arange(len(key)) >= len(other)
    # A value of the same moment counts: at equal times the linked rows come first.
    order = np.lexsort((late, time, key))
    key, time = key[order], time[order]
    row = np.where(order < len(other), order, -1)
    target = order[order >= len(other)] - len(other)
    joined = np.full((len(main), values.shape[1]), np.nan, np.float32)
    place = np.arange(len(order))
    for column, cells in enumerate(values.T):
        seen = (row >= 0) & ~np.isnan(cells[row])
        last = np.maximum.accumulate(np.where(seen, place, -1))[order >= len(other)]
        asking = place[order >= len(other)]
        fits = (last >= 0) & (key[last] == key[asking]) & (key[asking] >= 0)
        if tolerance is not None:
            fits &= time[asking] - time[last] <= tolerance
        joined[target[fits], column] = cells[row[last[fits]]]
    return joined
