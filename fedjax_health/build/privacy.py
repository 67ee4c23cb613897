"""The entry ``mechanism`` becomes a differential privacy mechanism."""

from fedjax_health import config, privacy
from fedjax_health.build.custom import custom_entry
from fedjax_health.config import Config, ConfigError, Custom
from fedjax_health.core.types import Mechanism
from fedjax_health.privacy.accounting import Target


def build_mechanism(settings: Config) -> Mechanism | None:
    """Returns the mechanism of a configuration, or None.

    Where an epsilon is aimed at, the noise that reaches it over all rounds is found
    when the mechanism is bound to a message and to how cohorts are drawn.

    Raises:
      ConfigError: for numbers that the mechanism refuses, or a missing package.
    """
    chosen = settings.mechanism
    if chosen is None:
        return None
    if isinstance(chosen, Custom):
        return custom_entry(chosen, Mechanism, path="mechanism")
    try:
        return _mechanism(settings, chosen)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"config: mechanism: {error}") from error


def _mechanism(settings: Config, chosen: config.Record) -> Mechanism:
    match chosen:
        case config.CentralGaussian():
            return privacy.central_gaussian(_noise(settings), noise=chosen.noise)
        case config.LocalGaussian():
            if chosen.epsilon is not None:
                return privacy.local_gaussian(
                    chosen.epsilon, chosen.delta, noise=chosen.noise
                )
            return privacy.local_gaussian(
                noise_multiplier=_noise(settings), noise=chosen.noise
            )
        case config.TreeAggregation():
            return privacy.tree_aggregation(
                _noise(settings), restart_every=chosen.restart_every
            )
        case config.BandedMf():
            return privacy.banded_mf(
                _noise(settings), bands=chosen.bands, rounds=settings.rounds
            )
        case config.DistributedDiscreteGaussian():
            return privacy.distributed_discrete_gaussian(
                _noise(settings), non_contributing=chosen.non_contributing
            )
        case config.DistributedSkellam():
            return privacy.distributed_skellam(
                _noise(settings), non_contributing=chosen.non_contributing
            )
    raise TypeError(f"not a mechanism: {chosen!r}")


def _noise(settings: Config) -> float | Target:
    given = getattr(settings.mechanism, "noise_multiplier", None)
    if given is not None:
        return given
    stated = settings.privacy
    assert stated is not None
    assert stated.target_epsilon is not None
    return Target(
        stated.target_epsilon, stated.delta, settings.rounds, stated.accountant
    )
