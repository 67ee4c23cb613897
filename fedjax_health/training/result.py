"""Scoring a part of the data, and what a finished run leaves."""

import io
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from fedjax_health import records
from fedjax_health.config import Config
from fedjax_health.core import trees
from fedjax_health.core.types import Params, RoundState
from fedjax_health.data.schema import Dataset, segment_ids, segment_starts
from fedjax_health.data.splits import Parts
from fedjax_health.data.store import from_dataset
from fedjax_health.engine.algorithm import params_of_clients
from fedjax_health.engine.score import build_scorer
from fedjax_health.metrics import host
from fedjax_health.metrics.summary import Scored, evaluate_scores
from fedjax_health.records import RunFolder
from fedjax_health.training.best import Best
from fedjax_health.training.setup import Run

METRICS = (
    "accuracy",
    "f1",
    "mcc",
    "auroc",
    "auprc",
    "ece",
    "brier",
    "mean_delay",
    "median_delay",
    "missed_episodes",
    "achieved_far",
)


def scoring_view(run: Run, state: RoundState) -> dict[str, Any]:
    """Returns what of a state is needed to score: the model and the clients' own."""
    own = params_of_clients(run.built.plan.local.algorithm, state)
    return {"params": state.params, "own": own}


def part_scorer(run: Run, part: Dataset, mesh: jax.sharding.Mesh | None):
    """Returns ``view -> probabilities [rows]`` for one part, row by row."""
    window = run.prepared.window
    store = from_dataset(part, window=window, pad=True)
    scorer = build_scorer(run.built.model, store, mesh)

    def score(view: dict[str, Any]) -> np.ndarray:
        if view["own"] is None:
            return scorer(view["params"])
        parts = []
        for client in range(part.num_clients):
            first, end = store.offsets[client], store.offsets[client + 1]
            if first == end:
                continue
            own = trees.take_row(view["own"], jnp.int32(client))
            params: Params = trees.join(own, view["params"])
            parts.append(scorer(params, int(first), int(end - first)))
        return np.concatenate(parts)

    return score


def validation_figures(run: Run, scores: np.ndarray) -> dict[str, float]:
    """Returns what training is judged by while it runs."""
    label = run.prepared.parts.validation.label
    return {
        "validation_auroc": host.auroc(scores, label),
        "validation_auprc": host.auprc(scores, label),
    }


def finish(
    run: Run, paths: RunFolder, best: Best, mesh: jax.sharding.Mesh | None
) -> dict[str, Any]:
    """Measures the best model on the test part and writes what remains."""
    config, parts = run.config, run.prepared.parts
    streams = _have_streams(parts)
    scored, raw = [], []
    for part in (parts.validation, parts.test):
        scores = part_scorer(run, part, mesh)(best.view)
        raw.append(scores)
        segment = segment_ids(part) if streams else None
        scored.append(Scored(scores, part.label, segment))
    figures = evaluate_scores(
        *scored,
        window=config.window.length,
        false_alarm_rate=config.evaluation.false_alarm_rate,
        client=parts.test.client,
    )
    shown = {n: figures[n] for n in METRICS if n in figures}
    result: dict[str, Any] = {
        "metrics": shown,
        "details": {n: v for n, v in figures.items() if n not in shown},
        "rounds": _rounds_done(paths, config),
        "best_round": int(best.round),
        "validation": validation_figures(run, raw[0]),
        "seed": config.seed,
        "num_params": trees.num_params(run.built.abstract_params),
        "uplink_bytes_per_client": run.built.algorithm.message.uplink_bytes(),
    }
    oracle = [
        part.oracle
        for part in (parts.validation, parts.test)
        if part.oracle is not None
    ]
    if len(oracle) == 2:
        pairs = [
            Scored(_sigmoid(scores), part.label, segment_ids(part) if streams else None)
            for scores, part in zip(oracle, (parts.validation, parts.test), strict=True)
        ]
        known = evaluate_scores(
            *pairs,
            window=config.window.length,
            false_alarm_rate=config.evaluation.false_alarm_rate,
        )
        result["oracle"] = {n: known[n] for n in METRICS if n in known}
    write_predictions(paths, parts.test, raw[1], figures)
    records.write_json(paths.result, result)
    return with_folder(result, paths)


def with_folder(result: dict[str, Any], paths: RunFolder) -> dict[str, Any]:
    """Returns the result with the folder that it lies in."""
    return {**result, "folder": str(paths.root)}


def _rounds_done(paths: RunFolder, config: Config) -> int:
    lines = records.read_jsonl(paths.metrics)
    return lines[-1]["round"] if lines else config.rounds


def _sigmoid(score: np.ndarray) -> np.ndarray:
    # In float64, so that large scores keep their order.
    return 1.0 / (1.0 + np.exp(-score.astype(np.float64)))


def _have_streams(parts: Parts) -> bool:
    """Returns whether rows follow each other in time, so that delays have a meaning."""
    test = parts.test
    return len(segment_starts(test)) < test.num_rows


def write_predictions(
    paths: RunFolder, part: Dataset, scores: np.ndarray, figures: dict[str, float]
) -> None:
    """Writes a part's scores and what is said at the thresholds of the figures."""
    # As the metrics compare them: thresholds are float64, scores float32.
    exact = scores.astype(np.float64)
    columns = {
        "client": np.asarray(part.client_names, object)[part.client],
        "entity": part.entity,
        "time": part.time,
        "label": part.label.astype(np.int8),
        "attack": np.asarray(part.attack_names, object)[part.attack],
        "score": scores,
        "detected": exact >= figures["threshold"],
    }
    if "delay_threshold" in figures:
        columns["alarm"] = exact >= figures["delay_threshold"]
    buffer = io.BytesIO()
    pd.DataFrame(columns).to_parquet(buffer, index=False)
    records.write_bytes(paths.predictions, buffer.getvalue())
