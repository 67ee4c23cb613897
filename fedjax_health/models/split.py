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
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_health.core.types import Batch, Key
from fedjax_health.models.encoders import (
    Branch,
    Cut,
    Encoder,
    MlpEncoder,
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


class Wires(NamedTuple):
    """What crosses in one run of a split detector.

    Attributes:
      cut: of the encoder that is cut.
      embedding: another modality's embedding -> what arrives of it at the server; None
        where it does not cross.
    """

    cut: Cut
    embedding: Callable[[jax.Array, int], jax.Array] | None


def wires(
    split: Split, batch: Batch, *, key: Key | None, each_step: bool, streams: bool
) -> Wires:
    """Returns what a batch goes through.

    Args:
      split: where and how.
      batch: for its weights and, to hide them, labels.
      key: of the training step, or None.
      each_step: whether there is an answer at each step; values are then time first.
      streams: whether examples have a time axis.
    """
    up = crossing(split.activations, compressive(split.cotangents))
    down = crossing(compressive(split.activations), split.cotangents)
    labels = batch.get("label")
    if labels is not None and streams:
        labels = (
            labels.T if each_step else labels[:, -1] if labels.ndim == 2 else labels
        )
    counts = batch.get("weight")
    if counts is not None and each_step:
        counts = jnp.broadcast_to(counts, (batch["x"].shape[1], len(counts)))
        if "valid" in batch:
            counts = counts * batch["valid"].T
    axis = 1 if each_step else 0

    def through(wire, number: int) -> Callable[[jax.Array], jax.Array]:
        own = None if key is None else jax.random.fold_in(key, _WIRE + number)
        return functools.partial(
            wire, key=own, examples_axis=axis, labels=labels, counts=counts
        )

    back = through(down, 1) if split.labels == "client" else None

    def embedding(values: jax.Array, number: int) -> jax.Array:
        return through(up, 2 + number)(values)

    return Wires(
        Cut(split.cut, through(up, 0), back),
        embedding if split.labels == "server" else None,
    )


def encode_across(
    encoder: Branch,
    parts: tuple[Part, ...],
    split: Split | None,
    batch: Batch,
    *,
    key: Key | None,
    each_step: bool,
    streams: bool,
) -> jax.Array:
    """Returns the embedding of a detector with one encoder, cut or whole."""
    cut = None
    if split is not None:
        crossed = wires(split, batch, key=key, each_step=each_step, streams=streams)
        cut = crossed.cut
    return encoder(parts, key=key, cut=cut)


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


def bytes_of(
    split: Split, encoder: Encoder, others: tuple[Encoder, ...], *, steps: int
) -> tuple[int, int]:
    """Returns what crosses up and down for one example in one visit, bytes.

    Args:
      split: where and how.
      encoder: the one that is cut.
      others: the other modalities' encoders.
      steps: times for which there is an answer; 1 for records and whole windows.
    """
    values = steps * width_at(encoder, split.cut)
    forward, backward = split.activations, compressive(split.cotangents)
    up, down = wire_bytes(forward, values), wire_bytes(backward, values)
    if split.labels == "client":
        back = steps * width_at(encoder, num_layers(encoder))
        up += wire_bytes(split.cotangents, back)
        down += wire_bytes(compressive(split.activations), back)
        return up, down
    for other in others:
        if isinstance(other, MlpEncoder) and (other.skip or not other.hidden):
            raise ValueError(
                "split: with the labels at the server an encoder without layers, or "
                "with skip, would send its inputs: give it layers, switch skip off"
            )
        values = steps * width_at(other, num_layers(other))
        up += wire_bytes(forward, values)
        down += wire_bytes(backward, values)
    # One byte for each label.
    return up + steps, down
