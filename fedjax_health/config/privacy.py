"""Differential privacy mechanisms, and how their cost is stated."""

from typing import Literal

import msgspec

from fedjax_health.config.common import (
    AboveZero,
    ConfigError,
    Count,
    Custom,
    OpenShare,
    Positive,
    Record,
)


class Privacy(Record, frozen=True):
    """How epsilon is stated, and which one is aimed at.

    Attributes:
      delta: probability with which the bound may fail; below one over the number of
        clients.
      accountant: privacy loss distributions ("pld") or Renyi divergences ("rdp");
        cohorts of a fixed size are always accounted by "rdp".
      target_epsilon: epsilon of all rounds together, for which the noise multiplier is
        calibrated; the mechanism then gives none itself.
    """

    delta: OpenShare = 1e-5
    accountant: Literal["pld", "rdp"] = "pld"
    target_epsilon: AboveZero | None = None


class CentralGaussian(Record, frozen=True, tag_field="kind", tag="central_gaussian"):
    """Gaussian noise on the sum, by the server (DP-FedAvg).

    Attributes:
      noise_multiplier: standard deviation of the noise over the bound of a message;
        left out where privacy.target_epsilon stands for it.
      noise: discrete noise on a lattice, or float32 noise for simulations alone.
    """

    noise_multiplier: AboveZero | None = None
    noise: Literal["discrete", "float"] = "discrete"


class LocalGaussian(Record, frozen=True, tag_field="kind", tag="local_gaussian"):
    """Gaussian noise on each message, by each client.

    Attributes:
      epsilon: of one message; or
      delta: its delta.
      noise_multiplier: standard deviation of the noise over the bound of a message;
        both left out where privacy.target_epsilon stands for them.
      noise: discrete noise on a lattice, or float32 noise for simulations alone.
    """

    epsilon: AboveZero | None = None
    delta: OpenShare = 1e-5
    noise_multiplier: AboveZero | None = None
    noise: Literal["discrete", "float"] = "discrete"

    def __post_init__(self):
        if self.epsilon is not None and self.noise_multiplier is not None:
            raise ValueError(
                f"epsilon={self.epsilon} and noise_multiplier={self.noise_multiplier} "
                "exclude each other: leave one out"
            )


class TreeAggregation(Record, frozen=True, tag_field="kind", tag="tree_aggregation"):
    """Noise by a tree over the rounds (DP-FTRL with restarts).

    Attributes:
      noise_multiplier: standard deviation of a node's noise over the bound of a
        message; left out where privacy.target_epsilon stands for it.
      restart_every: rounds of one tree, of which the sampling's cycle is a multiple.
    """

    noise_multiplier: AboveZero | None = None
    restart_every: Positive = 2


class BandedMf(Record, frozen=True, tag_field="kind", tag="banded_mf"):
    """Noise that is correlated over rounds (banded matrix factorisation).

    Attributes:
      noise_multiplier: standard deviation of the noise before it is correlated, over
        the bound of a message times the strategy's largest column norm; left out where
        privacy.target_epsilon stands for it.
      bands: rounds over which noise is correlated, at most the sampling's cycle.
    """

    noise_multiplier: AboveZero | None = None
    bands: Positive = 2


class DistributedDiscreteGaussian(
    Record, frozen=True, tag_field="kind", tag="distributed_discrete_gaussian"
):
    """Discrete Gaussian noise by the clients, under a secure sum.

    Attributes:
      noise_multiplier: standard deviation over the bound of a message of the noise in
        the smallest sum that is released; left out where privacy.target_epsilon stands
        for it.
      non_contributing: clients of a sum that are taken to add no noise.
    """

    noise_multiplier: AboveZero | None = None
    non_contributing: Count = 0


class DistributedSkellam(
    Record, frozen=True, tag_field="kind", tag="distributed_skellam"
):
    """Skellam noise by the clients, under a secure sum.

    Attributes:
      noise_multiplier: standard deviation over the bound of a message of the noise in
        the smallest sum that is released; left out where privacy.target_epsilon stands
        for it.
      non_contributing: clients of a sum that are taken to add no noise.
    """

    noise_multiplier: AboveZero | None = None
    non_contributing: Count = 0


Mechanism = (
    CentralGaussian
    | LocalGaussian
    | TreeAggregation
    | BandedMf
    | DistributedDiscreteGaussian
    | DistributedSkellam
    | Custom
)


def check_privacy(mechanism: Mechanism | None, privacy: Privacy | None):
    """Refuses a noise that is given twice or not at all.

    Args:
      mechanism: of the configuration.
      privacy: of the configuration.

    Raises:
      ConfigError: naming the field and the way out.
    """
    target = privacy.target_epsilon if privacy is not None else None
    if mechanism is None:
        if target is not None:
            raise ConfigError(
                f"config: privacy.target_epsilon: {target}: there is no mechanism to "
                "calibrate: add --set mechanism=central_gaussian"
            )
        return
    if isinstance(mechanism, Custom):
        if target is not None:
            raise ConfigError(
                "config: privacy.target_epsilon: a mechanism of your own brings its "
                "own noise: add --set privacy.target_epsilon=none"
            )
        return
    given = _given_noise(mechanism)
    if (given is None) == (target is None):
        kind = mechanism.__struct_config__.tag
        raise ConfigError(
            f"config: mechanism.noise_multiplier: {kind} needs a noise multiplier or "
            "privacy.target_epsilon"
            + (": give one of them" if given is None else ", not both")
        )


def _given_noise(mechanism: msgspec.Struct) -> float | None:
    own = getattr(mechanism, "noise_multiplier", None)
    return getattr(mechanism, "epsilon", None) if own is None else own
