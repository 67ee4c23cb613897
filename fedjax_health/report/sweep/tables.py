"""The rows of a sweep's tables, as text."""

import math
import re
from collections.abc import Sequence

import pandas as pd

from fedjax_health.report.clean import clean
from fedjax_health.report.sweep import summary
from fedjax_health.report.sweep.read import SweepView, clean_values
from fedjax_health.report.sweep.summary import Case, Mean, Verdict
from fedjax_health.report.tables.form import Table, without_empty
from fedjax_health.report.tables.metrics import METRICS
from fedjax_health.report.words import DASH, listing, metric, number, size


def verdicts(view: SweepView, found: Sequence[Verdict]) -> Table:
    """Returns which candidate to choose in which circumstance.

    Args:
      view: what was read.
      found: from ``summary.verdicts``.
    """
    tolerance = view.settings.report.tolerance
    rows = []
    for verdict in found:
        case = verdict.best
        if case is None:
            rows.append((verdict.column, *[DASH] * 8))
            continue
        clean_run = case.clean.value if case.clean is not None else math.nan
        rows.append(
            (
                verdict.column,
                case.row,
                number(case.final.value),
                case.worst or DASH,
                number(clean_run),
                number(case.loss),
                number(verdict.cost),
                DASH if verdict.holds is None else "yes" if verdict.holds else "no",
                listing(case.missing) or DASH,
            )
        )
    chosen = " on validation data" if any(v.validated for v in found) else ""
    table = Table(
        f"The candidate with the best worst case{chosen}; figures of the test part. It "
        f"holds where it loses at most {tolerance:g} against its own clean run",
        (
            _where(view),
            "choose",
            "worst case",
            "under",
            "clean run",
            "loss",
            "costs if clean",
            "holds",
            "not measured in full",
        ),
        tuple(rows),
        frozenset({0, 1, 3, 7, 8}),
        frozenset(i for i, v in enumerate(found) if v.holds is False or _short(v)),
    )
    if not any(map(_short, found)):
        table = _without(table, frozenset({8}))
    return without_empty(table)


def _short(verdict: Verdict) -> bool:
    return verdict.best is not None and bool(verdict.best.missing)


def candidates(view: SweepView, found: Sequence[Case]) -> Table:
    """Returns every candidate in every circumstance with its interval.

    Args:
      view: what was read.
      found: from ``summary.cases``.
    """
    rows = tuple(
        (
            case.column,
            case.row,
            number(case.final.value),
            interval(case.final),
            case.worst or DASH,
            number(case.best.value),
            number(case.clean.value) if case.clean is not None else DASH,
            number(case.loss),
            number(case.validation.value),
            listing(case.missing) or DASH,
        )
        for case in found
    )
    return without_empty(
        Table(
            "Every candidate under its worst attack: mean and 95 % interval over "
            "repetitions at the last step, and the worst mean at the best step and on "
            "validation data. The loss is that of repetitions with and without attack",
            (
                _where(view),
                view.roles.rows or "candidate",
                "last step",
                "95 % interval",
                "under",
                "best step",
                "clean run",
                "loss",
                "on validation",
                "not measured in full",
            ),
            rows,
            frozenset({0, 1, 4, 9}),
        )
    )


def metrics(view: SweepView) -> Table | None:
    """Returns every metric at the best step, for a sweep without attacks.

    Args:
      view: what was read.
    """
    if view.roles.worst is not None:
        return None
    rows = []
    for name, (title, _) in METRICS.items():
        if f"best_{name}" not in view.chosen:
            continue
        found = summary.mean_table(view, f"best_{name}")
        observer = summary.mean_table(view, f"oracle_{name}")
        for (row, column, _, mean), known in zip(
            found.itertuples(index=False), observer["mean"], strict=True
        ):
            if mean.count:
                rows.append(
                    (
                        column,
                        row,
                        title,
                        metric(name, mean.value),
                        _interval_of(name, mean),
                        metric(name, known.value),
                        f"{mean.count}",
                    )
                )
    if not rows:
        return None
    table = Table(
        "Metrics at the step that validation calls best: mean and 95 % interval over "
        "repetitions; an observer knows how the data was generated",
        (
            _where(view),
            view.roles.rows or "candidate",
            "metric",
            "mean",
            "95 % interval",
            "observer",
            "repetitions",
        ),
        tuple(rows),
        frozenset({0, 1, 2}),
    )
    return without_empty(_of_axes(view, table))


def _of_axes(view: SweepView, table: Table) -> Table:
    """Drops the first two columns, circumstance and candidate, where no axis is one."""
    there = (bool(view.roles.columns), bool(view.roles.rows))
    return _without(table, frozenset(i for i, axis in enumerate(there) if not axis))


def _interval_of(name: str, mean: Mean) -> str:
    if math.isnan(mean.low):
        return DASH
    return f"{metric(name, mean.low)} to {metric(name, mean.high)}"


def _without(table: Table, places: frozenset[int]) -> Table:
    kept = [i for i in range(len(table.columns)) if i not in places]
    return table._replace(
        columns=tuple(table.columns[i] for i in kept),
        rows=tuple(tuple(row[i] for i in kept) for row in table.rows),
        text_columns=frozenset(
            n for n, i in enumerate(kept) if i in table.text_columns
        ),
    )


def interval(mean: Mean) -> str:
    """Writes an interval, a dash where there is none.

    Args:
      mean: of repetitions.
    """
    if math.isnan(mean.low):
        return DASH
    return f"{number(mean.low)} to {number(mean.high)}"


def detection(view: SweepView) -> Table | None:
    """Returns how well selecting rules told malicious clients from honest ones.

    Args:
      view: what was read.
    """
    table = summary.with_places(view, view.chosen)
    names = ("mean_detection_precision", "mean_detection_recall")
    if not any(name in table for name in names):
        return None
    table = table[~table.attack.isin(clean_values(view))]
    rows = []
    for (row, column), group in table.groupby(["row", "column"], sort=False):
        cells = [
            summary.mean_of(group[name].to_numpy(float)).value
            if name in group
            else math.nan
            for name in names
        ]
        if any(math.isfinite(cell) for cell in cells):
            rows.append((column, row, *(number(cell) for cell in cells)))
    if not rows:
        return None
    return Table(
        "Clients that selecting rules dropped: how many of them were malicious, and "
        "how many of the malicious were among them, mean over rounds, attacks and "
        "repetitions",
        (_where(view), view.roles.rows or "candidate", "precision", "recall"),
        tuple(rows),
        frozenset({0, 1}),
    )


def strengths(view: SweepView) -> Table | None:
    """Returns the strengths that optimised attacks found last.

    Args:
      view: what was read.
    """
    found = summary.mean_table(view, "attack_strength")
    rows = tuple(
        (column, row, attack, number(mean.value), interval(mean))
        for row, column, attack, mean in found.itertuples(index=False)
        if mean.count
    )
    if not rows:
        return None
    return Table(
        "Strength that an optimised attack found in the last round",
        (
            _where(view),
            view.roles.rows or "candidate",
            view.roles.worst or "attack",
            "strength",
            "95 % interval",
        ),
        rows,
        frozenset({0, 1, 2}),
    )


def tuned(view: SweepView) -> Table | None:
    """Returns the settings that validation chose.

    Args:
      view: what was read.
    """
    table = summary.with_places(view, view.chosen)
    table = table[table.tuned != ""]
    if table.empty:
        return None
    rows = table[["column", "row", "tuned"]].drop_duplicates()
    return Table(
        "Settings chosen on validation data: of all tried, the best worst case",
        (_where(view), view.roles.rows or "candidate", "setting"),
        tuple((c, r, clean(t)) for c, r, t in rows.itertuples(index=False)),
        frozenset({0, 1, 2}),
    )


def costs(view: SweepView) -> Table | None:
    """Returns the bytes and the epsilon of all rounds.

    Args:
      view: what was read.

    Returns:
      One row for each candidate and circumstance: the mean of the bytes over attacks
      and repetitions, and the greatest epsilon. None where nothing was counted.
    """
    chosen = summary.with_places(view, view.chosen)
    names = ("total_uplink_bytes", "total_downlink_bytes", "total_epsilon")
    found = chosen.reindex(columns=["column", "row", *names])
    if not found[list(names)].notna().any(axis=None):
        return None
    rows = []
    for (row, column), group in found.groupby(["row", "column"], sort=False):
        up, down = (group[name].astype(float).mean() for name in names[:2])
        # Privacy is what the worst of them gives.
        epsilon = group["total_epsilon"].astype(float).max()
        rows.append((str(column), str(row), size(up), size(down), number(epsilon)))
    caption = "Bytes of all rounds, mean over repetitions"
    if view.roles.worst is not None:
        caption += " and attacks"
    if found["total_epsilon"].notna().any():
        caption += "; epsilon of all rounds, the greatest of them"
    titles = ("to the server", "from the server", "epsilon")
    table = Table(
        caption,
        (_where(view), view.roles.rows or "candidate", *titles),
        tuple(rows),
        frozenset({0, 1}),
    )
    return without_empty(_of_axes(view, table))


def data_warnings(view: SweepView) -> Table | None:
    """Returns what was said of the data.

    Args:
      view: what was read.
    """
    if not view.warnings:
        return None
    rows = tuple((text, f"{count:,}") for text, count in view.warnings[:60])
    return Table(
        "Warnings of the data, and the cells that gave them; of cells that compute the "
        "same, one",
        ("warning", "cells"),
        rows,
    )


def failures(view: SweepView) -> Table | None:
    """Returns what gave no figures, and training that diverged.

    Args:
      view: what was read.
    """
    table: pd.DataFrame = view.results[view.results.status != "done"]
    if table.empty:
        return None
    table = summary.with_places(view, table)
    rows = []
    kinds = pd.Series(
        [
            _kind(str(reason)) if status == "diverged" else str(reason)
            for status, reason in zip(table.status, table.reason, strict=True)
        ],
        table.index,
        name="kind",
    )
    for (status, row, kind), group in table.groupby(["status", "row", kinds]):
        where = list(dict.fromkeys(group.column))
        reason = _reason(str(kind), [str(text) for text in group.reason])
        rows.append((status, row, listing(where), f"{len(group):,}", clean(reason)))
    return Table(
        "Cells without figures, or whose training diverged",
        ("status", view.roles.rows or "candidate", _where(view), "cells", "reason"),
        tuple(rows[:60]),
        frozenset({0, 1, 2, 4}),
    )


_ROUND = re.compile(r"\bround (\d+)")


def _kind(reason: str) -> str:
    """Returns why a run diverged without the round and the clients."""
    return re.sub(r"\(clients .*\)", "(some clients)", _ROUND.sub("round _", reason))


def _reason(kind: str, texts: Sequence[str]) -> str:
    """Returns the text of several runs that differ in rounds and clients alone."""
    if len(set(texts)) == 1:
        return texts[0]
    rounds = sorted({int(found[1]) for t in texts if (found := _ROUND.search(t))})
    if not rounds:
        return kind
    span = f"{rounds[0]}" + (f" to {rounds[-1]}" if len(rounds) > 1 else "")
    return kind.replace("round _", f"round {span}")


def facts(view: SweepView) -> Table:
    """Returns how large the sweep was.

    Args:
      view: what was read.
    """
    counts = view.results.status.value_counts()
    lines = [
        ("rows of results", f"{len(view.results):,}"),
        *((f"cells {name}", f"{count:,}") for name, count in counts.items()),
        ("minutes of work, all processes together", f"{view.seconds / 60:.1f}"),
    ]
    for axis in view.settings.axes:
        values = [str(v) for v in view.results[axis.name].cat.categories]
        lines.append((f"axis {clean(axis.name)}", listing(values, most=40)))
    packages = view.environment.get("packages", {})
    lines += [
        (str(name), str(value))
        for name, value in (
            *((k, v) for k, v in view.environment.items() if isinstance(v, str | int)),
            *sorted(packages.items()),
        )
    ]
    return Table(
        "Facts and versions", ("what", "value"), tuple(lines), frozenset({0, 1})
    )


def _where(view: SweepView) -> str:
    return " · ".join(view.roles.columns) or "circumstance"
