"""A configuration is trained into a run folder, and an interrupted run goes on.

What a run computes depends on its configuration and data alone. After every segment of
rounds its lines are appended to ``metrics.jsonl`` and, when due, the state is saved;
whatever a kill leaves behind after the last checkpoint is dropped and done again, so
that a resumed run ends with the bytes of an uninterrupted one.
"""

import math
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_health import build, records
from fedjax_health.config import Config, config_hash, load, to_toml
from fedjax_health.core.rng import root_key
from fedjax_health.core.types import RoundState
from fedjax_health.data.leakcheck import as_record
from fedjax_health.data.preprocess import save_preprocessing
from fedjax_health.data.sampling import build_cohort_fn
from fedjax_health.engine import checkpoint
from fedjax_health.engine.run import run_rounds
from fedjax_health.records import Progress, RunFolder
from fedjax_health.training import account
from fedjax_health.training.best import Best, better, no_best, out_of_patience
from fedjax_health.training.result import (
    finish,
    part_scorer,
    scoring_view,
    validation_figures,
    with_folder,
)
from fedjax_health.training.setup import (
    Run,
    disk_bytes,
    machine,
    prepare_run,
    run_context,
)


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
    run = prepare_run(config, progress, leaks=config.leakcheck)
    needed = disk_bytes(run)
    records.require_free_space(folder, needed)
    paths = records.create_folder(folder)
    with records.locked(paths):
        about = records.environment(**machine(run), context=run_context(run))
        records.write_json(paths.environment, about)
        save_preprocessing(run.prepared.preprocessing, paths.preprocessing)
        _write_leaks(run, paths)
        # Last of the files that describe the run: with it there is a run to resume.
        records.write_text(paths.config, to_toml(config))
        return _go_on(run, paths, _first(run), progress)


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
        checkpoint is found damaged; the next call then starts from the first round.
    """
    paths = records.open_folder(folder)
    config = load(str(paths.config))
    with records.locked(paths):
        if paths.result.is_file():
            _refuse_other_config(config, paths)
            progress.on_message(f"{folder}: this run is complete")
            return with_folder(records.read_json(paths.result), paths)
        missing = config.leakcheck and not paths.leakcheck.is_file()
        run = prepare_run(config, progress, leaks=missing)
        context = run_context(run)
        # Until there is a checkpoint, this alone tells whether the run is the same.
        at_start = records.read_json(paths.environment)["context"]
        _refuse_other_run(at_start, context, paths)
        _write_leaks(run, paths)
        saved = _first(run)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            restored = checkpoint.restore_latest(
                paths.checkpoints,
                saved,
                check=lambda then: _refuse_other_run(then, context, paths),
            )
        for warning in caught:
            if issubclass(warning.category, checkpoint.DamagedCheckpointWarning):
                progress.on_message(f"warning: {warning.message}")
        if restored is None:
            _warn_of_start(paths, progress)
            _warn_of_machine(at_start, context, paths, progress)
        else:
            _warn_of_machine(restored.context, context, paths, progress)
            saved = restored.tree
        _keep_lines(paths, int(saved.state.round))
        return _go_on(run, paths, saved, progress)


def initial_state(run: Run) -> RoundState:
    """Returns the state that a run starts from."""
    params = build.initial_params(run.config, run.built.model)
    return run.built.algorithm.init(root_key(run.config.seed), params)


def _write_leaks(run: Run, paths: RunFolder) -> None:
    if run.leaks is not None:
        records.write_json(paths.leakcheck, as_record(run.leaks))


def _first(run: Run) -> Saved:
    state = initial_state(run)
    return Saved(state, no_best(scoring_view(run, state)))


def _keep_lines(paths: RunFolder, done: int) -> None:
    """Drops the lines of rounds after ``done`` and checks that none before is lacking.

    Raises:
      RunFolderError: if a line is missing or does not belong there.
    """
    kept = [
        row["round"]
        for row in records.read_jsonl(paths.metrics)
        if row["round"] <= done
    ]
    if kept != list(range(1, done + 1)):
        raise records.RunFolderError(
            f"{paths.metrics}: must hold one line for each of the rounds 1 to {done}, "
            "in order: put the file back, or start a new run"
        )
    for lines in (paths.metrics, paths.timings):
        records.truncate_jsonl(lines, lambda row: row["round"] <= done)


def _warn_of_start(paths: RunFolder, progress: Progress) -> None:
    """Says that rounds which were done once are done again."""
    damaged = checkpoint.damaged_folder(paths.checkpoints)
    if records.read_jsonl(paths.metrics) or damaged.exists():
        progress.on_message(
            f"warning: {paths.root}: no whole checkpoint is left: the run starts again "
            "from its first round"
        )


def _refuse_other_config(config: Config, paths: RunFolder) -> None:
    """Refuses an edited configuration that the finished run is no result of."""
    then = records.read_json(paths.environment).get("context", {}).get("config")
    if then not in (None, config_hash(config)):
        raise checkpoint.CheckpointError(
            f"{paths.root}: the configuration has changed since this run ended: put it "
            "back, or start a new run with it (run --config FILE)"
        )


def _refuse_other_run(
    saved: dict[str, Any], now: dict[str, Any], paths: RunFolder
) -> None:
    changed = {"config": "configuration", "data": "data"}
    for name, what in changed.items():
        if saved.get(name) != now[name]:
            raise checkpoint.CheckpointError(
                f"{paths.root}: the {what} has changed since the run was started: put "
                "it back, or start a new run"
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


def _go_on(
    run: Run, paths: RunFolder, saved: Saved, progress: Progress
) -> dict[str, Any]:
    """Trains from a saved state to the end and writes the result."""
    config, built = run.config, run.built
    mesh = build.build_mesh(config.devices)
    validation = part_scorer(run, run.prepared.parts.validation, mesh)
    cohorts = build_cohort_fn(
        run.prepared.store,
        built.sampling,
        config.seed,
        malicious=built.malicious,
        part_shares=built.part_shares,
        devices=config.local.device_steps is not None,
    )
    checkpoints = checkpoint.open_checkpoints(
        paths.checkpoints, keep=config.checkpoint.keep
    )
    names = run.prepared.parts.train.client_names
    first = int(saved.state.round)
    best = saved.best
    segment = math.gcd(config.evaluation.every, config.checkpoint.every)
    traffic = account.traffic_of(records.read_jsonl(paths.metrics), built)
    epsilon = None
    stated = account.rounds_between_epsilons(config.rounds, segment)
    tells_bytes = account.works_on_messages(config, built)
    progress.on_start(total_rounds=config.rounds, first_round=first)
    clock = time.monotonic()

    def on_segment(state: RoundState, metrics: dict[str, np.ndarray]) -> bool:
        nonlocal best, clock, traffic, epsilon
        done = int(state.round)
        last = done == config.rounds
        seconds = time.monotonic() - clock
        rounds = len(metrics["loss"])
        lines = lines_of(metrics, done - rounds)
        traffic = account.add_bytes(lines, built, traffic)
        value = None
        stop = False
        if last or done % config.evaluation.every == 0:
            view = scoring_view(run, state)
            scores = validation(view)
            figures = validation_figures(run, scores)
            lines[-1].update(figures)
            value = figures["validation_auroc"]
            best = better(best, view, figures, done, config)
            stop = out_of_patience(best, config)
        if last or stop or done % stated == 0:
            epsilon = account.epsilon_after(config, built, done)
            if epsilon is not None:
                # Aborted rounds count: what became of them rests on who took part.
                lines[-1]["epsilon"] = epsilon
        due = last or stop or done % config.checkpoint.every == 0
        # A checkpoint must not outlive the lines that lead to it.
        records.append_jsonl(paths.metrics, lines, durable=due)
        evaluated = time.monotonic()
        if due:
            with records.clear_errors(paths.checkpoints):
                checkpoint.save(checkpoints, done, Saved(state, best), run_context(run))
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
            epsilon=epsilon,
            uplink_bytes=traffic.uplink if tells_bytes else None,
        )
        for text in (
            *masked_updates(metrics, done - rounds, names),
            *account.aborted_rounds(metrics, done - rounds, built),
        ):
            progress.on_message(text)
        clock = time.monotonic()
        return stop

    if first < config.rounds and not out_of_patience(best, config):
        run_rounds(
            built.algorithm,
            saved.state,
            cohorts,
            config.rounds - first,
            on_segment=on_segment,
            segment=segment,
        )
    return finish(run, paths, best, mesh)


def masked_updates(
    metrics: dict[str, np.ndarray], first: int, names: Sequence[str]
) -> list[str]:
    """Returns one sentence for each round with updates that were left out.

    Args:
      metrics: of a segment; ``non_finite [rounds]`` counts the updates and
        ``bad_clients [rounds, n]`` holds ids of their clients, -1 where there is none.
      first: rounds done before the segment.
      names: of the clients.
    """
    sentences = []
    ids = metrics.get("bad_clients")
    for i, count in enumerate(metrics["non_finite"]):
        if not count:
            continue
        known = [] if ids is None else [str(names[int(c)]) for c in ids[i] if c >= 0]
        listed = f" of {', '.join(known)}" if known else ""
        more = f" and {int(count) - len(known)} more" if 0 < len(known) < count else ""
        sentences.append(
            f"round {first + i + 1}: {int(count)} non-finite client update(s) masked"
            f"{listed}{more}"
        )
    return sentences


def lines_of(metrics: dict[str, np.ndarray], first: int) -> list[dict[str, Any]]:
    """Returns one line a round; nothing in them depends on the clock."""
    rounds = len(metrics["loss"])
    skipped = {"bad_clients", "accepted"}
    # The round comes last: no metric of a custom stage can take its place.
    return [
        {
            **{n: v[i].item() for n, v in metrics.items() if _is_line(n, v, skipped)},
            "round": first + i + 1,
        }
        for i in range(rounds)
    ]


def _is_line(name: str, values: np.ndarray, skipped: set[str]) -> bool:
    return name not in skipped and values.ndim == 1
