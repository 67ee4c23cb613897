"""Detectors with one encoder for everything that they read."""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx

from fedjax_health.core.types import Batch, Detection, InputLayout, Key, Model, Outputs
from fedjax_health.models.encoders import (
    Branch,
    Encoder,
    GruDEncoder,
    GruEncoder,
    MlpEncoder,
    Pooling,
    Target,
    TcnEncoder,
    TransformerEncoder,
)
from fedjax_health.models.functional import build_model
from fedjax_health.models.inputs import as_layout, split_batch
from fedjax_health.models.split import Coded, Split, check_split, encode_across


class _Detector(nnx.Module):
    def __init__(
        self,
        layout: InputLayout,
        encoder: Encoder,
        streams: bool,
        target: Target,
        split: Split | None,
        *,
        rngs: nnx.Rngs,
    ):
        self.layout = layout
        self.split = split
        self.streams = streams
        self.each_step = streams and target == "row"
        self.owner = f"{_OWNERS[type(encoder)]}(streams={streams})"
        self.encoder = Branch(
            layout, encoder, streams=streams, target=target, rngs=rngs
        )
        self.head = nnx.Linear(self.encoder.width, 1, rngs=rngs)

    def __call__(self, batch: Batch, *, key: Key | None = None) -> Outputs:
        parts = split_batch(batch, self.layout, streams=self.streams, owner=self.owner)
        (embedding,), smashed = encode_across(
            [Coded(joined(self.layout), self.encoder, parts, key)],
            self.split,
            batch,
            key=key,
            each_step=self.each_step,
            streams=self.streams,
        )
        logits = self.head(embedding)[..., 0]
        logits = jnp.swapaxes(logits, 0, 1) if self.each_step else logits
        if "probe" in batch:
            return Detection(logits, {}, {}, smashed=smashed)
        return logits


def joined(layout: InputLayout) -> str:
    """Returns the name of what reads all modalities of a layout side by side."""
    return "+".join(columns.name for columns in layout)


_OWNERS = {
    GruEncoder: "gru_detector",
    GruDEncoder: "grud_detector",
    TcnEncoder: "tcn_detector",
    TransformerEncoder: "ft_transformer",
    MlpEncoder: "mlp",
}


def encoder_detector(
    features: int | InputLayout,
    encoder: Encoder,
    *,
    streams: bool = True,
    target: Target = "row",
    split: Split | None = None,
) -> Model:
    """Returns a detector: one encoder over all modalities side by side, and a head.

    Reads ``batch["x"]``, float32 ``[examples, width]`` or, for streams, ``[examples,
    time, width]``, and of streams ``batch["valid"] [examples, time]`` where there is
    one. Returns logits ``[examples]``, or for streams with a label at each step
    ``[examples, time]``; the logit of a step depends on that step and those before it
    in the window. Equal settings return the same functions, and all settings are
    static: each combination compiles once.

    Args:
      features: where each modality lies in ``batch["x"]``; a number stands for one
        complete modality of that width.
      encoder: settings of the encoder.
      streams: whether examples have a time axis.
      target: with a time axis, an answer at each step ("row"), or one for the window
        ("entity").
      split: where the encoder is cut; None for a whole model.

    Raises:
      ValueError: for settings out of range, an encoder that cannot read this, or a cut
        that it cannot have.
    """
    owner = _OWNERS[type(encoder)]
    layout = as_layout(features, owner=owner)
    if split is not None:
        if split.modality is not None:
            raise ValueError(
                f"{owner} has one encoder for all modalities: leave split.modality out"
            )
        check_split(split, encoder, owner=owner)
    return _build(layout, encoder, bool(streams), check_target(target), split)


@functools.cache
def _build(
    layout: InputLayout,
    encoder: Encoder,
    streams: bool,
    target: Target,
    split: Split | None,
) -> Model:
    return build_model(
        lambda rngs: _Detector(layout, encoder, streams, target, split, rngs=rngs)
    )


def gru_detector(
    features: int | InputLayout,
    *,
    hidden: int = 48,
    dropout: float = 0.0,
    norm: bool = False,
    pooling: Pooling = "last",
    statistics: bool = False,
    target: Target = "row",
) -> Model:
    """Returns a causal recurrent detector of streams; see ``encoder_detector``.

    Args:
      features: width of ``batch["x"]``, or its layout.
      hidden: recurrent units.
      dropout: share of hidden states dropped before the head while a key is given.
      norm: puts a linear layer of ``hidden`` units and a LayerNorm, whose leaves lie
        under ``projection_norm``, before the recurrent layer.
      pooling: with one answer, what the head sees: the last state, the mean of all, or
        their mean weighted by a learned attention.
      statistics: joins a layer of ``hidden`` units that sees ``window_statistics``.
      target: an answer at each step ("row"), or one for the window ("entity").

    Raises:
      ValueError: for settings out of range.
    """
    encoder = GruEncoder(hidden, dropout, bool(norm), pooling, bool(statistics))
    return encoder_detector(features, encoder, target=target)


def grud_detector(
    layout: InputLayout,
    *,
    hidden: int = 48,
    hidden_decay: bool = True,
    dropout: float = 0.0,
    pooling: Pooling = "last",
    statistics: bool = False,
    target: Target = "row",
) -> Model:
    """Returns a GRU-D, for series with missing values; see ``encoder_detector``.

    Args:
      layout: where each modality lies in ``batch["x"]``; one or more are carried, the
        others are read as they are.
      hidden: recurrent units.
      hidden_decay: whether the state decays where values have not been observed.
      dropout: share of hidden states dropped before the head while a key is given.
      pooling: see ``gru_detector``.
      statistics: see ``gru_detector``.
      target: an answer at each step ("row"), or one for the window ("entity").

    Raises:
      ValueError: for settings out of range, or where nothing is carried.
    """
    encoder = GruDEncoder(
        hidden, bool(hidden_decay), dropout, pooling, bool(statistics)
    )
    return encoder_detector(layout, encoder, target=target)


def tcn_detector(
    features: int | InputLayout,
    *,
    hidden: int = 48,
    levels: int = 4,
    kernel: int = 3,
    dropout: float = 0.0,
    pooling: Pooling = "last",
    statistics: bool = False,
    target: Target = "row",
) -> Model:
    """Returns a dilated causal convolution over time; see ``encoder_detector``.

    A step sees ``(kernel - 1) (2^levels - 1)`` steps before it.

    Args:
      features: width of ``batch["x"]``, or its layout.
      hidden: units of every layer.
      levels: blocks; block i has dilation ``2^i``.
      kernel: steps that a convolution reads, 2 or more.
      dropout: share of units dropped in each block while a key is given.
      pooling: see ``gru_detector``.
      statistics: see ``gru_detector``.
      target: an answer at each step ("row"), or one for the window ("entity").

    Raises:
      ValueError: for settings out of range.
    """
    encoder = TcnEncoder(hidden, levels, kernel, dropout, pooling, bool(statistics))
    return encoder_detector(features, encoder, target=target)


def ft_transformer(
    features: int | InputLayout,
    *,
    width: int = 32,
    blocks: int = 2,
    heads: int = 4,
    dropout: float = 0.0,
    streams: bool = False,
    target: Target = "row",
) -> Model:
    """Returns a transformer over the features of a row; see ``encoder_detector``.

    With a time axis it answers for each step by itself, or for the window by its last
    step. The cost grows with the square of the number of features.

    Args:
      features: width of ``batch["x"]``, or its layout.
      width: of a token.
      blocks: of attention.
      heads: of an attention; must divide the width.
      dropout: share of attention weights and of feed-forward units dropped while a
        key is given.
      streams: whether examples have a time axis.
      target: with a time axis, an answer at each step ("row"), or one ("entity").

    Raises:
      ValueError: for settings out of range.
    """
    encoder = TransformerEncoder(width, blocks, heads, dropout)
    return encoder_detector(features, encoder, streams=streams, target=target)


def mlp(
    features: int | InputLayout,
    *,
    hidden: Sequence[int] = (128, 64),
    dropout: float = 0.0,
    norm: bool = False,
    statistics: bool = True,
    input_dropout: float = 0.0,
    skip: bool = False,
    streams: bool = False,
    target: Target = "row",
) -> Model:
    """Returns a multi-layer perceptron with rectified units; see ``encoder_detector``.

    For streams it sees each step beside statistics of the window so far, or with
    ``target="entity"`` statistics of the whole window (``window_statistics``). Weights
    start by He et al. 2015 (arXiv:1502.01852), biases at zero.

    Args:
      features: width of ``batch["x"]``, or its layout, without which values that were
        not observed count as zeros.
      hidden: units of each hidden layer; none makes it a logistic regression.
      dropout: share of hidden units dropped while a key is given.
      norm: a LayerNorm, whose leaves lie under ``norm_0`` and on, in each layer.
      statistics: with a time axis, whether it sees statistics, or each step alone.
      input_dropout: share of what it reads dropped while a key is given.
      skip: whether the head sees what the first layer reads, too.
      streams: whether examples have a time axis.
      target: with a time axis, an answer at each step ("row"), or one ("entity").

    Raises:
      ValueError: for sizes below 1 or a dropout outside [0, 1).
    """
    encoder = MlpEncoder(
        tuple(hidden), dropout, bool(norm), bool(statistics), input_dropout, bool(skip)
    )
    return encoder_detector(features, encoder, streams=streams, target=target)


def check_target(target: Target) -> Target:
    """Refuses anything but "row" and "entity"."""
    if target not in ("row", "entity"):
        raise ValueError(f'target={target!r}: "row" or "entity"')
    return target
