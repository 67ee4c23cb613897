"""The audit of a finished run: progress while it works, then a table."""

import argparse
from typing import Any, TextIO

from fedjax_health.cli import show
from fedjax_health.cli.progress import build_progress


def attack(options: argparse.Namespace) -> dict[str, Any]:
    """Audits a run and writes its page.

    Args:
      options: folder, shadows, canaries, rounds and seed.

    Returns:
      What ``audit.json`` holds, and the paths of file and page.
    """
    from fedjax_health.audit import Options, audit
    from fedjax_health.report import write_audit

    asked = Options(options.shadows, options.canaries, options.rounds, options.seed)
    progress = build_progress()
    try:
        result = audit(options.folder, progress, asked)
    finally:
        progress.on_end()
    return {**result, "page": write_audit(options.folder)["page"]}


def present(result: dict[str, Any], stream: TextIO):
    """Writes one line an attack, then epsilon and what was not measured.

    Args:
      result: what ``attack`` returned.
      stream: where it goes.
    """
    rows = [
        {
            "attack": row["attack"],
            "defence": row["defence"],
            "figure": row["figure"].replace("_", " "),
            "value": row["value"],
            "95 % interval": _interval(row["interval"]),
            "guessing": row["guessing"],
        }
        for row in result["rows"]
    ]
    columns = ("attack", "defence", "figure", "value", "95 % interval", "guessing")
    show.rows(rows, columns, stream)
    epsilon = result["epsilon"]
    if epsilon is not None:
        upper = epsilon["upper"]
        above = "infinite (no mechanism)" if upper is None else show.number(upper)
        stream.write(
            f"epsilon at delta {epsilon['delta']:g}, {epsilon['rounds']:,} rounds: at "
            f"least {show.number(epsilon['lower'])} was seen, at most {above} by the "
            "accountant\n"
        )
    for row in result["rows"]:
        if row.get("failed"):
            stream.write(f"WARNING {row['meaning']}\n")
    for part in result["absent"]:
        stream.write(f"not measured: {part['title']}: {part['reason']}\n")
    for note in result["notes"]:
        stream.write(f"{note}\n")
    show.tree({name: result[name] for name in ("audit", "page")}, stream)


def _interval(pair: list[float | None]) -> str:
    low, high = pair
    if low is None:
        return show.number(low)
    if high is None:
        return f"{show.number(low)} or more"
    return f"{show.number(low)} to {show.number(high)}"
