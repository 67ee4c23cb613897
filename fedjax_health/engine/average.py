"""A running average of the global model over the rounds, beside the model itself.

Clients train from the model; the average is what is scored. It evens out the last
rounds' noise (Polyak and Juditsky, "Acceleration of stochastic approximation by
averaging", 1992; here with exponential weights).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_health.core.types import Params


class AverageState(NamedTuple):
    """State of a server optimiser that averages.

    Attributes:
      inner: state of the optimiser that takes the steps.
      average: the running average of the parameters.
      rounds: float32 ``[]``, rounds that it is made of.
    """

    inner: Any
    average: Params
    rounds: jax.Array


@functools.cache
def averaging(
    constructor: Callable[..., optax.GradientTransformation],
) -> Callable[..., optax.GradientTransformation]:
    """Returns a constructor of the same optimiser that keeps an average as well.

    After t rounds the average moves by ``1 - min(decay, (t - 1) / t)`` towards the new
    model: the plain mean of the first rounds, then an exponential one.

    Args:
      constructor: such as ``optax.sgd``; the new one takes ``average_decay`` beside its
        arguments.
    """

    def build(*, average_decay: Any, **arguments: Any) -> optax.GradientTransformation:
        inner = constructor(**arguments)

        def init(params: Params) -> AverageState:
            # The state is donated: the average must not share the model's buffers.
            average = jax.tree.map(lambda x: jnp.array(x, copy=True), params)
            return AverageState(inner.init(params), average, jnp.float32(0))

        def update(updates: Any, state: Any, params: Params = None):
            change, inner_state = inner.update(updates, state.inner, params)
            moved = optax.apply_updates(params, change)
            rounds = state.rounds + 1
            keep = jnp.minimum(average_decay, (rounds - 1) / rounds)
            average = jax.tree.map(
                lambda old, new: (old + (1 - keep) * (new - old)).astype(old.dtype),
                state.average,
                moved,
            )
            return change, AverageState(inner_state, average, rounds)

        return optax.GradientTransformation(init, update)

    return build


def averaged_params(params: Params, server: Any) -> Params:
    """Returns the average where the server keeps one, else the parameters.

    Args:
      params: of a ``RoundState``.
      server: its server state.
    """
    return server.average if isinstance(server, AverageState) else params
