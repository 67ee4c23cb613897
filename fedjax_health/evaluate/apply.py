"""A trained detector meets data that it was not trained on."""

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd

from fedjax_health import build, records
from fedjax_health.build.sources import build_evaluation_dataset
from fedjax_health.build.split import records_apart
from fedjax_health.config import load
from fedjax_health.core.files import TEMPORARY
from fedjax_health.data.preprocess import (
    absent_columns,
    absent_modalities,
    apply_preprocessing,
    load_preprocessing,
    unseen_categories,
)
from fedjax_health.data.preprocess.encode import Vocabulary
from fedjax_health.data.presence import present_modalities
from fedjax_health.data.schema import (
    AbsentWarning,
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
from fedjax_health.records import Progress, RunFolder, RunFolderError

SCORES = "scores.parquet"
# What an evaluation has written before its result.
_UNFINISHED = (SCORES, "config.toml", "figures.json")


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
      out: folder to write to, absent or empty, or left by an evaluation that was
        killed; by default one inside the run folder, named after the data.

    Returns:
      Metrics where there are labels, counts, and the paths of what was written:
      ``scores.parquet``, ``figures.json`` and ``result.json``; in a folder of one's own
      the run's ``config.toml`` too, which a report reads.

    Raises:
      RunFolderError: if the run is not finished or damaged, or ``out`` is in use.
      DataError: if the data cannot be used or does not fit the detector.
    """
    paths = records.open_folder(folder)
    config = load(str(paths.config))
    about = read_detector(paths)
    target = _output(paths, data, out)
    _refuse_used(target)

    preprocessing = load_preprocessing(paths.preprocessing)
    with records.tell_warnings(progress, DataWarning) as told:
        loaded = build_evaluation_dataset(
            config,
            data,
            feature_names=preprocessing.feature_names,
            client_names=about.client_names,
        )
        dataset = apply_preprocessing(
            preprocessing, records_apart(config, loaded.dataset)
        )
    empty = absent_modalities(preprocessing, loaded.dataset)
    absent = tuple(dict.fromkeys((*loaded.absent, *empty)))
    columns = [
        name
        for name in absent_columns(preprocessing, loaded.dataset)
        if not name.startswith(tuple(f"{modality}." for modality in absent))
    ]
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
        # Of one that is there and empty, the loader has said it.
        if name in loaded.absent or name not in loaded.dataset.features:
            progress.on_message(
                f"modality {name}: not in the data, taken as not observed"
            )
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
        "took_part": about.took_part,
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
        "absent_columns": columns,
        # What is absent stands above, by name.
        "warnings": [
            w for w, kind in told.items() if not issubclass(kind, AbsentWarning)
        ],
        "labels": bool(labelled.any()),
        "labelled": int(labelled.sum()),
        "alarms": len(raised),
        "threshold": about.threshold,
        "alarm_threshold": about.alarm_threshold if about.streams else None,
        "false_alarm_rate": about.false_alarm_rate if about.streams else None,
    }
    measured = None
    if labelled.any():
        measured = _measure(dataset, found, about, labelled, seed=config.seed)
        shown = {n: v for n, v in measured["metrics"].items() if v is not None}
        result = {
            "metrics": shown,
            "intervals": {n: v for n, v in measured["intervals"].items() if n in shown},
            "details": {
                name: value
                for name, value in measured["details"].items()
                # Thresholds are in the result already.
                if value is not None and not name.endswith("threshold")
            },
            **result,
        }
    # Elsewhere than in the run's folder, a report would not find the configuration.
    text = paths.config.read_bytes() if out is not None else None
    return _write(target, frame, measured, result, config=text)


def _write(
    target: Path,
    frame: pd.DataFrame,
    measured: dict[str, Any] | None,
    result: dict[str, Any],
    *,
    config: bytes | None,
) -> dict[str, Any]:
    size = int(frame.memory_usage(deep=True).sum())
    records.require_free_space(target, size + (1 << 20))
    target.mkdir(parents=True, exist_ok=True)
    where = records.run_folder(target)
    # Of an evaluation that was killed; they need not be replaced by others.
    for leftover in (where.figures, where.config, *_temporary(target)):
        leftover.unlink(missing_ok=True)
    records.write_bytes(target / SCORES, parquet_bytes(frame))
    if config is not None:
        records.write_bytes(where.config, config)
    if measured is not None:
        records.write_json(where.figures, measured)
    # Last: with it the evaluation is complete.
    records.write_json(where.result, result)
    return {**result, "folder": str(target), "scores": str(target / SCORES)}


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
    present = present_modalities(dataset, window=about.window)
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
        present=present[rows],
        modalities=tuple(dataset.features),
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
    while not _is_free(folder):
        number += 1
        folder = first.with_name(f"{name}-{number}")
    return folder


def _is_free(folder: Path) -> bool:
    """Returns whether a folder is absent, empty or left by a killed evaluation.

    That writes its scores first and its result last.
    """
    if not folder.is_dir():
        return not folder.exists()
    found = set(folder.iterdir())
    temporary = _temporary(folder)
    own = {folder / name for name in _UNFINISHED}
    begun = folder / SCORES in found or bool(temporary)
    return not found or (begun and found - temporary <= own)


def _temporary(folder: Path) -> set[Path]:
    patterns = (f".{name}.*{TEMPORARY}" for name in _UNFINISHED)
    return {file for pattern in patterns for file in folder.glob(pattern)}


def _refuse_used(target: Path) -> None:
    """Refuses a folder that holds anything but what a killed evaluation left.

    Raises:
      RunFolderError: with the way out.
    """
    if _is_free(target):
        return
    if (target / SCORES).is_file():
        raise RunFolderError(
            f"{target}: output folder in use: it holds an evaluation: empty it or name "
            "another (--out FOLDER)"
        )
    records.check_unused(target)


def _columns(layout) -> str:
    return ", ".join(
        f"{columns.name} ({columns.values[1] - columns.values[0]} features"
        f"{', may be missing' if columns.observed else ''})"
        for columns in layout
    )
