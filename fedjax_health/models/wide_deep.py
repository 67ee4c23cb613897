"""A detector of records for clients that hold hundreds of them, not millions.

A linear path beside a small perceptron (Cheng et al. 2016, "Wide & Deep Learning for
Recommender Systems", arXiv:1606.07792), both on values, flags of what was observed and
squares: risk rises on both sides of a healthy value, which few examples do not teach a
small network.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_health.core.types import Batch, InputLayout, Key, Model
from fedjax_health.models.functional import build_model
from fedjax_health.models.inputs import layout_width, num_values
from fedjax_health.models.perceptron import Perceptron

# The square of an outlier would drown the others.
_LARGEST = 3.0


def quadratic_features(values: jax.Array, observed: jax.Array | None) -> jax.Array:
    """Returns values, their squares and flags, 0 where nothing was observed.

    The square is ``(x^2 - 1) / sqrt(2)``, which for a standard normal value has mean 0,
    deviation 1 and no correlation with it, within 3.

    Args:
      values: ``[examples, features]``, scaled.
      observed: 1 where a value was observed; None for always.

    Returns:
      ``[examples, 2 features]``, or ``[examples, 3 features]`` with ``observed``.
    """
    square = jnp.clip((values**2 - 1) / 2**0.5, -_LARGEST, _LARGEST)
    if observed is None:
        return jnp.concatenate([values, square], axis=-1)
    seen = observed > 0
    parts = [jnp.where(seen, values, 0), jnp.where(seen, square, 0), observed]
    return jnp.concatenate(parts, axis=-1)


class _WideDeep(nnx.Module):
    def __init__(
        self,
        layout: InputLayout,
        hidden: tuple[int, ...],
        input_dropout: float,
        dropout: float,
        *,
        rngs: nnx.Rngs,
    ):
        self.layout = layout
        width = sum(
            num_values(columns) * (2 if columns.observed is None else 3)
            for columns in layout
        )
        self.input_dropout = nnx.Dropout(input_dropout)
        self.deep = Perceptron(width, hidden, dropout, False, rngs=rngs)
        zeros = nnx.initializers.zeros_init()
        self.wide = nnx.Linear(width, 1, kernel_init=zeros, rngs=rngs)
        self.head = nnx.Linear(hidden[-1], 1, rngs=rngs) if hidden else None

    def __call__(self, batch: Batch, *, key: Key | None = None) -> jax.Array:
        x = batch["x"]
        width = layout_width(self.layout)
        if x.ndim != 2 or x.shape[-1] != width:
            raise ValueError(
                f"wide_deep needs batch['x'] of shape [examples, {width}], not "
                f"{x.shape}"
            )
        parts = []
        for columns in self.layout:
            flags = columns.observed
            observed = None if flags is None else x[:, flags[0] : flags[1]]
            values = x[:, columns.values[0] : columns.values[1]]
            parts.append(quadratic_features(values, observed))
        inputs = jnp.concatenate(parts, axis=-1)
        keys = (None, None) if key is None else tuple(jax.random.split(key))
        inputs = self.input_dropout(inputs, deterministic=key is None, rngs=keys[0])
        logits = self.wide(inputs)[:, 0]
        if self.head is not None:
            logits += self.head(self.deep(inputs, key=keys[1]))[:, 0]
        return logits


def wide_deep(
    layout: InputLayout,
    *,
    hidden: Sequence[int] = (64,),
    input_dropout: float = 0.3,
    dropout: float = 0.5,
) -> Model:
    """Returns a detector of records.

    Reads ``batch["x"] [examples, width]`` and returns logits ``[examples]``: a linear
    function of ``quadratic_features`` plus a perceptron on the same. Equal settings
    return the same functions, and all settings are static.

    Args:
      layout: where each modality lies in ``batch["x"]``.
      hidden: units of each hidden layer; none for the linear function alone.
      input_dropout: share of the inputs dropped while a key is given.
      dropout: share of hidden units dropped while a key is given.

    Raises:
      ValueError: for sizes below 1 or a dropout outside [0, 1).
    """
    hidden = tuple(int(units) for units in hidden)
    if any(units < 1 for units in hidden):
        raise ValueError(f"wide_deep: hidden={hidden} must be 1 or more")
    for name, value in {"input_dropout": input_dropout, "dropout": dropout}.items():
        if not 0 <= value < 1:
            raise ValueError(f"wide_deep: {name}={value} must lie in [0, 1)")
    return _build(tuple(layout), hidden, float(input_dropout), float(dropout))


@functools.cache
def _build(
    layout: InputLayout, hidden: tuple[int, ...], input_dropout: float, dropout: float
) -> Model:
    return build_model(
        lambda rngs: _WideDeep(layout, hidden, input_dropout, dropout, rngs=rngs)
    )
