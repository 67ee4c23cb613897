"""Reads what a run or an evaluation has left, once, into one record."""

import os
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeGuard, TypeVar

import numpy as np

from fedjax_health import records
from fedjax_health.records import RunFolderError
from fedjax_health.report.clean import clean, clean_tree
from fedjax_health.report.figures import (
    Client,
    Figures,
    FiguresError,
    LeakCheck,
    read_figures,
    read_leakcheck,
)
from fedjax_health.report.predictions import Predictions, read_predictions

# What ``evaluate`` writes in place of the predictions of a run.
SCORES = "scores.parquet"

Value = TypeVar("Value")


class View(NamedTuple):
    """All that a report is made of.

    Attributes:
      name: of the folder.
      kind: whether a training run or an evaluation on other data left it.
      config: the resolved configuration, that of the detector's run for an evaluation
        inside its folder; empty where there is none.
      config_text: the same as TOML.
      environment: versions and machine; empty where there are none.
      rounds: one mapping a round.
      timings: one mapping a segment of rounds.
      result: the content of ``result.json``.
      figures: curves, intervals and tables; None where there are none.
      leakcheck: None where it was not run.
      predictions: None where there are none.
    """

    name: str
    kind: Literal["run", "evaluation"]
    config: dict[str, Any]
    config_text: str
    environment: dict[str, Any]
    rounds: tuple[dict[str, Any], ...]
    timings: tuple[dict[str, Any], ...]
    result: dict[str, Any]
    figures: Figures | None
    leakcheck: LeakCheck | None
    predictions: Predictions | None


def read_folder(root: str | os.PathLike[str]) -> View:
    """Reads the folder of a finished run or of an evaluation.

    Args:
      root: the folder.

    Returns:
      What is there; parts that are absent are empty or None.

    Raises:
      RunFolderError: if there is nothing to report, the run is not finished, or a
        file is damaged; the text says which and what to do.
    """
    paths = records.run_folder(root)
    if not paths.root.is_dir():
        raise RunFolderError(f"{root}: no such folder")
    scores = paths.root / SCORES
    is_evaluation = scores.is_file() and not paths.predictions.is_file()
    if not paths.result.is_file() and not is_evaluation:
        if paths.config.is_file():
            raise RunFolderError(
                f"{root}: this run is not finished: go on with it "
                f"(fedjax-health resume {root}), then report"
            )
        raise RunFolderError(f"{root}: holds no run: result.json is missing")
    config = _config_of(paths.root)
    text = _optional(config, _read_text) or ""
    view = View(
        name=clean(paths.root.resolve().name),
        kind="evaluation" if is_evaluation else "run",
        config=clean_tree(_parse_toml(config, text)),
        config_text=clean(text),
        environment=_optional(paths.environment, _read_mapping) or {},
        rounds=_read_lines(paths.metrics),
        timings=_read_lines(paths.timings),
        result=_optional(paths.result, _read_mapping) or {},
        figures=_read_form(paths.figures, read_figures),
        leakcheck=_read_form(paths.leakcheck, read_leakcheck),
        predictions=_optional(
            scores if is_evaluation else paths.predictions, read_predictions
        ),
    )
    return view if _may_have_streams(view) else _without_alarms(view)


def _may_have_streams(view: View) -> bool:
    known = view.figures is not None or view.kind == "evaluation"
    return not known or value_of(view, "delay_threshold") is not None


def _without_alarms(view: View) -> View:
    # Records give alarm as well, but no alarm of theirs is early or late.
    if view.predictions is None:
        return view
    return view._replace(predictions=view.predictions._replace(alarm=None))


def value_of(view: View, name: str) -> float | None:
    """Returns a metric by name, from the figures or else from the result.

    Args:
      view: what was read.
      name: such as "auroc".
    """
    places: list[Any] = [view.result.get("metrics"), view.result.get("details")]
    if view.figures is not None:
        fields = {
            "threshold": view.figures.threshold,
            "delay_threshold": view.figures.delay_threshold,
            "prevalence": view.figures.prevalence,
        }
        measured, rates = view.figures.details, _rates(view.figures)
        places = [view.figures.metrics, fields, *places, measured, rates]
    if view.kind == "evaluation":
        # Thresholds stand there even where nothing could be measured.
        at_alarm = view.result.get("alarm_threshold")
        places += [view.result, {"delay_threshold": at_alarm}]
    for place in places:
        value = place.get(name) if isinstance(place, dict) else None
        if isinstance(value, dict):
            value = value.get("value")
        if _is_number(value):
            return float(value)
    return None


def has_no_positives(view: View) -> bool:
    """Returns whether rows were measured among which there is no attack.

    Args:
      view: what was read.
    """
    return view.figures is not None and view.figures.positives == 0


def interval_of(view: View, name: str) -> tuple[float, float] | None:
    """Returns the 95 % interval of a metric, or None where there is none.

    Args:
      view: what was read.
      name: such as "auroc".
    """
    pair = view.figures.intervals.get(name) if view.figures is not None else None
    if pair is None or pair[0] is None or pair[1] is None:
        return None
    return pair[0], pair[1]


def settings_of(view: View, slot: str) -> dict[str, Any]:
    """Returns the settings of one slot of the configuration; empty where it is none.

    Args:
      view: what was read.
      slot: such as "window".
    """
    settings = view.config.get(slot)
    return settings if isinstance(settings, dict) else {}


def numbers_of(view: View, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rounds that state a number, and the number, float64 both.

    Args:
      view: what was read.
      name: a key of ``metrics.jsonl``.
    """
    rows = [
        (row["round"], row[name])
        for row in view.rounds
        if _is_number(row.get("round")) and _is_number(row.get(name))
    ]
    table = np.array(rows, float).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def tested_clients(view: View) -> tuple[Client, ...]:
    """Returns the clients that have rows to be measured on.

    Args:
      view: what was read.
    """
    everyone = view.figures.clients if view.figures else ()
    return tuple(client for client in everyone if client.rows)


def single_class(view: View) -> list[str]:
    """Returns the clients that hold one class and have no AUROC.

    Args:
      view: what was read.
    """
    return [client.client for client in tested_clients(view) if client.auroc is None]


def unseen_clients(view: View) -> frozenset[str]:
    """Returns the clients of an evaluation that were not in training.

    Args:
      view: what was read.
    """
    names = view.result.get("unseen_clients")
    return frozenset(map(str, names)) if isinstance(names, list) else frozenset()


def oracle_of(view: View) -> dict[str, Any]:
    """Returns the metrics of the oracle; empty where there is none.

    Args:
      view: what was read.
    """
    if view.figures is not None and view.figures.oracle:
        return dict(view.figures.oracle)
    oracle = view.result.get("oracle")
    return oracle if isinstance(oracle, dict) else {}


def _config_of(root: Path) -> Path:
    """Returns where the configuration lies that a folder's figures belong to."""
    own = records.run_folder(root).config
    above = root.resolve().parent
    if own.is_file() or above.name != records.run_folder(above).evaluations.name:
        return own
    return records.run_folder(above.parent).config


def _rates(figures: Figures) -> dict[str, float]:
    """Returns recall and precision by the counts of rows."""
    counts = figures.confusion
    if counts is None:
        return {}
    hits = counts.true_positives
    positives, reported = hits + counts.false_negatives, hits + counts.false_positives
    rates = {}
    if positives:
        rates["recall"] = hits / positives
    if reported:
        rates["precision"] = hits / reported
    return rates


def _optional(path: Path, read: Callable[[Path], Value]) -> Value | None:
    return read(path) if path.is_file() else None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunFolderError(f"{path}: cannot be read: {error}") from error


def _parse_toml(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RunFolderError(f"{path}: not valid TOML: {error}") from error


def _read_mapping(path: Path) -> dict[str, Any]:
    value = records.read_json(path)
    if not isinstance(value, dict):
        raise RunFolderError(f"{path}: is damaged: a JSON object is expected")
    return clean_tree(value)


def _read_lines(path: Path) -> tuple[dict[str, Any], ...]:
    rows = records.read_jsonl(path)
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise RunFolderError(f"{path}: line {number} is damaged")
    return tuple(clean_tree(row) for row in rows)


def _read_form(path: Path, form: Callable[[Any], Value]) -> Value | None:
    if not path.is_file():
        return None
    try:
        return form(_read_mapping(path))
    except FiguresError as error:
        raise RunFolderError(f"{path}: {error}") from error


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
