"""What a run was: leak check, facts, versions."""

from typing import Any

from fedjax_health.report.nouns import nouns_of
from fedjax_health.report.records import View
from fedjax_health.report.tables.form import Table
from fedjax_health.report.words import DASH, number

# Columns that are listed, the most telling first.
COLUMNS = 20


def leak_checks(view: View) -> Table | None:
    """Returns the verdicts of the leak check.

    Args:
      view: what was read.
    """
    if view.leakcheck is None or not view.leakcheck.checks:
        return None
    rows = tuple(
        (
            check.check,
            "passed" if check.passed else "WARNING",
            number(check.value),
            number(check.limit),
            check.message,
        )
        for check in view.leakcheck.checks
    )
    failed = [i for i, check in enumerate(view.leakcheck.checks) if not check.passed]
    columns = ("check", "verdict", "value", "limit", "finding")
    return Table(
        "Leak check", columns, rows, frozenset({0, 1, 4}), marked=frozenset(failed)
    )


def leak_columns(view: View) -> Table | None:
    """Returns the columns that tell the label best by themselves.

    Args:
      view: what was read.
    """
    columns = view.leakcheck.columns if view.leakcheck else ()
    if not columns:
        return None
    order = sorted(
        columns,
        key=lambda c: (not c.suspicious, -abs((c.auroc or 0.5) - 0.5), c.column),
    )[:COLUMNS]
    rows = tuple(
        (c.column, c.role or DASH, number(c.auroc), "yes" if c.suspicious else "")
        for c in order
    )
    marked = frozenset(i for i, column in enumerate(order) if column.suspicious)
    left = len(columns) - len(order)
    more = f"; {left:,} more stand in leakcheck.json" if left else ""
    return Table(
        f"How well single columns tell the label{more}",
        ("column", "role", "AUROC", "suspicious"),
        rows,
        frozenset({0, 1, 3}),
        marked=marked,
    )


def facts(view: View) -> Table:
    """Returns what the run was, beside its metrics.

    Args:
      view: what was read.
    """
    figures = view.figures
    lines: list[tuple[str, Any]] = []
    if figures is not None:
        nouns = nouns_of(view)
        lines += [
            (f"{nouns.units} measured", figures.rows),
            (nouns.rows, figures.positives),
        ]
        if figures.resamples and figures.interval_unit:
            text = f"{figures.resamples:,} resamples of {figures.interval_unit}"
            lines.append(("intervals", text))
    details = view.result.get("details")
    lines += [
        (key.replace("_", " "), value)
        for place in (view.result, details if isinstance(details, dict) else {})
        for key, value in place.items()
        # The folder of a run is named in the title; a path says nothing more.
        if _is_simple(value) and key != "folder"
    ]
    seconds = sum(_seconds(line) for line in view.timings)
    if seconds:
        lines.append(("training time (s)", round(seconds, 1)))
    rows = tuple((name, _fact(value)) for name, value in lines if value is not None)
    return Table("Facts", ("fact", "value"), rows)


def environment(view: View) -> Table | None:
    """Returns versions and machine.

    Args:
      view: what was read.
    """
    known = dict(view.environment)
    packages = known.pop("packages", {})
    known.pop("resumed", None)
    context = known.pop("context", {})
    lines = [(key, value) for key, value in known.items() if _is_simple(value)]
    if isinstance(context, dict):
        lines += [
            (f"SHA-256 or version of {key}", context[key])
            for key in ("config", "data")
            if _is_simple(context.get(key))
        ]
    if isinstance(packages, dict):
        lines += sorted(packages.items())
    if not lines:
        return None
    rows = tuple((name.replace("_", " "), str(value)) for name, value in lines)
    return Table("Versions and machine", ("what", "value"), rows, frozenset({0, 1}))


def _seconds(line: dict[str, Any]) -> float:
    keys = ("training_s", "evaluation_s", "checkpoint_s")
    return sum(v for k in keys if isinstance(v := line.get(k), int | float))


def _fact(value: Any) -> str:
    # The result keeps every number as a float, counts too.
    is_count = isinstance(value, float) and value.is_integer() and value > 1
    return number(int(value) if is_count else value)


def _is_simple(value: Any) -> bool:
    return isinstance(value, int | float | str)
