"""What the figures mean in plain words, and what speaks against trusting them."""

from typing import Any, NamedTuple

import numpy as np

from fedjax_health.report.nouns import nouns_of
from fedjax_health.report.privacy import guarantees_of
from fedjax_health.report.records import (
    View,
    has_no_positives,
    interval_of,
    numbers_of,
    oracle_of,
    settings_of,
    single_class,
    value_of,
)
from fedjax_health.report.words import listing, percentage

# Scores off by more than this where they give alarm are no probabilities.
FAR_OFF = 0.1
# Of fewer rows a share says little.
LEAST_ROWS = 30
# Warnings that stand on the page; result.json has all.
WARNINGS = 8


class Finding(NamedTuple):
    """One thing that a reader should know.

    Attributes:
      about: a few words.
      text: a sentence or two.
    """

    about: str
    text: str


def plain_words(view: View) -> list[Finding]:
    """Says what the figures mean to somebody who has to act on alarms.

    Args:
      view: what was read.
    """
    findings = [_ranking(view), _precision(view), _reported(view), _false_alarms(view)]
    findings += [_delay(view), _clients(view), _calibration(view), _oracle(view)]
    findings.append(_backdoor(view))
    return [finding for finding in findings if finding is not None]


def cautions(view: View) -> list[Finding]:
    """Says what speaks against trusting the figures, the gravest first.

    Args:
      view: what was read.
    """
    found = []
    if view.leakcheck is not None and not view.leakcheck.passed:
        failed = [c.message or c.check for c in view.leakcheck.checks if not c.passed]
        text = " ".join(_sentence(message) for message in failed)
        found.append(Finding("The leak check warns", text or "See the table below."))
    found += _warnings(view)
    found += [one for one in (_too_many(view), _too_many_unlabelled(view)) if one]
    found += _unknown_to_training(view)
    few = view.figures.positives if view.figures else None
    if few == 0:
        nouns = nouns_of(view)
        text = (
            f"Among these {nouns.units} are no {nouns.rows}: false alarms alone were "
        )
        found.append(Finding(f"No {nouns.many}", f"{text}measured."))
    elif few is not None and few < 50:
        nouns = nouns_of(view)
        rows, were = (
            (f"1 {nouns.one}", "was") if few == 1 else (f"{few:,} {nouns.rows}", "were")
        )
        found.append(
            Finding(
                f"Few {nouns.many}",
                f"{rows} {were} measured: small differences mean little.",
            )
        )
    found += _privacy_cautions(view)
    found += _training_cautions(view)
    resumed = view.environment.get("resumed")
    for entry in resumed if isinstance(resumed, list) else []:
        if isinstance(entry, dict):
            changes = ", ".join(f"{key}: {value}" for key, value in entry.items())
            found.append(
                Finding(
                    "Resumed elsewhere",
                    "The run was interrupted and went on under other conditions "
                    f"({changes}): bits may differ from those of one go.",
                )
            )
    return found


def _warnings(view: View) -> list[Finding]:
    """Returns what was said while the data was read."""
    said = _texts(view.result.get("warnings"))
    found = [Finding("While the data was read", _sentence(s)) for s in said[:WARNINGS]]
    more = len(said) - len(found)
    if more:
        text = f"{more:,} more of these stand in result.json."
        found.append(Finding("While the data was read", text))
    return found


def _asked(view: View) -> float | None:
    """Returns the share of normal validation rows that was to give alarm."""
    told = view.result.get("false_alarm_rate")
    if isinstance(told, float):
        return told
    asked = settings_of(view, "evaluation").get("false_alarm_rate")
    return asked if isinstance(asked, float) else None


def _too_many(view: View) -> Finding | None:
    asked, reached = _asked(view), value_of(view, "achieved_far")
    if asked is None or reached is None or reached <= 2 * asked:
        return None
    others = nouns_of(view).others
    whose = "validation rows"
    if view.kind == "evaluation":
        whose += " of the training run"
    return Finding(
        "More false alarms than asked for",
        f"The threshold was chosen for {percentage(asked)} of the normal {whose}; of "
        f"the {others} here {percentage(reached)} reach it. Compare delays at the rate "
        "that was reached."
        + (
            " The data may differ from that of the training."
            if view.kind == "evaluation"
            else ""
        ),
    )


def _too_many_unlabelled(view: View) -> Finding | None:
    rows, asked = view.predictions, _asked(view)
    if view.kind != "evaluation" or asked is None or rows is None:
        return None
    if rows.label is not None or rows.alarm is None or not len(rows.alarm):
        return None
    share = float(rows.alarm.mean())
    if share <= 5 * asked:
        return None
    return Finding(
        "Many alarms",
        f"{percentage(share)} of the rows give alarm; the threshold was chosen for "
        f"{percentage(asked)} of the normal validation rows of the training run. "
        "Either much of this is under attack, or the data differs from that of the "
        "training.",
    )


def _unknown_to_training(view: View) -> list[Finding]:
    """Returns what an evaluation lacks of the training, and what is new in it."""
    if view.kind != "evaluation":
        return []
    found = []
    modalities = _texts(view.result.get("absent_modalities"))
    columns = _texts(view.result.get("absent_columns"))
    kinds = [("modality", "modalities", modalities), ("column", "columns", columns)]
    named = [
        f"{one if len(names) == 1 else many} {listing(names)}"
        for one, many, names in kinds
        if names
    ]
    if named:
        text = f"{' and '.join(named)}: training had values there, here there are none."
        text = f"{text[:1].upper()}{text[1:]} They count as not observed."
        found.append(Finding("Not in the data", text))
    unseen = view.result.get("unseen_categories")
    for column, counts in unseen.items() if isinstance(unseen, dict) else ():
        if isinstance(counts, dict) and counts:
            listed = listing([f"{name} ({_rows(n)})" for name, n in counts.items()])
            text = f"{column}: {listed}. They count as none of those that are known."
            found.append(Finding("Categories that training never saw", text))
    names = _texts(view.result.get("unseen_clients"))
    if names:
        held = _rows_of_clients(view)
        listed = listing([f"{n} ({_rows(held[n])})" if n in held else n for n in names])
        text = (
            f"{listed}. Their values are scaled by averages over the clients of the "
            "training, and no part of the model was trained on them."
        )
        found.append(Finding("Clients that training never saw", text))
    return found


def _rows(count: Any) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"


def _texts(value: Any) -> list[str]:
    return [str(text) for text in value] if isinstance(value, list) else []


def _rows_of_clients(view: View) -> dict[str, int]:
    rows = view.predictions
    if rows is None:
        return {}
    counts = np.bincount(rows.client, minlength=len(rows.client_names))
    return dict(zip(rows.client_names, map(int, counts), strict=True))


def _privacy_cautions(view: View) -> list[Finding]:
    found = []
    for told in guarantees_of(view):
        noise = str(told.get("noise", ""))
        if "simulation-grade" in noise:
            found.append(Finding("Simulation-grade noise", _sentence(noise)))
        for text in _texts(told.get("warnings")):
            found.append(Finding("Privacy", _sentence(text)))
    return found


def _training_cautions(view: View) -> list[Finding]:
    found = []
    rounds, masked = numbers_of(view, "non_finite")
    if masked.sum():
        found.append(
            Finding(
                "Updates left out",
                f"Updates of clients that were not finite were masked: "
                f"{masked.sum():,.0f} in {(masked > 0).sum():,} of {len(rounds):,} "
                "rounds.",
            )
        )
    at, _ = numbers_of(view, "validation_auroc")
    best = view.result.get("best_round")
    if len(at) > 2 and isinstance(best, int) and best == at[-1]:
        found.append(
            Finding(
                "Perhaps not trained to the end",
                f"The best model is that of the last round, {best:,}: more rounds may "
                "make it better.",
            )
        )
    return found


def _ranking(view: View) -> Finding | None:
    auroc = value_of(view, "auroc")
    if auroc is None:
        return None
    nouns = nouns_of(view)
    return Finding(
        f"Telling {nouns.many} from {nouns.others}",
        f"Of {nouns.row} and {nouns.other} drawn at random, the {nouns.one} has the "
        f"higher score {100 * auroc:.1f} times in 100 (AUROC {auroc:.3f}"
        f"{_between(view, 'auroc')}). A random score: 50 times.",
    )


def _precision(view: View) -> Finding | None:
    auprc, prevalence = value_of(view, "auprc"), value_of(view, "prevalence")
    if auprc is None or prevalence is None:
        return None
    nouns = nouns_of(view)
    return Finding(
        f"Against the share of {nouns.many}",
        f"{percentage(prevalence)} of the {nouns.units} {nouns.are}, so a random score "
        f"has an AUPRC of {prevalence:.3f}. This detector: {auprc:.3f}"
        f"{_between(view, 'auprc')}.",
    )


def _reported(view: View) -> Finding | None:
    threshold = value_of(view, "threshold")
    recall, precision = value_of(view, "recall"), value_of(view, "precision")
    f1 = value_of(view, "f1")
    if threshold is None or f1 is None or has_no_positives(view):
        return None
    text = f"At the score {threshold:.3f}, where F1 is best on validation rows, "
    if recall is not None and precision is not None:
        nouns = nouns_of(view)
        text += (
            f"{percentage(recall)} of the {nouns.rows} are reported, and "
            f"{percentage(precision)} of the {nouns.units} reported {nouns.are} "
            f"(F1 {f1:.3f})."
        )
    else:
        text += f"F1 is {f1:.3f}."
    return Finding("At one threshold", text)


def _false_alarms(view: View) -> Finding | None:
    reached, threshold = (
        value_of(view, n) for n in ("achieved_far", "delay_threshold")
    )
    if reached is None:
        return None
    others = nouns_of(view).others
    where = f"From the score {threshold:.3f} on" if threshold else "At its threshold"
    text = f"{where}, {percentage(reached)} of {others} give a false alarm"
    alarms = view.figures.false_alarms if view.figures else None
    per_day = alarms.per_entity_day if alarms else None
    if per_day is not None:
        text += f": {per_day:,.1f} steps of alarm per device and day."
    else:
        text += f": {1000 * reached:,.1f} in 1,000 {others}."
    text += " For scale: 1 % of one-minute steps is 14 a day for each device."
    return Finding("The price in false alarms", text)


def _delay(view: View) -> Finding | None:
    mean, median = value_of(view, "mean_delay"), value_of(view, "median_delay")
    if mean is None:
        return None
    half = "" if median is None else f" (median {median:,.1f})"
    row = nouns_of(view).row.removesuffix(" row")
    text = f"{row[:1].upper()}{row[1:]} is noticed {mean:,.1f} steps after its onset "
    text += f"on average{half}"
    missed, episodes = value_of(view, "missed_episodes"), value_of(view, "episodes")
    if missed is not None and episodes == 1:
        text += f"; the only episode is {'missed' if missed else 'not missed'}"
    elif missed is not None:
        of = f" of {episodes:,.0f}" if episodes is not None else ""
        text += f"; {missed:,.0f}{of} episodes are missed and count with full length"
    random = view.figures.control.get("random", {}) if view.figures else {}
    if random.get("mean_delay") is not None:
        text += f". Random scores at the same rate: {random['mean_delay']:,.1f} steps"
    return Finding("How soon", f"{text}.")


def _clients(view: View) -> Finding | None:
    spread = view.figures.client_spread.get("auroc") if view.figures else None
    mean = spread.mean if spread else value_of(view, "mean_client_auroc")
    worst = spread.worst if spread else value_of(view, "worst_client_auroc")
    ranked = spread.ranked if spread else None
    if mean is None or worst is None or ranked == 1:
        return None
    text = f"AUROC is {mean:.3f} on average over clients and {worst:.3f} at the worst."
    lone = len(single_class(view))
    if lone:
        hold = "client holds" if lone == 1 else "clients hold"
        text += f" {lone:,} {hold} one class and can have none."
    return Finding("Client by client", text)


def _calibration(view: View) -> Finding | None:
    ece = value_of(view, "ece")
    if ece is None:
        return None
    # Off by half the share of attacks, a score near it says nothing.
    prevalence = value_of(view, "prevalence")
    limit = 0.03 if prevalence is None else min(0.03, prevalence / 2)
    text = f"Scores are off by {100 * ece:.1f} percentage points on average (ECE)"
    advice = "read scores as an order, not as probabilities"
    alarmed = _where_alarms_are(view)
    if alarmed is not None and alarmed.off > FAR_OFF:
        nouns = nouns_of(view)
        text += (
            f", but by {100 * alarmed.off:.0f} where they are high enough for an alarm "
            f"(mean score {alarmed.score:.2f}, while {percentage(alarmed.share)} "
            f"{nouns.are})"
        )
    elif ece < limit:
        advice = "scores can be read as probabilities"
    return Finding("Scores as probabilities", f"{text}: {advice}.")


class _Alarmed(NamedTuple):
    """Calibration among the rows of the highest scores.

    Attributes:
      score: mean.
      share: of attacks.
    """

    score: float
    share: float

    @property
    def off(self) -> float:
        """How far the one is from the other."""
        return abs(self.score - self.share)


def _where_alarms_are(view: View) -> _Alarmed | None:
    """Looks at the bins at or above the threshold, or else at the highest one.

    Where attacks are rare, the mean over all bins is one over easy normal rows.
    """
    curve = view.figures.curves.calibration if view.figures else None
    names = ("threshold", "delay_threshold")
    known = [v for v in (value_of(view, name) for name in names) if v is not None]
    if curve is None or not curve.predicted or not known:
        return None
    score, share, rows = (
        np.array([np.nan if v is None else v for v in values], float)
        for values in (curve.predicted, curve.observed, curve.rows)
    )
    chosen = score >= min(known)
    if not chosen.any():
        chosen = score == np.nanmax(score)
    chosen &= np.isfinite(score) & np.isfinite(share) & (rows > 0)
    if rows[chosen].sum() < LEAST_ROWS:
        return None
    weight = rows[chosen] / rows[chosen].sum()
    return _Alarmed(
        score=float(weight @ score[chosen]),
        share=float(weight @ share[chosen]),
    )


def _oracle(view: View) -> Finding | None:
    oracle = oracle_of(view)
    best, ours = oracle.get("auroc"), value_of(view, "auroc")
    if best is None or ours is None:
        return None
    distance = best - ours
    side = "below" if distance >= 0 else "above"
    return Finding(
        "Against what can be known",
        f"An observer that knows how the data was generated reaches an AUROC of "
        f"{best:.3f}: the detector is {abs(distance):.3f} {side} it.",
    )


def _backdoor(view: View) -> Finding | None:
    found = view.figures.backdoor if view.figures else None
    if found is None or found.attack_success is None or found.without_trigger is None:
        return None
    nouns = nouns_of(view)
    what = (
        f"{nouns.rows} pass as normal"
        if found.target == 0
        else f"{nouns.others} are called {nouns.many}"
    )
    return Finding(
        "With the backdoor's trigger",
        f"{percentage(found.attack_success)} of the {what} once they carry the trigger "
        f"that malicious clients trained on; {percentage(found.without_trigger)} do "
        "without it.",
    )


def _between(view: View, name: str) -> str:
    interval = interval_of(view, name)
    if interval is None:
        return ""
    return f", 95 % interval {interval[0]:.3f} to {interval[1]:.3f}"


def _sentence(text: str) -> str:
    text = text.strip()
    return text if text.endswith((".", "!", "?")) else f"{text}."
