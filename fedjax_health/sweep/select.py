"""Hyper-parameters of a defence by best-worst selection on validation data."""

from collections.abc import Collection

import pandas as pd

from fedjax_health.config.sweep import ReportSettings


def best_worst(
    table: pd.DataFrame,
    report: ReportSettings,
    clean: Collection[str | int | float | bool] = (),
) -> pd.DataFrame:
    """Chooses, for every candidate and circumstance, one setting of its numbers.

    The worst case over the attacks, of the means over the repetitions, decides: of all
    settings the one whose worst case is best is taken, on the validation part and at
    the last step. Of equal ones the first in the order of the table. This is the
    protocol of ByzFL and of Farhadkhani et al. (2022), with validation in place of
    test data.

    Args:
      table: from ``results_table``; cells without figures count as the worst.
      report: which axes are candidates, circumstances, attacks and repetitions.
      clean: values of the axis of attacks that stand for no attack. They have no say,
        unless there is nothing else.

    Returns:
      The rows of the chosen settings.
    """
    if table.empty or (table.tuned == "").all():
        return table
    value = f"validation_final_{report.metric}"
    if value not in table:
        return table
    measured = table.assign(**{value: table[value].fillna(float("-inf"))})
    place = [n for n in (report.rows, report.columns) if n in table]
    attack = [n for n in (report.worst,) if n in table]
    if attack:
        attacked = measured[~measured[report.worst].isin(list(clean))]
        measured = measured if attacked.empty else attacked
    others = [n for n in _axes(table) if n not in (*place, *attack, report.repeats)]
    groups = [*place, *others]
    means = measured.groupby([*groups, "tuned", *attack], sort=False)[value].mean()
    worst = means.groupby([*groups, "tuned"], sort=False).min().reset_index()
    chosen = worst.loc[worst.groupby(groups, sort=False)[value].idxmax()]
    return table.merge(chosen[[*groups, "tuned"]], on=[*groups, "tuned"], how="inner")


def _axes(table: pd.DataFrame) -> list[str]:
    return list(table.columns[: table.columns.get_loc("tuned")])
