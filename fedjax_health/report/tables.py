"""The rows of every table, as text; what they look like is the template's business."""

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from fedjax_health.report.figures import Number
from fedjax_health.report.records import View, clean, interval_of, value_of
from fedjax_health.report.words import (
    DASH,
    metric,
    number,
    oracle_of,
    percentage,
)

# A page with every client of a large population is read by nobody.
CLIENTS = 60
FEATURES = 20
# Such as "flow.Load +1.52".
WEIGHED = re.compile(r"(?P<name>.+) (?P<weight>[+-]\d+(?:\.\d+)?)")

METRICS = {
    "auroc": ("AUROC", "chance that an attack row outranks a normal one"),
    "auprc": ("AUPRC", "precision over all recalls; the share of attacks if random"),
    "f1": ("F1", "at the threshold of the best validation F1"),
    "accuracy": ("Accuracy", "at that threshold; means little where attacks are rare"),
    "mcc": ("MCC", "correlation of answer and truth at that threshold"),
    "ece": ("ECE", "mean distance of score and share of attacks; 0 is best"),
    "brier": ("Brier score", "mean squared error of the score; 0 is best"),
    "achieved_far": ("False-alarm rate", "normal rows at or above the alarm threshold"),
    "mean_delay": ("Mean delay (steps)", "onset to alarm; missed: the full length"),
    "median_delay": (
        "Median delay (steps)",
        "half of the episodes are noticed by it",
    ),
    "missed_episodes": ("Missed episodes", "attack episodes without an alarm"),
}


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


def cards(view: View) -> list[Card]:
    """Returns the headline numbers.

    Args:
      view: what was read.
    """
    prevalence = value_of(view, "prevalence")
    base = "" if prevalence is None else f"random: {prevalence:.3f}"
    reached = value_of(view, "achieved_far")
    at_rate = "" if reached is None else f"at {percentage(reached)} false alarms"
    wanted = [
        ("auroc", "AUROC", "random: 0.500"),
        ("auprc", "AUPRC", base),
        ("f1", "F1", "at the validation threshold"),
        ("mean_delay", "Mean delay", at_rate),
    ]
    shown = [
        Card(title, _with_unit(name, value), _note(view, name), beside)
        for name, title, beside in wanted
        if (value := value_of(view, name)) is not None
    ]
    if not shown:
        return _counts(view)
    missed, episodes = value_of(view, "missed_episodes"), value_of(view, "episodes")
    if missed is not None:
        of = "" if episodes is None else f" of {episodes:,.0f}"
        shown.append(
            Card(
                "Missed episodes",
                f"{missed:,.0f}{of}",
                _note(view, "missed_episodes"),
                at_rate,
            )
        )
    alarms = view.figures.false_alarms if view.figures else None
    if alarms is not None and alarms.per_entity_day is not None:
        text = f"{alarms.per_entity_day:,.1f}"
        shown.append(Card("False alarms", text, "steps per device and day", at_rate))
    elif alarms is not None and alarms.per_1000_rows is not None:
        text = f"{alarms.per_1000_rows:,.1f}"
        shown.append(Card("False alarms", text, "in 1,000 normal rows", at_rate))
    return shown


def _counts(view: View) -> list[Card]:
    """Returns what can be said of rows without labels."""
    rows = view.predictions
    if rows is None or not len(rows.score):
        return []
    shown = [
        Card("Rows scored", f"{len(rows.score):,}", "", ""),
        Card("Clients", f"{len(rows.client_names):,}", "", ""),
    ]
    flags = rows.alarm if rows.alarm is not None else rows.detected
    if flags is not None:
        count = int(flags.sum())
        share = f"{percentage(count / len(flags))} of the rows"
        shown.append(Card("Alarms", f"{count:,}", share, ""))
    return shown


def metrics(view: View) -> Table | None:
    """Returns every metric with interval, random control and oracle.

    Args:
      view: what was read.
    """
    control = view.figures.control.get("random", {}) if view.figures else {}
    oracle = oracle_of(view)
    names = [name for name in METRICS if value_of(view, name) is not None]
    if not names:
        return None
    others = {
        "random scores": control if any(n in control for n in names) else None,
        "oracle": oracle or None,
    }
    with_interval = any(interval_of(view, name) for name in names)
    columns = ["metric", "value"]
    columns += ["95 % interval"] * with_interval
    columns += [title for title, values in others.items() if values]
    rows = []
    for name in names:
        title, meaning = METRICS[name]
        row = [title, metric(name, value_of(view, name))]
        row += [_interval(view, name) or DASH] * with_interval
        row += [metric(name, v.get(name)) for v in others.values() if v]
        rows.append((*row, meaning))
    return Table(
        f"Metrics of {_rows_measured(view)}",
        (*columns, "meaning"),
        tuple(rows),
        frozenset({0, len(columns)}),
    )


def confusion(view: View) -> Table | None:
    """Returns the counts of rows by answer and truth.

    Args:
      view: what was read.
    """
    counts = view.figures.confusion if view.figures else None
    if counts is None:
        return None
    rows = (
        ("attack", number(counts.true_positives), number(counts.false_negatives)),
        ("normal", number(counts.false_positives), number(counts.true_negatives)),
    )
    caption = "Rows at the threshold of the best validation F1"
    return Table(caption, ("rows", "reported", "not reported"), rows)


def clients(view: View) -> Table | None:
    """Returns one row a client, the lowest AUROC first, single-class ones last.

    Args:
      view: what was read.
    """
    everyone = view.figures.clients if view.figures else ()
    if not everyone:
        return None
    order = sorted(
        everyone, key=lambda c: (c.auroc is None, c.auroc or 0.0, -c.rows, c.client)
    )
    shown = order[:CLIENTS]
    left = len(order) - len(shown)
    caption = "Clients, the lowest AUROC first"
    if left:
        caption += f"; {left:,} more stand in figures.json"
    rows = tuple(
        (
            client.client,
            number(client.rows),
            number(client.positives),
            "one class only" if client.auroc is None else number(client.auroc),
            number(client.auprc),
            number(client.f1),
            _rate(client.achieved_far),
        )
        for client in shown
    )
    titles = ("client", "rows", "attacks", "AUROC", "AUPRC", "F1", "false alarms")
    return _without_empty(Table(caption, titles, rows))


def spread(view: View) -> Table | None:
    """Returns the spread of AUROC and AUPRC over clients.

    Args:
      view: what was read.
    """
    values = view.figures.client_spread if view.figures else {}
    if not values:
        return None
    rows = tuple(
        (
            METRICS.get(name, (name, ""))[0],
            *map(number, (s.mean, s.std, s.worst_decile, s.worst)),
            number(s.ranked),
            number(s.excluded),
        )
        for name, s in sorted(values.items(), key=lambda item: _rank(item[0]))
    )
    columns = (
        "over clients",
        "mean",
        "deviation",
        "worst tenth",
        "worst",
        "clients",
        "left out",
    )
    return Table(
        "Spread over clients; left out are those with one class", columns, rows
    )


def single_class(view: View) -> list[str]:
    """Returns the clients that hold one class and have no AUROC.

    Args:
      view: what was read.
    """
    everyone = view.figures.clients if view.figures else ()
    return [client.client for client in everyone if client.auroc is None]


def attacks(view: View) -> Table | None:
    """Returns one row for each type of attack.

    Args:
      view: what was read.
    """
    kinds = view.figures.attacks if view.figures else ()
    if not kinds:
        return None
    rows = tuple(
        (
            attack.attack,
            number(attack.rows),
            number(attack.recall),
            number(attack.auroc),
            number(attack.auprc),
            number(attack.episodes),
            number(attack.missed_episodes),
            metric("mean_delay", attack.mean_delay),
        )
        for attack in sorted(kinds, key=lambda a: (-a.rows, a.attack))
    )
    columns = (
        "attack",
        "rows",
        "recall",
        "AUROC",
        "AUPRC",
        "episodes",
        "missed",
        "mean delay",
    )
    caption = "Types of attack, each against all normal rows"
    return _without_empty(Table(caption, columns, rows))


def delays(view: View) -> Table | None:
    """Returns the delay at a few false-alarm rates.

    Args:
      view: what was read.
    """
    curve = view.figures.curves.delay if view.figures else None
    if curve is None:
        return None
    rows = []
    for rate in (0.001, 0.005, 0.01, 0.02, 0.05, 0.1):
        at = _last_below(curve.achieved_far, rate)
        if at is not None:
            rows.append(
                (
                    percentage(rate),
                    _rate(curve.achieved_far[at]),
                    metric("mean_delay", curve.mean_delay[at]),
                    metric("median_delay", _at(curve.median_delay, at)),
                    metric("missed_episodes", _at(curve.missed_episodes, at)),
                    number(_at(curve.false_alarms_per_entity_day or (), at), 1),
                )
            )
    if not rows:
        return None
    columns = (
        "rate allowed",
        "rate reached",
        "mean delay",
        "median delay",
        "missed episodes",
        "per device and day",
    )
    caption = "Delay in steps at the highest rate of false alarms that is allowed"
    return _without_empty(Table(caption, columns, tuple(rows)))


def alarm_counts(view: View) -> Table | None:
    """Returns alarms by client, for rows without labels.

    Args:
      view: what was read.
    """
    rows = view.predictions
    if rows is None or rows.label is not None:
        return None
    flags = rows.alarm if rows.alarm is not None else rows.detected
    if flags is None:
        return None
    lines = []
    for code, name in enumerate(rows.client_names):
        mine = rows.client == code
        count, total = int(flags[mine].sum()), int(mine.sum())
        lines.append((name, total, count, count / total, float(rows.score[mine].max())))
    lines.sort(key=lambda line: (-line[3], line[0]))
    texts = tuple(
        (name, number(total), number(count), percentage(share), number(highest))
        for name, total, count, share, highest in lines[:CLIENTS]
    )
    columns = ("client", "rows", "alarms", "share", "highest score")
    return Table("Alarms by client, the most first", columns, texts)


def features(view: View) -> Table | None:
    """Returns what weighed most in the rows that gave alarm.

    Args:
      view: what was read.
    """
    rows = view.predictions
    if rows is None or rows.top_features is None:
        return None
    flags = rows.alarm if rows.alarm is not None else rows.detected
    texts = rows.top_features if flags is None else rows.top_features[flags]
    weights: dict[str, list[float]] = defaultdict(list)
    for text in texts:
        for part in str(text).split(";"):
            found = WEIGHED.fullmatch(part.strip())
            if found:
                weights[clean(found["name"])].append(float(found["weight"]))
    if not weights:
        return None
    order = sorted(weights.items(), key=lambda item: (-len(item[1]), item[0]))
    lines = tuple(
        (
            name,
            number(len(values)),
            percentage(len(values) / len(texts)),
            f"{sum(values) / len(values):+.2f}",
        )
        for name, values in order[:FEATURES]
    )
    columns = ("feature", "alarms", "share of alarms", "mean weight")
    return Table(
        "Features among those that weighed most in an alarm; positive weights speak "
        "for an attack",
        columns,
        lines,
    )


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
            "passed" if check.passed else "FAILED",
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
    )[:FEATURES]
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
        lines += [("rows measured", figures.rows), ("attack rows", figures.positives)]
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


def _rank(name: str) -> tuple[int, str]:
    """Returns what sorts metrics as the first table does, unknown ones last."""
    known = list(METRICS)
    return (known.index(name) if name in known else len(known), name)


def _rows_measured(view: View) -> str:
    rows = view.figures.rows if view.figures else None
    prevalence = value_of(view, "prevalence")
    part = "test rows" if view.kind == "run" else "rows"
    text = part if rows is None else f"{rows:,} {part}"
    return text if prevalence is None else f"{text}, {percentage(prevalence)} attacks"


def _with_unit(name: str, value: float) -> str:
    text = metric(name, value)
    return f"{text} steps" if name == "mean_delay" else text


def _interval(view: View, name: str) -> str:
    interval = interval_of(view, name)
    if interval is None:
        return ""
    return f"{metric(name, interval[0])} to {metric(name, interval[1])}"


def _note(view: View, name: str) -> str:
    interval = _interval(view, name)
    return f"95 %: {interval}" if interval else ""


def _rate(value: Number) -> str:
    return DASH if value is None else percentage(value)


def _last_below(rates: Sequence[Number], limit: float) -> int | None:
    """Returns where the highest rate at or below a limit stands."""
    known = [(rate, i) for i, rate in enumerate(rates) if rate is not None]
    below = [pair for pair in known if pair[0] <= limit]
    return max(below)[1] if below else None


def _at(values: Sequence[Number], index: int) -> Number:
    return values[index] if index < len(values) else None


def _without_empty(table: Table) -> Table:
    """Drops columns without a single value."""
    keep = [
        i
        for i in range(len(table.columns))
        if any(row[i] != DASH for row in table.rows) or i in table.text_columns
    ]
    rows = tuple(tuple(row[i] for i in keep) for row in table.rows)
    places = frozenset(n for n, i in enumerate(keep) if i in table.text_columns)
    columns = tuple(table.columns[i] for i in keep)
    return table._replace(columns=columns, rows=rows, text_columns=places)


def _seconds(line: dict[str, Any]) -> float:
    keys = ("training_s", "evaluation_s", "checkpoint_s")
    return sum(v for k in keys if isinstance(v := line.get(k), int | float))


def _fact(value: Any) -> str:
    # The result keeps every number as a float, counts too.
    is_count = isinstance(value, float) and value.is_integer() and value > 1
    return number(int(value) if is_count else value)


def _is_simple(value: Any) -> bool:
    return isinstance(value, int | float | str)
