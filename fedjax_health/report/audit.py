"""The page of an audit, and its part of a run's report; from ``audit.json`` alone."""

import os
from pathlib import Path
from typing import Any

from fedjax_health import records
from fedjax_health.records import RunFolderError
from fedjax_health.report import html
from fedjax_health.report.clean import clean, clean_tree
from fedjax_health.report.findings import Finding
from fedjax_health.report.plots.style import COLOURS, DARK
from fedjax_health.report.sections import Absent, Section
from fedjax_health.report.tables import Card, Table
from fedjax_health.report.words import DASH, number, percentage

_FORMAT = 1
_COLUMNS = ("Attack", "Figure", "Value", "95 % interval", "Guessing", "Defence")
_TEXT = frozenset({0, 1, 5})
_FIGURES = {
    "auroc": "AUROC",
    "epsilon_lower": "epsilon, at least",
    "correlation": "correlation",
    "decoder_error": "squared error, the mean's is 1",
    "distance_correlation": "distance correlation",
}
_TITLES = {
    "membership": "Membership inference",
    "canaries": "Canaries and epsilon",
    "inversion": "Gradient inversion",
    "wire": "The wire of split learning",
}
_LEADS = {
    "membership": (
        "Can somebody tell whether an example was trained on? AUROC is the probability "
        "that a member outranks a non-member. What matters to a patient is the other "
        "figure: how many members are found where hardly anybody is accused wrongly."
    ),
    "canaries": (
        "What did the run let through of one client's message? Clients with a known "
        "message took part in a run of the same plan by the toss of a coin; who "
        "guesses the coins right refutes every small epsilon."
    ),
    "inversion": (
        "Can the records be read from a client's message? Correlation is between true "
        "and reconstructed values, standardised; guessing stands for other examples of "
        "the same labels. Messages of several local steps are harder to invert than "
        "those of the single step that is attacked here."
    ),
    "wire": (
        "What can be read back from what crosses the cut, as the trained detector "
        "sends it in training? Of the decoder's error less is worse for the patient, "
        "of the other figures more. The run's report has the table of borders."
    ),
}


def write_audit(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Writes audit.html beside audit.json; equal files give equal bytes.

    Args:
      folder: of the run.

    Returns:
      ``page``, its path, and ``sections``, ids in order.

    Raises:
      RunFolderError: if there is no audit, or it is damaged.
    """
    paths = records.run_folder(folder)
    found = read_audit(folder)
    if found is None:
        raise RunFolderError(
            f"{folder}: holds no audit: make one first (fedjax-health audit {folder})"
        )
    try:
        page = _page(found, clean(paths.root.resolve().name), _environment(paths))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(paths.audit, error) from error
    colours = {name: (colour, DARK[name]) for name, colour in COLOURS.items()}
    records.write_text(paths.audit_page, html.render(page, figures={}, colours=colours))
    return {
        "page": str(paths.audit_page),
        "sections": [part.id for part in page.sections],
    }


def read_audit(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Returns the content of audit.json, or None where there is none.

    Args:
      folder: of the run.

    Raises:
      RunFolderError: if it is damaged or of another version.
    """
    path = records.run_folder(folder).audit
    if not path.is_file():
        return None
    found = records.read_json(path)
    if not isinstance(found, dict) or not isinstance(found.get("rows"), list):
        raise _damaged(path, "rows are missing")
    if found.get("format") != _FORMAT:
        raise RunFolderError(
            f"{path}: format {found.get('format')}: was written by another version: "
            "audit again"
        )
    return clean_tree(found)


def audit_section(folder: str | os.PathLike[str]) -> Section | None:
    """Returns the audit's part of a run's report, or None where there is no audit.

    Args:
      folder: of the run.

    Raises:
      RunFolderError: if the audit is damaged.
    """
    found = read_audit(folder)
    if found is None:
        return None
    try:
        table = _table(found["rows"], "What the attacks found")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(records.run_folder(folder).audit, error) from error
    text = (
        "The run was attacked after it had ended. Who would have to see what for each "
        "attack, and what it means, is told in audit.html in the same folder."
    )
    return Section("audit", "Leakage audit", (text,), tables=(table,))


def _damaged(path: Path, error: Any) -> RunFolderError:
    return RunFolderError(f"{path}: is damaged ({error}): audit again")


def _environment(paths: records.RunFolder) -> dict[str, Any]:
    if not paths.environment.is_file():
        return {}
    found = clean_tree(records.read_json(paths.environment))
    return found if isinstance(found, dict) else {}


def _page(found: dict[str, Any], name: str, environment: dict[str, Any]) -> html.Page:
    rows = found["rows"]
    parts = [_section(group, rows) for group in _TITLES]
    failed = [row for row in rows if row.get("failed")]
    cautions = [Finding("Epsilon", row["meaning"]) for row in failed]
    cautions += [Finding("Repeated training", note) for note in found["notes"]]
    cautions.append(
        Finding(
            "What an audit can show",
            "Attacks give lower bounds: what they find leaks, what they do not find "
            "may leak to a better one. Figures of an audit rest on the simulation's "
            "own data; they belong to this run's settings and to no other.",
        )
    )
    defences = found["defences"]
    lead = (
        f"Messages: {defences['transforms']}. Mechanism: {defences['mechanism']}. "
        f"Secure aggregation: {defences['secure']}. {found['shadows']:,} shadow models "
        f"and {found['canaries']:,} canaries; the kept model is that of round "
        f"{found['round']:,}."
    )
    return html.Page(
        title="Leakage audit",
        subject="Run",
        name=name,
        lead=lead,
        environment=environment,
        cards=_cards(found),
        cautions=cautions,
        sections=[part for part in parts if part is not None],
        absent=[Absent(part["title"], part["reason"]) for part in found["absent"]],
    )


def _section(group: str, rows: list[dict[str, Any]]) -> Section | None:
    own = [row for row in rows if row["group"] == group]
    if not own:
        return None
    tables = [_table(own, _TITLES[group])]
    if group == "membership":
        tables.append(_rates(own))
    tables.append(_words(own))
    return Section(group, _TITLES[group], (_LEADS[group],), tables=tuple(tables))


def _table(rows: list[dict[str, Any]], caption: str) -> Table:
    return Table(
        caption=caption,
        columns=_COLUMNS,
        rows=tuple(
            (
                row["attack"],
                _FIGURES.get(row["figure"], str(row["figure"])),
                number(row["value"]),
                _interval(row["interval"]),
                number(row["guessing"]),
                row["defence"],
            )
            for row in rows
        ),
        text_columns=_TEXT,
        marked=frozenset(i for i, row in enumerate(rows) if row.get("failed")),
    )


def _rates(rows: list[dict[str, Any]]) -> Table:
    return Table(
        caption="Members found where 1 % of non-members are accused (guessing: 1 %), "
        "and balanced accuracy (guessing: 0.5)",
        columns=(
            "Attack",
            "Found at 1 %",
            "95 % interval",
            "Balanced accuracy",
            "95 % interval",
        ),
        rows=tuple(
            (
                row["attack"],
                percentage(row["tpr"]),
                " to ".join(percentage(value) for value in row["tpr_interval"]),
                number(row["balanced_accuracy"]),
                _interval(row["balanced_interval"]),
            )
            for row in rows
            if not row.get("control")
        ),
    )


def _words(rows: list[dict[str, Any]]) -> Table:
    return Table(
        caption="Who would have to see what, and what the figure means",
        columns=("Attack", "Threat model", "Meaning"),
        rows=tuple((row["attack"], row["threat"], row["meaning"]) for row in rows),
        text_columns=frozenset({0, 1, 2}),
    )


def _interval(pair: list[Any]) -> str:
    low, high = pair
    if low is None:
        return DASH
    if high is None:
        return f"{number(low)} or more"
    return f"{number(low)} to {number(high)}"


def _cards(found: dict[str, Any]) -> list[Card]:
    cards = []
    halves = [
        row
        for row in found["rows"]
        if row["group"] == "membership" and not row.get("control")
    ]
    if halves:
        worst = max(halves, key=lambda row: row["tpr"])
        low, high = worst["tpr_interval"]
        cards.append(
            Card(
                "Members found at 1 % false accusations",
                percentage(worst["tpr"]),
                f"{percentage(low)} to {percentage(high)}",
                f"guessing finds 1 %; {worst['attack']}",
            )
        )
    epsilon = found["epsilon"]
    if epsilon is not None:
        upper = epsilon["upper"]
        above = "infinite: no mechanism" if upper is None else number(float(upper))
        cards.append(
            Card(
                "Epsilon of one client, seen at least",
                number(float(epsilon["lower"])),
                f"{100 * epsilon['confidence']:.0f} % confidence, delta "
                f"{epsilon['delta']:g}, {epsilon['rounds']:,} rounds",
                f"accountant's upper bound: {above}",
            )
        )
    single = [
        row
        for row in found["rows"]
        if row["group"] == "inversion" and row["message"] == "sent"
    ]
    if single:
        worst = max(single, key=lambda row: row["value"])
        cards.append(
            Card(
                "Records read from a sent message",
                number(worst["value"], 2),
                f"correlation, {_interval(worst['interval'])}",
                f"guessing: {number(worst['guessing'], 2)}; {worst['attack']}",
            )
        )
    return cards
