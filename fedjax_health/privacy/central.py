"""Central Gaussian noise: the server noises the sum of clipped messages.

DP-FedAvg (McMahan et al., 2018, arXiv:1710.06963): clip each update to C, sum, add
``N(0, (z C)**2)``, divide by the expected cohort. In its release form each message is
rounded to a lattice and the noise is a discrete Gaussian (Canonne et al., 2020), so
that no float shows which input it came from (Mironov, 2012).
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from fedjax_health.core import noise as laws
from fedjax_health.core.message import CompositionError, Message
from fedjax_health.core.types import (
    BoundMechanism,
    Key,
    Mechanism,
    Params,
    Sampling,
    State,
    Updates,
)
from fedjax_health.privacy import lattice
from fedjax_health.privacy.accounting import (
    Accounting,
    PrivacyError,
    Target,
    check_multiplier,
    split_noise,
)

NOISE_WORDS = {
    "discrete": "discrete Gaussian on a lattice, release grade",
    "float": "float32 Gaussian: simulation-grade noise, its support gives inputs away",
}
ADVERSARY = (
    "whoever sees the models of all rounds, all other clients included; the server "
    "itself is trusted with the sums, and with every message unless they are summed "
    "securely"
)


def central_gaussian(
    noise_multiplier: float | Target,
    *,
    noise: Literal["discrete", "float"] = "discrete",
) -> Mechanism:
    """Adds Gaussian noise to the sum of the messages, or to each group's sum.

    Args:
      noise_multiplier: standard deviation of the noise over the bound of a message, or
        the target to reach; with adaptive clipping of the sum and its bits together.
      noise: "discrete" for the release path; "float" for plain float32 normals, which
        is faster and good for simulations alone.

    Formal guarantees: with "discrete", each round is a discrete Gaussian release on
    integers whose L2 norm is at most the stated sensitivity, rounding included, of
    scale ``noise_multiplier`` times it; accounted as the Gaussian of that multiplier.

    Raises:
      ValueError: for a noise multiplier that is not above 0.
      CompositionError: in ``bind``, if sum and noise do not fit the modulus, or if the
        bits of adaptive clipping cost more than the whole.
    """
    check_multiplier("central_gaussian", noise_multiplier)
    if noise not in NOISE_WORDS:
        raise ValueError(f"central_gaussian: noise={noise!r}: 'discrete' or 'float'")
    accounting = Accounting(noise_multiplier, NOISE_WORDS[noise], ADVERSARY)

    def bind(message: Message, sampling: Sampling) -> BoundMechanism:
        own = own_noise("central_gaussian", accounting, message, sampling)
        grouped = message.groups > 1 or message.unit == "group"
        if noise == "float" and message.modulus_bits is None and not grouped:
            return BoundMechanism(_multiplier_state(own), server=_add_float)
        grid = lattice.choose_lattice(
            "central_gaussian", message, sampling.cohort_size, own
        )
        exact = noise == "discrete"
        init = _integer_state(grid, exact)
        codec = lattice.nearest_codec()
        if grouped:
            add = _noise_groups if exact else _round_groups
            return BoundMechanism(init, group=add, codec=codec)
        add = _noise_total if exact else _round_total
        return BoundMechanism(init, server=add, codec=codec)

    return Mechanism(bind, accounting)


def own_noise(
    name: str, accounting: Accounting, message: Message, sampling: Sampling
) -> float:
    """Returns the multiplier of the messages' noise, what is beside them paid for.

    Raises:
      CompositionError: if nothing is left for it, or no noise reaches the target.
    """
    try:
        whole = accounting.multiplier(sampling)
        return split_noise(whole, message.side_multiplier)
    except PrivacyError as error:
        raise CompositionError(f"{name}: {error}") from error


def _multiplier_state(multiplier: float):
    def init(params: Params) -> State:
        del params
        return {"noise_multiplier": jnp.float32(multiplier)}

    return init


def _integer_state(grid: lattice.Lattice, exact: bool):
    def init(params: Params) -> State:
        del params
        drawn = (
            jax.tree.map(jnp.asarray, laws.discrete_gaussian(grid.sigma))
            if exact
            else jnp.float32(grid.sigma)
        )
        return {"scale": jnp.float32(2.0**grid.bits), "noise": drawn}

    return init


def _add_float(
    total: Updates, state: Any, key: Key, bound: jax.Array
) -> tuple[Updates, State]:
    sigma = state["noise_multiplier"] * bound
    return lattice.add_float_noise(total, key, sigma), state


def _noise_groups(sums: Any, state: Any, key: Key, bound: jax.Array) -> Any:
    del bound
    return lattice.add_noise(sums, key, state["noise"])


def _round_groups(sums: Any, state: Any, key: Key, bound: jax.Array) -> Any:
    del bound
    return lattice.add_rounded_noise(sums, key, state["noise"])


def _noise_total(
    total: Any, state: Any, key: Key, bound: jax.Array
) -> tuple[Any, State]:
    return _noise_groups(total, state, key, bound), state


def _round_total(
    total: Any, state: Any, key: Key, bound: jax.Array
) -> tuple[Any, State]:
    return _round_groups(total, state, key, bound), state
