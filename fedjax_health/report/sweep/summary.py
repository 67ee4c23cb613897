"""Means over repetitions, worst cases over attacks, and what follows from them."""

import math
from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from fedjax_health.report.sweep.read import SweepView, clean_value, clean_values

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
      loss: what the worst attack costs against the candidate's own clean run, mean
        over the repetitions that have both; NaN where none has.
      validation: the least mean over attacks of the metric on validation data, at the
        last step; nothing where there are no figures of that part.
      expected: repetitions that the sweep asks for.
      missing: attacks, and the clean run, that were not measured in every repetition,
        with how many were, such as "ipm (1 of 3)".
    """

    row: str
    column: str
    worst: str
    final: Mean
    best: Mean
    clean: Mean | None
    loss: float
    validation: Mean
    expected: int
    missing: tuple[str, ...]


class Verdict(NamedTuple):
    """Which candidate to choose in one circumstance.

    Attributes:
      column: the circumstance.
      best: the candidate with the best worst case; None where nothing was measured.
      validated: whether validation data chose it; else the test part did.
      holds: whether it loses no more than the tolerance against its own clean run;
        None where that is not known.
      cost: what it costs where nobody attacks, against the best candidate there.
    """

    column: str
    best: Case | None
    validated: bool
    holds: bool | None
    cost: float


def mean_of(values: Sequence[float] | np.ndarray | pd.Series) -> Mean:
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
    none = clean_values(view)
    return [n for n in names if n not in none] + [n for n in names if n in none]


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


def repetitions_of(view: SweepView) -> int:
    """Returns how many repetitions the sweep asks for.

    Args:
      view: what was read.
    """
    repeats = view.roles.repeats
    return 1 if repeats is None else len(view.results[repeats].cat.categories)


def cases(view: SweepView) -> list[Case]:
    """Returns what each candidate does in each circumstance, at worst.

    Args:
      view: what was read.
    """
    metric, none = view.settings.report.metric, clean_value(view)
    final, best, validation = (
        _repetitions(view, f"{step}_{metric}")
        for step in ("final", "best", "validation_final")
    )
    attacks = [name for name in attacks_of(view) if name not in clean_values(view)]
    expected = repetitions_of(view)
    found = []
    for column in columns_of(view):
        for row in rows_of(view):
            places = {a: (row, column, a) for a in attacks}
            means = {a: mean_of(final.get(p, _NOTHING)) for a, p in places.items()}
            worst = _least(means)
            # Where attacks make no difference, as where nobody is malicious, none of
            # them is the worst.
            alike = len(means) > 1 and len({m.value for m in means.values()}) == 1
            at_clean, loss = final.get((row, column, none)), math.nan
            if at_clean is not None and worst is not None:
                loss = float((at_clean - final[places[worst]]).mean())
            told = [*attacks, *([] if none is None else [none])]
            counts = {a: _measured(final, validation, (row, column, a)) for a in told}
            found.append(
                Case(
                    row,
                    column,
                    "" if alike else worst or "",
                    _NO_MEAN if worst is None else means[worst],
                    _worst_of(best, places.values()),
                    None if at_clean is None else mean_of(at_clean),
                    loss,
                    _worst_of(validation, places.values()),
                    expected,
                    tuple(
                        _short(name, count, expected)
                        for name, count in counts.items()
                        if count < expected
                    ),
                )
            )
    return found


def verdicts(view: SweepView, found: Sequence[Case]) -> list[Verdict]:
    """Returns which candidate to choose in each circumstance.

    Validation data chooses, so that the figures of the test part are not those of the
    luckiest; where it has no figures, the test part does.

    Args:
      view: what was read.
      found: from ``cases``.
    """
    answers = []
    for column in columns_of(view):
        # A candidate that some attack was not tried on, or with fewer seeds, might be
        # worse than it looks.
        here = [c for c in found if c.column == column and c.final.count]
        whole = [c for c in here if not c.missing] or here
        judged = [c for c in whole if c.validation.count]
        best = max(
            judged or whole,
            key=lambda case: (case.validation if judged else case.final).value,
            default=None,
        )
        holds, cost = None, math.nan
        if best is not None and best.clean is not None and best.clean.count:
            if math.isfinite(best.loss):
                holds = best.loss <= view.settings.report.tolerance
            cost = max(_clean_runs(here, best)) - best.clean.value
        answers.append(Verdict(column, best, bool(judged), holds, cost))
    return answers


_NO_MEAN = mean_of([])
_NOTHING = pd.Series(dtype=float)

_Places = dict[tuple[Hashable, ...], pd.Series]


def _repetitions(view: SweepView, value: str) -> _Places:
    """Returns what was measured at each place, one number a repetition."""
    if value not in view.chosen:
        return {}
    table = with_places(view, view.chosen)
    repeats = view.roles.repeats
    table = table.assign(
        value=table[value].astype(float),
        repeat="" if repeats is None else table[repeats].astype(str),
    )
    table = table[np.isfinite(table.value)]
    return {
        place: group.groupby("repeat").value.mean()
        for place, group in table.groupby(["row", "column", "attack"], sort=False)
    }


def _measured(final: _Places, validation: _Places, place) -> int:
    """Returns how many repetitions have figures of all parts that have any."""
    names = final.get(place, _NOTHING).index
    if validation:
        names = names.intersection(validation.get(place, _NOTHING).index)
    return len(names)


def _short(name: str, count: int, expected: int) -> str:
    """Says which attack lacks repetitions."""
    if name and not count:
        return name
    return f"{name} ({count} of {expected})" if name else f"{count} of {expected}"


def _clean_runs(here: Sequence[Case], best: Case) -> list[float]:
    """Returns clean runs that may be compared with that of the best candidate."""
    return [
        c.clean.value
        for c in here
        if c.clean is not None
        and best.clean is not None
        and c.clean.count
        and (c is best or c.clean.count >= min(best.clean.count, c.expected))
    ]


def _worst_of(found: _Places, places: Iterable[tuple[str, str, str]]) -> Mean:
    means = [mean_of(found[place]) for place in places if place in found]
    return min(means, key=lambda mean: mean.value, default=_NO_MEAN)


def _least(means: dict[str, Mean]) -> str | None:
    told = {name: mean for name, mean in means.items() if mean.count}
    return min(told, key=lambda name: told[name].value, default=None)
