"""Encoders of one modality: their settings, and the branch that is built from them.

An encoder's settings are a frozen record: equal records share one compiled program.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_health.core.types import InputLayout, Key
from fedjax_health.models.grud import GRUD
from fedjax_health.models.inputs import (
    Part,
    last_row,
    num_inputs,
    num_values,
    side_by_side,
)
from fedjax_health.models.perceptron import Perceptron
from fedjax_health.models.streams import GRU
from fedjax_health.models.tcn import TCN
from fedjax_health.models.transformer import FTTransformer
from fedjax_health.models.window import num_statistics, window_statistics

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
      dense: units of further layers, one after the other, on what it hands on.
    """

    hidden: int = 48
    dropout: float = 0.0
    norm: bool = False
    pooling: Pooling = "last"
    statistics: bool = False
    dense: tuple[int, ...] = ()

    def __post_init__(self):
        _check(self, "gru", "hidden")


@dataclasses.dataclass(frozen=True)
class GruDEncoder:
    """GRU-D, for a carried modality; see ``GRUD``.

    Attributes:
      hidden: recurrent units.
      hidden_decay: whether the state decays where values have not been observed.
      dropout: share of what it hands on that is dropped while a key is given.
      pooling: see ``GruEncoder``.
      statistics: see ``GruEncoder``.
      dense: see ``GruEncoder``.
    """

    hidden: int = 48
    hidden_decay: bool = True
    dropout: float = 0.0
    pooling: Pooling = "last"
    statistics: bool = False
    dense: tuple[int, ...] = ()

    def __post_init__(self):
        _check(self, "grud", "hidden")


@dataclasses.dataclass(frozen=True)
class TcnEncoder:
    """A dilated causal convolution over time; see ``TCN``.

    Attributes:
      hidden: units of every layer.
      levels: blocks; block i has dilation ``2^i``.
      kernel: steps that a convolution reads, 2 or more.
      dropout: share of units dropped in each block while a key is given.
      pooling: see ``GruEncoder``.
      statistics: see ``GruEncoder``.
      dense: see ``GruEncoder``.
    """

    hidden: int = 48
    levels: int = 4
    kernel: int = 3
    dropout: float = 0.0
    pooling: Pooling = "last"
    statistics: bool = False
    dense: tuple[int, ...] = ()

    def __post_init__(self):
        _check(self, "tcn", "hidden", "levels", "kernel")
        if self.kernel < 2:
            raise ValueError(f"tcn: kernel={self.kernel} must be 2 or more")


@dataclasses.dataclass(frozen=True)
class TransformerEncoder:
    """An FT-transformer on a record, on each step, or on a window's last step.

    Attributes:
      width: of a token.
      blocks: of attention.
      heads: of an attention; must divide the width.
      dropout: share of attention weights and of feed-forward units dropped while a
        key is given.
      dense: see ``GruEncoder``.
    """

    width: int = 32
    blocks: int = 2
    heads: int = 4
    dropout: float = 0.0
    dense: tuple[int, ...] = ()

    def __post_init__(self):
        _check(self, "ft_transformer", "width", "blocks", "heads")
        if self.width % self.heads:
            raise ValueError(
                f"ft_transformer: width={self.width} must be a multiple of "
                f"heads={self.heads}"
            )


@dataclasses.dataclass(frozen=True)
class MlpEncoder:
    """Dense layers on a record, on each step of a stream, or on a whole window.

    Attributes:
      hidden: units of each layer; none hands on what it reads.
      dropout: share of units dropped after each layer while a key is given.
      norm: a LayerNorm in each layer.
      statistics: whether it sees ``window_statistics`` of a stream, and not the step,
        or the window's last step, alone.
      input_dropout: share of what it reads dropped while a key is given.
      skip: hands on what it reads beside the last layer's units, so that there is a
        linear path.
    """

    hidden: tuple[int, ...] = (128, 64)
    dropout: float = 0.0
    norm: bool = False
    statistics: bool = True
    input_dropout: float = 0.0
    skip: bool = False

    def __post_init__(self):
        object.__setattr__(self, "hidden", tuple(int(units) for units in self.hidden))
        if any(units < 1 for units in self.hidden):
            raise ValueError(f"mlp: hidden={self.hidden} must be 1 or more")
        _check(self, "mlp")


Encoder = GruEncoder | GruDEncoder | TcnEncoder | TransformerEncoder | MlpEncoder


def _check(encoder: Encoder, name: str, *sizes: str):
    """Refuses settings out of range and makes equal settings of equal type."""
    for size in sizes:
        value = int(getattr(encoder, size))
        if value < 1:
            raise ValueError(f"{name}: {size}={value} must be 1 or more")
        object.__setattr__(encoder, size, value)
    for field in ("dropout", "input_dropout"):
        share = float(getattr(encoder, field, 0))
        if not 0 <= share < 1:
            raise ValueError(f"{name}: {field}={share} must lie in [0, 1)")
        if hasattr(encoder, field):
            object.__setattr__(encoder, field, share)
    units = tuple(int(units) for units in getattr(encoder, "dense", ()))
    if any(number < 1 for number in units):
        raise ValueError(f"{name}: dense={units} must be 1 or more")
    if hasattr(encoder, "dense"):
        object.__setattr__(encoder, "dense", units)
    pooling = getattr(encoder, "pooling", "last")
    if pooling not in ("last", "mean", "attention"):
        raise ValueError(f"{name}: pooling={pooling!r}: last, mean or attention")


def num_layers(encoder: Encoder) -> int:
    """Returns the layers that an encoder can be cut between.

    Each dense layer is one, and so is each level of a TCN and each block of a
    transformer; a recurrent layer is one. What reads the input belongs to the first of
    them, and a last norm and the pooling to the last before the dense layers.
    """
    return len(_dense_units(encoder)) + _before_dense(encoder)


def width_at(encoder: Encoder, layer: int, layout: InputLayout) -> int:
    """Returns how many numbers leave a layer, counted from 1, for a step or a window.

    Args:
      encoder: settings; of an ``MlpEncoder`` one without ``skip``.
      layer: 1 to ``num_layers``.
      layout: the modalities that it reads.
    """
    dense = layer - _before_dense(encoder)
    if dense > 0:
        return _dense_units(encoder)[dense - 1]
    if isinstance(encoder, TransformerEncoder):
        # Between blocks every token crosses, [CLS] among them.
        tokens = 1 + sum(map(num_values, layout)) if dense else 1
        return tokens * encoder.width
    if dense:
        assert isinstance(encoder, TcnEncoder)
        return encoder.hidden
    assert not isinstance(encoder, MlpEncoder)
    return encoder.hidden * (2 if encoder.statistics else 1)


def keeps_time(encoder: Encoder, layer: int) -> bool:
    """Returns whether every step of a window leaves a layer, whatever is asked of it.

    Between the levels of a TCN it does; they are pooled after the last.
    """
    return isinstance(encoder, TcnEncoder) and layer < encoder.levels


def layer_of(encoder: Encoder, path: str) -> int:
    """Returns the layer, from 1, that a leaf of a branch belongs to."""
    before = _before_dense(encoder)
    dense = re.match(r"dense/(?:dense|norm)_(\d+)/", path)
    if dense:
        return before + int(dense.group(1)) + 1
    inner = re.match(r"convolutions/(?:conv|norm)_(\d+)/|tokens/block_(\d+)/", path)
    if inner:
        return int(inner.group(1) or inner.group(2)) + 1
    first = re.match(r"convolutions/projection/|tokens/(?!norm/)", path)
    return 1 if first else before


def _before_dense(encoder: Encoder) -> int:
    match encoder:
        case MlpEncoder():
            return 0
        case TcnEncoder(levels=levels):
            return levels
        case TransformerEncoder(blocks=blocks):
            return blocks
    return 1


def _dense_units(encoder: Encoder) -> tuple[int, ...]:
    return encoder.hidden if isinstance(encoder, MlpEncoder) else encoder.dense


class Cut(NamedTuple):
    """Where an encoder is cut, and what its values go through there.

    Attributes:
      layer: layers before the cut, 1 or more.
      out: values -> what arrives behind the cut.
      back: values -> what arrives where they come back from behind it, or None where
        they do not.
    """

    layer: int
    out: Callable[[jax.Array], jax.Array]
    back: Callable[[jax.Array], jax.Array] | None = None


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

    Raises:
      ValueError: for an encoder of time where there is none.
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
        dropout = encoder.dropout
        match encoder:
            case MlpEncoder(hidden=hidden):
                if streams and encoder.statistics:
                    inputs = num_statistics(layout)
                self.input_dropout = nnx.Dropout(encoder.input_dropout)
                self.dense = Perceptron(
                    inputs, hidden, dropout, encoder.norm, rngs=rngs
                )
                self.width = hidden[-1] if hidden else inputs
                if hidden and encoder.skip:
                    self.width += inputs
                return
            case TransformerEncoder(width=width):
                self.tokens = FTTransformer(
                    layout, width, encoder.blocks, encoder.heads, dropout, rngs=rngs
                )
                self.width = width
                self._add_dense(rngs)
                return
        if not streams:
            raise ValueError(
                f"{type(encoder).__name__} needs examples with a time axis: choose "
                "MlpEncoder or TransformerEncoder for single records"
            )
        hidden = encoder.hidden
        match encoder:
            case GruEncoder(norm=norm):
                if norm:
                    self.projection = nnx.Linear(inputs, hidden, rngs=rngs)
                    self.projection_norm = nnx.LayerNorm(hidden, rngs=rngs)
                self.recurrent = GRU(hidden if norm else inputs, hidden, rngs=rngs)
            case GruDEncoder():
                self.decaying = GRUD(layout, hidden, encoder.hidden_decay, rngs=rngs)
            case TcnEncoder():
                self.convolutions = TCN(
                    inputs, hidden, encoder.levels, encoder.kernel, dropout, rngs=rngs
                )
                dropout = 0.0
        self.width = hidden
        self.dropout = nnx.Dropout(dropout)
        if self.pooled and encoder.pooling == "attention":
            self.attention = nnx.Linear(hidden, 1, rngs=rngs)
        if encoder.statistics:
            width = num_statistics(layout)
            self.summary = Perceptron(width, (hidden,), 0.0, False, rngs=rngs)
            self.width += hidden
        self._add_dense(rngs)

    def _add_dense(self, rngs: nnx.Rngs) -> None:
        assert not isinstance(self.settings, MlpEncoder)
        units, dropout = self.settings.dense, self.settings.dropout
        if units:
            self.dense = Perceptron(self.width, units, dropout, False, rngs=rngs)
            self.width = units[-1]

    def __call__(
        self,
        parts: tuple[Part, ...],
        *,
        key: Key | None = None,
        cut: Cut | None = None,
    ) -> jax.Array:
        """Returns the embedding of a batch, through a cut where there is one."""
        encoder = self.settings
        if isinstance(encoder, MlpEncoder):
            return self._dense(parts, encoder, key, cut)
        values = self._before(parts, encoder, key, cut)
        if encoder.dense:
            key = None if key is None else jax.random.fold_in(key, _DENSE)
        return self._through(values, key, cut, done=_before_dense(encoder))

    def _through(
        self, values: jax.Array, key: Key | None, cut: Cut | None, *, done: int
    ) -> jax.Array:
        """Returns what the dense layers make of values that left ``done`` layers."""
        layers = num_layers(self.settings) - done
        if cut is None:
            return self.dense(values, key=key) if layers else values
        # Below 0 where the values have crossed before.
        near = cut.layer - done
        if near > 0:
            values = self.dense(values, key=key, last=near)
        if near >= 0:
            values = cut.out(values)
        near = max(near, 0)
        if near < layers:
            values = self.dense(values, key=key, first=near)
        return values if cut.back is None else cut.back(values)

    def _before(
        self,
        parts: tuple[Part, ...],
        encoder: GruEncoder | GruDEncoder | TcnEncoder | TransformerEncoder,
        key: Key | None,
        cut: Cut | None,
    ) -> jax.Array:
        """Returns what the dense layers read."""
        inner = None
        if cut is not None and cut.layer < _before_dense(encoder):
            inner = (cut.layer, cut.out)
        if isinstance(encoder, TransformerEncoder):
            rows = tuple(map(last_row, parts)) if self.pooled else parts
            return self.tokens(rows, key=key, cut=inner)
        states = self._states(parts, encoder, key, inner)
        if self.pooled:
            states = self._pool(states, parts[0].valid, encoder.pooling)
        if encoder.statistics:
            summary = window_statistics(parts, causal=not self.pooled)
            states = jnp.concatenate([states, self.summary(summary)], axis=-1)
        return self.dropout(states, deterministic=key is None, rngs=key)

    def _dense(
        self,
        parts: tuple[Part, ...],
        encoder: MlpEncoder,
        key: Key | None,
        cut: Cut | None,
    ) -> jax.Array:
        if self.streams and encoder.statistics:
            inputs = window_statistics(parts, causal=not self.pooled)
        else:
            inputs = side_by_side(tuple(map(last_row, parts)) if self.pooled else parts)
        if encoder.input_dropout:
            of_inputs = None if key is None else jax.random.fold_in(key, _INPUTS)
            inputs = self.input_dropout(
                inputs, deterministic=key is None, rngs=of_inputs
            )
        units = self._through(inputs, key, cut, done=0)
        if encoder.hidden and encoder.skip:
            return jnp.concatenate([units, inputs], axis=-1)
        return units

    def _states(
        self,
        parts: tuple[Part, ...],
        encoder: GruEncoder | GruDEncoder | TcnEncoder,
        key: Key | None,
        cut: tuple[int, Callable[[jax.Array], jax.Array]] | None = None,
    ) -> jax.Array:
        """Returns states ``[time, examples, hidden]``."""
        if isinstance(encoder, GruDEncoder):
            return self.decaying(parts)
        inputs = side_by_side(parts)
        if isinstance(encoder, TcnEncoder):
            return self.convolutions(inputs, valid=parts[0].valid, key=key, cut=cut)
        if encoder.norm:
            inputs = self.projection_norm(self.projection(inputs))
        return self.recurrent(inputs)

    def _pool(
        self, states: jax.Array, valid: jax.Array | None, pooling: Pooling
    ) -> jax.Array:
        if pooling == "last":
            return states[-1]
        counted = jnp.ones(states.shape[:2], states.dtype) if valid is None else valid
        if pooling == "attention":
            scores = jnp.where(counted > 0, self.attention(states)[..., 0], -1e30)
            counted = jax.nn.softmax(scores, axis=0)
        total = jnp.maximum(jnp.sum(counted, axis=0), 1e-6)
        return jnp.einsum("teh,te->eh", states, counted / total)


# Apart from the numbers of layers, which are folded into the same key.
_INPUTS = 1_000_000
_DENSE = 1_000_001
