"""A configuration is trained into a run folder, and an interrupted run goes on.

What a run computes depends on its configuration and data alone. After every segment of
rounds its lines are appended to ``metrics.jsonl`` and, when due, the state is saved;
whatever a kill leaves behind after the last checkpoint is dropped and done again, so
that a resumed run ends with the bytes of an uninterrupted one.
"""

import io
import math
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from fedjax_health import build, records
from fedjax_health.config import (
    Config,
    Custom,
    Table,
    Wustl,
    config_hash,
    load,
    to_toml,
)
from fedjax_health.core import trees
from fedjax_health.core.rng import root_key
from fedjax_health.core.types import Params, RoundState
from fedjax_health.data.preprocess import save_scaler, summary
from fedjax_health.data.sampling import build_cohort_fn
from fedjax_health.data.schema import Dataset, dataset_sha256
from fedjax_health.data.store import from_dataset
from fedjax_health.engine import checkpoint
from fedjax_health.engine.algorithm import params_of_clients
from fedjax_health.engine.devices import available_cores, available_memory
from fedjax_health.engine.run import run_rounds
from fedjax_health.engine.score import build_scorer
from fedjax_health.metrics import host
from fedjax_health.metrics.summary import Scored, evaluate_scores
from fedjax_health.records import Progress, RunFolder

# What the interpreter and its libraries take before any data is there; measured.
BASE_MEMORY = 450 << 20
# A run folder's lines, predictions and settings beside its checkpoints.
SMALL_FILES = 32 << 20


class Best(NamedTuple):
    """The best model so far by the validation part.

    Attributes:
      view: what is needed to score with it.
      value: float32 ``[]``, its validation metric.
      round: int32 ``[]``, rounds it had been trained for.
      waited: int32 ``[]``, evaluations since.
    """

    view: Any
    value: jax.Array
    round: jax.Array
    waited: jax.Array


class Saved(NamedTuple):
    """What a checkpoint holds."""

    state: RoundState
    best: Best


def train(config: Config, folder: str | Path, progress: Progress) -> dict[str, Any]:
    """Trains a detector into a new run folder.

    Args:
      config: the configuration.
      folder: the run folder; absent or empty.
      progress: told what happens.

    Returns:
      The result: metrics of the best model on the test part, and what it was.

    Raises:
      RunFolderError: if the folder is in use or the disk too small.
      ConfigError, DataError, CompositionError: before anything is trained.
      NonFiniteLossError: if training diverges; the last checkpoint is kept.
    """
    records.check_unused(folder)
    run = _prepare(config, progress)
    needed = _disk_bytes(run)
    records.require_free_space(folder, needed)
    paths = records.create_folder(folder)
    with records.locked(paths):
        records.write_json(paths.environment, records.environment(**_machine(run)))
        save_scaler(run.prepared.scaler, paths.preprocessing)
        # Last of the files that describe the run: with it there is a run to resume.
        records.write_text(paths.config, to_toml(config))
        state = run.built.algorithm.init(root_key(config.seed), run.built.params)
        return _go_on(run, paths, Saved(state, _no_best(run, state)), progress)


def resume(folder: str | Path, progress: Progress) -> dict[str, Any]:
    """Goes on with a run from its last whole checkpoint.

    Args:
      folder: the run folder.
      progress: told what happens.

    Returns:
      The result, as the uninterrupted run would have returned it.

    Raises:
      RunFolderError: if there is no run, or another process works on it.
      CheckpointError: if the configuration or the data have changed since, or every
        checkpoint is damaged.
    """
    paths = records.open_folder(folder)
    config = load(str(paths.config))
    with records.locked(paths):
        if paths.result.is_file():
            progress.on_message(f"{folder}: this run is complete")
            return _with_folder(records.read_json(paths.result), paths)
        run = _prepare(config, progress)
        state = run.built.algorithm.init(root_key(config.seed), run.built.params)
        saved = Saved(state, _no_best(run, state))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            restored = checkpoint.restore_latest(
                paths.checkpoints,
                saved,
                check=lambda context: _refuse_other_run(context, _context(run), paths),
            )
        for warning in caught:
            if issubclass(warning.category, checkpoint.DamagedCheckpointWarning):
                progress.on_message(f"warning: {warning.message}")
        if restored is not None:
            _warn_of_machine(restored.context, _context(run), paths, progress)
            saved = restored.tree
        done = int(saved.state.round)
        for lines in (paths.metrics, paths.timings):
            records.truncate_jsonl(lines, lambda row: row["round"] <= done)
        return _go_on(run, paths, saved, progress)


class _Run(NamedTuple):
    """A configuration with all that was built from it."""

    config: Config
    prepared: build.Prepared
    built: build.Built
    data_sha256: str | None


def _prepare(config: Config, progress: Progress) -> _Run:
    dataset = build.build_dataset(config)
    prepared = build.prepare(config, dataset)
    train_part = summary(prepared.parts.train)
    progress.on_message(
        f"data: {dataset.num_rows:,} rows, {train_part.num_clients:,} clients, "
        f"{100 * float(np.mean(dataset.label)):.1f} % positive; "
        f"{prepared.store.num_examples:,} training examples"
    )
    if train_part.single_class_clients:
        progress.on_message(
            f"{len(train_part.single_class_clients)} of {train_part.num_clients} "
            "clients have one class only in training"
        )
    built = build.build(config, prepared)
    progress.on_message(f"clients: {built.algorithm.parallelism}")
    return _Run(config, prepared, built, _data_digest(config, dataset))


def _data_digest(config: Config, dataset: Dataset) -> str | None:
    """Returns what tells changed data; None where the configuration says it all."""
    match config.data:
        case Custom():
            return dataset_sha256(dataset)
        case Table(path=path) | Wustl(path=path):
            return records.file_sha256(path)
    return None


def _machine(run: _Run) -> dict[str, Any]:
    return {
        "devices": jax.local_device_count(),
        "platform": jax.default_backend(),
        "processes": jax.process_count(),
        "threads": available_cores(),
        "parallelism": run.built.algorithm.parallelism,
    }


def _context(run: _Run) -> dict[str, Any]:
    """Returns what must hold, or is warned about, when a checkpoint is used again."""
    return {
        "config": config_hash(run.config),
        "data": run.data_sha256,
        **_machine(run),
        "jax": jax.__version__,
    }


def _refuse_other_run(
    saved: dict[str, Any], now: dict[str, Any], paths: RunFolder
) -> None:
    changed = {"config": "configuration", "data": "data"}
    for name, what in changed.items():
        if saved.get(name) != now[name]:
            raise checkpoint.CheckpointError(
                f"{paths.root}: the {what} has changed since the checkpoint was "
                "written: put it back, or start a new run"
            )


def _warn_of_machine(
    saved: dict[str, Any], now: dict[str, Any], paths: RunFolder, progress: Progress
) -> None:
    differ = [name for name in now if saved.get(name) != now[name]]
    if differ:
        text = ", ".join(f"{name} {saved.get(name)} -> {now[name]}" for name in differ)
        progress.on_message(f"warning: bits may differ from the first run: {text}")
        environment = records.read_json(paths.environment)
        resumed = [*environment.get("resumed", []), {n: now[n] for n in differ}]
        records.write_json(paths.environment, {**environment, "resumed": resumed})


def _scoring_view(run: _Run, state: RoundState) -> dict[str, Any]:
    """Returns what of a state is needed to score: the model and the clients' own."""
    own = params_of_clients(run.built.plan.local.algorithm, state)
    return {"params": state.params, "own": own}


def _no_best(run: _Run, state: RoundState) -> Best:
    # Copies: the state is donated to the next round.
    view = jax.tree.map(lambda x: jnp.array(x, copy=True), _scoring_view(run, state))
    return Best(view, jnp.float32(-jnp.inf), jnp.int32(0), jnp.int32(0))


def _go_on(
    run: _Run, paths: RunFolder, saved: Saved, progress: Progress
) -> dict[str, Any]:
    """Trains from a saved state to the end and writes the result."""
    config, built = run.config, run.built
    mesh = build.build_mesh(config.devices)
    validation = _part_scorer(run, run.prepared.parts.validation, mesh)
    cohorts = build_cohort_fn(
        run.prepared.store,
        built.sampling,
        config.seed,
        malicious=built.malicious,
    )
    checkpoints = checkpoint.open_checkpoints(
        paths.checkpoints, keep=config.checkpoint.keep
    )
    first = int(saved.state.round)
    best = saved.best
    segment = math.gcd(config.evaluation.every, config.checkpoint.every)
    progress.on_start(total_rounds=config.rounds, first_round=first)
    clock = time.monotonic()

    def on_segment(state: RoundState, metrics: dict[str, np.ndarray]) -> bool:
        nonlocal best, clock
        done = int(state.round)
        last = done == config.rounds
        seconds = time.monotonic() - clock
        rounds = len(metrics["loss"])
        lines = _lines(metrics, done - rounds)
        value = None
        stop = False
        if last or done % config.evaluation.every == 0:
            view = _scoring_view(run, state)
            scores = validation(view)
            figures = _validation_figures(run, scores)
            lines[-1].update(figures)
            value = figures["validation_auroc"]
            best = _better(best, view, figures, done, config)
            stop = _out_of_patience(best, config)
        records.append_jsonl(paths.metrics, lines)
        evaluated = time.monotonic()
        if last or stop or done % config.checkpoint.every == 0:
            with records.clear_errors(paths.checkpoints):
                checkpoint.save(checkpoints, done, Saved(state, best), _context(run))
        now = time.monotonic()
        clients = float(np.sum(metrics["num_clients"]))
        timing = {
            "round": done,
            "rounds": rounds,
            "training_s": seconds,
            "evaluation_s": evaluated - clock - seconds,
            "checkpoint_s": now - evaluated,
            "clients_per_s": clients / max(seconds, 1e-9),
        }
        records.append_jsonl(paths.timings, [timing])
        progress.on_round(
            round=done,
            loss=float(metrics["loss"][-1]),
            clients_per_s=timing["clients_per_s"],
            validation=value,
        )
        for round, count in enumerate(metrics["non_finite"], done - rounds + 1):
            if count:
                progress.on_message(
                    f"round {round}: {count} non-finite client update(s) masked"
                )
        clock = time.monotonic()
        return stop

    if first < config.rounds and not _out_of_patience(best, config):
        run_rounds(
            built.algorithm,
            saved.state,
            cohorts,
            config.rounds - first,
            on_segment=on_segment,
            segment=segment,
        )
    return _finish(run, paths, best, mesh)


def _lines(metrics: dict[str, np.ndarray], first: int) -> list[dict[str, Any]]:
    """Returns one line a round; nothing in them depends on the clock."""
    rounds = len(metrics["loss"])
    skipped = {"bad_clients", "accepted"}
    return [
        {
            "round": first + i + 1,
            **{n: v[i].item() for n, v in metrics.items() if _is_line(n, v, skipped)},
        }
        for i in range(rounds)
    ]


def _is_line(name: str, values: np.ndarray, skipped: set[str]) -> bool:
    return name not in skipped and values.ndim == 1


def _better(
    best: Best, view: Any, figures: dict[str, float], done: int, config: Config
) -> Best:
    value = figures[f"validation_{config.evaluation.metric}"]
    # Compared as float32, so that a restored value compares like the one that was.
    if np.float32(value) > np.float32(best.value):
        copy = jax.tree.map(lambda x: jnp.array(x, copy=True), view)
        return Best(copy, jnp.float32(value), jnp.int32(done), jnp.int32(0))
    return best._replace(waited=best.waited + 1)


def _out_of_patience(best: Best, config: Config) -> bool:
    patience = config.evaluation.patience
    return patience is not None and int(best.waited) >= patience


def _part_scorer(run: _Run, part: Dataset, mesh: jax.sharding.Mesh | None):
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


def _validation_figures(run: _Run, scores: np.ndarray) -> dict[str, float]:
    label = run.prepared.parts.validation.label
    return {
        "validation_auroc": host.auroc(scores, label),
        "validation_auprc": host.auprc(scores, label),
    }


def _finish(
    run: _Run, paths: RunFolder, best: Best, mesh: jax.sharding.Mesh | None
) -> dict[str, Any]:
    """Measures the best model on the test part and writes what remains."""
    config, parts = run.config, run.prepared.parts
    streams = run.prepared.window is not None
    scored, raw = [], []
    for part in (parts.validation, parts.test):
        scores = _part_scorer(run, part, mesh)(best.view)
        raw.append(scores)
        scored.append(Scored(scores, part.label, _segments(part) if streams else None))
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
        "validation": _validation_figures(run, raw[0]),
        "seed": config.seed,
        "num_params": trees.num_params(run.built.params),
        "uplink_bytes_per_client": run.built.algorithm.message.uplink_bytes(),
    }
    oracle = [part.oracle for part in (parts.validation, parts.test)]
    if all(scores is not None for scores in oracle):
        pairs = [
            Scored(_sigmoid(scores), part.label, _segments(part) if streams else None)
            for scores, part in zip(oracle, (parts.validation, parts.test), strict=True)
        ]
        known = evaluate_scores(
            *pairs,
            window=config.window.length,
            false_alarm_rate=config.evaluation.false_alarm_rate,
        )
        result["oracle"] = {n: known[n] for n in METRICS if n in known}
    _write_predictions(paths, parts.test, raw[1], figures)
    records.write_json(paths.result, result)
    return _with_folder(result, paths)


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


def _with_folder(result: dict[str, Any], paths: RunFolder) -> dict[str, Any]:
    return {**result, "folder": str(paths.root)}


def _rounds_done(paths: RunFolder, config: Config) -> int:
    lines = records.read_jsonl(paths.metrics)
    return lines[-1]["round"] if lines else config.rounds


def _sigmoid(score: np.ndarray) -> np.ndarray:
    # In float64, so that large scores keep their order.
    return 1.0 / (1.0 + np.exp(-score.astype(np.float64)))


def _segments(part: Dataset) -> np.ndarray:
    """Returns one number per stream, so that equal neighbours belong together."""
    client, entity = part.client.astype(np.int64), part.entity
    change = np.ones(part.num_rows, bool)
    change[1:] = (np.diff(client) != 0) | (np.diff(entity) != 0)
    return np.cumsum(change)


def _write_predictions(
    paths: RunFolder, part: Dataset, scores: np.ndarray, figures: dict[str, float]
) -> None:
    columns = {
        "client": np.asarray(part.client_names, object)[part.client],
        "entity": part.entity,
        "time": part.time,
        "label": part.label.astype(np.int8),
        "attack": np.asarray(part.attack_names, object)[part.attack],
        "score": scores,
        "detected": scores >= figures["threshold"],
    }
    if "delay_threshold" in figures:
        columns["alarm"] = scores >= figures["delay_threshold"]
    buffer = io.BytesIO()
    pd.DataFrame(columns).to_parquet(buffer, index=False)
    records.write_bytes(paths.predictions, buffer.getvalue())


def _state_bytes(run: _Run) -> int:
    state = jax.eval_shape(
        run.built.algorithm.init, root_key(run.config.seed), run.built.params
    )
    return trees.num_bytes(state._replace(key=()))


def _disk_bytes(run: _Run) -> int:
    # A checkpoint holds the state and the best model; one more is written than kept.
    one = 2 * _state_bytes(run)
    test = run.prepared.parts.test.num_rows * 64
    return one * (run.config.checkpoint.keep + 1) + test + SMALL_FILES


def describe(config: Config) -> dict[str, Any]:
    """Describes a run without training: stages, message, bytes, memory, mapping.

    Args:
      config: the configuration.

    Returns:
      Nested names and values, for a person or as JSON.
    """
    run = _prepare(config, records.SILENT)
    built, plan, store = run.built, run.built.plan, run.prepared.store
    message = built.algorithm.message
    slots = built.sampling.cohort_size
    model_bytes = trees.num_bytes(built.params)
    store_bytes = sum(values.nbytes for values in store.rows.values())
    devices = build.build_mesh(config.devices).size
    stacked = plan.attack is not None or not plan.aggregator.linear
    state_bytes = _state_bytes(run)
    parts = run.prepared.parts
    table = {
        "interpreter and libraries": BASE_MEMORY,
        "data": 2 * sum(sum(v.nbytes for v in p.features.values()) for p in parts),
        "training examples": store_bytes * (1 + devices),
        "state": (state_bytes + 2 * model_bytes) * (devices + 1),
        "stacked messages": 3 * model_bytes * slots * devices if stacked else 0,
    }
    summaries = {
        name: summary(part) for name, part in zip(parts._fields, parts, strict=True)
    }
    return {
        "data": {
            name: {
                "rows": part.num_rows,
                "prevalence": part.prevalence,
                "single_class_clients": len(part.single_class_clients),
            }
            for name, part in summaries.items()
        },
        "clients": {
            "population": store.num_clients,
            "cohort": built.sampling.expected,
            "slots": slots,
            "sampling": built.sampling.scheme,
            "malicious": int(built.malicious.sum()),
            "examples": store.num_examples,
            "largest": int(np.diff(store.offsets).max()),
            "smallest": int(np.diff(store.offsets).min()),
        },
        "stages": _stages(config),
        "message": {
            "parameters": message.num_params,
            "bits": message.bits,
            "density": message.density,
            "bound": message.bound or "none",
            "uplink_bytes_per_client": message.uplink_bytes(),
            "uplink_bytes_per_round": message.uplink_bytes() * built.sampling.expected,
            "downlink_bytes_per_round": 4 * message.num_params * slots,
        },
        "memory": {
            **{f"{name} (bytes)": int(value) for name, value in table.items()},
            "predicted_bytes": int(sum(table.values())),
            "free_bytes": available_memory(),
        },
        "disk_bytes": _disk_bytes(run),
        "parallelism": built.algorithm.parallelism,
        "rounds": config.rounds,
    }


def _stages(config: Config) -> dict[str, str]:
    """Returns what fills each stage, in the order of a round."""
    chain = " -> ".join(_kind(entry) for entry in config.transforms) or "identity"
    return {
        "0 poison data": _kind(config.data_attack),
        "1 train locally": (
            f"{_kind(config.algorithm)}, {_kind(config.local.optimizer)}, "
            f"{config.local.epochs or config.local.steps} "
            f"{'epochs' if config.local.epochs else 'steps'}, "
            f"batches of {config.local.batch_size}"
        ),
        "2 shape the message": chain,
        "3 forge messages": _kind(config.attack),
        "4 aggregate": f"{_kind(config.aggregator)}, weighted by {config.weighting}",
        "5 privatise": _kind(config.mechanism),
        "6 step the server": _kind(config.server),
    }


def _kind(entry: Any) -> str:
    if entry is None:
        return "none"
    name = str(type(entry).__struct_config__.tag)
    return f"{name} {entry.target}" if name == "custom" else name
