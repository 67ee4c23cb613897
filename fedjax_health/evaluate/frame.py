"""Scores and alarms as a table, one row for each example."""

import io
from collections.abc import Sequence

import numpy as np
import pandas as pd

from fedjax_health.core.types import InputLayout
from fedjax_health.data.preprocess.encode import Vocabulary, encoded_names
from fedjax_health.data.schema import Dataset, examples_of, segment_ids
from fedjax_health.engine.score import Reading

SHARE = "share_"


def score_frame(
    part: Dataset,
    found: Reading,
    *,
    threshold: float,
    alarm_threshold: float | None,
    labelled: np.ndarray | None = None,
) -> pd.DataFrame:
    """Returns client, entity, time, what is known of each example, and its score.

    Streams have a ``segment`` as well: rows of one number follow each other without a
    gap, where a split may have cut one entity into several. Times that were read from
    dates stand there as a ``timestamp`` too, and examples that were read from the rows
    of a file have the number of their ``row`` in it, a stay that of its last one.

    Args:
      part: the rows that were scored.
      found: what the detector says of the examples of the part.
      threshold: the lowest probability that counts as detected.
      alarm_threshold: the lowest one that gives alarm; None where rows have no time,
        and what is detected gives alarm.
      labelled: bool ``[examples]``, whose labels are known; None for all. The others
        have no value in the columns of the label and of the attack, which are left out
        where no label is known.
    """
    examples = examples_of(part)
    # As the metrics compare them: thresholds are float64, scores float32.
    exact = np.asarray(found.probability, np.float64)
    columns = {
        "client": _names(examples.client_names, examples.client),
        "entity": (
            _names(examples.entity_names, examples.entity)
            if examples.entity_names
            else examples.entity
        ),
        "time": examples.time,
    }
    if examples.dated:
        columns["timestamp"] = np.round(examples.time * 1e6).astype("datetime64[us]")
    if examples.row is not None:
        columns["row"] = examples.row
    if labelled is None or labelled.any():
        columns["label"] = examples.label.astype(np.int8)
        columns["attack"] = _names(examples.attack_names, examples.attack)
    columns["score"] = np.asarray(found.probability, np.float32)
    columns["detected"] = exact >= threshold
    if alarm_threshold is not None:
        columns["segment"] = segment_ids(examples)
    columns["alarm"] = exact >= (
        threshold if alarm_threshold is None else alarm_threshold
    )
    if found.shares is not None:
        for position, name in enumerate(part.features):
            columns[SHARE + name] = np.asarray(found.shares[:, position], np.float32)
    frame = pd.DataFrame(columns)
    if labelled is not None and "label" in columns and not labelled.all():
        frame["label"] = frame["label"].astype("Int8").where(labelled)
        frame["attack"] = frame["attack"].where(labelled, None)
    return frame


def parquet_bytes(frame: pd.DataFrame) -> bytes:
    """Returns a table as the bytes of a Parquet file."""
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    return buffer.getvalue()


def top_features(
    contributions: np.ndarray,
    layout: InputLayout,
    feature_names: dict[str, tuple[str, ...]],
    *,
    vocabulary: Vocabulary,
    count: int = 3,
) -> list[str]:
    """Returns the features that weighed most, as text such as "flow.Load +1.52; ...".

    What the value, its being observed and the time since then add counts for the
    feature together, and so do the columns of one category.

    Args:
      contributions: float32 ``[examples, columns]`` of the model's input, to the logit.
      layout: where each modality lies in the input.
      feature_names: modality name -> names of its columns.
      vocabulary: modality name -> column -> categories that stand for it there, as
        "column=category".
      count: features that are named.
    """
    names: list[str] = []
    owner = np.zeros(contributions.shape[1], np.int64)
    index: dict[str, int] = {}
    for columns in layout:
        kinds = vocabulary.get(columns.name, {})
        origin = {name: c for c in kinds for name in encoded_names((c,), kinds)}
        for span in (columns.values, columns.observed, columns.elapsed):
            if span is None:
                continue
            for position, column in enumerate(feature_names[columns.name]):
                name = f"{columns.name}.{origin.get(column, column)}"
                if name not in index:
                    index[name] = len(names)
                    names.append(name)
                owner[span[0] + position] = index[name]
    total = np.zeros((len(contributions), len(names)), np.float32)
    for column, feature in enumerate(owner):
        total[:, feature] += contributions[:, column]
    order = np.argsort(-np.abs(total), axis=1, kind="stable")[:, :count]
    return [
        # One that was not observed weighs nothing.
        "; ".join(f"{names[i]} {row[i]:+.2f}" for i in best if row[i])
        for row, best in zip(total, order, strict=True)
    ]


def _names(names: Sequence[str], index: np.ndarray) -> np.ndarray:
    return np.asarray(names, object)[index]
