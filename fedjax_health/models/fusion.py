"""A detector of several modalities, any of which may be missing.

Each modality has an encoder and a logit of its own. A gate weighs these logits, and a
joint layer, which sees all embeddings beside how far they disagree, adds a logit for
what only the modalities together can tell. The gate over modality logits is a mixture
of experts in logit space (Jacobs et al. 1991, Neural Computation 3(1):79-87), masked
where a modality is absent; whole modalities are dropped in training as in ModDrop
(Neverova et al. 2015, arXiv:1501.00102).
"""

import functools
import itertools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_health.core.types import (
    Batch,
    Detection,
    InputLayout,
    Key,
    ModalityColumns,
    Model,
)
from fedjax_health.models.detectors import check_target
from fedjax_health.models.encoders import (
    Branch,
    Encoder,
    GruDEncoder,
    GruEncoder,
    MlpEncoder,
    Target,
)
from fedjax_health.models.functional import build_model
from fedjax_health.models.inputs import as_layout, presence, split_batch

_OWNER = "fusion_detector"


class _Modality(nnx.Module):
    """A modality's encoder, its own logit, its shared space and its absence."""

    def __init__(
        self,
        columns: ModalityColumns,
        encoder: Encoder,
        aligned: int,
        streams: bool,
        target: Target,
        *,
        rngs: nnx.Rngs,
    ):
        self.encoder = Branch(
            (columns,), encoder, streams=streams, target=target, rngs=rngs
        )
        self.width = self.encoder.width
        self.head = nnx.Linear(self.width, 1, rngs=rngs)
        if aligned:
            self.aligned = nnx.Linear(self.width, aligned, rngs=rngs)
        self.missing = nnx.Param(jnp.zeros(self.width))


class _Fusion(nnx.Module):
    def __init__(
        self,
        layout: InputLayout,
        encoders: tuple[Encoder, ...],
        joint: int,
        aligned: int,
        modality_dropout: float,
        dropout: float,
        streams: bool,
        target: Target,
        *,
        rngs: nnx.Rngs,
    ):
        self.layout = layout
        self.space = aligned
        self.streams = streams
        self.each_step = streams and target == "row"
        self.modality_dropout = modality_dropout
        for columns, encoder in zip(layout, encoders, strict=True):
            modality = _Modality(columns, encoder, aligned, streams, target, rngs=rngs)
            setattr(self, f"modality_{columns.name}", modality)
        count = len(layout)
        pairs = count * (count - 1) // 2
        width = sum(modality.width for modality in self._modalities())
        self.joint = nnx.Linear(width + 2 * aligned * pairs + count, joint, rngs=rngs)
        self.gate = nnx.Linear(joint, count, rngs=rngs)
        self.dropout = nnx.Dropout(dropout)
        self.head = nnx.Linear(joint, 1, rngs=rngs)

    def _modalities(self) -> list[_Modality]:
        return [getattr(self, f"modality_{columns.name}") for columns in self.layout]

    def __call__(self, batch: Batch, *, key: Key | None = None) -> Detection:
        parts = split_batch(batch, self.layout, streams=self.streams, owner=_OWNER)
        axes = 0 if not self.streams else 1 if self.each_step else 2
        observed = jnp.stack([presence(part, axes=axes) for part in parts], axis=-1)
        present = observed
        if key is not None and self.modality_dropout > 0:
            kept = keep_modalities(
                jax.random.fold_in(key, 0),
                jnp.any(observed, axis=0) if self.each_step else observed,
                rate=self.modality_dropout,
            )
            present = observed & kept

        modalities = self._modalities()
        embeddings, logits, spaces = [], [], []
        for i, (modality, part) in enumerate(zip(modalities, parts, strict=True)):
            here = observed[..., i, None]
            found = modality.encoder((part,), key=_key(key, 2 + i))
            logits.append(jnp.where(here, modality.head(found), 0)[..., 0])
            if self.space:
                spaces.append(jnp.where(here, _unit(modality.aligned(found)), 0))
            embeddings.append(
                jnp.where(present[..., i, None], found, modality.missing[...])
            )

        joint = jax.nn.relu(self.joint(self._evidence(embeddings, spaces, present)))
        scores = jnp.where(present, self.gate(joint), -1e30)
        shares = jax.nn.softmax(scores.astype(jnp.float32), axis=-1) * present
        hidden = self.dropout(joint, deterministic=key is None, rngs=_key(key, 1))
        total = self.head(hidden)[..., 0]
        total += jnp.sum(shares * jnp.stack(logits, axis=-1), axis=-1)

        names = [columns.name for columns in self.layout]
        order = self._examples_first
        return Detection(
            logits=order(total),
            unimodal={n: order(x) for n, x in zip(names, logits, strict=True)},
            aligned={n: order(x) for n, x in zip(names, spaces, strict=False)},
            embedding=order(joint),
            shares=order(shares),
            present=order(observed),
        )

    def _evidence(
        self, embeddings: list[jax.Array], spaces: list[jax.Array], present: jax.Array
    ) -> jax.Array:
        """Returns what the joint layer sees: embeddings, disagreement, presence."""
        parts = [*embeddings, present.astype(embeddings[0].dtype)]
        for a, b in itertools.combinations(range(len(spaces)), 2):
            both = (present[..., a] & present[..., b])[..., None]
            parts.append(jnp.where(both, jnp.abs(spaces[a] - spaces[b]), 0))
            parts.append(jnp.where(both, spaces[a] * spaces[b], 0))
        return jnp.concatenate(parts, axis=-1)

    def _examples_first(self, values: jax.Array) -> jax.Array:
        return jnp.swapaxes(values, 0, 1) if self.each_step else values


class _Alone(nnx.Module):
    """The same for one modality: there is nothing to weigh."""

    def __init__(
        self,
        layout: InputLayout,
        encoder: Encoder,
        streams: bool,
        target: Target,
        *,
        rngs: nnx.Rngs,
    ):
        self.layout = layout
        self.streams = streams
        self.each_step = streams and target == "row"
        self.encoder = Branch(
            layout, encoder, streams=streams, target=target, rngs=rngs
        )
        self.head = nnx.Linear(self.encoder.width, 1, rngs=rngs)

    def __call__(self, batch: Batch, *, key: Key | None = None) -> Detection:
        parts = split_batch(batch, self.layout, streams=self.streams, owner=_OWNER)
        axes = 0 if not self.streams else 1 if self.each_step else 2
        embedding = self.encoder(parts, key=key)
        logits = self.head(embedding)[..., 0]
        present = presence(parts[0], axes=axes)[..., None]
        if self.each_step:
            logits, embedding, present = (
                jnp.swapaxes(x, 0, 1) for x in (logits, embedding, present)
            )
        return Detection(logits, {}, {}, embedding=embedding, present=present)


def keep_modalities(key: Key, present: jax.Array, *, rate: float) -> jax.Array:
    """Draws which modalities an example keeps in a training step.

    Each is dropped with probability ``rate``; an example that would lose all that it
    has keeps all.

    Args:
      key: of the draw.
      present: bool ``[examples, modalities]``.
      rate: in [0, 1).

    Returns:
      bool ``[examples, modalities]``.
    """
    kept = jax.random.uniform(key, present.shape) >= rate
    left = jnp.any(kept & present, axis=-1, keepdims=True)
    return kept | ~left


def _key(key: Key | None, number: int) -> Key | None:
    return None if key is None else jax.random.fold_in(key, number)


def _unit(x: jax.Array) -> jax.Array:
    """Scales to a root mean square of 1 over the last axis; zeros stay zeros."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)


def fusion_detector(
    layout: InputLayout,
    *,
    encoders: Mapping[str, Encoder] | None = None,
    joint: int = 32,
    aligned: int = 32,
    modality_dropout: float = 0.2,
    dropout: float = 0.0,
    streams: bool = True,
    target: Target = "row",
) -> Model:
    """Returns a detector that fuses modalities by a gate and a joint layer.

    ``logit = sum_m share_m logit_m + joint logit`` where the shares are a softmax over
    the modalities that are present. A modality is present where any of its values was
    observed: in the record; up to this step in the window; or, with one answer for
    the window, anywhere in it. One without flags always is. Where none is present the
    shares are 0 and the joint logit answers alone. The joint layer sees the modalities'
    embeddings (a learned vector for an absent one), ``|u - v|`` and ``u * v`` for each
    pair of them in the shared space (0 where one is absent), and which are present.

    The model returns a ``Detection``; its ``unimodal``, ``aligned`` and ``present``
    tell of what was observed, whatever was dropped in training. Parameters of modality
    "x" lie under ``modality_x``. With a single modality there is neither gate nor
    joint layer: the encoder's embedding goes to the head. Equal settings return the
    same functions, and all settings are static.

    Args:
      layout: where the modalities lie in ``batch["x"]``.
      encoders: modality -> its encoder. One that is not named has for streams a
        ``GruEncoder``, or a ``GruDEncoder`` where it is carried, and for records an
        ``MlpEncoder`` of one layer of 64.
      joint: units of the joint layer.
      aligned: width of the shared space; 0 for none, and no disagreement.
      modality_dropout: probability that an example loses a modality while a key is
        given; it never loses all.
      dropout: share of the joint layer's units dropped while a key is given.
      streams: whether examples have a time axis.
      target: with a time axis, an answer at each step ("row"), or one ("entity").

    Raises:
      ValueError: for settings out of range, or an encoder of an unknown modality.
    """
    layout = as_layout(layout, owner=_OWNER)
    names = [columns.name for columns in layout]
    chosen = dict(encoders or {})
    for name in chosen:
        if name not in names:
            raise ValueError(
                f"{_OWNER}: encoders names modality {name!r}; the layout has "
                f"{', '.join(names)}"
            )
    if joint < 1 or aligned < 0:
        raise ValueError(
            f"{_OWNER}: joint={joint} must be 1 or more and aligned={aligned} 0 or more"
        )
    for name, rate in (
        ("modality_dropout", modality_dropout),
        ("dropout", dropout),
    ):
        if not 0 <= rate < 1:
            raise ValueError(f"{_OWNER}: {name}={rate} must lie in [0, 1)")
    return _build(
        layout,
        tuple(
            chosen.get(c.name) or default_encoder(c, streams=streams) for c in layout
        ),
        int(joint),
        int(aligned),
        float(modality_dropout),
        float(dropout),
        bool(streams),
        check_target(target),
    )


def default_encoder(columns: ModalityColumns, *, streams: bool) -> Encoder:
    """Returns the encoder of a modality for which none was named."""
    if not streams:
        return MlpEncoder((64,))
    return GruEncoder() if columns.elapsed is None else GruDEncoder()


@functools.cache
def _build(
    layout: InputLayout,
    encoders: tuple[Encoder, ...],
    joint: int,
    aligned: int,
    modality_dropout: float,
    dropout: float,
    streams: bool,
    target: Target,
) -> Model:
    if len(layout) == 1:
        return build_model(
            lambda rngs: _Alone(layout, encoders[0], streams, target, rngs=rngs)
        )
    return build_model(
        lambda rngs: _Fusion(
            layout,
            encoders,
            joint,
            aligned,
            modality_dropout,
            dropout,
            streams,
            target,
            rngs=rngs,
        )
    )
