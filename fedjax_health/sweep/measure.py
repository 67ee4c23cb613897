"""One cell of a sweep: a configuration is trained and measured, and nothing is saved.

Cells share what does not differ between them: prepared data, compiled rounds (by the
engine) and compiled scoring.
"""

import collections
import json
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import msgspec
import numpy as np

from fedjax_health import build, records
from fedjax_health.config import Config
from fedjax_health.core.message import CompositionError
from fedjax_health.core.types import Examples, Model
from fedjax_health.data.sampling import build_cohort_fn
from fedjax_health.data.schema import DataWarning, examples_of
from fedjax_health.data.store import to_examples
from fedjax_health.engine.run import NonFiniteLossError, run_rounds
from fedjax_health.evaluate.scoring import Weights, build_part_reader
from fedjax_health.metrics import host
from fedjax_health.metrics.summary import (
    choose_thresholds,
    evaluate_scores,
    measure_scores,
)
from fedjax_health.training.account import Traffic, add_bytes, epsilon_after
from fedjax_health.training.best import better, no_best, out_of_patience
from fedjax_health.training.result import (
    backdoor_rates,
    have_streams,
    named_rates,
    oracle_metrics,
    scored,
    scoring_view,
)
from fedjax_health.training.run import initial_state, lines_of
from fedjax_health.training.setup import Run

# Data sets that are kept: cells of one structure differ in their seeds.
KEPT = 4

# Fields that data, its parts and its packing do not depend on. A field that is missing
# here costs time and no truth.
_NOT_DATA = frozenset(
    {
        "rounds",
        "model",
        "loss",
        "unimodal_weight",
        "algorithm",
        "local",
        "server",
        "sampling",
        "dropout",
        "weighting",
        "personal",
        "transforms",
        "malicious",
        "attackers",
        "assumed_malicious",
        "data_attack",
        "attack",
        "mixings",
        "aggregator",
        "mechanism",
        "privacy",
        "parallelism",
        "chunk",
        "devices",
        "evaluation",
        "checkpoint",
        "leakcheck",
    }
)


class Scores(NamedTuple):
    """What a model says after some rounds.

    Attributes:
      round: rounds done.
      validation: probabilities ``[validation examples]``.
      test: probabilities ``[test examples]``.
    """

    round: int
    validation: np.ndarray
    test: np.ndarray


class Found(NamedTuple):
    """A model that was reached.

    Attributes:
      scores: what it says.
      weights: the model; None where it is lost to numbers that are not finite.
    """

    scores: Scores
    weights: Weights | None


class Bench:
    """Measures cells one after the other and keeps what they share."""

    def __init__(self):
        self._prepared: collections.OrderedDict[str, build.Prepared] = (
            collections.OrderedDict()
        )
        self._examples: dict[str, Examples] = {}
        self._told: dict[str, dict[str, type[Warning]]] = {}
        self._oracles: dict[tuple[str, float], dict[str, float] | None] = {}
        self._readers: dict[tuple[str, Model, str], Any] = {}

    def measure(self, config: Config) -> dict[str, Any]:
        """Returns what became of a configuration; no number in it is of the clock.

        Args:
          config: the configuration.

        Returns:
          ``status``: "done"; "diverged" where training left the finite numbers, whose
          figures are then those of one score for every row; "refused" where the stages
          must not be combined; or "failed". ``reason`` says why, ``final`` and
          ``best`` (by validation) hold ``round`` and the figures of the ``test`` and
          the ``validation`` part, ``curve`` those of every evaluation, ``rounds``
          what the rounds reported on average, and ``cost`` the bytes both ways and,
          with a mechanism, the ``epsilon`` of all rounds.
        """
        try:
            key = data_key(config)
            prepared = self._data(key, config)
            built = build.build(config, prepared)
        except CompositionError as error:
            return {"status": "refused", "reason": str(error)}
        return self._train(key, Run(config, prepared, built, data_version=""))

    def _data(self, key: str, config: Config) -> build.Prepared:
        if key not in self._prepared:
            while len(self._prepared) >= KEPT:
                old, _ = self._prepared.popitem(last=False)
                self._examples.pop(old, None)
                self._told.pop(old, None)
                self._readers = {
                    name: reader
                    for name, reader in self._readers.items()
                    if name[0] != old
                }
            with records.tell_warnings(records.SILENT, DataWarning) as told:
                dataset = build.build_dataset(config)
                self._prepared[key] = build.prepare(config, dataset)
            self._told[key] = told
        self._prepared.move_to_end(key)
        # Every cell on this data, not the first alone.
        for text, kind in self._told[key].items():
            warnings.warn(text, kind, stacklevel=2)
        return self._prepared[key]

    def _reader(self, key: str, run: Run, part: str):
        name = (key, run.built.model, part)
        if name not in self._readers:
            self._readers[name] = build_part_reader(
                run.built.model,
                getattr(run.prepared.parts, part),
                window=run.prepared.window,
                mesh=build.build_mesh(run.config.devices),
            )
        return self._readers[name]

    def _oracle(self, key: str, run: Run) -> dict[str, float] | None:
        name = (key, run.config.evaluation.false_alarm_rate)
        if name not in self._oracles:
            streams = have_streams(run.prepared.parts.test)
            self._oracles[name] = oracle_metrics(run, streams=streams)
        return self._oracles[name]

    def _resident(self, key: str, run: Run):
        if key not in self._examples:
            self._examples[key] = to_examples(run.prepared.store)
        return self._examples[key]

    def _train(self, key: str, run: Run) -> dict[str, Any]:
        config, built, parts = run.config, run.built, run.prepared.parts
        names = ("validation", "test")
        readers = [self._reader(key, run, name) for name in names]
        label = {name: examples_of(getattr(parts, name)).label for name in names}
        curve: list[dict[str, Any]] = []
        found: dict[str, Found] = {}
        mesh = build.build_mesh(config.devices)
        state, history = initial_state(run), {}
        best = no_best(scoring_view(run, state))

        def on_segment(state, metrics) -> bool:
            nonlocal best
            view, done = scoring_view(run, state), int(state.round)
            scores = Scores(done, *(reader(view) for reader in readers))
            if not all(np.isfinite(values).all() for values in scores[1:]):
                raise NonFiniteLossError(
                    f"round {done}: the model gives scores that are not finite"
                )
            row: dict[str, Any] = {"round": done, "loss": float(metrics["loss"][-1])}
            for part in names:
                values = getattr(scores, part)
                row[f"{part}_auroc"] = host.auroc(values, label[part])
                row[f"{part}_auprc"] = host.auprc(values, label[part])
            curve.append(row)
            # The state that a view looks into is donated to the next round.
            kept = jax.tree.map(lambda x: jnp.array(x, copy=True), view)
            found["final"] = Found(scores, kept)
            # As a run decides, early stopping included.
            best = better(best, view, row, done, config)
            if int(best.round) == done:
                found["best"] = found["final"]
            return out_of_patience(best, config)

        record: dict[str, Any] = {"status": "done", "reason": None}
        cohorts = build_cohort_fn(
            run.prepared.store,
            built.sampling,
            config.seed,
            malicious=built.malicious,
            part_shares=built.part_shares,
            devices=config.local.device_steps is not None,
            resident=self._resident(key, run),
        )
        try:
            state, history = run_rounds(
                built.algorithm,
                state,
                cohorts,
                config.rounds,
                on_segment=on_segment,
                segment=min(config.evaluation.every, config.rounds),
            )
            record["rounds"] = _averages(history)
            record["attack"] = _attack_numbers(state)
            record["cost"] = _cost(run, history)
        except NonFiniteLossError as error:
            record |= {"status": "diverged", "reason": str(error)}
            # It cannot tell one row from another any more.
            constant = (np.full(len(x), 0.5, np.float32) for x in label.values())
            found["final"] = Found(Scores(config.rounds, *constant), None)
            found.setdefault("best", found["final"])
        oracle = self._oracle(key, run)
        if oracle is not None:
            record["oracle"] = oracle
        record["curve"] = curve
        record["malicious"] = int(built.malicious.sum())
        record["clients"] = len(built.malicious)
        for name, (scores, weights) in found.items():
            figures = _figures(run, scores)
            if weights is not None:
                rates = backdoor_rates(run, weights, figures["test"]["threshold"], mesh)
                figures["test"] |= {} if rates is None else named_rates(rates)
            record[name] = {"round": scores.round, **figures}
        return record


def data_key(config: Config) -> str:
    """Returns what is equal for configurations that train on the same prepared data.

    Args:
      config: the configuration.
    """
    fields = msgspec.to_builtins(config)
    kept = {name: value for name, value in fields.items() if name not in _NOT_DATA}
    # Terms of the loss that tell examples apart are packed beside them.
    return json.dumps(kept, sort_keys=True)


def _figures(run: Run, scores: Scores) -> dict[str, dict[str, float]]:
    """Returns the metrics of both parts at thresholds from the validation part."""
    parts = run.prepared.parts
    streams = have_streams(parts.test)
    validation, test = (
        scored(part, values, streams=streams)
        for part, values in (
            (parts.validation, scores.validation),
            (parts.test, scores.test),
        )
    )
    rate, window = run.config.evaluation.false_alarm_rate, run.config.window.length
    thresholds = choose_thresholds(validation, false_alarm_rate=rate, streams=streams)
    return {
        "test": evaluate_scores(validation, test, window=window, false_alarm_rate=rate),
        "validation": measure_scores(validation, thresholds, window=window),
    }


def _averages(history: dict[str, np.ndarray]) -> dict[str, float]:
    """Returns the mean over the rounds of every number that they report."""
    means = {}
    for name, values in history.items():
        if values.ndim == 1 and values.dtype != bool:
            told = values[np.isfinite(values)]
            if len(told):
                means[name] = float(np.mean(told))
    return means


def _cost(run: Run, history: dict[str, np.ndarray]) -> dict[str, float]:
    """Returns what all rounds together cost: bytes, and epsilon with a mechanism."""
    lines = lines_of(history, 0)
    sent = add_bytes(lines, run.built, Traffic())
    # A run that stops early has spent less than it planned.
    epsilon = epsilon_after(run.config, run.built, len(lines))
    cost: dict[str, float] = {
        "uplink_bytes": sent.uplink,
        "downlink_bytes": sent.downlink,
    }
    return cost if epsilon is None else {**cost, "epsilon": epsilon}


def _attack_numbers(state) -> dict[str, float]:
    """Returns the numbers that an attack keeps, such as the strength it found last."""
    kept = state.attack["state"] if state.attack else ()
    if not isinstance(kept, dict):
        return {}
    return {n: float(v) for n, v in kept.items() if jnp.ndim(v) == 0}
