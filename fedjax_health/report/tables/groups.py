"""Tables by client, by type of attack and by feature."""

import re
from collections import defaultdict

import numpy as np

from fedjax_health.report.clean import clean
from fedjax_health.report.records import View
from fedjax_health.report.tables.form import Table, rate, without_empty
from fedjax_health.report.tables.metrics import METRICS
from fedjax_health.report.words import metric, number, percentage

# A page with every client of a large population is read by nobody.
CLIENTS = 60

FEATURES = 20

# Such as "flow.Load +1.52".
WEIGHED = re.compile(r"(?P<name>.+) (?P<weight>[+-]\d+(?:\.\d+)?)")


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
            rate(client.achieved_far),
        )
        for client in shown
    )
    titles = ("client", "rows", "attacks", "AUROC", "AUPRC", "F1", "false alarms")
    return without_empty(Table(caption, titles, rows))


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
    return without_empty(Table(caption, columns, rows))


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
    names = rows.client_names
    totals = np.bincount(rows.client, minlength=len(names))
    alarms = np.bincount(rows.client[flags], minlength=len(names))
    highest = np.full(len(names), -np.inf)
    np.fmax.at(highest, rows.client, rows.score)
    shares = alarms / totals
    order = sorted(range(len(names)), key=lambda i: (-shares[i], names[i]))
    texts = tuple(
        (
            names[i],
            number(int(totals[i])),
            number(int(alarms[i])),
            percentage(float(shares[i])),
            number(float(highest[i])),
        )
        for i in order[:CLIENTS]
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


def _rank(name: str) -> tuple[int, str]:
    """Returns what sorts metrics as the first table does, unknown ones last."""
    known = list(METRICS)
    return (known.index(name) if name in known else len(known), name)
