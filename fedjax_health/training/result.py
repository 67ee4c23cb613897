"""Scoring while a run trains, and what a finished run leaves."""

from typing import Any

import jax
import numpy as np

from fedjax_health import build, records
from fedjax_health.core import trees
from fedjax_health.core.types import RoundState
from fedjax_health.data.presence import present_modalities
from fedjax_health.data.schema import (
    Dataset,
    examples_of,
    segment_ids,
    segment_starts,
)
from fedjax_health.data.store import input_names
from fedjax_health.engine.algorithm import params_of_clients
from fedjax_health.engine.average import averaged_params
from fedjax_health.engine.places import leaves_with
from fedjax_health.engine.score import Reading, reading
from fedjax_health.evaluate.backdoor import attack_success
from fedjax_health.evaluate.detector import DetectorFile, save_detector
from fedjax_health.evaluate.frame import parquet_bytes, score_frame
from fedjax_health.evaluate.scoring import Weights, build_part_reader
from fedjax_health.evaluate.wire import wire_leakage
from fedjax_health.metrics import host
from fedjax_health.metrics.figures import figures
from fedjax_health.metrics.summary import METRICS, Scored, evaluate_scores
from fedjax_health.records import RunFolder
from fedjax_health.training.account import (
    communication,
    example_privacy,
    privacy_of_run,
    wire_privacy,
)
from fedjax_health.training.best import Best
from fedjax_health.training.setup import Run


def scoring_view(run: Run, state: RoundState) -> Weights:
    """Returns what of a state is needed to score: the model and the clients' own."""
    own = params_of_clients(run.built.plan.local.algorithm, state)
    return Weights(averaged_params(state.params, state.server), own)


def part_scorer(run: Run, part: Dataset, mesh: jax.sharding.Mesh | None):
    """Returns ``weights -> probabilities [examples]`` for one part."""
    return build_part_reader(
        run.built.model, part, window=run.prepared.window, mesh=mesh
    )


def validation_figures(run: Run, scores: np.ndarray) -> dict[str, float]:
    """Returns what training is judged by while it runs."""
    label = examples_of(run.prepared.parts.validation).label
    return {
        "validation_auroc": host.auroc(scores, label),
        "validation_auprc": host.auprc(scores, label),
    }


def finish(
    run: Run, paths: RunFolder, best: Best, mesh: jax.sharding.Mesh | None
) -> dict[str, Any]:
    """Measures the best model on the test part and writes what remains."""
    config, parts = run.config, run.prepared.parts
    streams = have_streams(parts.test)
    found = [
        build_part_reader(
            run.built.model, part, window=run.prepared.window, mesh=mesh, read=reading
        )(best.view)
        for part in (parts.validation, parts.test)
    ]
    validation, test = (
        scored(part, answer.probability, streams=streams)
        for part, answer in zip((parts.validation, parts.test), found, strict=True)
    )
    examples = examples_of(parts.test)
    measured = figures(
        validation,
        test,
        window=config.window.length,
        false_alarm_rate=config.evaluation.false_alarm_rate,
        client=examples.client,
        client_names=examples.client_names,
        attack=examples.attack,
        attack_names=examples.attack_names,
        patient=examples.patient,
        entity=examples.entity,
        step_seconds=examples.step_seconds,
        present=present_modalities(parts.test, window=run.prepared.window),
        modalities=tuple(parts.test.features),
        seed=config.seed,
    )
    measured["oracle"] = oracle_metrics(run, streams=streams)
    backdoor = backdoor_rates(run, best.view, measured["threshold"], mesh)
    lines = records.read_jsonl(paths.metrics)
    rounds = lines[-1]["round"] if lines else config.rounds
    shown = {n: v for n, v in measured["metrics"].items() if v is not None}
    result: dict[str, Any] = {
        "metrics": shown,
        "intervals": {n: v for n, v in measured["intervals"].items() if n in shown},
        "details": {**measured["details"], **_client_details(measured)},
        "rounds": rounds,
        "best_round": int(best.round),
        "training_clients": run.prepared.store.num_clients,
        "validation": validation_figures(run, found[0].probability),
        "seed": config.seed,
        "num_params": trees.num_params(run.built.abstract_params),
        "uplink_bytes_per_client": run.built.algorithm.message.uplink_bytes(),
        "communication": communication(lines, run.built),
    }
    privacy = privacy_of_run(
        config, run.built, rounds=rounds, best_round=int(best.round)
    )
    if privacy is not None:
        result["privacy"] = privacy
    by_example = example_privacy(config, run.prepared.store, rounds)
    if by_example is not None:
        result["example_privacy"] = by_example
    on_the_wire = wire_privacy(config, run.prepared.store, rounds)
    if on_the_wire is not None:
        result["wire_privacy"] = on_the_wire
    leaks = _wire_leakage(run, best.view)
    if leaks is not None:
        result["wire_leakage"] = leaks
    held_out = parts.train.num_clients - run.prepared.store.num_clients
    if held_out:
        result["held_out_clients"] = held_out
    if run.warnings:
        result["warnings"] = list(run.warnings)
    if measured["oracle"] is not None:
        result["oracle"] = measured["oracle"]
    if backdoor is not None:
        measured["backdoor"] = backdoor
        result["details"] |= named_rates(backdoor)
    write_predictions(paths, parts.test, found[1], measured)
    records.write_json(paths.figures, measured)
    save_detector(paths, best.view, _about(run, measured, best, streams=streams))
    # Last: with it the run is complete.
    records.write_json(paths.result, result)
    return with_folder(result, paths)


def _wire_leakage(run: Run, weights: Weights) -> dict[str, Any] | None:
    """Returns what the wire of a split model shows; None where nobody asks for it."""
    split = run.config.split_learning
    if split is None or not split.leakage:
        return None
    return wire_leakage(
        run.config,
        run.prepared,
        run.built,
        weights,
        took_part=_took_part(run, weights),
        seed=run.config.seed,
    )


def with_folder(result: dict[str, Any], paths: RunFolder) -> dict[str, Any]:
    """Returns the result with the folder that it lies in."""
    return {**result, "folder": str(paths.root)}


def scored(part: Dataset, scores: np.ndarray, *, streams: bool) -> Scored:
    """Returns the examples of a part with their scores."""
    examples = examples_of(part)
    return Scored(scores, examples.label, segment_ids(examples) if streams else None)


def have_streams(part: Dataset) -> bool:
    """Returns whether rows follow each other in time, so that delays have a meaning."""
    return part.target == "row" and len(segment_starts(part)) < part.num_rows


def write_predictions(
    paths: RunFolder, part: Dataset, found: Reading, measured: dict[str, Any]
) -> None:
    """Writes a part's scores and what is said at the thresholds of the figures."""
    frame = score_frame(
        part,
        found,
        threshold=measured["threshold"],
        alarm_threshold=measured["delay_threshold"],
    )
    records.write_bytes(paths.predictions, parquet_bytes(frame))


def backdoor_rates(
    run: Run, weights: Weights, threshold: float, mesh: jax.sharding.Mesh | None
) -> dict[str, Any] | None:
    """Returns how often the trigger of a backdoor works; None where there is none.

    Args:
      run: what was trained.
      weights: of the model that is measured.
      threshold: probability from which an example is called an attack.
      mesh: devices that share the work.
    """
    parts = run.prepared.parts
    planted = build.trigger_of(run.config, input_names(parts.train))
    if planted is None:
        return None
    trigger, target = planted
    rates = attack_success(
        run.built.model,
        weights,
        parts.test,
        trigger=trigger,
        target=target,
        window=run.prepared.window,
        threshold=threshold,
        mesh=mesh,
    )
    known = {name: v if np.isfinite(v) else None for name, v in rates.items()}
    return {"target": target, **known}


def named_rates(backdoor: dict[str, Any]) -> dict[str, float]:
    """Returns the rates that have an answer, under names that stand alone.

    Args:
      backdoor: from ``backdoor_rates``.
    """
    names = {
        "attack_success": "attack_success",
        "without_trigger": "attack_success_without_trigger",
    }
    return {
        name: backdoor[key] for key, name in names.items() if backdoor[key] is not None
    }


def oracle_metrics(run: Run, *, streams: bool) -> dict[str, float] | None:
    """Returns the figures of an observer who knows how the data was generated.

    Args:
      run: with its data.
      streams: whether rows follow each other in time.

    Returns:
      The metrics on the test part; None for data that nobody generated.
    """
    known, parts = [], run.prepared.parts
    for part in (parts.validation, parts.test):
        if part.oracle is None:
            return None
        scores = examples_of(part).oracle
        assert scores is not None
        known.append(scored(part, _sigmoid(scores), streams=streams))
    values = evaluate_scores(
        *known,
        window=run.config.window.length,
        false_alarm_rate=run.config.evaluation.false_alarm_rate,
    )
    return {name: values[name] for name in METRICS if name in values}


def _client_details(measured: dict[str, Any]) -> dict[str, float]:
    """Returns how the AUROC is spread over clients, under the names of the metrics."""
    spread = measured["client_spread"]["auroc"]
    details = {
        f"{name}_clients": float(spread[name]) for name in ("ranked", "excluded")
    }
    for name in host.Spread._fields:
        if spread[name] is not None:
            details[f"{name}_client_auroc"] = spread[name]
    return details


def _about(
    run: Run, measured: dict[str, Any], best: Best, *, streams: bool
) -> DetectorFile:
    train, store = run.prepared.parts.train, run.prepared.store
    alarm_threshold = measured["delay_threshold"]
    assert store.client_names is not None
    return DetectorFile(
        layout=run.prepared.layout,
        target=train.target,
        window=run.prepared.window,
        streams=streams,
        client_names=store.client_names,
        attack_names=train.attack_names,
        threshold=measured["threshold"],
        alarm_threshold=measured["threshold"]
        if alarm_threshold is None
        else alarm_threshold,
        false_alarm_rate=run.config.evaluation.false_alarm_rate,
        round=int(best.round),
        took_part=_took_part(run, best.view),
    )


def _took_part(run: Run, view: Weights) -> tuple[bool, ...]:
    """Returns which clients' personal leaves have left their initial values."""
    personal = run.built.plan.personal
    if personal is None or view.own is None:
        return ()
    start = build.initial_params(run.config, run.built.model)
    first = jax.tree.leaves(leaves_with(personal, start))
    moved = [
        np.any(np.asarray(now) != np.asarray(then), axis=tuple(range(1, now.ndim)))
        for now, then in zip(jax.tree.leaves(view.own), first, strict=True)
    ]
    return tuple(bool(client) for client in np.any(moved, axis=0))


def _sigmoid(score: np.ndarray) -> np.ndarray:
    # In float64, so that large scores keep their order.
    return 1.0 / (1.0 + np.exp(-score.astype(np.float64)))
