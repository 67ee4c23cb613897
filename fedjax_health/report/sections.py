"""What stands in a report and in which order, and why a part of it is left out."""

from collections.abc import Callable, Collection
from typing import NamedTuple

from fedjax_health.report import findings, tables, wire
from fedjax_health.report.findings import Finding
from fedjax_health.report.nouns import ATTACKS, nouns_of
from fedjax_health.report.privacy import is_told, paragraphs
from fedjax_health.report.records import (
    View,
    numbers_of,
    settings_of,
    single_class,
    value_of,
)
from fedjax_health.report.tables import Table
from fedjax_health.report.words import listing


class Drawing(NamedTuple):
    """A figure's place in the text.

    Attributes:
      name: of the figure, a key of ``plots.FIGURES``.
      caption: how to read it; a screen reader says it in place of the figure.
    """

    name: str
    caption: str


class Section(NamedTuple):
    """A part of the report.

    Attributes:
      id: its anchor.
      title: its heading.
      text: paragraphs that come first.
      findings: points, each with a few words of title.
      drawings: figures.
      tables: tables, after the figures.
      code: text shown as it is.
    """

    id: str
    title: str
    text: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    drawings: tuple[Drawing, ...] = ()
    tables: tuple[Table, ...] = ()
    code: str = ""


class Absent(NamedTuple):
    """A part that is left out.

    Attributes:
      title: its heading.
      reason: a sentence.
    """

    title: str
    reason: str


NO_FIGURES = "figures.json is not in the folder: it was made by an earlier version."
NO_TIME = "rows do not follow each other in time, so alarms have no delay."


def sections(
    view: View, figures: Collection[str]
) -> tuple[list[Section], list[Absent]]:
    """Returns the parts of a report, and those that it lacks.

    Args:
      view: what was read.
      figures: names of the figures that were drawn.
    """
    # A part that is nothing out of the ordinary to lack is None.
    parts = [build(view, frozenset(figures)) for build in _ORDER]
    there = [part for part in parts if isinstance(part, Section)]
    return there, [part for part in parts if isinstance(part, Absent)]


Builder = Callable[[View, frozenset[str]], Section | Absent | None]


def _meaning(view: View, _: frozenset[str]) -> Section | Absent:
    found = findings.plain_words(view)
    if not found:
        return Absent("In plain words", _no_labels(view))
    return Section("meaning", "In plain words", findings=tuple(found))


def _metrics(view: View, _: frozenset[str]) -> Section | Absent:
    table = tables.metrics(view)
    if table is None:
        return Absent("Metrics", _no_labels(view))
    if view.kind == "run":
        text = [
            "Thresholds were chosen on validation rows; every figure was measured on "
            "test rows that neither training nor thresholds have seen."
        ]
    else:
        text = ["Thresholds are those of the training run."]
    figures = view.figures
    if figures is not None and figures.intervals:
        count = f"{figures.resamples:,} " if figures.resamples else ""
        unit = figures.interval_unit or "rows"
        text.append(
            f"Intervals hold 95 % of {count}resamples of {unit}: how far the figures "
            "would move with other rows of the same kind, not with another training."
            + (
                f" {figures.resamples_left_out:,} of them held one class and were left "
                "out."
                if figures.resamples_left_out
                else ""
            )
        )
    if figures is not None and "random" in figures.control:
        text.append(
            "Random scores went through the same code at the same rate of false "
            "alarms: a detector has to beat them to have learnt anything."
        )
    found = (table, tables.confusion(view), tables.backdoor(view))
    shown = tuple(one for one in found if one is not None)
    return Section("metrics", "Metrics", tuple(text), tables=shown)


def _training(view: View, figures: frozenset[str]) -> Section | Absent:
    title = "Training"
    if "training" not in figures:
        what = "an evaluation trains nothing." if view.kind == "evaluation" else ""
        return Absent(title, what or "metrics.jsonl holds no round.")
    text = _chosen_model(view)
    caption = "Loss on the clients' training examples, and ranking of validation rows"
    drawing = Drawing("training", f"{caption}, by round.")
    return Section("training", title, (text,), drawings=(drawing,))


def _privacy(view: View, figures: frozenset[str]) -> Section | None:
    if not is_told(view):
        return None
    captions = {
        "epsilon": "Epsilon of all rounds so far, aborted ones included; it never "
        "falls.",
        "traffic": "Bytes by round, and those of all rounds so far.",
        "messages": "Share of messages that were clipped to the bound, share of "
        "numbers that were cut at the largest of their integers, and rounds without "
        "enough messages for a sum.",
    }
    found = (
        *tables.guarantees(view),
        tables.communication(view),
        tables.secure_sums(view),
    )
    return Section(
        "privacy",
        "Privacy and communication",
        paragraphs(view),
        drawings=_drawings(captions, figures),
        tables=tuple(table for table in found if table is not None),
    )


def _wire(view: View, _: frozenset[str]) -> Section | None:
    table = tables.borders(view)
    if table is None:
        return None
    found = (table, tables.read_back(view))
    return Section(
        "wire",
        "What crosses the cut",
        wire.paragraphs(view),
        findings=wire.answers(view),
        tables=tuple(one for one in found if one is not None),
    )


def _chosen_model(view: View) -> str:
    """Says which model is measured, and among how many it was chosen."""
    tried = len(numbers_of(view, "validation_auroc")[0])
    best = view.result.get("best_round")
    of_round = f" of round {best:,}" if isinstance(best, int) else ""
    what = f"The model that is measured is that{of_round}"
    if settings_of(view, "evaluation").get("average"):
        what = (
            "What is measured is the running average of the global model over the "
            f"rounds, as it was after round {best:,}"
            if of_round
            else "What is measured is the running average of the global model"
        )
    if tried > 1:
        return f"{what}, the best on validation rows of {tried:,} that were compared."
    return f"{what}; no other was compared on validation rows."


def _ranking(view: View, figures: frozenset[str]) -> Section | Absent:
    nouns = nouns_of(view)
    captions = {
        "roc": "Recall against the false-alarm rate, threshold by threshold. A curve "
        "in the upper left corner is best; random scores follow the diagonal.",
        "pr": "Precision against recall. Random scores stay on the dashed line, the "
        f"share of {nouns.many}; so compare it between data of equal shares only.",
        "scores": "Distribution of scores. What overlaps cannot be told apart by any "
        "threshold.",
    }
    if view.predictions is not None and view.predictions.label is None:
        captions["scores"] = "Distribution of scores, and where they give alarm."
    drawings = _drawings(captions, figures)
    if not drawings:
        return Absent("Ranking of rows", _no_labels(view))
    title = "Scores" if list(captions)[-1:] == [d.name for d in drawings] else None
    return Section("ranking", title or "Ranking of rows", drawings=drawings)


def _calibration(view: View, figures: frozenset[str]) -> Section | Absent:
    if "calibration" not in figures:
        return Absent("Calibration", _no_labels(view))
    nouns = nouns_of(view)
    caption = (
        f"Share of {nouns.many} among {nouns.units} of like score; below, how many a "
        f"bin has. Points under the diagonal: scores are higher than {nouns.many} are "
        "frequent."
    )
    return Section(
        "calibration", "Calibration", drawings=(Drawing("calibration", caption),)
    )


def _clients(view: View, figures: frozenset[str]) -> Section | Absent:
    counted = tables.alarm_counts(view)
    table = tables.clients(view)
    if table is None and counted is None:
        return Absent("Clients", _no_labels(view))
    text = []
    lone = single_class(view)
    if lone:
        plural = "clients hold" if len(lone) > 1 else "client holds"
        text.append(
            f"{len(lone):,} {plural} rows of one class only and cannot be ranked: "
            f"{listing(lone)}."
        )
    captions = {"clients": "AUROC and AUPRC at each client, the lowest first."}
    found = (tables.spread(view), table, counted)
    return Section(
        "clients",
        "Clients",
        tuple(text),
        drawings=_drawings(captions, figures),
        tables=tuple(t for t in found if t is not None),
    )


def _attacks(view: View, figures: frozenset[str]) -> Section | Absent:
    table = tables.attacks(view)
    if table is None:
        reason = "the data names no types." if view.figures else _no_labels(view)
        return Absent("Types of attack", reason)
    nouns = nouns_of(view)
    title, rows = "Types of attack", "each type's rows"
    if nouns != ATTACKS:
        # One kind, which the data does not call an attack.
        title = f"{nouns.many[:1].upper()}{nouns.many[1:]}"
        rows = f"the {nouns.rows}"
    captions = {
        "attacks": f"Share of {rows} that is reported, and how well they are ranked "
        f"above all {nouns.others}; rows in brackets."
    }
    drawings = _drawings(captions, figures)
    return Section("attacks", title, drawings=drawings, tables=(table,))


def _patterns(view: View, _: frozenset[str]) -> Section | None:
    table = tables.patterns(view)
    if table is None:
        return None
    text = (
        "A modality is there where any of its values was observed, in the record or in "
        "the window up to the row. Rows of different patterns are of different "
        "patients and times: what lies between two lines is not only the modality."
    )
    return Section("patterns", "What was observed", (text,), tables=(table,))


def _delay(view: View, figures: frozenset[str]) -> Section | Absent:
    if "delay" not in figures:
        reason = NO_TIME if view.figures else _no_labels(view)
        return Absent("Delay of alarms", reason)
    text = (
        "A lower threshold shortens every delay and costs false alarms, so delays can "
        "be compared at one rate only. An episode without an alarm counts with its "
        "full length."
    )
    captions = {"delay": "Delay against the rate of false alarms on these rows."}
    table = tables.delays(view)
    return Section(
        "delay",
        "Delay of alarms",
        (text,),
        drawings=_drawings(captions, figures),
        tables=() if table is None else (table,),
    )


def _alarms(view: View, figures: frozenset[str]) -> Section | Absent:
    if "alarms" not in figures:
        absent = "there are no scores in the folder."
        return Absent(
            "Alarms over time", absent if view.predictions is None else NO_TIME
        )
    text = "The streams with the most alarms and the highest scores, and a calm one."
    caption = (
        "Scores of single streams and the threshold; ticks below a score are alarms."
    )
    if view.predictions is not None and view.predictions.label is not None:
        text = (
            "Chosen by rule, not by hand: first what went wrong, then what is usual, "
            "each stream once."
        )
        caption = (
            f"Scores of single streams with {nouns_of(view).many}, threshold and "
            "alarms; ticks below a score are alarms, the lower row false ones."
        )
    return Section(
        "alarms", "Alarms over time", (text,), drawings=(Drawing("alarms", caption),)
    )


def _modalities(view: View, figures: frozenset[str]) -> Section | Absent:
    table = tables.features(view)
    if "modalities" not in figures and table is None:
        return Absent("Modalities", "the model has one modality, or tells no shares.")
    nouns = nouns_of(view)
    over = f"{nouns.others} and over each type of {nouns.one}"
    if nouns != ATTACKS:
        over = f"{nouns.others} and over {nouns.rows}"
    if view.predictions is not None and view.predictions.label is None:
        over = "all rows"
    captions = {
        "modalities": "How much each modality weighs in the score, on average over "
        f"{over}; rows in brackets."
    }
    return Section(
        "modalities",
        "Modalities",
        drawings=_drawings(captions, figures),
        tables=() if table is None else (table,),
    )


def _leakcheck(view: View, _: frozenset[str]) -> Section | Absent:
    if view.kind == "evaluation":
        reason = "it looks at data that is trained on; see the report of the run."
        return Absent("Leak check", reason)
    if view.leakcheck is None:
        return Absent("Leak check", "it was not run, or switched off.")
    verdict = "passed" if view.leakcheck.passed else "warns"
    text = (
        f"The check {verdict}. It looks for what gives the label away without being "
        "its cause: single columns, rows that stand in two parts, identifiers and "
        "times."
    )
    found = (tables.leak_checks(view), tables.leak_columns(view))
    return Section(
        "leakcheck", "Leak check", (text,), tables=tuple(t for t in found if t)
    )


def _configuration(view: View, _: frozenset[str]) -> Section | Absent:
    if not view.config_text.strip():
        return Absent("Configuration", "config.toml is not in the folder.")
    text = (
        "Every setting of the run, defaults included: fedjax-health run --config "
        "config.toml repeats it."
    )
    if view.kind == "evaluation":
        text = "Every setting of the run that trained the detector."
    return Section(
        "configuration", "Configuration", (text,), code=view.config_text.strip()
    )


def _versions(view: View, _: frozenset[str]) -> Section:
    found = (tables.facts(view), tables.environment(view))
    shown = tuple(table for table in found if table is not None and table.rows)
    return Section("versions", "Facts and versions", tables=shown)


_ORDER: tuple[Builder, ...] = (
    _meaning,
    _metrics,
    _training,
    _privacy,
    _wire,
    _ranking,
    _calibration,
    _clients,
    _attacks,
    _patterns,
    _delay,
    _alarms,
    _modalities,
    _leakcheck,
    _configuration,
    _versions,
)


def _drawings(captions: dict[str, str], figures: frozenset[str]) -> tuple[Drawing, ...]:
    return tuple(Drawing(n, text) for n, text in captions.items() if n in figures)


def _no_labels(view: View) -> str:
    if view.figures is None and value_of(view, "auroc") is not None:
        return NO_FIGURES
    if view.predictions is not None and view.predictions.label is None:
        return "the rows have no labels."
    return NO_FIGURES if view.figures is None else "there is nothing to measure it by."
