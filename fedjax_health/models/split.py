"""A detector that is cut in two: what stays with the client, what is the server's.

One modality's encoder is cut between two layers. Its lower half stays where the data
is; the server has the upper half and sees what arrives over the wire. With the labels
at the client (U-shaped) the encoder's embedding comes back, and heads, fusion and
labels stay there; with the labels at the server (vanilla) all that follows the encoders
is the server's, and the embeddings of the other modalities cross as well. A cut changes
neither parameters nor their names: it says where each leaf lives.

Vepakomma et al., 2018, "Split learning for health" (arXiv:1812.00564).
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_health.core.types import Batch, InputLayout, Key
from fedjax_health.models.encoders import (
    Branch,
    Cut,
    Encoder,
    MlpEncoder,
    TcnEncoder,
    keeps_time,
    layer_of,
    num_layers,
    width_at,
)
from fedjax_health.models.inputs import Part
from fedjax_health.models.wire import (
    Step,
    check_steps,
    compressive,
    crossing,
    protective,
    wire_bytes,
)

Steps = tuple[Step, ...]


@dataclasses.dataclass(frozen=True)
class Split:
    """Where a detector is cut, and what happens on the wire.

    Steps that protect act on what leaves the client: activations at the cut and, with
    the labels at the client, cotangents of what came back. Steps that save bytes act
    on what crosses in either direction.

    Attributes:
      cut: layers of the encoder that stay with the client, 1 or more.
      modality: whose encoder is cut; None for a detector with one encoder.
      labels: who has them, "client" (U-shaped) or "server".
      activations: steps on activations.
      cotangents: steps on cotangents.
    """

    cut: int
    modality: str | None = None
    labels: Literal["client", "server"] = "client"
    activations: tuple[Step, ...] = ()
    cotangents: tuple[Step, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "activations", tuple(self.activations))
        object.__setattr__(self, "cotangents", tuple(self.cotangents))
        if self.cut < 1:
            raise ValueError(
                f"split: cut={self.cut}: 1 or more layers stay with the client, or "
                "the records themselves would cross"
            )
        if self.labels not in ("client", "server"):
            raise ValueError(f"split: labels={self.labels!r}: client or server")
        check_steps(self.activations)
        check_steps(self.cotangents, cotangents=True)
        if self.labels == "server" and protective(self.cotangents):
            raise ValueError(
                "split: the server makes the cotangents where it has the labels, so "
                "nothing of a client is in them to protect: leave these steps out, or "
                'choose labels="client"'
            )


def check_split(split: Split, encoder: Encoder, *, owner: str) -> None:
    """Refuses a cut that this encoder cannot have.

    Raises:
      ValueError: for a cut outside the encoder, a server without a layer, or an
        encoder whose inputs pass the cut by.
    """
    layers = num_layers(encoder)
    least = 1 if split.labels == "client" else 0
    if split.cut > layers - least:
        more = "" if isinstance(encoder, MlpEncoder) else " (give it dense layers)"
        raise ValueError(
            f"{owner}: split.cut={split.cut} lies outside the encoder of {layers} "
            f"layer(s), of which {least} or more must be the server's{more}"
        )
    if isinstance(encoder, MlpEncoder) and encoder.skip:
        raise ValueError(
            f"{owner}: skip hands what the encoder reads past the cut: switch it off"
        )
    if (
        isinstance(encoder, TcnEncoder)
        and encoder.statistics
        and keeps_time(encoder, split.cut)
    ):
        raise ValueError(
            f"{owner}: statistics of the window pass a cut between the levels of a TCN "
            "by: switch them off, or cut behind the last level"
        )


class _Wires(NamedTuple):
    """What crosses in one run of a split detector.

    Attributes:
      cut: of the encoder that is cut.
      embedding: another modality's embedding -> what arrives of it at the server; None
        where it does not cross.
    """

    cut: Cut
    embedding: Callable[[jax.Array, int], jax.Array] | None


def _wires(
    split: Split,
    encoder: Encoder,
    batch: Batch,
    *,
    key: Key | None,
    each_step: bool,
    streams: bool,
) -> _Wires:
    labels = batch.get("label")
    if labels is not None and streams:
        labels = (
            labels.T if each_step else labels[:, -1] if labels.ndim == 2 else labels
        )
    weight = batch.get("weight")

    def through(
        number: int, forward: Steps, backward: Steps, by_step: bool = each_step
    ) -> Callable[[jax.Array], jax.Array]:
        counts = weight
        if counts is not None and by_step:
            counts = jnp.broadcast_to(counts, (batch["x"].shape[1], len(counts)))
            if "valid" in batch:
                counts = counts * batch["valid"].T
        return functools.partial(
            crossing(forward, backward),
            key=None if key is None else jax.random.fold_in(key, _WIRE + number),
            examples_axis=1 if by_step else 0,
            # Steps on labels act where an answer is, at the embedding.
            labels=labels if by_step == each_step else None,
            counts=counts,
        )

    shorter = compressive(split.activations)
    by_step = streams and (each_step or keeps_time(encoder, split.cut))
    out = through(0, split.activations, compressive(split.cotangents), by_step)
    if split.labels == "client":
        back = through(1, shorter, split.cotangents)
        if "probe" in batch:
            # The same in two halves: with one key each draws as in the whole.
            back = _probed(
                through(1, shorter, ()), through(1, (), split.cotangents), batch
            )
        return _Wires(Cut(split.cut, out, back), None)

    def embedding(values: jax.Array, number: int) -> jax.Array:
        return through(2 + number, split.activations, compressive(split.cotangents))(
            values
        )

    return _Wires(Cut(split.cut, out), embedding)


def _probed(
    forward: Callable[[jax.Array], jax.Array],
    backward: Callable[[jax.Array], jax.Array],
    batch: Batch,
) -> Callable[[jax.Array], jax.Array]:
    """Returns a way back whose cotangents can be read, by what ``probe`` adds."""

    def back(values: jax.Array) -> jax.Array:
        sent, bare = batch["probe"]
        return backward(forward(values) + sent) + bare

    return back


class Coded(NamedTuple):
    """One modality's encoder and what it reads.

    Attributes:
      name: of the modality.
      encoder: its branch.
      parts: what it reads.
      key: of its dropout, or None.
    """

    name: str
    encoder: Branch
    parts: tuple[Part, ...]
    key: Key | None


def encode_across(
    coded: Sequence[Coded],
    split: Split | None,
    batch: Batch,
    *,
    key: Key | None,
    each_step: bool,
    streams: bool,
) -> tuple[list[jax.Array], dict[str, jax.Array] | None]:
    """Returns the modalities' embeddings, through the cut of one of them.

    ``batch["probe"]``, zeros ``[2, ...]`` of the shape of the split modality's
    embedding (time first), lets its reader see a U shape's cotangents: the gradient
    with respect to the first is what the client sends, to the second what it would send
    without steps. With labels at the server any array will do; what crosses beside the
    cut modality is then told as well.

    Args:
      coded: the modalities in order; the split one, or a single one, is cut.
      split: where and how; None for a whole model.
      batch: for its weights and, to hide them, labels.
      key: of the training step, or None.
      each_step: whether there is an answer at each step; values are then time first.
      streams: whether examples have a time axis.

    Returns:
      Embeddings; and modality -> what arrives at the server, examples first, or None
      without a split.
    """
    if split is None:
        return [one.encoder(one.parts, key=one.key) for one in coded], None
    smashed: dict[str, jax.Array] = {}

    def watched(name: str, out: Callable[[jax.Array], jax.Array], values: jax.Array):
        arrived = out(values)
        smashed[name] = jnp.swapaxes(arrived, 0, 1) if arrived.ndim == 3 else arrived
        return arrived

    # The only one where none is named.
    cut_one = next(
        one for one in coded if split.modality is None or one.name == split.modality
    )
    settings = cut_one.encoder.settings
    wires = _wires(
        split, settings, batch, key=key, each_step=each_step, streams=streams
    )
    embeddings = []
    for number, one in enumerate(coded):
        if one is cut_one:
            out = functools.partial(watched, one.name, wires.cut.out)
            cut = wires.cut._replace(out=out)
            found = one.encoder(one.parts, key=one.key, cut=cut)
        else:
            found = one.encoder(one.parts, key=one.key)
            if wires.embedding is not None:
                found = wires.embedding(found, number)
                if "probe" in batch:
                    smashed[one.name] = (
                        jnp.swapaxes(found, 0, 1) if each_step else found
                    )
        embeddings.append(found)
    return embeddings, smashed


# Apart from the numbers that models fold into the same key.
_WIRE = 3_000_000


@functools.cache
def places(
    split: Split, encoder: Encoder
) -> tuple[Callable[[str], bool], Callable[[str], bool]]:
    """Returns ``(server, client)``: path -> whether the leaf is in that half.

    ``client`` holds for the lower half of the encoder that is cut.
    """
    prefix = (
        "encoder/" if split.modality is None else f"modality_{split.modality}/encoder/"
    )

    def above(path: str) -> bool:
        return layer_of(encoder, path.removeprefix(prefix)) > split.cut

    def client(path: str) -> bool:
        return path.startswith(prefix) and not above(path)

    def server(path: str) -> bool:
        if path.startswith(prefix):
            return above(path)
        return split.labels == "server" and "/encoder/" not in f"/{path}"

    return server, client


class Border(NamedTuple):
    """What one example sends over a border in one visit.

    Attributes:
      carries: "activations", "embedding", "labels", or the "cotangents" of either.
      of: the modality whose encoder it comes from or goes to; "" of labels.
      up: whether it goes to the server.
      numbers: how many.
      steps: what is done to them, in order.
      num_bytes: what they take.
    """

    carries: Literal[
        "activations",
        "embedding",
        "labels",
        "cotangents of the embedding",
        "cotangents of the activations",
    ]
    of: str
    up: bool
    numbers: int
    steps: Steps
    num_bytes: int


class Reads(NamedTuple):
    """Settings of one modality's encoder and the columns that it reads.

    Attributes:
      name: of the modality.
      encoder: settings.
      layout: the columns.
    """

    name: str
    encoder: Encoder
    layout: InputLayout


def borders_of(
    split: Split, cut: Reads, others: Sequence[Reads], *, steps: int, window: int
) -> tuple[Border, ...]:
    """Returns all that crosses for one example in one visit, in its order.

    Args:
      split: where and how.
      cut: the encoder that is cut.
      others: the other modalities' encoders.
      steps: times for which there is an answer; 1 for records and whole windows.
      window: times of an example; 1 for records.

    Raises:
      ValueError: with the labels at the server, for an encoder that would send its
        inputs.
    """
    forward, backward = split.activations, compressive(split.cotangents)

    def border(carries, of: str, up: bool, numbers: int, list_of: Steps) -> Border:
        return Border(carries, of, up, numbers, list_of, wire_bytes(list_of, numbers))

    times = window if keeps_time(cut.encoder, split.cut) else steps
    values = times * width_at(cut.encoder, split.cut, cut.layout)
    there = [border("activations", cut.name, True, values, forward)]
    last = border("cotangents of the activations", cut.name, False, values, backward)
    if split.labels == "client":
        out = num_layers(cut.encoder)
        back = steps * width_at(cut.encoder, out, cut.layout)
        shorter, sent = compressive(split.activations), split.cotangents
        there += [
            border("embedding", cut.name, False, back, shorter),
            border("cotangents of the embedding", cut.name, True, back, sent),
        ]
        return (*there, last)
    below = [last]
    for other in others:
        encoder = other.encoder
        if isinstance(encoder, MlpEncoder) and (encoder.skip or not encoder.hidden):
            raise ValueError(
                "split: with the labels at the server an encoder without layers, or "
                "with skip, would send its inputs: give it layers, switch skip off"
            )
        values = steps * width_at(encoder, num_layers(encoder), other.layout)
        there.append(border("embedding", other.name, True, values, forward))
        below.append(
            border("cotangents of the embedding", other.name, False, values, backward)
        )
    # One byte for each label.
    labels = Border("labels", "", True, steps, (), steps)
    return (*there, labels, *below)
