"""Local Gaussian noise: each client noises its own message.

The calibration is exact (Balle and Wang, 2018, arXiv:1805.06530); the classical formula
holds for epsilon below 1 alone (asked for 10 it gives 10.4, for 20 it gives 25.4).
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
    Relation,
    Target,
    check_multiplier,
)
from fedjax_health.privacy.central import NOISE_WORDS
from fedjax_health.privacy.events import repeated_event

ADVERSARY = "everybody, the server included: the noise is added before a message leaves"


def local_gaussian(
    epsilon: float | None = None,
    delta: float = 1e-5,
    *,
    noise_multiplier: float | Target | None = None,
    noise: Literal["discrete", "float"] = "discrete",
) -> Mechanism:
    """Adds Gaussian noise to each message, before any aggregation rule.

    Two messages of a client may differ by twice the bound, so that is the sensitivity;
    nothing is amplified by sampling, since the server sees who sent what.

    Args:
      epsilon: of one message; or
      delta: its delta, read with ``epsilon`` alone.
      noise_multiplier: standard deviation of the noise over the bound of a message, or
        the target of the whole run.
      noise: "discrete" for the release path, "float" for simulations.

    Raises:
      ValueError: unless exactly one of epsilon and noise_multiplier is given.
      CompositionError: in ``bind``, under a secure sum or with adaptive clipping.
    """
    if (epsilon is None) == (noise_multiplier is None):
        raise ValueError(
            "local_gaussian needs exactly one of epsilon and noise_multiplier, not "
            f"epsilon={epsilon}, noise_multiplier={noise_multiplier}"
        )
    if noise not in NOISE_WORDS:
        raise ValueError(f"local_gaussian: noise={noise!r}: 'discrete' or 'float'")
    if epsilon is not None:
        noise_multiplier = _exact_multiplier(epsilon, delta)
    assert noise_multiplier is not None
    check_multiplier("local_gaussian", noise_multiplier)
    accounting = Accounting(
        noise_multiplier,
        f"{NOISE_WORDS[noise]}, by each client",
        ADVERSARY,
        _event,
        _relation,
        _sampler,
    )

    def bind(message: Message, sampling: Sampling) -> BoundMechanism:
        _check(message)
        try:
            z = accounting.multiplier(sampling)
        except PrivacyError as error:
            raise CompositionError(f"local_gaussian: {error}") from error
        if noise == "float":

            def init(params: Params) -> State:
                del params
                return {"noise_multiplier": jnp.float32(z)}

            return BoundMechanism(init, client=_add_float)
        grid = _grid(message, z)

        def init_integers(params: Params) -> State:
            del params
            table = jax.tree.map(jnp.asarray, laws.discrete_gaussian(grid.sigma))
            return {"scale": jnp.float32(2.0**grid.bits), "noise": table}

        return BoundMechanism(init_integers, client=_add_integers)

    return Mechanism(bind, accounting)


def _exact_multiplier(epsilon: float, delta: float) -> float:
    import dp_accounting as dp

    if not (0 < epsilon < float("inf") and 0 < delta < 1):
        raise ValueError(
            f"local_gaussian: epsilon={epsilon}, delta={delta}: epsilon must be finite "
            "and above 0, delta in (0, 1)"
        )
    return 2 * float(dp.get_sigma_gaussian(epsilon, delta))


def _check(message: Message):
    if message.modulus_bits is not None:
        raise CompositionError(
            "local_gaussian: noise that hides one message is beyond the range of a "
            "secure sum: use distributed_discrete_gaussian, distributed_skellam or "
            "central_gaussian"
        )
    if message.side_multiplier is not None:
        raise CompositionError(
            "local_gaussian: the bits of adaptive clipping reach the server unnoised: "
            "use clip_l2"
        )


def _grid(message: Message, z: float) -> lattice.Lattice:
    """Chooses a lattice whose points a float32 still holds exactly, noise included."""
    for bits in range(lattice.MOST_BITS, 0, -1):
        sensitivity = lattice.integer_norm(bits, message.num_params)
        sigma = z * sensitivity
        exact = 2.0**bits + lattice.TAIL * sigma < 2.0**24
        if exact and sigma >= laws.MIN_SIGMA and sensitivity <= 2.0 ** (bits + 1):
            return lattice.Lattice(bits, sensitivity, sigma)
    raise CompositionError(
        f"local_gaussian: noise of {z:g} bounds on {message.num_params:,} numbers fits "
        "no lattice that a float32 holds: use noise='float', or a larger epsilon"
    )


def _event(noise_multiplier: float, sampling: Any, rounds: int) -> Any:
    del sampling
    return repeated_event(noise_multiplier, rounds)


def _relation(sampling: Any) -> Relation:
    del sampling
    return "replace"


def _sampler(sampling: Any) -> str:
    del sampling
    return "none: a client is taken to send a message in every round"


def _add_float(updates: Updates, state: Any, key: Key, bound: jax.Array) -> Updates:
    return lattice.add_float_noise(updates, key, state["noise_multiplier"] * bound)


def _add_integers(updates: Updates, state: Any, key: Key, bound: jax.Array) -> Updates:
    integers = lattice.round_to_lattice(updates, bound, state["scale"])
    noised = lattice.add_noise(integers, key, state["noise"])
    step = bound / state["scale"]
    return jax.tree.map(
        lambda x, y: (x.astype(jnp.float32) * step).astype(y.dtype), noised, updates
    )
