"""A configuration becomes data, model, loss, plan and algorithm."""

import dataclasses
from typing import Any, NamedTuple, cast

import jax
import msgspec
import numpy as np
import optax

from fedjax_health import aggregators, client, config, losses, models, transforms
from fedjax_health.config import Config, ConfigError, Custom, call_custom
from fedjax_health.core.rng import Stream, key_for, root_key
from fedjax_health.core.types import (
    Aggregator,
    ClientTransform,
    DataAttack,
    FederatedAlgorithm,
    Key,
    LossFn,
    Mechanism,
    Model,
    Params,
    Sampling,
    UpdateAttack,
)
from fedjax_health.data import hospital_sim, partition, splits
from fedjax_health.data.loaders.tabular import ColumnRoles, load_table
from fedjax_health.data.loaders.wustl import load_wustl
from fedjax_health.data.preprocess import Scaler, apply_scaler, fit_scaler
from fedjax_health.data.schema import (
    DataError,
    Dataset,
    check_dataset,
    select_modalities,
)
from fedjax_health.data.splits import Parts
from fedjax_health.data.store import ClientStore, assembled_width, from_dataset
from fedjax_health.engine.algorithm import build_algorithm
from fedjax_health.engine.parallel import AXIS
from fedjax_health.engine.plan import (
    LocalTraining,
    Optimizer,
    RoundPlan,
    Schedule,
    cosine_schedule,
    exponential_schedule,
    normalization_leaves,
    paths_matching,
)


class Prepared(NamedTuple):
    """Data that a run trains and is measured on.

    Attributes:
      parts: training, validation and test part, scaled.
      scaler: what was fitted on the training part.
      store: the packed training examples.
      window: time steps of an example, or None for single records.
    """

    parts: Parts
    scaler: Scaler
    store: ClientStore
    window: int | None


class Built(NamedTuple):
    """All that a run needs beside its data.

    Attributes:
      model: the detector.
      loss_fn: the training loss.
      plan: what fills the stages of a round.
      sampling: how cohorts are drawn.
      algorithm: the federated algorithm.
      abstract_params: shapes and dtypes of the parameters.
      malicious: bool ``[population]``.
    """

    model: Model
    loss_fn: LossFn
    plan: RoundPlan
    sampling: Sampling
    algorithm: FederatedAlgorithm
    abstract_params: Params
    malicious: np.ndarray


def build_dataset(settings: Config) -> Dataset:
    """Loads or generates the data.

    Raises:
      DataError: if it cannot be used.
      ConfigError: if the configuration does not name it.
    """
    data = settings.data
    match data:
        case config.HospitalSim():
            simulation = config.simulation_settings(data)
            dataset = hospital_sim.generate(simulation, settings.seed)
            return select_modalities(dataset, data.modalities)
        case config.Wustl():
            dataset = load_wustl(_path(data.path))
            return select_modalities(dataset, data.modalities)
        case config.Table():
            fields = msgspec.structs.asdict(data)
            path = _path(fields.pop("path"))
            return load_table(path, ColumnRoles(**fields))
        case Custom():
            dataset = _custom(data, Dataset, path="data")
            check_dataset(dataset, source=data.target)
            return dataset
    raise ConfigError(f"config: data: {data!r} is no kind of data")


def _path(path: str) -> str:
    if not path:
        raise ConfigError("config: data.path: name the file: --set data.path=FILE")
    return path


def prepare(settings: Config, dataset: Dataset) -> Prepared:
    """Splits, deals out, scales and packs a dataset.

    Raises:
      DataError: if a part or a client is left without what it needs.
    """
    window = settings.window.length if settings.window.length > 1 else None
    parts = splits.split_dataset(dataset, _split(settings, dataset))
    parts = _partition(settings, parts)
    for name in ("validation", "test"):
        part = getattr(parts, name)
        if part.label.min() == part.label.max():
            raise DataError(
                f"all {part.num_rows:,} rows of the {name} part have label "
                f"{part.label[0]:g}: no detector can be measured on them; change "
                "split, or use more data"
            )
    scaler = fit_scaler(parts.train, scope=settings.scaling.scope)
    parts = Parts(
        *(apply_scaler(scaler, part, clip=settings.scaling.clip) for part in parts)
    )
    store = from_dataset(parts.train, window=window, stride=settings.window.stride)
    return Prepared(parts, scaler, store, window)


def _split(settings: Config, dataset: Dataset) -> np.ndarray:
    split = settings.split
    embargo = split.embargo
    if embargo is None:
        embargo = settings.window.length if settings.window.length > 1 else 0
    match split:
        case config.Chronological():
            return splits.chronological(
                dataset,
                train=split.train,
                validation=split.validation,
                test=split.test,
                embargo=embargo,
                scope=split.scope,
            )
        case config.EpisodeBlocks():
            return splits.episode_blocks(
                dataset,
                block=split.block,
                fractions=split.fractions,
                embargo=embargo,
                seed=settings.seed,
            )


def _partition(settings: Config, parts: Parts) -> Parts:
    chosen, seed = settings.partition, settings.seed
    match chosen:
        case config.Natural():
            return partition.natural(parts)
        case config.Contiguous():
            return partition.contiguous(parts, num_clients=chosen.num_clients)
        case config.Iid():
            return partition.iid(
                parts, num_clients=chosen.num_clients, seed=seed, unit=chosen.unit
            )
        case config.DirichletLabels():
            return partition.dirichlet_labels(
                parts,
                num_clients=chosen.num_clients,
                alpha=chosen.alpha,
                seed=seed,
                unit=chosen.unit,
                by=chosen.by,
            )
        case config.QuantitySkew():
            return partition.quantity_skew(
                parts,
                num_clients=chosen.num_clients,
                exponent=chosen.exponent,
                seed=seed,
                unit=chosen.unit,
            )


def build(settings: Config, prepared: Prepared) -> Built:
    """Builds model, loss, plan and algorithm for prepared data.

    Raises:
      ConfigError: if a custom entry does not return what its slot takes.
      CompositionError: if stages must not be combined.
      ValueError: for sizes that do not fit the data.
    """
    population = prepared.store.num_clients
    model = build_model(settings, prepared)
    loss_fn = build_loss(settings, model)
    plan = build_plan(settings)
    sampling = build_sampling(settings, population)
    abstract_params = jax.eval_shape(model.init, _init_key(settings))
    algorithm = build_algorithm(
        loss_fn,
        plan,
        abstract_params=abstract_params,
        population=population,
        cohort_size=sampling.cohort_size,
        sampling=sampling,
        parallelism=settings.chunk or settings.parallelism,
        mesh=build_mesh(settings.devices),
    )
    return Built(
        model=model,
        loss_fn=loss_fn,
        plan=plan,
        sampling=sampling,
        algorithm=algorithm,
        abstract_params=abstract_params,
        malicious=malicious_clients(settings, population),
    )


def initial_params(settings: Config, model: Model) -> Params:
    """Returns the parameters that a run starts from."""
    return model.init(_init_key(settings))


def _init_key(settings: Config) -> Key:
    return key_for(root_key(settings.seed), Stream.INIT)


def build_mesh(devices: int | None) -> jax.sharding.Mesh:
    """Returns the mesh over the first ``devices`` devices; None takes all.

    Raises:
      ConfigError: if there are fewer.
    """
    have = jax.local_devices()
    if devices is not None and devices > len(have):
        raise ConfigError(
            f"config: devices: {devices}: there are {len(have)}; lower it, or leave "
            "it out"
        )
    return jax.sharding.Mesh(np.array(have[:devices]), (AXIS,))


def build_model(settings: Config, prepared: Prepared) -> Model:
    """Returns the detector, made for the width of the data."""
    features = assembled_width(prepared.parts.train)
    chosen = settings.model
    match chosen:
        case config.Gru():
            return models.gru_detector(
                features,
                hidden=chosen.hidden,
                dropout=chosen.dropout,
                norm=chosen.norm,
            )
        case config.Mlp():
            return models.mlp(
                features,
                hidden=chosen.hidden,
                dropout=chosen.dropout,
                norm=chosen.norm,
                streams=prepared.window is not None,
            )
        case Custom():
            return _custom(chosen, Model, features, path="model")


def build_loss(settings: Config, model: Model) -> LossFn:
    """Returns the training loss."""
    chosen = settings.loss
    match chosen:
        case config.Bce():
            return losses.masked_bce(
                model, positive_weight=chosen.positive_weight, burn_in=chosen.burn_in
            )
        case Custom():
            loss_fn: LossFn = call_custom(chosen, model, path="loss")
            if not callable(loss_fn):
                raise _misfit(chosen, loss_fn, "LossFn", path="loss")
            return cast(LossFn, loss_fn)


def build_sampling(settings: Config, population: int) -> Sampling:
    """Returns how cohorts are drawn.

    Raises:
      ConfigError: if the cohort is larger than the population.
    """
    chosen = settings.sampling
    expected = chosen.cohort_size or population
    if expected > population:
        raise ConfigError(
            f"config: sampling.cohort_size: {expected}: there are only {population} "
            "clients: lower it, or leave it out to take all of them"
        )
    match chosen:
        case config.Fixed():
            return Sampling("fixed", population=population, expected=expected)
        case config.Poisson():
            return Sampling(
                "poisson", population=population, expected=expected, cap=chosen.cap
            )


def malicious_clients(settings: Config, population: int) -> np.ndarray:
    """Returns which clients are malicious, bool ``[population]``.

    Raises:
      ConfigError: for a client id beyond the population.
    """
    flags = np.zeros(population, bool)
    chosen = settings.malicious
    if isinstance(chosen, tuple):
        if max(chosen, default=0) >= population:
            raise ConfigError(
                f"config: malicious: client id {max(chosen)}: ids run from 0 to "
                f"{population - 1}"
            )
        flags[list(chosen)] = True
        return flags
    count = round(chosen * population)
    rng = np.random.default_rng([settings.seed, int(Stream.ATTACK)])
    flags[rng.choice(population, size=count, replace=False)] = True
    return flags


def build_plan(settings: Config) -> RoundPlan:
    """Returns what fills the stages of a round."""
    return RoundPlan(
        local=LocalTraining(
            algorithm=_algorithm(settings),
            optimizer=_local_optimizer(settings),
            epochs=settings.local.epochs,
            steps=settings.local.steps,
            batch_size=settings.local.batch_size,
        ),
        data_attack=_optional(settings.data_attack, DataAttack, path="data_attack"),
        transforms=tuple(
            _transform(entry, path=f"transforms.{i}")
            for i, entry in enumerate(settings.transforms)
        ),
        attack=_optional(settings.attack, UpdateAttack, path="attack"),
        aggregator=(
            aggregators.mean()
            if isinstance(settings.aggregator, config.Mean)
            else _custom(settings.aggregator, Aggregator, path="aggregator")
        ),
        mechanism=_optional(settings.mechanism, Mechanism, path="mechanism"),
        server_optimizer=_server_optimizer(settings),
        weighting=settings.weighting,
        personal=_personal(settings),
        dropout=settings.dropout,
    )


def _transform(entry: Any, *, path: str) -> ClientTransform:
    match entry:
        case config.Identity():
            return transforms.identity()
        case config.ClipL2():
            return transforms.clip_l2(entry.max_norm)
    return _custom(entry, ClientTransform, path=path)


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
            return _custom(chosen, client.LocalAlgorithm, path="algorithm")


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
            return _custom(chosen, Schedule, path="local.schedule")


def _local_optimizer(settings: Config) -> Optimizer:
    chosen, schedule = settings.local.optimizer, _schedule(settings)
    match chosen:
        case config.Sgd():
            return _sgd(chosen.learning_rate, chosen.momentum, schedule)
        case config.Adam():
            return Optimizer(optax.adam, _adam_arguments(chosen), schedule)
        case Custom():
            optimizer = _custom(chosen, Optimizer, path="local.optimizer")
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
            return _custom(chosen, Optimizer, path="server")


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


def _optional(entry: Custom | None, kind: type, *, path: str) -> Any:
    return None if entry is None else _custom(entry, kind, path=path)


def _custom(entry: Custom, kind: type, *arguments: Any, path: str) -> Any:
    """Calls a custom entry and refuses what does not fit its slot."""
    value = call_custom(entry, *arguments, path=path)
    if not isinstance(value, kind):
        raise _misfit(entry, value, kind.__name__, path=path)
    return value


def _misfit(entry: Custom, value: Any, kind: str, *, path: str) -> ConfigError:
    return ConfigError(
        f"config: {path}.target: {entry.target} returned {type(value).__name__}, but "
        f"this slot takes a {kind}"
    )
