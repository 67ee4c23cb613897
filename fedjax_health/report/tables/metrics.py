"""Headline numbers, every metric, and delays by false-alarm rate."""

from collections.abc import Sequence

from fedjax_health.report.figures import Number
from fedjax_health.report.nouns import nouns_of
from fedjax_health.report.records import (
    View,
    has_no_positives,
    interval_of,
    oracle_of,
    value_of,
)
from fedjax_health.report.tables.form import (
    Card,
    Table,
    interval_text,
    rate,
    without_empty,
)
from fedjax_health.report.words import DASH, metric, number, percentage

# What stands in braces is said in the words of the data; see ``Nouns``.
METRICS = {
    "auroc": ("AUROC", "chance that {row} outranks {other}"),
    "auprc": ("AUPRC", "precision over all recalls; the share of {many} if random"),
    "f1": ("F1", "at the threshold of the best validation F1"),
    "accuracy": ("Accuracy", "at that threshold; means little where {many} are rare"),
    "mcc": ("MCC", "correlation of answer and truth at that threshold"),
    "ece": ("ECE", "mean distance of score and share of {many}; 0 is best{lopsided}"),
    "brier": ("Brier score", "mean squared error of the score; 0 is best"),
    "achieved_far": ("False-alarm rate", "{others} at or above the alarm threshold"),
    "mean_delay": ("Mean delay (steps)", "onset to alarm; missed: the full length"),
    "median_delay": (
        "Median delay (steps)",
        "half of the episodes are noticed by it",
    ),
    "missed_episodes": ("Missed episodes", "attack episodes without an alarm"),
}

# What is 0 without a positive row, whatever the detector does.
_OF_POSITIVES = frozenset({"f1", "mcc", "missed_episodes"})

# Resamples add noise to a sum of absolute values: none of them is as even as the rows.
LOPSIDED = "; chance only adds to it, so its interval reaches mostly upwards"


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
        # Without a positive row they are 0 whatever the detector does.
        and not (name == "f1" and has_no_positives(view))
    ]
    if not shown:
        shown = _counts(view)
    missed, episodes = value_of(view, "missed_episodes"), value_of(view, "episodes")
    if missed is not None and episodes != 0:
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
        per = f"in 1,000 {nouns_of(view).others}"
        shown.append(Card("False alarms", text, per, at_rate))
    return shown


def metrics(view: View) -> Table | None:
    """Returns every metric with interval, random control and oracle.

    Args:
      view: what was read.
    """
    control = view.figures.control.get("random", {}) if view.figures else {}
    oracle = oracle_of(view)
    needless = _OF_POSITIVES if has_no_positives(view) else frozenset()
    names = [
        name
        for name in METRICS
        if value_of(view, name) is not None and name not in needless
    ]
    if not names:
        return None
    others = {
        "random scores": control if any(n in control for n in names) else None,
        "oracle": oracle or None,
    }
    nouns = nouns_of(view)
    with_interval = any(interval_of(view, name) for name in names)
    columns = ["metric", "value"]
    columns += ["95 % interval"] * with_interval
    columns += [title for title, values in others.items() if values]
    rows = []
    for name in names:
        title, meaning = METRICS[name]
        lopsided = LOPSIDED if interval_of(view, name) else ""
        meaning = meaning.format(**nouns._asdict(), lopsided=lopsided)
        row = [title, metric(name, value_of(view, name))]
        row += [interval_text(view, name) or DASH] * with_interval
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
    nouns = nouns_of(view)
    rows = (
        (nouns.rows, number(counts.true_positives), number(counts.false_negatives)),
        (nouns.others, number(counts.false_positives), number(counts.true_negatives)),
    )
    caption = "At the threshold of the best validation F1"
    return Table(caption, ("", "reported", "not reported"), rows)


def backdoor(view: View) -> Table | None:
    """Returns how often the trigger of a backdoor works.

    Args:
      view: what was read.
    """
    found = view.figures.backdoor if view.figures else None
    if found is None:
        return None
    nouns = nouns_of(view)
    wrong, called = nouns.rows, "normal"
    if found.target != 0:
        wrong, called = nouns.others, nouns.one
    caption = (
        f"Backdoor: share of the {wrong} called {called}, which is what the "
        "trigger was planted for"
    )
    rows = (
        ("with the whole trigger (attack success rate)", rate(found.attack_success)),
        ("the same rows as they are", rate(found.without_trigger)),
    )
    return Table(caption, ("rows", f"called {called}"), rows)


def delays(view: View) -> Table | None:
    """Returns the delay at a few false-alarm rates.

    Args:
      view: what was read.
    """
    curve = view.figures.curves.delay if view.figures else None
    if curve is None:
        return None
    rows = []
    for limit in (0.001, 0.005, 0.01, 0.02, 0.05, 0.1):
        at = _last_below(curve.achieved_far, limit)
        if at is not None:
            rows.append(
                (
                    percentage(limit),
                    rate(curve.achieved_far[at]),
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
    return without_empty(Table(caption, columns, tuple(rows)))


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


def _rows_measured(view: View) -> str:
    rows = view.figures.rows if view.figures else None
    prevalence = value_of(view, "prevalence")
    nouns = nouns_of(view)
    part = f"test {nouns.units}" if view.kind == "run" else nouns.units
    text = part if rows is None else f"{rows:,} {part}"
    if prevalence is None:
        return text
    return f"{text}, {percentage(prevalence)} {nouns.many}"


def _with_unit(name: str, value: float) -> str:
    text = metric(name, value)
    return f"{text} steps" if name == "mean_delay" else text


def _note(view: View, name: str) -> str:
    interval = interval_text(view, name)
    return f"95 %: {interval}" if interval else ""


def _last_below(rates: Sequence[Number], limit: float) -> int | None:
    """Returns where the highest rate at or below a limit stands."""
    known = [(rate, i) for i, rate in enumerate(rates) if rate is not None]
    below = [pair for pair in known if pair[0] <= limit]
    return max(below)[1] if below else None


def _at(values: Sequence[Number], index: int) -> Number:
    return values[index] if index < len(values) else None
