"""Correlated noise over the rounds: banded matrix factorisation.

Choquette-Choo et al., 2023, "(Amplified) Banded Matrix Factorization"
(arXiv:2306.08153), with a Toeplitz strategy that jax-privacy optimises. The noise of a
round takes back part of the last ``bands - 1`` ones, so that sums over rounds are less
noisy, and cyclic Poisson sampling still amplifies.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_health.core.message import CompositionError, Message
from fedjax_health.core.types import (
    BoundMechanism,
    Key,
    Mechanism,
    Params,
    Sampling,
    State,
)
from fedjax_health.privacy import lattice
from fedjax_health.privacy.accounting import Accounting, Target, check_multiplier
from fedjax_health.privacy.central import ADVERSARY, own_noise


def banded_mf(
    noise_multiplier: float | Target, *, bands: int, rounds: int
) -> Mechanism:
    """Adds noise that is correlated over ``bands`` rounds.

    Simulation-grade: correlated noise is no integer, so it is drawn in float32.

    Args:
      noise_multiplier: standard deviation of the noise before it is correlated, over
        the bound of a message times the strategy's largest column norm; or the target
        to reach.
      bands: of the strategy; a client takes part once in so many rounds. Static.
      rounds: of the run, for which the strategy is optimised.

    Formal guarantees: by cyclic sampling a client takes part in one of ``cycle`` rounds
    at most, and the columns of the strategy for those rounds do not overlap: the run
    costs what ``ceil(rounds / cycle)`` Poisson-sampled Gaussian rounds at the rate
    within a block do.

    Raises:
      ValueError: for numbers out of range.
      ImportError: without jax-privacy.
      CompositionError: in ``bind``, unless sampling is cyclic with ``bands`` or more.
    """
    check_multiplier("banded_mf", noise_multiplier)
    if not 1 <= bands <= rounds:
        raise ValueError(
            f"banded_mf: bands={bands}: must lie between 1 and rounds={rounds}"
        )
    coefficients = strategy(rounds, bands)
    accounting = Accounting(
        noise_multiplier,
        f"float32 Gaussian, correlated over {bands} rounds: simulation-grade noise, "
        "its support gives inputs away",
        ADVERSARY,
    )

    def bind(message: Message, sampling: Sampling) -> BoundMechanism:
        _check(message, sampling, bands)
        z = own_noise("banded_mf", accounting, message, sampling)
        scaled = z * float(np.linalg.norm(coefficients))
        if message.modulus_bits is None:

            def init(params: Params) -> State:
                return _state(coefficients, scaled, params)

            return BoundMechanism(init, server=_server)
        # Correlated noise is larger than what it is made of, by 1 / c_0 at most for
        # coefficients that fall.
        grid = lattice.choose_lattice(
            "banded_mf",
            message,
            sampling.cohort_size,
            scaled,
            releases=2 / float(coefficients[0]),
        )

        def init_integers(params: Params) -> State:
            sigma = scaled * grid.sensitivity
            state = _state(coefficients, sigma, params)
            return {**state, "scale": jnp.float32(2.0**grid.bits)}

        return BoundMechanism(
            init_integers, server=_server_integers, codec=lattice.nearest_codec()
        )

    return Mechanism(bind, accounting)


@functools.cache
def strategy(rounds: int, bands: int) -> np.ndarray:
    """Returns the strategy's Toeplitz coefficients, float64 ``[bands]``.

    Raises:
      ImportError: without jax-privacy.
    """
    if bands == 1:
        return np.ones(1)
    try:
        from jax_privacy.matrix_factorization import (  # pyright: ignore
            toeplitz,
        )
    except ImportError as error:
        raise ImportError(
            "banded_mf needs jax-privacy: pip install "
            '"fedjax-health[matrix-factorization]"'
        ) from error
    return np.asarray(toeplitz.optimize_banded_toeplitz(rounds, bands), np.float64)


def _check(message: Message, sampling: Sampling, bands: int):
    if sampling.scheme != "cyclic" or sampling.cycle < bands:
        raise CompositionError(
            f"banded_mf: a client may take part once in {bands} rounds: use cyclic "
            f"sampling with a cycle of {bands} or more"
        )
    if message.moving:
        raise CompositionError(
            "banded_mf: correlated noise must meet the same parameters in all its "
            "rounds, and the common random_k sends others in every round: use random_k "
            "with shared=False, or central_gaussian"
        )
    if message.side_multiplier is not None:
        raise CompositionError(
            "banded_mf: its noise reaches over rounds and needs one bound for all: use "
            "clip_l2 in place of adaptive_clip"
        )
    if message.groups > 1:
        raise CompositionError(
            "banded_mf: correlated noise goes with one sum a round: use "
            "central_gaussian with groups"
        )


def _state(coefficients: np.ndarray, sigma: float, params: Params) -> State:
    return {
        "coefficients": jnp.asarray(coefficients, jnp.float32),
        "sigma": jnp.float32(sigma),
        "past": jax.tree.map(
            lambda x: jnp.zeros((len(coefficients) - 1, *x.shape), jnp.float32), params
        ),
    }


def _correlated(state: Any, key: Key) -> tuple[Any, Any]:
    """Returns this round's noise in units of the bound, and the state after it.

    One row of ``C**-1 z`` by forward substitution: what the strategy's bands reach back
    to is kept, the newest first.
    """
    first, rest = state["coefficients"][0], state["coefficients"][1:]
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape[1:], jnp.float32), state["past"])
    fresh = lattice.add_float_noise(zeros, key, state["sigma"])
    noise = jax.tree.map(
        lambda z, past: (z - jnp.tensordot(rest, past, 1)) / first,
        fresh,
        state["past"],
    )
    past = jax.tree.map(
        lambda new, old: jnp.concatenate([new[None], old])[: old.shape[0]],
        noise,
        state["past"],
    )
    return noise, {**state, "past": past}


def _server(total: Any, state: Any, key: Key, bound: jax.Array) -> tuple[Any, State]:
    noise, state = _correlated(state, key)
    noised = jax.tree.map(lambda x, n: x + (bound * n).astype(x.dtype), total, noise)
    return noised, state


def _server_integers(
    total: Any, state: Any, key: Key, bound: jax.Array
) -> tuple[Any, State]:
    del bound
    noise, state = _correlated(state, key)
    noised = jax.tree.map(lambda x, n: x + jnp.round(n).astype(jnp.int32), total, noise)
    return noised, state
