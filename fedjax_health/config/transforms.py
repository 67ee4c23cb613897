"""What happens to one client's updates before they are sent."""

from fedjax_health.config.common import (
    AboveZero,
    Custom,
    OpenShare,
    Record,
)


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


Transform = Identity | ClipL2 | ClipPerLeaf | AdaptiveClip | Custom
