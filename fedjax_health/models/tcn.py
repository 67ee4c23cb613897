"""A dilated causal convolution over time, by unfolding and one matrix product.

Bai et al. 2018 (arXiv:1803.01271) with one convolution a block, LayerNorm before it in
place of weight normalisation, and no convolution operator: on a CPU, and under a vmap
over clients, matrix products are several times as fast.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_health.core.types import Key

_HE = nnx.initializers.he_normal()


def unfold(inputs: jax.Array, *, kernel: int, dilation: int) -> jax.Array:
    """Returns each step beside those before it that a causal convolution reads.

    Args:
      inputs: ``[time, ..., features]``.
      kernel: steps that are read.
      dilation: distance between two of them.

    Returns:
      ``[time, ..., kernel features]``, earliest first; 0 before the first step.
    """
    steps = len(inputs)
    taps = []
    for back in range((kernel - 1) * dilation, -1, -dilation):
        kept = max(steps - back, 0)
        before = jnp.zeros((steps - kept, *inputs.shape[1:]), inputs.dtype)
        taps.append(jnp.concatenate([before, inputs[:kept]]))
    return jnp.concatenate(taps, axis=-1)


class TCN(nnx.Module):
    """Residual blocks ``x + dropout(relu(conv(norm(x))))`` of doubling dilation.

    A linear layer comes first, a LayerNorm last. A step sees itself and
    ``(kernel - 1) (2^levels - 1)`` steps before it.

    Args:
      features: width of the inputs.
      hidden: units of every layer.
      levels: blocks; block i has dilation ``2^i``.
      kernel: steps that a convolution reads.
      dropout: share of units dropped in each block while a key is given.
      rngs: where initial weights come from.
    """

    def __init__(
        self,
        features: int,
        hidden: int,
        levels: int,
        kernel: int,
        dropout: float,
        *,
        rngs: nnx.Rngs,
    ):
        self.levels = levels
        self.kernel = kernel
        self.dropout = nnx.Dropout(dropout)
        self.projection = nnx.Linear(features, hidden, rngs=rngs)
        for level in range(levels):
            dense = nnx.Linear(kernel * hidden, hidden, kernel_init=_HE, rngs=rngs)
            setattr(self, f"conv_{level}", dense)
            setattr(self, f"norm_{level}", nnx.LayerNorm(hidden, rngs=rngs))
        self.norm = nnx.LayerNorm(hidden, rngs=rngs)

    def __call__(
        self,
        inputs: jax.Array,
        *,
        valid: jax.Array | None = None,
        key: Key | None = None,
        cut: tuple[int, Callable[[jax.Array], jax.Array]] | None = None,
    ) -> jax.Array:
        """Returns ``[time, examples, hidden]`` of ``[time, examples, features]``.

        Args:
          inputs: what is read.
          valid: ``[time, examples]``. Steps that only fill up the window in front
            (``valid`` 0) count as the zeros that a convolution puts before its first.
          key: of the dropout.
          cut: levels before a cut, and what values go through there; or None.
        """
        values = self.projection(inputs)
        for level in range(self.levels):
            read = getattr(self, f"norm_{level}")(values)
            if valid is not None:
                read *= valid[..., None]
            read = unfold(read, kernel=self.kernel, dilation=2**level)
            read = jax.nn.relu(getattr(self, f"conv_{level}")(read))
            level_key = None if key is None else jax.random.fold_in(key, level)
            values += self.dropout(read, deterministic=key is None, rngs=level_key)
            if cut is not None and cut[0] == level + 1:
                values = cut[1](values)
        return self.norm(values)
