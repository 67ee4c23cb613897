"""A configuration becomes what fills the stages of a round."""

import dataclasses
from typing import Any

import optax

from fedjax_health import client, config
from fedjax_health.build.aggregators import build_aggregator
from fedjax_health.build.attacks import build_attack, build_data_attack
from fedjax_health.build.custom import custom_entry
from fedjax_health.build.privacy import build_mechanism
from fedjax_health.build.transforms import build_transform
from fedjax_health.config import Config, ConfigError, Custom
from fedjax_health.engine.average import averaging
from fedjax_health.engine.hierarchy import DeviceAveraging
from fedjax_health.engine.places import (
    normalization_leaves,
    paths_matching,
)
from fedjax_health.engine.plan import (
    DpSgd,
    LocalTraining,
    Optimizer,
    RoundPlan,
    Schedule,
    cosine_schedule,
    exponential_schedule,
)


def build_plan(
    settings: Config,
    columns: tuple[str, ...] = (),
    *,
    assumed: int = 0,
    cohort: int = 1,
) -> RoundPlan:
    """Returns what fills the stages of a round.

    Args:
      settings: the configuration.
      columns: names of the model's input columns.
      assumed: clients of a cohort that rules take to be malicious where they do not say
        so themselves.
      cohort: expected clients of a round.
    """
    return RoundPlan(
        local=LocalTraining(
            algorithm=_algorithm(settings),
            optimizer=_local_optimizer(settings),
            epochs=settings.local.epochs,
            steps=settings.local.steps,
            batch_size=settings.local.batch_size,
            example_privacy=_example_privacy(settings),
            device_averaging=_device_averaging(settings),
        ),
        data_attack=build_data_attack(settings, columns),
        transforms=tuple(
            build_transform(entry, path=f"transforms.{i}", cohort=cohort)
            for i, entry in enumerate(settings.transforms)
        ),
        attack=build_attack(settings),
        aggregator=build_aggregator(settings, assumed=assumed),
        mechanism=build_mechanism(settings),
        server_optimizer=_averaging(settings, _server_optimizer(settings)),
        weighting=settings.weighting,
        personal=_personal(settings),
        dropout=settings.dropout,
    )


def _example_privacy(settings: Config) -> DpSgd | None:
    chosen = settings.local.example_privacy
    if chosen is None:
        return None
    return DpSgd(chosen.clip_norm, chosen.noise_multiplier, chosen.microbatch)


def _device_averaging(settings: Config) -> DeviceAveraging | None:
    every = settings.local.device_steps
    return None if every is None else DeviceAveraging(every)


def _algorithm(settings: Config) -> client.LocalAlgorithm:
    chosen = settings.algorithm
    match chosen:
        case config.FedAvg():
            return client.fedavg()
        case config.FedProx():
            return client.fedprox(chosen.mu)
        case config.Scaffold():
            return client.scaffold()
        case config.Ditto():
            return client.ditto(chosen.strength)
        case Custom():
            return custom_entry(chosen, client.LocalAlgorithm, path="algorithm")


def _schedule(settings: Config) -> Schedule | None:
    chosen, rounds = settings.local.schedule, settings.rounds
    match chosen:
        case config.Constant():
            return None
        case config.Cosine():
            return cosine_schedule(rounds, final=chosen.final)
        case config.Exponential():
            return exponential_schedule(chosen.decay)
        case config.WarmupCosine():
            if chosen.warmup >= rounds:
                raise ConfigError(
                    f"config: local.schedule.warmup: {chosen.warmup}: must lie below "
                    f"rounds={rounds}"
                )
            return cosine_schedule(rounds, final=chosen.final, warmup=chosen.warmup)
        case Custom():
            return custom_entry(chosen, Schedule, path="local.schedule")


def _local_optimizer(settings: Config) -> Optimizer:
    chosen, schedule = settings.local.optimizer, _schedule(settings)
    match chosen:
        case config.Sgd():
            return _sgd(chosen.learning_rate, chosen.momentum, schedule)
        case config.Adam():
            arguments = _adam_arguments(chosen)
            if not chosen.weight_decay:
                return Optimizer(optax.adam, arguments, schedule)
            arguments["weight_decay"] = chosen.weight_decay
            return Optimizer(optax.adamw, arguments, schedule)
        case Custom():
            optimizer = custom_entry(chosen, Optimizer, path="local.optimizer")
            if schedule is None:
                return optimizer
            if optimizer.schedule is not None:
                raise ConfigError(
                    f"config: local.schedule: {chosen.target} brings a schedule of its "
                    "own: add --set local.schedule=constant"
                )
            return dataclasses.replace(optimizer, schedule=schedule)


def _server_optimizer(settings: Config) -> Optimizer:
    chosen = settings.server
    match chosen:
        case config.ServerSgd():
            return _sgd(chosen.learning_rate, chosen.momentum, None)
        case config.ServerAdam():
            return Optimizer(optax.adam, _adam_arguments(chosen))
        case config.ServerYogi():
            arguments = {**_adam_arguments(chosen), "initial_accumulator_value": 0.0}
            return Optimizer(optax.yogi, arguments)
        case Custom():
            return custom_entry(chosen, Optimizer, path="server")


def _averaging(settings: Config, optimizer: Optimizer) -> Optimizer:
    decay = settings.evaluation.average
    if not decay:
        return optimizer
    return dataclasses.replace(
        optimizer,
        constructor=averaging(optimizer.constructor),
        arguments={**optimizer.arguments, "average_decay": decay},
    )


def _sgd(rate: float, momentum: float, schedule: Schedule | None) -> Optimizer:
    # Without momentum there is no momentum buffer to carry.
    arguments = {"learning_rate": rate}
    if momentum:
        arguments["momentum"] = momentum
    return Optimizer(optax.sgd, arguments, schedule)


def _adam_arguments(chosen: Any) -> dict[str, Any]:
    return {
        "learning_rate": chosen.learning_rate,
        "b1": chosen.beta1,
        "b2": chosen.beta2,
        "eps": chosen.epsilon,
    }


def _personal(settings: Config):
    match settings.personal:
        case None:
            return None
        case config.Head(paths=paths):
            return paths_matching(*paths)
        case config.Norm():
            return normalization_leaves
