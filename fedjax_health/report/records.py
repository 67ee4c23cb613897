"""Reads what a run or an evaluation has left, once, into one record."""

import datetime
import os
import tomllib
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeGuard, TypeVar

import numpy as np
import pandas as pd

from fedjax_health import records
from fedjax_health.records import RunFolderError
from fedjax_health.report.figures import (
    Figures,
    FiguresError,
    LeakCheck,
    read_figures,
    read_leakcheck,
)

# What ``evaluate`` writes in place of the predictions of a run.
SCORES = "scores.parquet"
SHARE = "share_"

Value = TypeVar("Value")


class Predictions(NamedTuple):
    """Scores row by row, in the order of time inside each stream.

    Attributes:
      client: int64 ``[rows]``, indices into ``client_names``.
      client_names: names of the clients.
      entity: int64 ``[rows]``, indices into ``entity_names``.
      entity_names: names, or numbers as text.
      time: float64 ``[rows]``, in the unit of the data; steps where times are no
        numbers.
      score: float64 ``[rows]``, probability of an attack.
      label: int8 ``[rows]``, 0 or 1, -1 where unknown; None without labels.
      attack: int64 ``[rows]``, indices into ``attack_names``; None without types.
      attack_names: types of attack, the one of normal rows included.
      detected: bool ``[rows]``, score at or above the threshold of the best F1.
      alarm: bool ``[rows]``, score at or above the threshold for alarms in time;
        None where rows do not follow each other in time.
      shares: modality -> float64 ``[rows]``, its share in the score.
      top_features: text ``[rows]``, what weighed most; None where unknown.
    """

    client: np.ndarray
    client_names: tuple[str, ...]
    entity: np.ndarray
    entity_names: tuple[str, ...]
    time: np.ndarray
    score: np.ndarray
    label: np.ndarray | None
    attack: np.ndarray | None
    attack_names: tuple[str, ...]
    detected: np.ndarray | None
    alarm: np.ndarray | None
    shares: dict[str, np.ndarray]
    top_features: np.ndarray | None

    @property
    def segment_starts(self) -> np.ndarray:
        """First row of each stream of one entity of one client, int64."""
        changed = (np.diff(self.client) != 0) | (np.diff(self.entity) != 0)
        starts = np.flatnonzero(changed) + 1
        return np.append(0, starts) if len(self.client) else starts


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
    return View(
        name=clean(paths.root.resolve().name),
        kind="evaluation" if is_evaluation else "run",
        config=_clean_tree(_parse_toml(config, text)),
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


def read_predictions(path: Path) -> Predictions:
    """Reads the scores of a run or an evaluation.

    Args:
      path: a Parquet file with client, entity and score, and what else there is.

    Raises:
      RunFolderError: if it cannot be read or lacks one of them.
    """
    try:
        frame = pd.read_parquet(path)
    # pyarrow and pandas raise half a dozen classes for a damaged file.
    except Exception as error:
        raise RunFolderError(f"{path}: cannot be read: {error}") from error
    missing = [n for n in ("client", "entity", "score") if n not in frame.columns]
    if missing:
        raise RunFolderError(f"{path}: lacks the column {missing[0]!r}")
    client, client_names = _codes(frame["client"])
    entity, entity_names = _codes(frame["entity"])
    attack, attack_names = None, ()
    if "attack" in frame.columns:
        attack, attack_names = _codes(frame["attack"])
    shares = {
        clean(str(name).removeprefix(SHARE)): _numbers(path, frame[name])
        for name in frame.columns
        if str(name).startswith(SHARE)
    }
    features = frame.get("top_features")
    return Predictions(
        client=client,
        client_names=client_names,
        entity=entity,
        entity_names=entity_names,
        time=_times(frame, client, entity),
        score=_numbers(path, frame["score"]),
        label=_labels(path, frame),
        attack=attack,
        attack_names=attack_names,
        detected=_flags(frame, "detected"),
        alarm=_flags(frame, "alarm"),
        shares=shares,
        top_features=None if features is None else features.fillna("").to_numpy(object),
    )


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
        places = [view.figures.metrics, fields, *places, _rates(view.figures)]
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


def clean(text: str) -> str:
    """Returns text without what could break a page or turn its direction.

    Control characters, halves of surrogate pairs and marks that override the
    direction of writing become the replacement character.

    Args:
      text: from data or configuration.
    """
    return "".join(_BAD if _is_bad(c) else c for c in text)


_BAD = "\N{REPLACEMENT CHARACTER}"
_OVERRIDES = frozenset(("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"))


def _is_bad(character: str) -> bool:
    if character in "\n\t":
        return False
    kind = unicodedata.category(character)
    return (
        kind in ("Cc", "Cs")
        or unicodedata.bidirectional(character) in _OVERRIDES
        or character in "\ufffe\uffff"
    )


def _clean_tree(value: Any) -> Any:
    match value:
        case str():
            return clean(value)
        case dict():
            return {clean(str(key)): _clean_tree(item) for key, item in value.items()}
        case list():
            return [_clean_tree(item) for item in value]
        case datetime.date() | datetime.time():
            return str(value)
    return value


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
    return _clean_tree(value)


def _read_lines(path: Path) -> tuple[dict[str, Any], ...]:
    rows = records.read_jsonl(path)
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise RunFolderError(f"{path}: line {number} is damaged")
    return tuple(_clean_tree(row) for row in rows)


def _read_form(path: Path, form: Callable[[Any], Value]) -> Value | None:
    if not path.is_file():
        return None
    try:
        return form(_read_mapping(path))
    except FiguresError as error:
        raise RunFolderError(f"{path}: {error}") from error


def _codes(column: pd.Series) -> tuple[np.ndarray, tuple[str, ...]]:
    codes, values = pd.factorize(column, use_na_sentinel=False)
    return codes.astype(np.int64), tuple(clean(str(value)) for value in values)


def _numbers(path: Path, column: pd.Series) -> np.ndarray:
    try:
        return pd.to_numeric(column).to_numpy(np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise RunFolderError(
            f"{path}: column {column.name!r} holds what is no number: {error}"
        ) from error


def _labels(path: Path, frame: pd.DataFrame) -> np.ndarray | None:
    if "label" not in frame.columns:
        return None
    values = _numbers(path, frame["label"])
    if np.isnan(values).all():
        return None
    return np.where(np.isnan(values), -1, values == 1).astype(np.int8)


def _flags(frame: pd.DataFrame, name: str) -> np.ndarray | None:
    if name not in frame.columns:
        return None
    return frame[name].fillna(False).to_numpy(bool)


def _times(frame: pd.DataFrame, client: np.ndarray, entity: np.ndarray) -> np.ndarray:
    column = frame.get("time")
    if column is not None and pd.api.types.is_numeric_dtype(column):
        return column.to_numpy(np.float64, na_value=np.nan)
    # Without numbers that stand for times, rows of a stream are counted.
    new = np.append(True, (np.diff(client) != 0) | (np.diff(entity) != 0))[: len(frame)]
    starts = np.flatnonzero(new)
    lengths = np.diff(np.append(starts, len(frame)))
    return (np.arange(len(frame)) - np.repeat(starts, lengths)).astype(np.float64)


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
