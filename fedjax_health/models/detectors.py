"""Detectors with one encoder for everything that they read."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_health.core.types import Batch, InputLayout, Key, Model
from fedjax_health.models.encoders import (
    Branch,
    Encoder,
    GruEncoder,
    MlpEncoder,
    Pooling,
    Target,
)
from fedjax_health.models.functional import build_model
from fedjax_health.models.inputs import as_layout, split_batch


class _Detector(nnx.Module):
    def __init__(
        self,
        layout: InputLayout,
        encoder: Encoder,
        owner: str,
        streams: bool,
        target: Target,
        *,
        rngs: nnx.Rngs,
    ):
        self.layout = layout
        self.owner = owner
        self.streams = streams
        self.each_step = streams and target == "row"
        self.encoder = Branch(
            layout, encoder, streams=streams, target=target, rngs=rngs
        )
        self.head = nnx.Linear(self.encoder.width, 1, rngs=rngs)

    def __call__(self, batch: Batch, *, key: Key | None = None) -> jax.Array:
        parts = split_batch(batch, self.layout, streams=self.streams, owner=self.owner)
        logits = self.head(self.encoder(parts, key=key))[..., 0]
        return jnp.swapaxes(logits, 0, 1) if self.each_step else logits


@functools.cache
def _build(
    layout: InputLayout, encoder: Encoder, owner: str, streams: bool, target: Target
) -> Model:
    return build_model(
        lambda rngs: _Detector(layout, encoder, owner, streams, target, rngs=rngs)
    )


def gru_detector(
    features: int | InputLayout,
    *,
    hidden: int = 48,
    dropout: float = 0.0,
    norm: bool = False,
    target: Target = "row",
    pooling: Pooling = "last",
    statistics: bool = False,
) -> Model:
    """Returns a causal recurrent detector of streams.

    Reads ``batch["x"]``, float32 ``[examples, time, features]`` without missing
    values, and returns logits ``[examples, time]``; the logit of a step depends on
    that step and those before it in the window. With ``target="entity"`` it returns
    one logit for the window, ``[examples]``. Equal settings return the same
    functions, and all settings are static: each combination compiles once.

    Args:
      features: width of ``batch["x"]``, or its layout.
      hidden: recurrent units.
      dropout: share of hidden states dropped before the head while a key is given.
      norm: puts a linear layer of ``hidden`` units and a LayerNorm, whose leaves lie
        under ``projection_norm``, before the recurrent layer.
      target: an answer at each step ("row"), or one for the window ("entity").
      pooling: with one answer, what the head sees: the last state, the mean of all, or
        their mean weighted by a learned attention.
      statistics: joins a layer that sees ``window_statistics``.

    Raises:
      ValueError: for settings out of range.
    """
    layout = as_layout(features, owner="gru_detector")
    encoder = GruEncoder(hidden, dropout, bool(norm), pooling, bool(statistics))
    return _build(layout, encoder, "gru_detector", True, check_target(target))


def mlp(
    features: int | InputLayout,
    *,
    hidden: Sequence[int] = (128, 64),
    dropout: float = 0.0,
    norm: bool = False,
    streams: bool = False,
    target: Target = "row",
    statistics: bool = True,
) -> Model:
    """Returns a multi-layer perceptron with rectified units.

    For records it reads ``batch["x"] [examples, features]`` and returns logits
    ``[examples]``. For streams it reads ``[examples, time, features]``, sees each step
    beside the statistics of the window so far (``window_statistics``), and returns
    ``[examples, time]``; with ``target="entity"`` it sees the statistics of the whole
    window and returns ``[examples]``. Weights start by He et al. 2015
    (arXiv:1502.01852), biases at zero. Equal settings return the same functions, and
    all settings are static.

    Args:
      features: width of ``batch["x"]``, or its layout, without which values that were
        not observed count as zeros.
      hidden: units of each hidden layer; none makes it a logistic regression.
      dropout: share of hidden units dropped while a key is given.
      norm: a LayerNorm, whose leaves lie under ``norm_0`` and on, in each layer.
      streams: whether examples have a time axis.
      target: with a time axis, an answer at each step ("row"), or one ("entity").
      statistics: with a time axis, whether it sees statistics, or each step alone.

    Raises:
      ValueError: for sizes below 1 or a dropout outside [0, 1).
    """
    layout = as_layout(features, owner="mlp")
    encoder = MlpEncoder(tuple(hidden), dropout, bool(norm), bool(statistics))
    owner = f"mlp(streams={bool(streams)})"
    return _build(layout, encoder, owner, bool(streams), check_target(target))


def check_target(target: Target) -> Target:
    """Refuses anything but "row" and "entity"."""
    if target not in ("row", "entity"):
        raise ValueError(f'target={target!r}: "row" or "entity"')
    return target
