"""Irregular observations on a regular grid of time, and values that cannot be.

An observation is (entity, variable, seconds since the entity's origin, value). The grid
has ``length`` bins of equal width; a bin without an observation holds NaN, "not
observed". Whether and how gaps are carried forward is the model's business.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from fedjax_health.data.schema import DataError

Aggregate = Literal["last", "mean"]


def count_bins(hours: float, bin_minutes: float) -> int:
    """Returns how many bins of that width fill the hours.

    Raises:
      DataError: if they do not fill them exactly.
    """
    length = hours * 60 / bin_minutes if bin_minutes > 0 else 0.5
    if not length >= 1 or length != int(length):
        raise DataError(
            f"hours is {hours:g} and bin_minutes {bin_minutes:g}; give minutes that "
            "divide the hours"
        )
    return int(length)


def grid_observations(
    entity: np.ndarray,
    variable: np.ndarray,
    seconds: np.ndarray,
    value: np.ndarray,
    *,
    num_entities: int,
    num_variables: int,
    length: int,
    bin_seconds: float,
    aggregate: Aggregate = "last",
) -> np.ndarray:
    """Puts observations on the grid of their entity.

    Bin i holds the observations from ``i * bin_seconds`` on and before
    ``(i + 1) * bin_seconds``; the last bin holds those at its end too, as a record of
    48 hours ends at 48:00. Observations before 0 or after the end are left out.

    Args:
      entity: int ``[observations]``, from 0.
      variable: int ``[observations]``, from 0.
      seconds: float ``[observations]`` since the entity's origin; in any order.
      value: float ``[observations]``; NaN is no observation.
      num_entities: entities.
      num_variables: variables.
      length: bins of an entity.
      bin_seconds: width of a bin.
      aggregate: what a bin with several observations of a variable holds: the latest
        (of those at the same time the one that comes last in the arrays), or their
        mean.

    Returns:
      float32 ``[entities, length, variables]``; NaN where nothing was observed.

    Raises:
      DataError: for a length or width that is not positive, or an unknown aggregate.
    """
    if length < 1:
        raise DataError(f"length is {length}; give 1 bin or more")
    if not bin_seconds > 0:
        raise DataError(f"the width of a bin is {bin_seconds} s; give more than 0")
    if aggregate not in ("last", "mean"):
        raise DataError(f'aggregate is {aggregate!r}; give "last" or "mean"')
    end = length * bin_seconds
    with np.errstate(invalid="ignore"):
        kept = (seconds >= 0) & (seconds <= end) & ~np.isnan(value)
    entity, variable = entity[kept].astype(np.int64), variable[kept].astype(np.int64)
    seconds, value = seconds[kept], value[kept]
    step = np.minimum((seconds // bin_seconds).astype(np.int64), length - 1)
    cell = (entity * length + step) * num_variables + variable
    size = num_entities * length * num_variables
    if aggregate == "last":
        grid = np.full(size, np.nan, np.float32)
        # Of several assignments to one cell NumPy keeps the last.
        order = np.argsort(seconds, kind="stable")
        grid[cell[order]] = value[order]
    else:
        count = np.bincount(cell, minlength=size)
        total = np.bincount(cell, weights=value, minlength=size)
        grid = np.full(size, np.nan, np.float32)
        np.divide(total, count, out=grid, where=count > 0, casting="same_kind")
    return grid.reshape(num_entities, length, num_variables)


def clear_implausible(
    values: np.ndarray,
    names: Sequence[str],
    ranges: Mapping[str, tuple[float, float]],
) -> np.ndarray:
    """Returns values in which those outside the range of their column are NaN.

    Args:
      values: float ``[..., columns]``.
      names: of the columns.
      ranges: name -> smallest and largest value that can be; a column without a range
        keeps its values.
    """
    low, high = _bounds(names, ranges)
    with np.errstate(invalid="ignore"):
        return np.where((values < low) | (values > high), np.nan, values)


def implausible(
    variable: np.ndarray,
    value: np.ndarray,
    names: Sequence[str],
    ranges: Mapping[str, tuple[float, float]],
) -> np.ndarray:
    """Returns which observations lie outside the range of their variable, bool.

    Args:
      variable: int ``[observations]``, an index into ``names``.
      value: float ``[observations]``.
      names: of the variables.
      ranges: name -> smallest and largest value that can be.
    """
    low, high = _bounds(names, ranges)
    with np.errstate(invalid="ignore"):
        return (value < low[variable]) | (value > high[variable])


def _bounds(
    names: Sequence[str], ranges: Mapping[str, tuple[float, float]]
) -> tuple[np.ndarray, np.ndarray]:
    unbounded = (-np.inf, np.inf)
    low, high = zip(*(ranges.get(name, unbounded) for name in names), strict=True)
    return np.asarray(low), np.asarray(high)
