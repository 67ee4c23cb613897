"""A trained detector meets data that it was not trained on."""

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fedjax_health import build, records
from fedjax_health.build.sources import build_evaluation_dataset
from fedjax_health.build.split import records_apart
from fedjax_health.config import load
from fedjax_health.data.preprocess import (
    absent_modalities,
    apply_preprocessing,
    load_preprocessing,
    unseen_categories,
)
from fedjax_health.data.preprocess.encode import Vocabulary
from fedjax_health.data.schema import (
    DataError,
    Dataset,
    DataWarning,
    examples_of,
    last_rows,
    segment_ids,
    take_rows,
)
from fedjax_health.data.store import input_layout
from fedjax_health.engine.score import Reading, attributions, reading
from fedjax_health.evaluate.detector import DetectorFile, load_weights, read_detector
from fedjax_health.evaluate.frame import parquet_bytes, score_frame, top_features
from fedjax_health.evaluate.scoring import Weights, build_part_reader
from fedjax_health.metrics.figures import figures_at
from fedjax_health.metrics.summary import Scored
from fedjax_health.records import Progress, RunFolder


def evaluate(
    folder: str | os.PathLike[str],
    data: str | os.PathLike[str],
    progress: Progress,
    *,
    out: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Scores new data of the same roles with the detector of a finished run.

    Thresholds are those of the run's validation part. Clients that were in training are
    scaled by their own statistics and, where a part of the model is personal, scored by
    their own model; others by the averages over the training clients. Every example is
    scored; labels are used for metrics alone, which are those of the examples that have
    one.

    Args:
      folder: of the run.
      data: a file or folder of the kind that the run's configuration names.
      progress: told what happens.
      out: folder to write to, absent or empty; by default one inside the run folder,
        named after the data.

    Returns:
      Metrics where there are labels, counts, and the paths of what was written:
      ``scores.parquet``, ``figures.json`` and ``result.json``.

    Raises:
      RunFolderError: if the run is not finished or damaged, or ``out`` is in use.
      DataError: if the data cannot be used or does not fit the detector.
    """
    paths = records.open_folder(folder)
    config = load(str(paths.config))
    about = read_detector(paths)
    target = _output(paths, data, out)
    records.check_unused(target)

    preprocessing = load_preprocessing(paths.preprocessing)
    with records.tell_warnings(progress, DataWarning):
        loaded = build_evaluation_dataset(
            config,
            data,
            feature_names=preprocessing.feature_names,
            client_names=about.client_names,
        )
        dataset = apply_preprocessing(
            preprocessing, records_apart(config, loaded.dataset)
        )
    absent = (*loaded.absent, *absent_modalities(preprocessing, loaded.dataset))
    unknown = unseen_categories(preprocessing.vocabulary, loaded.dataset)
    layout = input_layout(dataset)
    if layout != about.layout:
        raise DataError(
            f"{data}: the columns do not fit the detector of {paths.root}: it takes "
            f"{_columns(about.layout)}, the data gives {_columns(layout)}"
        )
    labelled = loaded.known
    if dataset.target == "entity":
        labelled = labelled[last_rows(dataset)]
    names = dataset.client_names
    known = {name: row for row, name in enumerate(about.client_names)}
    own_row = np.array([known.get(name, -1) for name in names])
    unseen = [name for name in names if name not in known]
    progress.on_message(
        f"data: {dataset.num_rows:,} rows, {dataset.num_clients:,} clients, "
        f"{len(unseen):,} of them not in training; {_said_of_labels(labelled)}"
    )

    for name in absent:
        progress.on_message(f"modality {name}: not in the data, taken as not observed")
    for name, counts in unknown.items():
        listed = ", ".join(f"{value} ({rows:,} rows)" for value, rows in counts.items())
        progress.on_message(f"{name}: categories that training never saw: {listed}")

    model = build.build_model(config, about)
    abstract = jax.eval_shape(model.init, jax.random.key(0))
    weights = load_weights(paths, abstract)
    mesh = build.build_mesh(config.devices)
    common: dict[str, Any] = {
        "window": about.window,
        "mesh": mesh,
        "own_row": own_row,
    }
    found: Reading = build_part_reader(model, dataset, read=reading, **common)(weights)
    frame = score_frame(
        dataset,
        found,
        threshold=about.threshold,
        alarm_threshold=about.alarm_threshold if about.streams else None,
        labelled=labelled,
    )
    least = about.alarm_threshold if about.streams else about.threshold
    position = list(frame.columns).index("score") + 1
    frame.insert(position, "threshold", np.float64(least))
    raised = np.flatnonzero(frame["score"].to_numpy(np.float64) >= least)
    frame["top_features"] = _explain(
        build_part_reader(model, dataset, read=attributions, **common),
        weights,
        raised,
        about,
        dataset,
        preprocessing.vocabulary,
    )
    result: dict[str, Any] = {
        "rows": len(frame),
        "clients": dataset.num_clients,
        "training_clients": len(about.client_names),
        "unseen_clients": unseen,
        "unseen_categories": unknown,
        "absent_modalities": list(absent),
        "labels": bool(labelled.any()),
        "labelled": int(labelled.sum()),
        "alarms": len(raised),
        "threshold": about.threshold,
        "alarm_threshold": about.alarm_threshold if about.streams else None,
    }
    measured = None
    if labelled.any():
        measured = _measure(dataset, found, about, labelled, seed=config.seed)
        result = {
            "metrics": measured["metrics"],
            "intervals": measured["intervals"],
            **result,
        }
    return _write(target, frame, measured, result)


def _write(target: Path, frame, measured, result: dict[str, Any]) -> dict[str, Any]:
    records.require_free_space(target, frame.memory_usage(deep=True).sum() + (1 << 20))
    target.mkdir(parents=True, exist_ok=True)
    records.write_bytes(target / "scores.parquet", parquet_bytes(frame))
    if measured is not None:
        records.write_json(target / "figures.json", measured)
    # Last: with it the evaluation is complete.
    records.write_json(target / "result.json", result)
    return {**result, "folder": str(target), "scores": str(target / "scores.parquet")}


def _measure(
    dataset: Dataset,
    found: Reading,
    about: DetectorFile,
    labelled: np.ndarray,
    *,
    seed: int,
) -> dict[str, Any]:
    """Returns the figures of the examples whose labels are known."""
    examples = examples_of(dataset)
    # A row without a label cuts a stream in two.
    piece = segment_ids(examples) + np.cumsum(~labelled)
    rows = np.flatnonzero(labelled)
    examples = take_rows(examples, rows)
    return figures_at(
        Scored(
            found.probability[rows],
            examples.label,
            piece[rows] if about.streams else None,
        ),
        threshold=about.threshold,
        delay_threshold=about.alarm_threshold if about.streams else None,
        window=about.window or 1,
        client=examples.client,
        client_names=examples.client_names,
        attack=examples.attack,
        attack_names=examples.attack_names,
        patient=examples.patient,
        entity=examples.entity,
        step_seconds=examples.step_seconds,
        seed=seed,
    )


def _said_of_labels(labelled: np.ndarray) -> str:
    if labelled.all():
        return "labels found"
    if not labelled.any():
        return "no labels: scores and alarms only"
    return f"labels of {int(labelled.sum()):,} examples found, which are measured"


def _explain(
    reader,
    weights: Weights,
    raised: np.ndarray,
    about: DetectorFile,
    dataset: Dataset,
    vocabulary: Vocabulary,
) -> np.ndarray:
    """Returns the features that weighed most in each alarm, empty text elsewhere."""
    text = np.full(examples_of(dataset).num_rows, "", object)
    if len(raised):
        contributions = reader(weights, raised)
        text[raised] = top_features(
            contributions,
            about.layout,
            dict(dataset.feature_names),
            vocabulary=vocabulary,
        )
    return text


def _output(
    paths: RunFolder,
    data: str | os.PathLike[str],
    out: str | os.PathLike[str] | None,
) -> Path:
    if out is not None:
        return Path(out)
    name = Path(data).name.partition(".")[0] or "data"
    first = paths.evaluations / name
    folder, number = first, 1
    while folder.exists() and any(folder.iterdir()):
        number += 1
        folder = first.with_name(f"{name}-{number}")
    return folder


def _columns(layout) -> str:
    return ", ".join(
        f"{columns.name} ({columns.values[1] - columns.values[0]} features"
        f"{', may be missing' if columns.observed else ''})"
        for columns in layout
    )
