"""Reads what a sweep has left, once, into one record."""

import math
import numbers
import os
from collections import Counter
from typing import Any, NamedTuple

import msgspec
import pandas as pd

from fedjax_health import records
from fedjax_health.records import RunFolderError
from fedjax_health.report.clean import clean

# Larger whole numbers are written with a power of ten.
_ALL_DIGITS = 2.0**63


class AxisNames(msgspec.Struct, frozen=True):
    """One axis: its name, its values, and those that stand for no attack."""

    name: str
    values: tuple[str | int | float | bool, ...]
    clean: tuple[str | int | float | bool, ...] = ()


class ReportNames(msgspec.Struct, frozen=True):
    """What is compared; see ``config.sweep.ReportSettings``."""

    metric: str = "auroc"
    rows: str = "defence"
    columns: str = "malicious"
    worst: str = "attack"
    repeats: str = "seed"
    tolerance: float = 0.03


class Settings(msgspec.Struct, frozen=True):
    """The content of ``settings.json``."""

    axes: tuple[AxisNames, ...]
    report: ReportNames = ReportNames()


class Roles(NamedTuple):
    """Which axis plays which part; None where no axis does.

    Attributes:
      rows: the candidates.
      columns: the circumstances, one axis or several.
      worst: over which the worst case counts.
      repeats: over which means are taken.
    """

    rows: str | None
    columns: tuple[str, ...]
    worst: str | None
    repeats: str | None


class SweepView(NamedTuple):
    """All that the report of a sweep is made of.

    Attributes:
      name: of the folder.
      settings: axes and what is compared.
      roles: which axis plays which part.
      results: one row a cell; every axis as text, in the order of its values.
      chosen: the same for the settings that validation chose.
      curves: one row an evaluation, of the chosen settings.
      toml: the whole grid.
      environment: versions and machine.
      seconds: that the cells took, together.
      warnings: what was said of the data, and for how many computed cells.
    """

    name: str
    settings: Settings
    roles: Roles
    results: pd.DataFrame
    chosen: pd.DataFrame
    curves: pd.DataFrame
    toml: str
    environment: dict[str, Any]
    seconds: float
    warnings: tuple[tuple[str, int], ...]


def read_sweep(root: str | os.PathLike[str]) -> SweepView:
    """Reads the folder of a sweep.

    Args:
      root: the folder.

    Raises:
      RunFolderError: if the sweep is not finished, or a file is damaged.
    """
    paths = records.open_sweep_folder(root)
    if not paths.results.is_file() or not paths.settings.is_file():
        raise RunFolderError(
            f"{root}: this sweep is not finished: go on with it "
            f"(fedjax-health resume {root}), then report"
        )
    try:
        settings = msgspec.json.decode(paths.settings.read_bytes(), type=Settings)
        results = pd.read_parquet(paths.results)
        curves = pd.read_parquet(paths.curves)
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        raise RunFolderError(
            f"{root}: a file is damaged: {error}: delete results.parquet and "
            f"curves.parquet and call fedjax-health resume {root}, which makes them "
            "again"
        ) from error
    names = [axis.name for axis in settings.axes]
    for axis in settings.axes:
        order = list(dict.fromkeys(label(value) for value in axis.values))
        for frame in (results, curves):
            if axis.name in frame:
                texts = frame[axis.name].map(label)
                frame[axis.name] = pd.Categorical(texts, order, ordered=True)
    chosen = results[results.selected]
    if len(curves):
        keys = [*names, "tuned"]
        curves = curves.merge(chosen[keys], on=keys, how="inner")
    timings = records.read_jsonl(paths.timings)
    return SweepView(
        name=clean(paths.root.resolve().name),
        settings=settings,
        roles=_roles(settings),
        results=results,
        chosen=chosen,
        curves=curves,
        toml=clean(paths.sweep.read_text(encoding="utf-8")),
        environment=records.read_json(paths.environment),
        seconds=float(sum(line.get("seconds", 0.0) for line in timings)),
        warnings=_warnings(records.read_jsonl(paths.cells)),
    )


def label(value: Any) -> str:
    """Returns a value of an axis as text, equal for equal numbers.

    A table may hold as 1000000.0 what the settings hold as 1000000.

    Args:
      value: a number or a name.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral | float):
        return clean(str(value))
    if isinstance(value, float) and not (
        value.is_integer() and math.fabs(value) < _ALL_DIGITS
    ):
        return repr(float(value))
    return str(int(value))


def clean_value(view: SweepView) -> str | None:
    """Returns the value of the worst case's axis that stands for no attack.

    Args:
      view: what was read.
    """
    return next(iter(clean_values(view)), None)


def clean_values(view: SweepView) -> tuple[str, ...]:
    """Returns all values of the worst case's axis that stand for no attack.

    Args:
      view: what was read.
    """
    for axis in view.settings.axes:
        if axis.name == view.roles.worst:
            return tuple(label(value) for value in axis.clean)
    return ()


def _warnings(lines: list[dict[str, Any]]) -> tuple[tuple[str, int], ...]:
    # A cell that failed was tried again: its last line counts.
    cells = {line.get("cell"): line.get("record", {}) for line in lines}
    found = Counter(
        clean(str(text))
        for record in cells.values()
        for text in record.get("warnings", ())
    )
    return tuple(found.items())


def _roles(settings: Settings) -> Roles:
    report, names = settings.report, [axis.name for axis in settings.axes]
    repeats = report.repeats if report.repeats in names else None
    worst = report.worst if report.worst in names else None
    free = [name for name in names if name not in (repeats, worst)]
    rows = report.rows if report.rows in free else next(iter(free), None)
    rest = [name for name in free if name != rows]
    # The named one comes first among the circumstances.
    rest.sort(key=lambda name: name != report.columns)
    return Roles(rows, tuple(rest), worst, repeats)
