"""Encoders of one modality: their settings, and the branch that is built from them.

An encoder's settings are a frozen record: equal records share one compiled program.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_health.core.types import InputLayout, Key
from fedjax_health.models.inputs import (
    Part,
    num_inputs,
    num_statistics,
    side_by_side,
    window_statistics,
)
from fedjax_health.models.perceptron import Perceptron
from fedjax_health.models.streams import GRU

Pooling = Literal["last", "mean", "attention"]
Target = Literal["row", "entity"]


@dataclasses.dataclass(frozen=True)
class GruEncoder:
    """A causal GRU.

    Attributes:
      hidden: recurrent units.
      dropout: share of what it hands on that is dropped while a key is given.
      norm: puts a linear layer of ``hidden`` units and a LayerNorm before it.
      pooling: how the states of a window become one where one answer is asked of it:
        the last state, their mean, or their mean weighted by a learned attention.
      statistics: joins a layer of ``hidden`` units that sees ``window_statistics``.
    """

    hidden: int = 48
    dropout: float = 0.0
    norm: bool = False
    pooling: Pooling = "last"
    statistics: bool = False

    def __post_init__(self):
        _check(self, "gru", ("hidden",))


@dataclasses.dataclass(frozen=True)
class MlpEncoder:
    """Dense layers on a record, on each step of a stream, or on a whole window.

    Attributes:
      hidden: units of each layer; none hands on what it reads.
      dropout: share of units dropped after each layer while a key is given.
      norm: a LayerNorm in each layer.
      statistics: whether it sees ``window_statistics`` of a stream, and not the step,
        or the window's last step, alone.
    """

    hidden: tuple[int, ...] = (128, 64)
    dropout: float = 0.0
    norm: bool = False
    statistics: bool = True

    def __post_init__(self):
        object.__setattr__(self, "hidden", tuple(int(units) for units in self.hidden))
        if any(units < 1 for units in self.hidden):
            raise ValueError(f"mlp: hidden={self.hidden} must be 1 or more")
        _check(self, "mlp", ())


Encoder = GruEncoder | MlpEncoder


def _check(encoder: Encoder, name: str, sizes: tuple[str, ...]):
    """Refuses settings out of range and makes equal settings of equal type."""
    for size in sizes:
        value = int(getattr(encoder, size))
        if value < 1:
            raise ValueError(f"{name}: {size}={value} must be 1 or more")
        object.__setattr__(encoder, size, value)
    dropout = float(encoder.dropout)
    if not 0 <= dropout < 1:
        raise ValueError(f"{name}: dropout={dropout} must lie in [0, 1)")
    object.__setattr__(encoder, "dropout", dropout)
    pooling = getattr(encoder, "pooling", "last")
    if pooling not in ("last", "mean", "attention"):
        raise ValueError(f"{name}: pooling={pooling!r}: last, mean or attention")


class Branch(nnx.Module):
    """One encoder with its pooling.

    ``width`` is the size of its embedding. It reads parts that are
    ``[examples, features]``, or with ``streams`` ``[time, examples, features]``, and
    returns ``[examples, width]`` for records and where ``target`` is "entity", else
    ``[time, examples, width]``.

    Args:
      layout: the modalities that it reads.
      encoder: its settings.
      streams: whether there is a time axis.
      target: whether there is an answer at each step ("row") or one for the window.
      rngs: where initial weights come from.
    """

    def __init__(
        self,
        layout: InputLayout,
        encoder: Encoder,
        *,
        streams: bool,
        target: Target,
        rngs: nnx.Rngs,
    ):
        self.settings = encoder
        self.streams = streams
        self.pooled = streams and target == "entity"
        inputs = num_inputs(layout)
        match encoder:
            case GruEncoder(hidden=hidden):
                if encoder.norm:
                    self.projection = nnx.Linear(inputs, hidden, rngs=rngs)
                    self.projection_norm = nnx.LayerNorm(hidden, rngs=rngs)
                self.recurrent = GRU(
                    hidden if encoder.norm else inputs, hidden, rngs=rngs
                )
                self.width = hidden
            case MlpEncoder(hidden=hidden):
                statistics = streams and encoder.statistics
                width = num_statistics(layout) if statistics else inputs
                self.dense = Perceptron(
                    width, hidden, encoder.dropout, encoder.norm, rngs=rngs
                )
                self.width = hidden[-1] if hidden else width
        if isinstance(encoder, MlpEncoder):
            return
        if not streams:
            raise ValueError(
                f"{type(encoder).__name__} needs examples with a time axis: choose "
                "MlpEncoder for single records"
            )
        self.dropout = nnx.Dropout(encoder.dropout)
        if self.pooled and encoder.pooling == "attention":
            self.attention = nnx.Linear(self.width, 1, rngs=rngs)
        if encoder.statistics:
            self.summary = Perceptron(
                num_statistics(layout), (self.width,), 0.0, False, rngs=rngs
            )
            self.width *= 2

    def __call__(self, parts: tuple[Part, ...], *, key: Key | None = None) -> jax.Array:
        """Returns the embedding of a batch."""
        encoder = self.settings
        if isinstance(encoder, MlpEncoder):
            return self.dense(self._dense_inputs(parts, encoder), key=key)
        states = self._states(parts, encoder)
        if self.pooled:
            states = self._pool(states, parts[0].valid, encoder.pooling)
        if encoder.statistics:
            summary = window_statistics(parts, causal=not self.pooled)
            states = jnp.concatenate([states, self.summary(summary)], axis=-1)
        return self.dropout(states, deterministic=key is None, rngs=key)

    def _dense_inputs(self, parts: tuple[Part, ...], encoder: MlpEncoder) -> jax.Array:
        if self.streams and encoder.statistics:
            return window_statistics(parts, causal=not self.pooled)
        inputs = side_by_side(parts)
        return inputs[-1] if self.pooled else inputs

    def _states(self, parts: tuple[Part, ...], encoder: Encoder) -> jax.Array:
        inputs = side_by_side(parts)
        match encoder:
            case GruEncoder(norm=norm):
                if norm:
                    inputs = self.projection_norm(self.projection(inputs))
                return self.recurrent(inputs)
        raise AssertionError(encoder)

    def _pool(
        self, states: jax.Array, valid: jax.Array | None, pooling: Pooling
    ) -> jax.Array:
        if pooling == "last":
            return states[-1]
        counted = jnp.ones(states.shape[:2]) if valid is None else valid
        if pooling == "attention":
            scores = self.attention(states)[..., 0]
            scores = jnp.where(counted > 0, scores, -jnp.inf)
            # A window without a valid row would be all -inf; its last row counts.
            scores = scores.at[-1].set(jnp.maximum(scores[-1], -1e30))
            counted = jax.nn.softmax(scores, axis=0)
        total = jnp.maximum(jnp.sum(counted, axis=0), 1e-6)
        return jnp.einsum("teh,te->eh", states, counted / total)
