"""Detectors that read a window of a stream and answer at every step."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_health.core.types import Batch, Key, Model
from fedjax_health.models.functional import build_model
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

    def __call__(self, inputs: jax.Array, *, time_major: bool = False) -> jax.Array:
        """Returns the states of ``inputs [examples, time, features]``; see ``gru``."""
        params = {
            "wi": self.wi[...],
            "bi": self.bi[...],
            "wh": self.wh[...],
            "bh": self.bh[...],
        }
        return gru(params, inputs, time_major=time_major)


class _GRUDetector(nnx.Module):
    def __init__(
        self, features: int, hidden: int, dropout: float, norm: bool, *, rngs: nnx.Rngs
    ):
        self.norm = norm
        self.features = features
        if norm:
            self.projection = nnx.Linear(features, hidden, rngs=rngs)
            self.projection_norm = nnx.LayerNorm(hidden, rngs=rngs)
        self.recurrent = GRU(hidden if norm else features, hidden, rngs=rngs)
        self.dropout = nnx.Dropout(dropout)
        self.head = nnx.Linear(hidden, 1, rngs=rngs)

    def __call__(self, batch: Batch, *, key: Key | None = None) -> jax.Array:
        inputs = batch["x"]
        if inputs.ndim != 3 or inputs.shape[-1] != self.features:
            raise ValueError(
                "gru_detector needs batch['x'] of shape [examples, time, "
                f"{self.features}], not {inputs.shape}"
            )
        if self.norm:
            inputs = self.projection_norm(self.projection(inputs))
        states = self.recurrent(inputs, time_major=True)
        states = self.dropout(states, deterministic=key is None, rngs=key)
        return jnp.swapaxes(self.head(states)[..., 0], 0, 1)


def gru_detector(
    features: int, *, hidden: int = 48, dropout: float = 0.0, norm: bool = False
) -> Model:
    """Returns a causal recurrent detector of streams.

    Reads ``batch["x"]``, float32 ``[examples, time, features]`` without missing
    values, and returns logits ``[examples, time]``; the logit of a step depends on
    that step and those before it in the window. Equal settings return the same
    functions, and all settings are static: each combination compiles once.

    Args:
      features: width of ``batch["x"]``.
      hidden: recurrent units.
      dropout: share of hidden states dropped before the head while a key is given.
      norm: puts a linear layer of ``hidden`` units and a LayerNorm, whose leaves lie
        under ``projection_norm``, before the recurrent layer.

    Raises:
      ValueError: for sizes below 1 or a dropout outside [0, 1).
    """
    if features < 1 or hidden < 1:
        raise ValueError(
            f"gru_detector: features={features} and hidden={hidden} must be 1 or more"
        )
    if not 0 <= dropout < 1:
        raise ValueError(f"gru_detector: dropout={dropout} must lie in [0, 1)")
    return _build(int(features), int(hidden), float(dropout), bool(norm))


@functools.cache
def _build(features: int, hidden: int, dropout: float, norm: bool) -> Model:
    return build_model(
        lambda rngs: _GRUDetector(features, hidden, dropout, norm, rngs=rngs)
    )
