"""Means over repetitions, worst cases over attacks, and what follows from them."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from fedjax_health.report.sweep.read import SweepView, clean_value

# Stands in for an axis that a sweep does not have.
NO_AXIS = "all"


class Mean(NamedTuple):
    """A mean over repetitions.

    Attributes:
      value: the mean; NaN where nothing was measured.
      low: lower end of its 95 % interval (Student's t); NaN for one repetition.
      high: upper end.
      count: repetitions.
    """

    value: float
    low: float
    high: float
    count: int


class Case(NamedTuple):
    """What a candidate does in one circumstance.

    Attributes:
      row: the candidate.
      column: the circumstance.
      worst: value of the worst attack, or "" where none is worse than another.
      final: the metric at the last step under it.
      best: the metric at the step that validation calls best, under the attack that is
        worst there.
      clean: the metric at the last step without an attack; None where that was not
        measured.
      missing: attacks for which nothing was measured.
    """

    row: str
    column: str
    worst: str
    final: Mean
    best: Mean
    clean: Mean | None
    missing: tuple[str, ...]

    @property
    def loss(self) -> float:
        """What the worst attack costs against the candidate's own clean run."""
        return math.nan if self.clean is None else self.clean.value - self.final.value


class Verdict(NamedTuple):
    """Which candidate to choose in one circumstance.

    Attributes:
      column: the circumstance.
      best: the candidate with the best worst case; None where nothing was measured.
      holds: whether it loses no more than the tolerance against its own clean run;
        None where that is not known.
      cost: what it costs where nobody attacks, against the best candidate there.
    """

    column: str
    best: Case | None
    holds: bool | None
    cost: float


def mean_of(values: Sequence[float] | np.ndarray) -> Mean:
    """Returns the mean of repetitions with its interval.

    Args:
      values: one a repetition; those that are NaN were not measured.
    """
    told = np.asarray(values, float)
    told = told[np.isfinite(told)]
    if not len(told):
        return Mean(math.nan, math.nan, math.nan, 0)
    mean = float(told.mean())
    if len(told) < 2:
        return Mean(mean, math.nan, math.nan, 1)
    error = float(told.std(ddof=1)) / math.sqrt(len(told))
    reach = float(stats.t.ppf(0.975, len(told) - 1)) * error
    return Mean(mean, mean - reach, mean + reach, len(told))


def with_places(view: SweepView, frame: pd.DataFrame) -> pd.DataFrame:
    """Returns a table with the columns ``row``, ``column`` and ``attack`` as text.

    Args:
      view: what was read.
      frame: results or curves.
    """
    roles = view.roles
    columns = [frame[name].astype(str) for name in roles.columns]
    joined = columns[0] if columns else pd.Series(NO_AXIS, index=frame.index)
    for more in columns[1:]:
        joined = joined + " · " + more
    return frame.assign(
        row=frame[roles.rows].astype(str) if roles.rows else NO_AXIS,
        column=joined,
        attack=frame[roles.worst].astype(str) if roles.worst else "",
    )


def rows_of(view: SweepView) -> list[str]:
    """Returns the candidates in their order.

    Args:
      view: what was read.
    """
    if view.roles.rows is None:
        return [NO_AXIS]
    return [str(value) for value in view.chosen[view.roles.rows].cat.categories]


def columns_of(view: SweepView) -> list[str]:
    """Returns the circumstances in their order.

    Args:
      view: what was read.
    """
    table = with_places(view, view.results)
    order = table.sort_values(list(view.roles.columns)) if view.roles.columns else table
    return list(dict.fromkeys(order.column))


def attacks_of(view: SweepView) -> list[str]:
    """Returns the attacks in their order, the absence of one last.

    Args:
      view: what was read.
    """
    if view.roles.worst is None:
        return [""]
    names = [str(value) for value in view.chosen[view.roles.worst].cat.categories]
    none = clean_value(view)
    return [n for n in names if n != none] + [n for n in names if n == none]


def mean_table(view: SweepView, value: str) -> pd.DataFrame:
    """Returns the mean over repetitions for each candidate, circumstance and attack.

    Args:
      view: what was read.
      value: a column of the results.

    Returns:
      Columns ``row``, ``column``, ``attack`` and ``mean``, a ``Mean``.
    """
    table = with_places(view, view.chosen)
    if value not in table:
        table = table.assign(**{value: math.nan})
    found = [
        (*place, mean_of(group[value].to_numpy(float)))
        for place, group in table.groupby(["row", "column", "attack"], sort=False)
    ]
    return pd.DataFrame(found, columns=["row", "column", "attack", "mean"])


def cases(view: SweepView) -> list[Case]:
    """Returns what each candidate does in each circumstance, at worst.

    Args:
      view: what was read.
    """
    metric, none = view.settings.report.metric, clean_value(view)
    means = {
        step: {
            (r, c, a): mean
            for r, c, a, mean in mean_table(view, f"{step}_{metric}").itertuples(
                index=False
            )
        }
        for step in ("final", "best")
    }
    attacks = [name for name in attacks_of(view) if name != none]
    nothing = mean_of([])
    found = []
    for column in columns_of(view):
        for row in rows_of(view):
            final = {a: means["final"].get((row, column, a), nothing) for a in attacks}
            best = [means["best"].get((row, column, a), nothing) for a in attacks]
            worst = _least(final)
            # Where attacks make no difference, as where nobody is malicious, none of
            # them is the worst.
            alike = len(final) > 1 and len({m.value for m in final.values()}) == 1
            found.append(
                Case(
                    row,
                    column,
                    "" if alike else worst or "",
                    nothing if worst is None else final[worst],
                    min(
                        (one for one in best if one.count),
                        key=lambda one: one.value,
                        default=nothing,
                    ),
                    None if none is None else means["final"].get((row, column, none)),
                    tuple(a for a in attacks if not final[a].count),
                )
            )
    return found


def verdicts(view: SweepView, found: Sequence[Case]) -> list[Verdict]:
    """Returns which candidate to choose in each circumstance.

    Args:
      view: what was read.
      found: from ``cases``.
    """
    answers = []
    for column in columns_of(view):
        # A candidate that some attack was not tried on might be worse than it looks.
        here = [c for c in found if c.column == column and c.final.count]
        whole = [c for c in here if not c.missing] or here
        best = max(whole, key=lambda case: case.final.value, default=None)
        cleans = [c.clean.value for c in here if c.clean is not None and c.clean.count]
        holds, cost = None, math.nan
        if best is not None and best.clean is not None and best.clean.count:
            holds = best.loss <= view.settings.report.tolerance
            cost = max(cleans) - best.clean.value
        answers.append(Verdict(column, best, holds, cost))
    return answers


def _least(means: dict[str, Mean]) -> str | None:
    told = {name: mean for name, mean in means.items() if mean.count}
    return min(told, key=lambda name: told[name].value, default=None)
