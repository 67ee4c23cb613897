"""What happens to one client's updates before they are sent."""

from typing import Annotated

import msgspec

from fedjax_health.config.common import (
    AboveZero,
    BelowOne,
    Custom,
    OpenShare,
    Positive,
    Record,
)

Keep = Annotated[float, msgspec.Meta(gt=0, le=1)]
Levels = Annotated[int, msgspec.Meta(ge=1, le=32767)]
EdenBits = Annotated[int, msgspec.Meta(ge=1, le=4)]


class Identity(Record, frozen=True, tag_field="kind", tag="identity"):
    """Sends the updates as they are."""


class ClipL2(Record, frozen=True, tag_field="kind", tag="clip_l2"):
    """Scales updates down to a bound on their L2 norm.

    Attributes:
      max_norm: the bound.
    """

    max_norm: AboveZero = 1.0


class ClipPerLeaf(Record, frozen=True, tag_field="kind", tag="clip_per_leaf"):
    """Scales each leaf of an update down to its own part of a joint bound.

    Attributes:
      max_norm: the joint bound; each of L leaves has this over the root of L.
    """

    max_norm: AboveZero = 1.0


class AdaptiveClip(Record, frozen=True, tag_field="kind", tag="adaptive_clip"):
    """Clips to a bound that follows a quantile of the clients' norms (Andrew 2021).

    Attributes:
      initial: the first bound.
      quantile: share of clients that should lie within the bound.
      learning_rate: of the bound's logarithm.
      bit_noise: standard deviation of the noise on the sum of the clients' bits; 0.05
        times the expected cohort where it is left out.
    """

    initial: AboveZero = 0.1
    quantile: OpenShare = 0.5
    learning_rate: AboveZero = 0.2
    bit_noise: AboveZero | None = None


class LocalMomentum(Record, frozen=True, tag_field="kind", tag="local_momentum"):
    """Sends a running mean of a client's own updates of the rounds it took part in.

    Attributes:
      beta: share of what the client remembers; 0 sends the updates as they are.
    """

    beta: BelowOne = 0.9


class TopK(Record, frozen=True, tag_field="kind", tag="top_k"):
    """Sends the coordinates of largest magnitude.

    Attributes:
      keep: the share of coordinates that is sent.
    """

    keep: Keep = 0.1


class RandomK(Record, frozen=True, tag_field="kind", tag="random_k"):
    """Sends coordinates that are drawn anew every round.

    Attributes:
      keep: the share of coordinates that is sent.
      shared: whether a round has one set for all clients, drawn by the server; only
        then are messages short under secure aggregation.
      unbiased: whether values are scaled up so that the mean message is the update;
        not inside error_feedback or ef21.
    """

    keep: Keep = 0.1
    shared: bool = True
    unbiased: bool = False


class Threshold(Record, frozen=True, tag_field="kind", tag="threshold"):
    """Sends the coordinates of at least a given magnitude.

    Attributes:
      value: the least magnitude that is sent.
    """

    value: AboveZero = 1e-3


class Sign(Record, frozen=True, tag_field="kind", tag="sign"):
    """Sends signs and the mean magnitude.

    Attributes:
      per_leaf: one mean for each leaf of the model, or one for all.
    """

    per_leaf: bool = True


class Qsgd(Record, frozen=True, tag_field="kind", tag="qsgd"):
    """Rounds at random to levels of the norm, so that the mean is kept.

    Attributes:
      levels: levels beside zero; 127 makes values of one byte.
      bucket: coordinates that share a norm.
    """

    levels: Levels = 127
    bucket: Positive = 512


class TernGrad(Record, frozen=True, tag_field="kind", tag="terngrad"):
    """Sends -1, 0 or 1 times each leaf's largest magnitude, at random."""


class Drive(Record, frozen=True, tag_field="kind", tag="drive"):
    """Sends one bit a coordinate after a random rotation.

    Attributes:
      unbiased: the scale that keeps the mean, or the one of least error, which suits
        error_feedback.
    """

    unbiased: bool = True


class Eden(Record, frozen=True, tag_field="kind", tag="eden"):
    """Sends a few bits a coordinate after a random rotation.

    Attributes:
      bits: of a coordinate, 1 to 4.
    """

    bits: EdenBits = 2


Compressor = TopK | RandomK | Threshold | Sign | Qsgd | TernGrad | Drive | Eden


class ErrorFeedback(Record, frozen=True, tag_field="kind", tag="error_feedback"):
    """Adds what a compressor left out to the next round's update.

    Attributes:
      inner: the compressor.
    """

    inner: Compressor = TopK()


class Ef21(Record, frozen=True, tag_field="kind", tag="ef21"):
    """Sends the compressed change of what the server believes of the update.

    Attributes:
      inner: the compressor.
      participation: share of the population that takes part in a round.
    """

    inner: Compressor = TopK()
    participation: Keep = 1.0


Transform = (
    Identity
    | ClipL2
    | ClipPerLeaf
    | AdaptiveClip
    | LocalMomentum
    | Compressor
    | ErrorFeedback
    | Ef21
    | Custom
)
