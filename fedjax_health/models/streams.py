"""A layer of gated recurrent units."""

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_health.models.recurrent import gru


class GRU(nnx.Module):
    """A layer of gated recurrent units with the hand-written gradient.

    Input weights are Glorot uniform and recurrent weights orthogonal, gate by gate;
    biases start at zero.

    Args:
      features: width of the inputs.
      hidden: units.
      rngs: where initial weights come from.
    """

    def __init__(self, features: int, hidden: int, *, rngs: nnx.Rngs):
        glorot = nnx.initializers.glorot_uniform()
        orthogonal = nnx.initializers.orthogonal()

        def gates(initializer, rows):
            return nnx.Param(
                jnp.concatenate(
                    [initializer(rngs.params(), (rows, hidden)) for _ in range(3)],
                    axis=1,
                )
            )

        self.wi = gates(glorot, features)
        self.bi = nnx.Param(jnp.zeros(3 * hidden))
        self.wh = gates(orthogonal, hidden)
        self.bh = nnx.Param(jnp.zeros(3 * hidden))

    def __call__(
        self, inputs: jax.Array, *, decay: jax.Array | None = None
    ) -> jax.Array:
        """Returns the states of ``inputs [time, examples, features]``; see ``gru``."""
        params = {
            "wi": self.wi[...],
            "bi": self.bi[...],
            "wh": self.wh[...],
            "bh": self.bh[...],
        }
        if decay is not None:
            decay = jnp.swapaxes(decay, 0, 1)
        inputs = jnp.swapaxes(inputs, 0, 1)
        return gru(params, inputs, decay=decay, time_major=True)
