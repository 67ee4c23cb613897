"""A detector of several modalities, any of which may be missing.

Each modality has an encoder and a logit of its own. By default a gate weighs these
logits, and a joint layer, which sees all embeddings beside how far they disagree, adds
a logit for what only the modalities together can tell. The gate over modality logits is
a mixture of experts in logit space (Jacobs et al. 1991, Neural Computation 3(1):79-87),
masked where a modality is absent; whole modalities are dropped in training as in
ModDrop (Neverova et al. 2015, arXiv:1501.00102). The other ways to fuse are there to be
compared with it.
"""

import functools
import itertools
from collections.abc import Mapping
from typing import NamedTuple

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
from fedjax_health.models.fuse import (
    KINDS,
    CrossAttention,
    Fuse,
    equal_shares,
    gate_shares,
    unit_scale,
)
from fedjax_health.models.inputs import Part, as_layout, presence, split_batch
from fedjax_health.models.split import Coded, Split, check_split, encode_across

_OWNER = "fusion_detector"


class _Settings(NamedTuple):
    """What does not depend on the data; see ``fusion_detector``."""

    joint: int
    aligned: int
    modality_dropout: float
    dropout: float
    fuse: Fuse
    disagreement: bool
    heads: int


class _Modality(nnx.Module):
    """A modality's encoder, its own logit, its shared space and its absence."""

    def __init__(
        self,
        columns: ModalityColumns,
        encoder: Encoder,
        settings: _Settings,
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
        if settings.aligned:
            self.aligned = nnx.Linear(self.width, settings.aligned, rngs=rngs)
        self.missing = nnx.Param(jnp.zeros(self.width))
        if settings.fuse == "cross_attention":
            self.token = nnx.Linear(self.width, settings.joint, rngs=rngs)


class _Fusion(nnx.Module):
    def __init__(
        self,
        layout: InputLayout,
        encoders: tuple[Encoder, ...],
        settings: _Settings,
        streams: bool,
        target: Target,
        split: Split | None,
        *,
        rngs: nnx.Rngs,
    ):
        self.layout = layout
        self.settings = settings
        self.split = split
        self.streams = streams
        self.each_step = streams and target == "row"
        for columns, encoder in zip(layout, encoders, strict=True):
            modality = _Modality(columns, encoder, settings, streams, target, rngs=rngs)
            setattr(self, f"modality_{columns.name}", modality)
        if settings.fuse == "late":
            return
        count, joint = len(layout), settings.joint
        width = sum(modality.width for modality in self._modalities())
        if settings.fuse == "cross_attention":
            self.attention = CrossAttention(joint, settings.heads, rngs=rngs)
            width = count * joint
        if settings.disagreement:
            width += 2 * settings.aligned * (count * (count - 1) // 2)
        self.joint = nnx.Linear(width + count, joint, rngs=rngs)
        if settings.fuse == "gated":
            self.gate = nnx.Linear(joint, count, rngs=rngs)
        self.dropout = nnx.Dropout(settings.dropout)
        self.head = nnx.Linear(joint, 1, rngs=rngs)

    def _modalities(self) -> list[_Modality]:
        return [getattr(self, f"modality_{columns.name}") for columns in self.layout]

    def __call__(self, batch: Batch, *, key: Key | None = None) -> Detection:
        parts = split_batch(batch, self.layout, streams=self.streams, owner=_OWNER)
        observed = self._observed(parts, batch)
        embeddings, smashed = self._encode(parts, batch, key)
        detection = self._answer(embeddings, observed, key)
        return detection._replace(smashed=smashed)

    def _observed(self, parts: tuple[Part, ...], batch: Batch) -> jax.Array:
        """Returns what there is, bool ``[..., modalities]``, time first."""
        axes = 0 if not self.streams else 1 if self.each_step else 2
        observed = jnp.stack([presence(part, axes=axes) for part in parts], axis=-1)
        if "absent" not in batch:
            return observed
        absent = batch["absent"]
        if absent.shape != (len(batch["x"]), len(parts)):
            raise ValueError(
                f"{_OWNER} needs batch['absent'] of shape [examples, {len(parts)}], "
                f"not {absent.shape}"
            )
        return observed & ~absent

    def _encode(
        self, parts: tuple[Part, ...], batch: Batch, key: Key | None
    ) -> tuple[list[jax.Array], dict[str, jax.Array] | None]:
        """Returns each modality's embedding ``[..., width]``, time first.

        Beside them, examples first, what arrives at the server; None without a cut.
        """
        coded = [
            Coded(columns.name, modality.encoder, (part,), _key(key, 2 + i))
            for i, (columns, modality, part) in enumerate(
                zip(self.layout, self._modalities(), parts, strict=True)
            )
        ]
        return encode_across(
            coded,
            self.split,
            batch,
            key=key,
            each_step=self.each_step,
            streams=self.streams,
        )

    def _answer(
        self, embeddings: list[jax.Array], observed: jax.Array, key: Key | None
    ) -> Detection:
        """Returns the detection from embeddings and presence, all that it sees."""
        unimodal, spaces = self._apart(embeddings, observed)
        present = self._kept(observed, key)
        known = [
            jnp.where(present[..., i, None], found, modality.missing[...])
            for i, (modality, found) in enumerate(
                zip(self._modalities(), embeddings, strict=True)
            )
        ]
        if self.settings.fuse == "late":
            joint = None
            total, shares = self._late(unimodal, present)
        else:
            joint = self._joint(known, spaces, present)
            total, shares = self._head(joint, unimodal, present, key)
        names = [columns.name for columns in self.layout]
        order = self._examples_first
        return Detection(
            logits=order(total),
            unimodal={n: order(x) for n, x in zip(names, unimodal, strict=True)},
            aligned={n: order(x) for n, x in zip(names, spaces, strict=False)},
            embedding=None if joint is None else order(joint),
            shares=None if shares is None else order(shares),
            present=order(observed),
        )

    def _apart(
        self, embeddings: list[jax.Array], observed: jax.Array
    ) -> tuple[list[jax.Array], list[jax.Array]]:
        """Returns each modality's own logit and its place in the shared space."""
        logits, spaces = [], []
        for i, (modality, found) in enumerate(
            zip(self._modalities(), embeddings, strict=True)
        ):
            here = observed[..., i, None]
            logits.append(jnp.where(here, modality.head(found), 0)[..., 0])
            if self.settings.aligned:
                spaces.append(jnp.where(here, unit_scale(modality.aligned(found)), 0))
        return logits, spaces

    def _kept(self, observed: jax.Array, key: Key | None) -> jax.Array:
        """Returns what modality dropout leaves of what there is."""
        rate = self.settings.modality_dropout
        if key is None or rate == 0:
            return observed
        kept = keep_modalities(
            jax.random.fold_in(key, 0),
            jnp.any(observed, axis=0) if self.each_step else observed,
            rate=rate,
        )
        return observed & kept

    def _late(
        self, unimodal: list[jax.Array], present: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the mean logit of what is present, else of the missing tokens."""
        shares = equal_shares(present)
        none = [m.head(m.missing[...])[0] for m in self._modalities()]
        total = jnp.sum(shares * jnp.stack(unimodal, axis=-1), axis=-1)
        nothing = ~jnp.any(present, axis=-1)
        return total + jnp.where(nothing, sum(none) / len(none), 0), shares

    def _joint(
        self, known: list[jax.Array], spaces: list[jax.Array], present: jax.Array
    ) -> jax.Array:
        """Returns the joint layer's units."""
        if self.settings.fuse == "cross_attention":
            tokens = [
                modality.token(x)
                for modality, x in zip(self._modalities(), known, strict=True)
            ]
            tokens = self.attention(jnp.stack(tokens, axis=-2), present)
            known = [tokens[..., i, :] for i in range(len(known))]
        if not self.settings.disagreement:
            spaces = []
        return jax.nn.relu(self.joint(self._evidence(known, spaces, present)))

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

    def _head(
        self,
        joint: jax.Array,
        unimodal: list[jax.Array],
        present: jax.Array,
        key: Key | None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Returns the logit, and the shares of the gate where there is one."""
        hidden = self.dropout(joint, deterministic=key is None, rngs=_key(key, 1))
        total = self.head(hidden)[..., 0]
        if self.settings.fuse != "gated":
            return total, None
        shares = gate_shares(self.gate(joint), present)
        return total + jnp.sum(shares * jnp.stack(unimodal, axis=-1), axis=-1), shares

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
        split: Split | None,
        *,
        rngs: nnx.Rngs,
    ):
        self.layout = layout
        self.split = split
        self.streams = streams
        self.each_step = streams and target == "row"
        self.encoder = Branch(
            layout, encoder, streams=streams, target=target, rngs=rngs
        )
        self.head = nnx.Linear(self.encoder.width, 1, rngs=rngs)

    def __call__(self, batch: Batch, *, key: Key | None = None) -> Detection:
        if "absent" in batch:
            raise ValueError(
                f"{_OWNER}: batch['absent'] takes modalities away, and the layout has "
                f"one, {self.layout[0].name}, without which nothing is left"
            )
        parts = split_batch(batch, self.layout, streams=self.streams, owner=_OWNER)
        axes = 0 if not self.streams else 1 if self.each_step else 2
        (embedding,), smashed = encode_across(
            [Coded(self.layout[0].name, self.encoder, parts, key)],
            self.split,
            batch,
            key=key,
            each_step=self.each_step,
            streams=self.streams,
        )
        logits = self.head(embedding)[..., 0]
        present = presence(parts[0], axes=axes)[..., None]
        if self.each_step:
            logits, embedding, present = (
                jnp.swapaxes(x, 0, 1) for x in (logits, embedding, present)
            )
        return Detection(
            logits, {}, {}, embedding=embedding, present=present, smashed=smashed
        )


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


def fusion_detector(
    layout: InputLayout,
    *,
    encoders: Mapping[str, Encoder] | None = None,
    joint: int = 32,
    aligned: int = 32,
    modality_dropout: float = 0.2,
    dropout: float = 0.0,
    fuse: Fuse = "gated",
    disagreement: bool = True,
    heads: int = 4,
    streams: bool = True,
    target: Target = "row",
    split: Split | None = None,
) -> Model:
    """Returns a detector that fuses modalities, by default by a gate and a joint layer.

    By ``fuse`` the logit is

    - "gated": ``sum_m share_m logit_m + joint logit`` where the shares are a softmax
      over the modalities that are present; where none is, the joint logit alone;
    - "concatenation": the joint logit alone;
    - "cross_attention": the joint logit of embeddings that have attended to one another
      (see ``CrossAttention``), of width ``joint``;
    - "late": the mean logit of the modalities that are present; where none is, that of
      their learned vectors. There is no joint layer, and ``embedding`` is None.

    A modality is present where any of its values was observed: in the record; up to
    this step in the window; or, with one answer for the window, anywhere in it. One
    without flags always is. ``batch["absent"]``, bool ``[examples, modalities]`` in the
    order of the layout, takes modalities away, whatever was observed. The joint layer
    sees the modalities' embeddings (a learned vector for an absent one), ``|u - v|``
    and ``u * v`` for each pair of them in the shared space (0 where one is absent), and
    which are present.

    The model returns a ``Detection``; its ``unimodal``, ``aligned`` and ``present``
    tell of what was observed, whatever was dropped in training, and ``shares`` are the
    gate's, equal ones of "late", or None. Each modality has a logit of its own, for the
    losses, whether or not the answer rests on it. Parameters of modality "x" lie under
    ``modality_x``. With a single modality there is nothing to fuse: the encoder's
    embedding goes to the head. Equal settings return the same functions, and all
    settings are static.

    Args:
      layout: where the modalities lie in ``batch["x"]``.
      encoders: modality -> its encoder. One that is not named has for streams a
        ``GruEncoder``, or a ``GruDEncoder`` where it is carried, and for records an
        ``MlpEncoder`` of one layer of 64.
      joint: units of the joint layer, and the width of what attends; unused by "late".
      aligned: width of the shared space; 0 for none, and no disagreement.
      modality_dropout: probability that an example loses a modality while a key is
        given; it never loses all.
      dropout: share of the joint layer's units dropped while a key is given.
      fuse: how embeddings become one answer, as above.
      disagreement: whether the joint layer sees how far the modalities disagree.
      heads: of the cross-attention; must divide ``joint``.
      streams: whether examples have a time axis.
      target: with a time axis, an answer at each step ("row"), or one ("entity").
      split: where one modality's encoder is cut; None for a whole model.

    Raises:
      ValueError: for settings out of range or that do not go together, an encoder or a
        split of an unknown modality, or a cut that the encoder cannot have; when
        traced, for ``absent`` of another shape or with a single modality.
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
    if fuse not in KINDS:
        raise ValueError(f"{_OWNER}: fuse={fuse!r}: {', '.join(KINDS)}")
    if heads < 1 or (fuse == "cross_attention" and joint % heads):
        raise ValueError(
            f"{_OWNER}: joint={joint} must be a multiple of heads={heads}, 1 or more"
        )
    if fuse == "late" and dropout:
        raise ValueError(
            f'{_OWNER}: dropout={dropout} acts on the joint layer, which fuse="late" '
            "does not have: set it to 0"
        )
    encoding = tuple(
        chosen.get(c.name) or default_encoder(c, streams=streams) for c in layout
    )
    if split is not None:
        _check_split(split, names, encoding)
    return _build(
        layout,
        encoding,
        _Settings(
            int(joint),
            int(aligned),
            float(modality_dropout),
            float(dropout),
            fuse,
            bool(disagreement and aligned),
            int(heads) if fuse == "cross_attention" else 0,
        ),
        bool(streams),
        check_target(target),
        split,
    )


def _check_split(split: Split, names: list[str], encoders: tuple[Encoder, ...]):
    if len(names) == 1:
        if split.modality is not None:
            raise ValueError(f"{_OWNER} of one modality: leave split.modality out")
        check_split(split, encoders[0], owner=_OWNER)
        return
    if split.modality not in names:
        raise ValueError(
            f"{_OWNER}: split.modality={split.modality!r}: one of {', '.join(names)}"
        )
    check_split(split, encoders[names.index(split.modality)], owner=_OWNER)


def default_encoder(columns: ModalityColumns, *, streams: bool) -> Encoder:
    """Returns the encoder of a modality for which none was named."""
    if not streams:
        return MlpEncoder((64,))
    return GruEncoder() if columns.elapsed is None else GruDEncoder()


@functools.cache
def _build(
    layout: InputLayout,
    encoders: tuple[Encoder, ...],
    settings: _Settings,
    streams: bool,
    target: Target,
    split: Split | None,
) -> Model:
    if len(layout) == 1:
        return build_model(
            lambda rngs: _Alone(layout, encoders[0], streams, target, split, rngs=rngs)
        )
    return build_model(
        lambda rngs: _Fusion(
            layout, encoders, settings, streams, target, split, rngs=rngs
        )
    )
