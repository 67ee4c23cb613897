"""A stack of dense layers with rectified units."""

import jax
from flax import nnx

from fedjax_health.core.types import Key

_HE = nnx.initializers.he_normal()


class Perceptron(nnx.Module):
    """Dense layers, each followed by a rectified unit.

    Weights start by He et al. 2015 (arXiv:1502.01852), biases at zero.

    Args:
      width: of the inputs.
      hidden: units of each layer; none returns the inputs as they are.
      dropout: share of units dropped after each layer while a key is given.
      norm: a LayerNorm, whose leaves lie under ``norm_0`` and on, in each layer.
      rngs: where initial weights come from.
    """

    def __init__(
        self,
        width: int,
        hidden: tuple[int, ...],
        dropout: float,
        norm: bool,
        *,
        rngs: nnx.Rngs,
    ):
        self.depth = len(hidden)
        self.norm = norm
        self.dropout = nnx.Dropout(dropout)
        for layer, units in enumerate(hidden):
            dense = nnx.Linear(width, units, kernel_init=_HE, rngs=rngs)
            setattr(self, f"dense_{layer}", dense)
            if norm:
                setattr(self, f"norm_{layer}", nnx.LayerNorm(units, rngs=rngs))
            width = units

    def __call__(
        self,
        values: jax.Array,
        *,
        key: Key | None = None,
        first: int = 0,
        last: int | None = None,
    ) -> jax.Array:
        """Returns the last layer's units for ``values [..., width]``.

        Args:
          values: what the first layer reads.
          key: of the dropout.
          first: layer to begin with.
          last: layer to end before; None for all.
        """
        for layer in range(first, self.depth if last is None else last):
            values = getattr(self, f"dense_{layer}")(values)
            if self.norm:
                values = getattr(self, f"norm_{layer}")(values)
            layer_key = None if key is None else jax.random.fold_in(key, layer)
            values = self.dropout(
                jax.nn.relu(values), deterministic=key is None, rngs=layer_key
            )
        return values
