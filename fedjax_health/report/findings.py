"""What the figures mean in plain words, and what speaks against trusting them."""

from typing import NamedTuple

from fedjax_health.report.records import (
    View,
    interval_of,
    numbers_of,
    oracle_of,
    settings_of,
    value_of,
)
from fedjax_health.report.words import percentage


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
        found.append(Finding("The leak check failed", text or "See the table below."))
    asked = settings_of(view, "evaluation").get("false_alarm_rate")
    reached = value_of(view, "achieved_far")
    if isinstance(asked, float) and reached is not None and reached > 2 * asked:
        found.append(
            Finding(
                "More false alarms than asked for",
                f"The threshold was chosen for {percentage(asked)} of normal "
                f"validation rows; of these rows {percentage(reached)} reach it. "
                "Compare delays at the rate that was reached.",
            )
        )
    rows = view.figures.positives if view.figures else None
    if rows is not None and rows < 50:
        found.append(
            Finding(
                "Few attacks",
                f"{rows:,} attack rows were measured: small differences mean little.",
            )
        )
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
    return Finding(
        "Telling attacks from normal rows",
        "Of an attack row and a normal row drawn at random, the attack has the higher "
        f"score {100 * auroc:.1f} times in 100 (AUROC {auroc:.3f}"
        f"{_between(view, 'auroc')}). A random score: 50 times.",
    )


def _precision(view: View) -> Finding | None:
    auprc, prevalence = value_of(view, "auprc"), value_of(view, "prevalence")
    if auprc is None or prevalence is None:
        return None
    return Finding(
        "Against the share of attacks",
        f"{percentage(prevalence)} of the rows are attacks, so a random score has an "
        f"AUPRC of {prevalence:.3f}. This detector: {auprc:.3f}"
        f"{_between(view, 'auprc')}.",
    )


def _reported(view: View) -> Finding | None:
    threshold = value_of(view, "threshold")
    recall, precision = value_of(view, "recall"), value_of(view, "precision")
    f1 = value_of(view, "f1")
    if threshold is None or f1 is None:
        return None
    text = f"At the score {threshold:.3f}, where F1 is best on validation rows, "
    if recall is not None and precision is not None:
        text += (
            f"{percentage(recall)} of the attack rows are reported, and "
            f"{percentage(precision)} of the rows reported are attacks (F1 {f1:.3f})."
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
    where = f"From the score {threshold:.3f} on" if threshold else "At its threshold"
    text = f"{where}, {percentage(reached)} of normal rows give a false alarm"
    alarms = view.figures.false_alarms if view.figures else None
    per_day = alarms.per_entity_day if alarms else None
    if per_day is not None:
        text += f": {per_day:,.1f} steps of alarm per device and day."
    else:
        text += f": {1000 * reached:,.1f} in 1,000 normal rows."
    text += " For scale: 1 % of one-minute steps is 14 a day for each device."
    return Finding("The price in false alarms", text)


def _delay(view: View) -> Finding | None:
    mean, median = value_of(view, "mean_delay"), value_of(view, "median_delay")
    if mean is None:
        return None
    half = "" if median is None else f" (median {median:,.1f})"
    text = f"An attack is noticed {mean:,.1f} steps after its onset on average{half}"
    missed, episodes = value_of(view, "missed_episodes"), value_of(view, "episodes")
    if missed is not None:
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
    if spread is not None and spread.excluded:
        hold = "client holds" if spread.excluded == 1 else "clients hold"
        text += f" {spread.excluded:,} {hold} one class and can have none."
    return Finding("Client by client", text)


def _calibration(view: View) -> Finding | None:
    ece = value_of(view, "ece")
    if ece is None:
        return None
    # Off by half the share of attacks, a score near it says nothing.
    prevalence = value_of(view, "prevalence")
    limit = 0.03 if prevalence is None else min(0.03, prevalence / 2)
    advice = (
        "scores can be read as probabilities"
        if ece < limit
        else "read scores as an order, not as probabilities"
    )
    return Finding(
        "Scores as probabilities",
        f"Scores are off by {100 * ece:.1f} percentage points on average (ECE): "
        f"{advice}.",
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
    what = (
        "attack rows pass as normal"
        if found.target == 0
        else "normal rows are called attacks"
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
