"""What became of the cells, as tidy tables: one row a cell, and one an evaluation."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from fedjax_health.config.sweep import Cell, Sweep

PARTS = ("test", "validation")
STEPS = ("final", "best")


def results_table(sweep: Sweep, records: Mapping[str, dict[str, Any]]) -> pd.DataFrame:
    """Returns one row for each cell that was measured.

    Args:
      sweep: the grid.
      records: key of a cell -> what ``Bench.measure`` returned.

    Returns:
      A column for each axis; ``tuned``, what validation may choose among, as text and
      empty where there is nothing; ``status`` and ``reason``; ``malicious_clients`` of
      ``clients``; ``total_uplink_bytes``, ``total_downlink_bytes`` and, with a
      mechanism, ``total_epsilon`` of all rounds that were run, but for cells that
      diverged; ``final_round`` and ``best_round``; the metrics of the last and of
      the best step, ``final_auroc``, ``best_auroc`` and so on for the test part and
      ``validation_final_auroc`` and so on for the validation part; ``oracle_auroc`` and
      so on of an observer who knows how the data was generated; ``attack_...``, the
      numbers that an attack keeps; and ``mean_...``, what the rounds reported on
      average.
    """
    rows = [
        {**_labels(cell), **_row(records[cell.key])}
        for cell in sweep.cells
        if cell.key in records
    ]
    return pd.DataFrame(rows)


def curves_table(sweep: Sweep, records: Mapping[str, dict[str, Any]]) -> pd.DataFrame:
    """Returns one row for each evaluation of each cell.

    Args:
      sweep: the grid.
      records: key of a cell -> what ``Bench.measure`` returned.

    Returns:
      The columns of the axes, ``tuned``, ``round``, ``train_loss`` and the figures of
      both parts at that round.
    """
    rows = [
        {**_labels(cell), **_point(point)}
        for cell in sweep.cells
        if cell.key in records
        for point in records[cell.key].get("curve", ())
    ]
    return pd.DataFrame(rows)


def _point(point: Mapping[str, Any]) -> dict[str, Any]:
    # An axis may be called loss.
    return {"train_loss" if n == "loss" else n: v for n, v in point.items()}


def _labels(cell: Cell) -> dict[str, Any]:
    tuned = ", ".join(f"{path}={value}" for path, value in cell.tuned.items())
    return {**cell.values, "tuned": tuned}


def _row(record: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "status": record["status"],
        "reason": record.get("reason"),
        "malicious_clients": record.get("malicious"),
        "clients": record.get("clients"),
    }
    for step in STEPS:
        found = record.get(step, {})
        row[f"{step}_round"] = found.get("round")
        for part in PARTS:
            prefix = f"{step}_" if part == "test" else f"{part}_{step}_"
            for name, value in found.get(part, {}).items():
                row[prefix + name] = value
    for source, prefix in (
        ("cost", "total"),
        ("rounds", "mean"),
        ("attack", "attack"),
        ("oracle", "oracle"),
    ):
        for name, value in record.get(source, {}).items():
            row[f"{prefix}_{name}"] = value
    return row


def failures(table: pd.DataFrame) -> Sequence[str]:
    """Returns one sentence for each reason for which cells gave nothing.

    Args:
      table: from ``results_table``.
    """
    if table.empty:
        return []
    bad = table[table.status.isin(["failed", "refused"])]
    return [
        f"{len(group):,} cell(s) {status}: {reason}"
        for (status, reason), group in bad.groupby(["status", "reason"], sort=True)
    ]
