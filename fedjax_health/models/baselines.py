"""Detectors without memory, to compare the recurrent ones with."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from fedjax_health.core.types import Batch, Key, Model
from fedjax_health.models.functional import build_model

_HE = nnx.initializers.he_normal()


def causal_statistics(inputs: jax.Array) -> jax.Array:
    """Returns each step with what its window has shown so far.

    Args:
      inputs: ``[..., time, features]``.

    Returns:
      ``[..., time, 4 features]``: the step's values, and the mean, least and greatest
      value over the steps from the window's first to this one.
    """
    time = inputs.ndim - 2
    count = jnp.arange(1, inputs.shape[time] + 1, dtype=inputs.dtype)[:, None]
    return jnp.concatenate(
        [
            inputs,
            lax.cumsum(inputs, axis=time) / count,
            lax.cummin(inputs, axis=time),
            lax.cummax(inputs, axis=time),
        ],
        axis=-1,
    )


class _MLP(nnx.Module):
    def __init__(
        self,
        features: int,
        hidden: tuple[int, ...],
        dropout: float,
        norm: bool,
        streams: bool,
        *,
        rngs: nnx.Rngs,
    ):
        self.features = features
        self.streams = streams
        self.depth = len(hidden)
        self.norm = norm
        self.dropout = nnx.Dropout(dropout)
        width = 4 * features if streams else features
        for layer, units in enumerate(hidden):
            dense = nnx.Linear(width, units, kernel_init=_HE, rngs=rngs)
            setattr(self, f"dense_{layer}", dense)
            if norm:
                setattr(self, f"norm_{layer}", nnx.LayerNorm(units, rngs=rngs))
            width = units
        self.head = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, batch: Batch, *, key: Key | None = None) -> jax.Array:
        values = batch["x"]
        axes = 3 if self.streams else 2
        if values.ndim != axes or values.shape[-1] != self.features:
            steps = "time, " if self.streams else ""
            raise ValueError(
                f"mlp(streams={self.streams}) needs batch['x'] of shape [examples, "
                f"{steps}{self.features}], not {values.shape}"
            )
        if self.streams:
            values = causal_statistics(values)
        for layer in range(self.depth):
            values = getattr(self, f"dense_{layer}")(values)
            if self.norm:
                values = getattr(self, f"norm_{layer}")(values)
            layer_key = None if key is None else jax.random.fold_in(key, layer)
            values = self.dropout(
                jax.nn.relu(values), deterministic=key is None, rngs=layer_key
            )
        return self.head(values)[..., 0]


def mlp(
    features: int,
    *,
    hidden: Sequence[int] = (128, 64),
    dropout: float = 0.0,
    norm: bool = False,
    streams: bool = False,
) -> Model:
    """Returns a multi-layer perceptron with rectified units.

    For records it reads ``batch["x"] [examples, features]`` and returns logits
    ``[examples]``. For streams it reads ``[examples, time, features]``, sees each step
    beside the statistics of ``causal_statistics``, and returns ``[examples, time]``.
    Weights start by He et al. 2015 (arXiv:1502.01852), biases at zero. Equal settings
    return the same functions, and all settings are static.

    Args:
      features: width of ``batch["x"]``.
      hidden: units of each hidden layer; none makes it a logistic regression.
      dropout: share of hidden units dropped while a key is given.
      norm: a LayerNorm, whose leaves lie under ``norm_0`` and on, in each layer.
      streams: whether examples have a time axis.

    Raises:
      ValueError: for sizes below 1 or a dropout outside [0, 1).
    """
    hidden = tuple(int(units) for units in hidden)
    if features < 1 or any(units < 1 for units in hidden):
        raise ValueError(
            f"mlp: features={features} and hidden={hidden} must be 1 or more"
        )
    if not 0 <= dropout < 1:
        raise ValueError(f"mlp: dropout={dropout} must lie in [0, 1)")
    return _build(int(features), hidden, float(dropout), bool(norm), bool(streams))


@functools.cache
def _build(
    features: int, hidden: tuple[int, ...], dropout: float, norm: bool, streams: bool
) -> Model:
    return build_model(
        lambda rngs: _MLP(features, hidden, dropout, norm, streams, rngs=rngs)
    )
