"""What stands in the report of a sweep, and in which order."""

import math
from collections.abc import Collection, Sequence

import pandas as pd

from fedjax_health.report.findings import Finding
from fedjax_health.report.plots.sweep import metric_name
from fedjax_health.report.sections import Absent, Drawing, Section
from fedjax_health.report.sweep import summary, tables
from fedjax_health.report.sweep.read import SweepView, clean_value
from fedjax_health.report.tables.form import Card
from fedjax_health.report.words import listing, number


def lead(view: SweepView) -> str:
    """Says what was compared.

    Args:
      view: what was read.
    """
    parts = [
        f"{len(view.results[axis.name].cat.categories)} values of {axis.name}"
        for axis in view.settings.axes
    ]
    return (
        f"{len(view.results):,} cells: {listing(parts)}. Compared by "
        f"{metric_name(view)} on the test part; thresholds and settings come from the "
        "validation part."
    )


def cards(view: SweepView, found: Sequence[summary.Verdict]) -> list[Card]:
    """Returns one headline a circumstance.

    Args:
      view: what was read.
      found: from ``summary.verdicts``.
    """
    where = " · ".join(view.roles.columns)
    return [
        Card(
            f"{where} {verdict.column}".strip(),
            verdict.best.row,
            f"{metric_name(view)} {number(verdict.best.final.value)} at worst"
            + (f", under {verdict.best.worst}" if verdict.best.worst else ""),
            "does not hold" if verdict.holds is False else "",
        )
        for verdict in found
        if verdict.best is not None
    ][:8]


def cautions(view: SweepView, found: Sequence[summary.Verdict]) -> list[Finding]:
    """Says what speaks against trusting the comparison.

    Args:
      view: what was read.
      found: from ``summary.verdicts``.
    """
    said = []
    open_doors = [v.column for v in found if v.holds is False]
    if open_doors:
        said.append(
            Finding(
                "The choice does not hold",
                f"At {listing(open_doors)} the chosen candidate loses more than "
                f"{view.settings.report.tolerance:g} against its own clean run under "
                "its worst attack.",
            )
        )
    short = [v.column for v in found if v.best is not None and v.best.missing]
    if short:
        said.append(
            Finding(
                "The choice is not measured in full",
                f"At {listing(short)} no candidate has figures of all its cells; the "
                "best of what there is may be worse than it looks.",
            )
        )
    failed = int(view.results.status.isin(["failed", "refused"]).sum())
    if failed:
        said.append(
            Finding(
                "Cells are missing",
                f"{failed:,} of {len(view.results):,} gave no figures; the table below "
                "says why. A worst case is taken over what was measured.",
            )
        )
    count = summary.repetitions_of(view)
    if count < 3:
        said.append(
            Finding(
                "Few repetitions",
                f"{count} of each cell: differences may be chance.",
            )
        )
    return said


def sections(
    view: SweepView,
    found: Sequence[summary.Case],
    answers: Sequence[summary.Verdict],
    figures: Collection[str],
) -> tuple[list[Section], list[Absent]]:
    """Returns the parts of the report, and those that it lacks.

    Args:
      view: what was read.
      found: from ``summary.cases``.
      answers: from ``summary.verdicts``.
      figures: names of the figures that were drawn.
    """
    parts = [
        *([_choice(view, answers)] if view.roles.rows else []),
        _worst(view, found, figures),
        _metrics(view),
        _by_attack(view, figures),
        _curves(view, figures),
        _success(view, figures),
        _detection(view),
        _settings(view),
        _costs(view),
        _warnings(view),
        _failures(view),
        Section("grid", "The grid", (_GRID,), code=view.toml.strip()),
        Section("versions", "Facts and versions", tables=(tables.facts(view),)),
    ]
    there = [part for part in parts if isinstance(part, Section)]
    return there, [part for part in parts if isinstance(part, Absent)]


_GRID = (
    "Every setting of the sweep: saved as a file ending in .toml, fedjax-health sweep "
    "--config FILE repeats it."
)


def _choice(view: SweepView, answers: Sequence[summary.Verdict]) -> Section:
    text = [
        "For each circumstance the candidate whose worst case over all attacks, mean "
        "over repetitions, is best at the last step. "
        + _chosen_on([v for v in answers if v.best is not None]),
    ]
    if clean_value(view) is not None:
        text.append(
            "A clean run has nobody malicious while the rule assumes as many as under "
            "attack; what a candidate costs if clean is its distance to the best clean "
            "run of all candidates."
        )
    found = []
    for verdict in answers:
        if verdict.best is None:
            continue
        case = verdict.best
        where = f"{' · '.join(view.roles.columns)} {verdict.column}".strip()
        sentence = f"Choose {case.row}: {metric_name(view)} {number(case.final.value)}"
        if case.worst:
            sentence += f" under its worst attack, {case.worst}"
        elif view.roles.worst:
            sentence += ", whatever the attack"
        if math.isfinite(case.loss):
            sentence += (
                f"; {number(max(case.loss, 0.0))} below its own clean run"
                f", which costs {number(verdict.cost)} against the best one"
            )
        if case.missing:
            sentence += f"; not measured in full: {listing(case.missing)}"
        found.append(Finding(where, f"{sentence}."))
    return Section(
        "choice",
        "Which one to choose",
        tuple(text),
        findings=tuple(found),
        tables=(tables.verdicts(view, answers),),
    )


def _chosen_on(answers: Sequence[summary.Verdict]) -> str:
    """Says which data chose, since figures of data that chose are too good."""
    seen = [v.column for v in answers if not v.validated]
    if not seen:
        return "It is chosen on validation data; figures are of the test part."
    where = "" if len(seen) == len(answers) else f" at {listing(seen)}"
    return (
        f"There are no validation figures{where}: the choice saw the test part, so its "
        "figures are too good."
    )


def _worst(view: SweepView, found: Sequence[summary.Case], figures) -> Section:
    caption = (
        "The lowest mean over all attacks: dark is bad. The last step shows a collapse "
        "that the best step, chosen on validation data, hides. A dash: not measured, "
        "or the rule is not defined there."
    )
    drawings = (Drawing("worst", caption),) if "worst" in figures else ()
    return Section(
        "worst",
        "Worst case",
        drawings=drawings,
        tables=(tables.candidates(view, found),),
    )


def _metrics(view: SweepView) -> Section | Absent:
    table = tables.metrics(view)
    if table is None:
        return Absent(
            "Every metric",
            "they stand in results.csv, attack by attack."
            if view.roles.worst
            else f"no cell has one at its best step{_lost(view)}.",
        )
    return Section("metrics", "Every metric", tables=(table,))


def _by_attack(view: SweepView, figures) -> Section | Absent:
    names = [name for name in figures if name.startswith("attacks-")]
    table = tables.strengths(view) if view.roles.worst else None
    if not names and table is None:
        return Absent("Attack by attack", _no_attacks(view))
    drawings = tuple(
        Drawing(name, "Mean over repetitions at the last step: dark is bad.")
        for name in names
    )
    return Section(
        "attacks",
        "Attack by attack",
        () if names else (f"No figures: {_no_attacks(view)}",),
        drawings=drawings,
        tables=() if table is None else (table,),
    )


def _no_attacks(view: SweepView) -> str:
    """Says why there are no figures of the attacks."""
    if view.roles.worst is None:
        return f"the sweep has no axis {view.settings.report.worst}."
    if not _has(view, f"final_{view.settings.report.metric}"):
        return f"no cell has a figure of {metric_name(view)}{_lost(view)}."
    return f"all values of {view.roles.worst} are alike in their figures."


def _curves(view: SweepView, figures) -> Section | Absent:
    title = "Training under attack"
    if "curves" not in figures:
        return Absent(title, _no_curves(view))
    here = summary.columns_of(view)[-1]
    chosen = summary.with_places(view, view.chosen)
    survivors = _survivors(chosen[chosen.column == here])
    caption = (
        f"Mean over repetitions{survivors}, with the range between the least and the "
        "largest. A line that falls at the end has been broken late."
    )
    return Section("curves", title, drawings=(Drawing("curves", caption),))


def _no_curves(view: SweepView) -> str:
    if not len(view.curves):
        return f"no round was evaluated{_lost(view)}."
    column = f"test_{view.settings.report.metric}"
    if column not in view.curves or not view.curves[column].notna().any():
        return f"rounds were not evaluated by {metric_name(view)}{_lost(view)}."
    where = ""
    if view.roles.columns:
        last = summary.columns_of(view)[-1]
        where = f" at {' · '.join(view.roles.columns)} {last}, which would be drawn"
    under = " under an attack" if view.roles.worst else ""
    return f"nothing was measured{under}{where}{_lost(view)}."


def _success(view: SweepView, figures) -> Section | Absent:
    title = "Success of backdoors"
    if "success" not in figures:
        return Absent(title, f"no attack that was measured plants one{_lost(view)}.")
    chosen = summary.with_places(view, view.chosen)
    planted = chosen[chosen.final_attack_success.notna()].attack
    survivors = _survivors(chosen[chosen.attack.isin(planted)])
    caption = (
        "Share of test records of other classes that are given the attacker's class "
        f"once they carry the trigger, mean over repetitions{survivors}: dark is bad."
    )
    return Section("success", title, drawings=(Drawing("success", caption),))


def _detection(view: SweepView) -> Section | Absent:
    title = "Who was dropped"
    table = tables.detection(view)
    if table is not None:
        return Section("detection", title, tables=(table,))
    names = ("mean_detection_precision", "mean_detection_recall")
    if any(_has(view, name) for name in names):
        return Absent(title, f"it is known of clean runs alone{_lost(view)}.")
    reason = "no rule that was measured selects clients among which some are malicious"
    return Absent(title, f"{reason}{_lost(view)}.")


def _has(view: SweepView, name: str) -> bool:
    return name in view.chosen and bool(view.chosen[name].notna().any())


def _lost(view: SweepView) -> str:
    """Reminds of cells that might have had what is not there; often empty."""
    lost = int((view.results.status != "done").sum())
    cells, were = ("cell", "was") if lost == 1 else ("cells", "were")
    return f"; {lost:,} {cells} failed, {were} refused or diverged" if lost else ""


def _survivors(frame: pd.DataFrame) -> str:
    """Says whom a mean leaves out; empty where nothing diverged."""
    if (frame.status == "diverged").any():
        return " of the runs that did not diverge"
    return ""


def _settings(view: SweepView) -> Section | Absent:
    table = tables.tuned(view)
    if table is None:
        return Absent("Settings", "no candidate had settings to choose among.")
    return Section("settings", "Settings", tables=(table,))


def _costs(view: SweepView) -> Section | Absent:
    table = tables.costs(view)
    if table is None:
        return Absent("Bytes and privacy", f"no cell counted any{_lost(view)}.")
    return Section("costs", "Bytes and privacy", tables=(table,))


def _warnings(view: SweepView) -> Section | Absent:
    table = tables.data_warnings(view)
    if table is None:
        return Absent("Warnings of the data", "there are none.")
    return Section("warnings", "Warnings of the data", tables=(table,))


def _failures(view: SweepView) -> Section | Absent:
    table = tables.failures(view)
    if table is None:
        return Absent("What failed", "nothing did.")
    text = (
        "A model that diverged says the same of every row; its figures are those of "
        "such a model and count in every worst case."
    )
    return Section("failures", "What failed", (text,), tables=(table,))
