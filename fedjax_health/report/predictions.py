"""Scores row by row, as a run or an evaluation has left them."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from fedjax_health.records import RunFolderError
from fedjax_health.report.clean import clean

SHARE = "share_"


class Predictions(NamedTuple):
    """Scores row by row, in the order of time inside each stream.

    Attributes:
      client: int64 ``[rows]``, indices into ``client_names``.
      client_names: names of the clients.
      entity: int64 ``[rows]``, indices into ``entity_names``.
      entity_names: names, or numbers as text.
      segment: int64 ``[rows]``; equal neighbours follow each other without a gap.
      time: float64 ``[rows]``, in the unit of the data; steps where a time is no
        number.
      score: float64 ``[rows]``, probability of an attack.
      label: int8 ``[rows]``, 0 or 1, -1 where unknown; None without labels.
      attack: int64 ``[rows]``, indices into ``attack_names``; None without types.
      attack_names: types of attack, the one of normal rows included.
      detected: bool ``[rows]``, score at or above the threshold of the best F1.
      alarm: bool ``[rows]``, score at or above the threshold for alarms in time;
        None where rows do not follow each other in time (``read_folder`` sees to it).
      shares: modality -> float64 ``[rows]``, its share in the score.
      top_features: text ``[rows]``, what weighed most; None where unknown.
      dated: whether ``time`` is in seconds since 1970.
    """

    client: np.ndarray
    client_names: tuple[str, ...]
    entity: np.ndarray
    entity_names: tuple[str, ...]
    segment: np.ndarray
    time: np.ndarray
    score: np.ndarray
    label: np.ndarray | None
    attack: np.ndarray | None
    attack_names: tuple[str, ...]
    detected: np.ndarray | None
    alarm: np.ndarray | None
    shares: dict[str, np.ndarray]
    top_features: np.ndarray | None
    dated: bool = False

    @property
    def segment_starts(self) -> np.ndarray:
        """First row of each stream without gaps, int64."""
        starts = np.flatnonzero(np.diff(self.segment) != 0) + 1
        return np.append(0, starts) if len(self.segment) else starts


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
    segment = _segments(path, frame, client, entity)
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
        segment=segment,
        time=_times(frame, segment),
        score=_numbers(path, frame["score"]),
        label=_labels(path, frame),
        attack=attack,
        attack_names=attack_names,
        detected=_flags(frame, "detected"),
        alarm=_flags(frame, "alarm"),
        shares=shares,
        top_features=None if features is None else features.fillna("").to_numpy(object),
        dated=_is_dated(frame),
    )


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


def _segments(
    path: Path, frame: pd.DataFrame, client: np.ndarray, entity: np.ndarray
) -> np.ndarray:
    """Returns the number of each row's stream without gaps, int64.

    A split may cut one entity into several; only the column tells where.
    """
    changed = (np.diff(client) != 0) | (np.diff(entity) != 0)
    if "segment" in frame.columns:
        changed |= np.diff(_numbers(path, frame["segment"])) != 0
    return np.cumsum(np.append(False, changed)[: len(frame)]).astype(np.int64)


def _is_dated(frame: pd.DataFrame) -> bool:
    column = frame.get("timestamp")
    return column is not None and pd.api.types.is_datetime64_any_dtype(column)


def _times(frame: pd.DataFrame, segment: np.ndarray) -> np.ndarray:
    column = frame.get("time")
    if column is not None and pd.api.types.is_numeric_dtype(column):
        times = column.to_numpy(np.float64, na_value=np.nan)
        if np.isfinite(times).all():
            return times
    # Without numbers that stand for times, rows of a stream are counted.
    starts = np.flatnonzero(np.append(True, np.diff(segment) != 0)[: len(frame)])
    lengths = np.diff(np.append(starts, len(frame)))
    return (np.arange(len(frame)) - np.repeat(starts, lengths)).astype(np.float64)
