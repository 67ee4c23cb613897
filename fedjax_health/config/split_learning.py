"""Split learning: where an encoder is cut, and what happens on the wire."""

from typing import Annotated, Literal

import msgspec

from fedjax_health.config.common import (
    AboveZero,
    BelowOne,
    NonNegative,
    Positive,
    Record,
)


class WireClip(Record, frozen=True, tag_field="kind", tag="clip"):
    """Scales an example's message down to an L2 norm.

    Attributes:
      max_norm: the norm.
    """

    max_norm: AboveZero = 1.0


class WireNoise(Record, frozen=True, tag_field="kind", tag="noise"):
    """Gaussian noise on an example's message, after a clip.

    Attributes:
      multiplier: standard deviation over the clip's norm.
    """

    multiplier: NonNegative = 1.0


class WireQuantise(Record, frozen=True, tag_field="kind", tag="quantise"):
    """Unbiased stochastic rounding, with one scale an example.

    Attributes:
      bits: of a number.
    """

    bits: Annotated[int, msgspec.Meta(ge=2, le=16)] = 8


class WireTopK(Record, frozen=True, tag_field="kind", tag="top_k"):
    """Keeps an example's numbers of largest magnitude.

    Attributes:
      keep: their share.
    """

    keep: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.1


class WireDropout(Record, frozen=True, tag_field="kind", tag="dropout"):
    """Sets numbers to zero at random.

    Attributes:
      rate: share of them.
    """

    rate: BelowOne = 0.2


class WireMaxNorm(Record, frozen=True, tag_field="kind", tag="max_norm"):
    """Hides labels by noise that evens out the norms of cotangents; cotangents only."""


class WireMarvell(Record, frozen=True, tag_field="kind", tag="marvell"):
    """Hides labels by the noise of least divergence (Marvell); cotangents only.

    Attributes:
      power: noise power over the squared distance of the classes' mean cotangents.
    """

    power: AboveZero = 4.0


Activation = WireClip | WireNoise | WireQuantise | WireTopK | WireDropout
Cotangent = Activation | WireMaxNorm | WireMarvell


class SplitLearning(Record, frozen=True):
    """An encoder that is cut in two, its upper half at the server.

    Attributes:
      modality: whose encoder is cut; left out for a model with one encoder.
      cut: layers of the encoder that stay with the client.
      labels: who has the labels: the client (U-shaped: the embedding comes back), or
        the server, which then has all that follows the encoders.
      mode: parallel (SplitFed V1: both halves averaged), sequential (V2: the server's
        half learns from one client after another) or relay (both halves pass on).
      client: whether the clients' halves are averaged, or stay with each.
      activations: what is done to activations on the wire, in order.
      cotangents: what is done to cotangents on the wire, in order.
      nopeek: weight of NoPeek in the loss, which lowers how much the activations that
        cross depend on the inputs; for a fusion.
      leakage: whether a run ends with what can be read back from the wire.
    """

    modality: str | None = None
    cut: Positive = 1
    labels: Literal["client", "server"] = "client"
    mode: Literal["parallel", "sequential", "relay"] = "parallel"
    client: Literal["averaged", "personal"] = "averaged"
    activations: tuple[Activation, ...] = ()
    cotangents: tuple[Cotangent, ...] = ()
    nopeek: NonNegative = 0.0
    leakage: bool = True

    def __post_init__(self):
        if self.client == "personal" and self.mode == "relay":
            raise ValueError(
                "client=personal: a relay passes the clients' half on, so nobody keeps "
                "one: choose mode parallel or sequential, or client averaged"
            )
