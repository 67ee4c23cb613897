"""Tables by client, by type of attack, by what was observed and by feature."""

import re
from collections import defaultdict

import numpy as np

from fedjax_health.report.clean import clean
from fedjax_health.report.nouns import ATTACKS, nouns_of
from fedjax_health.report.records import (
    View,
    single_class,
    tested_clients,
    unseen_clients,
)
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
    everyone = tested_clients(view)
    if not everyone:
        return None
    unseen = unseen_clients(view)
    nouns = nouns_of(view)
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
            _client_name(client.client, unseen),
            number(client.rows),
            number(client.positives),
            "one class only" if client.auroc is None else number(client.auroc),
            number(client.auprc),
            number(client.f1),
            rate(client.achieved_far),
        )
        for client in shown
    )
    titles = ("client", "rows", nouns.many, "AUROC", "AUPRC", "F1", "false alarms")
    marked = frozenset(i for i, one in enumerate(shown) if one.client in unseen)
    return without_empty(Table(caption, titles, rows, marked=marked))


def spread(view: View) -> Table | None:
    """Returns the spread of AUROC and AUPRC over clients.

    Args:
      view: what was read.
    """
    values = view.figures.client_spread if view.figures else {}
    if not values:
        return None
    # Clients without rows of this part have nothing that could be left out.
    lone = len(single_class(view)) if tested_clients(view) else None
    rows = tuple(
        (
            METRICS.get(name, (name, ""))[0],
            *map(number, (s.mean, s.std, s.worst_decile, s.worst)),
            number(s.ranked),
            number(s.excluded if lone is None else lone),
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
    table = Table(
        "Spread over clients; left out are those with one class", columns, rows
    )
    if all(s.worst_decile == s.worst for s in values.values()):
        # A tenth of fewer than 20 clients is one of them.
        table = table._replace(
            columns=(*columns[:3], *columns[4:]),
            rows=tuple((*row[:3], *row[4:]) for row in rows),
        )
    return table


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
    nouns = nouns_of(view)
    columns = (
        "attack" if nouns == ATTACKS else "kind",
        "rows",
        "recall",
        "AUROC",
        "AUPRC",
        "episodes",
        "missed",
        "mean delay",
    )
    caption = f"Types of attack, each against all {nouns.others}"
    if nouns != ATTACKS:
        caption = f"{nouns.many[:1].upper()}{nouns.many[1:]} against {nouns.others}"
    return without_empty(Table(caption, columns, rows))


def patterns(view: View) -> Table | None:
    """Returns one row for each pattern of modalities; None where there is one alone.

    Args:
      view: what was read.
    """
    found = view.figures.patterns if view.figures else ()
    if len(found) < 2:
        return None
    rows = tuple(
        (
            one.pattern,
            number(one.rows),
            number(one.positives),
            "one class only" if one.auroc is None else number(one.auroc),
            number(one.auprc),
            number(one.f1),
        )
        for one in found
    )
    columns = ("modalities", "rows", nouns_of(view).many, "AUROC", "AUPRC", "F1")
    return Table("Rows by the modalities that they have", columns, rows)


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
    unseen = unseen_clients(view)
    texts = tuple(
        (
            _client_name(names[i], unseen),
            number(int(totals[i])),
            number(int(alarms[i])),
            percentage(float(shares[i])),
            number(float(highest[i])),
        )
        for i in order[:CLIENTS]
    )
    columns = ("client", "rows", "alarms", "share", "highest score")
    first = order[:CLIENTS]
    marked = frozenset(n for n, i in enumerate(first) if names[i] in unseen)
    return Table("Alarms by client, the most first", columns, texts, marked=marked)


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
        f"for {nouns_of(view).row.removesuffix(' row')}",
        columns,
        lines,
    )


def _client_name(name: str, unseen: frozenset[str]) -> str:
    return f"{name} (not in training)" if name in unseen else name


def _rank(name: str) -> tuple[int, str]:
    """Returns what sorts metrics as the first table does, unknown ones last."""
    known = list(METRICS)
    return (known.index(name) if name in known else len(known), name)
