"""Prepared data and a configuration become a federated algorithm."""

import dataclasses
from typing import NamedTuple

import jax
import numpy as np

from fedjax_health import config
from fedjax_health.build.detector import build_loss, build_model, build_split
from fedjax_health.build.plan import build_plan
from fedjax_health.build.prepared import Prepared
from fedjax_health.build.root import check_root, root_batches
from fedjax_health.build.split_learning import modality_parts, part_shares
from fedjax_health.config import Config, ConfigError
from fedjax_health.core.rng import Stream, key_for, root_key
from fedjax_health.core.types import (
    FederatedAlgorithm,
    Key,
    LossFn,
    Model,
    Params,
    Sampling,
)
from fedjax_health.data.sampling import device_sizes
from fedjax_health.data.store import input_names
from fedjax_health.engine.algorithm import build_algorithm
from fedjax_health.engine.parallel import AXIS
from fedjax_health.engine.places import either
from fedjax_health.engine.plan import RoundPlan


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
      part_shares: float32 ``[population, modalities]``, what share of a client's
        examples has each modality; None where encoders are averaged over all.
    """

    model: Model
    loss_fn: LossFn
    plan: RoundPlan
    sampling: Sampling
    algorithm: FederatedAlgorithm
    abstract_params: Params
    malicious: np.ndarray
    part_shares: np.ndarray | None = None


def build(settings: Config, prepared: Prepared) -> Built:
    """Builds model, loss, plan and algorithm for prepared data.

    Raises:
      ConfigError: if a custom entry does not return what its slot takes.
      CompositionError: if stages must not be combined.
      ValueError: for sizes that do not fit the data.
    """
    population = prepared.store.num_clients
    model = build_model(settings, prepared)
    loss_fn = build_loss(settings, model, prepared)
    sampling = build_sampling(settings, population)
    malicious = malicious_clients(settings, population)
    plan = build_plan(
        settings,
        input_names(prepared.parts.train),
        assumed=assumed_malicious(settings, population, sampling.expected),
        cohort=sampling.expected,
    )
    if prepared.root is not None:
        check_root(settings, prepared.parts.train.client_names, malicious)
        plan = dataclasses.replace(plan, root_batches=root_batches(prepared.root))
    if settings.local.device_steps is not None:
        # Data whose examples belong to no device are refused here, before a folder.
        device_sizes(prepared.store)
    plan, shares = _placed(settings, prepared, plan)
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
        malicious=malicious,
        part_shares=shares,
    )


def _placed(
    settings: Config, prepared: Prepared, plan: RoundPlan
) -> tuple[RoundPlan, np.ndarray | None]:
    """Returns the plan with its halves and parts, and the clients' shares in parts."""
    split = build_split(settings, prepared)
    if split is not None:
        personal = plan.personal
        assert settings.split_learning is not None
        if settings.split_learning.client == "personal":
            personal = either(personal, split.client)
        plan = dataclasses.replace(plan, split=split, personal=personal)
    names = tuple(columns.name for columns in prepared.layout)
    if settings.modality_average == "all" or len(names) < 2:
        return plan, None
    plan = dataclasses.replace(plan, parts=modality_parts(names))
    return plan, part_shares(prepared)


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


def build_sampling(settings: Config, population: int) -> Sampling:
    """Returns how cohorts are drawn.

    Raises:
      ConfigError: if the cohort is larger than the population.
    """
    chosen = settings.sampling
    everybody = population
    if isinstance(chosen, config.Cyclic):
        everybody = max(population // chosen.cycle, 1)
    expected = chosen.cohort_size or everybody
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
        case config.Cyclic():
            return Sampling(
                "cyclic",
                population=population,
                expected=expected,
                cap=chosen.cap,
                cycle=chosen.cycle,
            )


def assumed_malicious(settings: Config, population: int, cohort: int) -> int:
    """Returns how many clients of a cohort rules take to be malicious.

    A share is first one of the population, whole clients, as ``malicious_clients``
    takes it: a rule that assumes a share assumes as many as one that knows it.

    Args:
      settings: the configuration.
      population: number of clients.
      cohort: expected size of a cohort.
    """
    share = settings.assumed_malicious
    if share is None:
        share = settings.malicious
    count = len(share) if isinstance(share, tuple) else round(share * population)
    return round(cohort * count / population)


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
