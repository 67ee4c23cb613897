"""What a table is, and how its cells are written."""

from typing import NamedTuple

from fedjax_health.report.figures import Number
from fedjax_health.report.records import View, interval_of
from fedjax_health.report.words import DASH, metric, percentage


class Card(NamedTuple):
    """A headline number.

    Attributes:
      title: what it is.
      value: the number.
      note: its interval.
      beside: what to compare it with.
    """

    title: str
    value: str
    note: str
    beside: str


class Table(NamedTuple):
    """A table as text.

    Attributes:
      caption: what it shows.
      columns: their names.
      rows: one tuple of texts a row.
      text_columns: columns of words; all others are numbers.
      marked: rows that need a reader's attention.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: frozenset[int] = frozenset({0})
    marked: frozenset[int] = frozenset()


def interval_text(view: View, name: str) -> str:
    """Returns the 95 % interval of a metric, empty where there is none.

    Args:
      view: what was read.
      name: of the metric.
    """
    interval = interval_of(view, name)
    if interval is None:
        return ""
    return f"{metric(name, interval[0])} to {metric(name, interval[1])}"


def rate(value: Number) -> str:
    """Writes a share as a percentage; a dash where there is none.

    Args:
      value: the share.
    """
    return DASH if value is None else percentage(value)


def without_empty(table: Table) -> Table:
    """Drops columns of numbers without a single value.

    Args:
      table: with a dash for each value that is not there.
    """
    keep = [
        i
        for i in range(len(table.columns))
        if any(row[i] != DASH for row in table.rows) or i in table.text_columns
    ]
    rows = tuple(tuple(row[i] for i in keep) for row in table.rows)
    places = frozenset(n for n, i in enumerate(keep) if i in table.text_columns)
    columns = tuple(table.columns[i] for i in keep)
    return table._replace(columns=columns, rows=rows, text_columns=places)
