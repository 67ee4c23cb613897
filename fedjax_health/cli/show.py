"""Results as tables for a person; text is never read as markup."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

LABELS = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "f1": "F1",
    "mcc": "MCC",
    "ece": "ECE",
    "achieved_far": "achieved false-alarm rate",
    "mean_delay": "mean delay (steps)",
    "median_delay": "median delay (steps)",
}

_COUNTS = ("episodes", "missed_episodes", "ranked_clients", "excluded_clients")
_SHARES = ("achieved_far", "prevalence", "share_of_dense")
_STEPS = ("mean_delay", "median_delay")
_UNITS = ("B", "kB", "MB", "GB", "TB")


def result(values: Mapping[str, Any], stream: TextIO):
    """Writes the result of a run: a table of metrics, then everything else.

    Args:
      values: ``metrics`` (name -> number), ``intervals`` (name -> low and high) and
        more.
      stream: where it goes.
    """
    metrics, intervals = values.get("metrics", {}), values.get("intervals", {})
    episodes = values.get("details", {}).get("episodes", metrics.get("episodes"))
    lines = [
        {
            "metric": LABELS.get(name, name.replace("_", " ")),
            "value": figure(name, value)
            + (
                f" of {figure('episodes', episodes)}"
                if name == "missed_episodes" and value is not None and episodes
                else ""
            ),
            "95 % interval": _interval(name, intervals.get(name)),
        }
        for name, value in metrics.items()
    ]
    columns = ["metric", "value"]
    if any(line["95 % interval"] for line in lines):
        columns.append("95 % interval")
    if lines:
        rows(lines, columns, stream)
    shown = ("metrics", "intervals")
    rest = {key: value for key, value in values.items() if key not in shown}
    tree(rest, stream)


def rows(values: Sequence[Mapping[str, Any]], columns: Sequence[str], stream: TextIO):
    """Writes a table.

    Args:
      values: one mapping a row.
      columns: its keys, in order.
      stream: where it goes.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(Text(column), overflow="fold")
    for row in values:
        table.add_row(*(Text(number(row.get(column))) for column in columns))
    _console(stream).print(table)


def tree(values: Mapping[str, Any], stream: TextIO):
    """Writes nested values, one line each.

    Args:
      values: mappings, lists and single values.
      stream: where it goes.
    """
    console = _console(stream)
    for key, value in values.items():
        if isinstance(value, Mapping | list | tuple) and value:
            branch = Tree(_name(key))
            _grow(branch, value)
            console.print(branch)
        else:
            console.print(_line(key, value), soft_wrap=True)


def number(value: Any) -> str:
    """Returns a value as text: four decimals for fractions, a dash for none.

    Args:
      value: anything.
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        small = value != 0 and abs(value) < 1e-3
        return f"{value:.3g}" if small or abs(value) >= 1e5 else f"{value:.4f}"
    if isinstance(value, Mapping | list | tuple) and not value:
        return "none"
    return str(value)


def figure(name: str, value: Any) -> str:
    """Returns a value as its name asks for: a count, a share, steps or bytes.

    Args:
      name: such as "missed_episodes".
      value: anything.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return number(value)
    if math.isnan(value):
        return number(value)
    if name in _COUNTS:
        return number(round(value))
    if name in _SHARES:
        return f"{100 * value:.1f} %" if value >= 1e-3 else f"{100 * value:.2g} %"
    if name in _STEPS:
        return f"{value:.1f}"
    if "bytes" in name:
        return size(value)
    return number(value)


def size(num_bytes: float) -> str:
    """Returns bytes for a person, such as "472 MB".

    Args:
      num_bytes: how many.
    """
    scaled, unit = float(num_bytes), 0
    # What would be rounded to 1,000 of a unit is 1 of the next.
    while abs(scaled) >= 999.5 and unit < len(_UNITS) - 1:
        scaled, unit = scaled / 1000, unit + 1
    digits = 0 if unit == 0 or abs(scaled) >= 99.95 else 1
    return f"{scaled:,.{digits}f} {_UNITS[unit]}"


def _interval(name: str, value: Any) -> str:
    return f"{figure(name, value[0])} to {figure(name, value[1])}" if value else ""


def _grow(branch: Tree, value: Any):
    items = value.items() if isinstance(value, Mapping) else enumerate(value, 1)
    for key, item in items:
        if isinstance(item, Mapping | list | tuple) and item:
            _grow(branch.add(_name(key)), item)
        else:
            branch.add(_line(key, item))


def _name(key: Any) -> Text:
    name = str(key).replace("_", " ").removesuffix(" (bytes)")
    return Text(LABELS.get(str(key), name))


def _line(key: Any, value: Any) -> Text:
    return _name(key).append(": ").append(figure(str(key), value))


def _console(stream: TextIO) -> Console:
    # A file or pipe has no width; 80 columns would fold paths in the middle.
    width = None if stream.isatty() else 120
    return Console(file=stream, width=width, highlight=False)
