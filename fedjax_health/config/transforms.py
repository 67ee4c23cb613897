"""What happens to one client's updates before they are sent."""

from fedjax_health.config.common import AboveZero, Custom, Record


class Identity(Record, frozen=True, tag_field="kind", tag="identity"):
    """Sends the updates as they are."""


class ClipL2(Record, frozen=True, tag_field="kind", tag="clip_l2"):
    """Scales updates down to a bound on their L2 norm.

    Attributes:
      max_norm: the bound.
    """

    max_norm: AboveZero = 1.0


Transform = Identity | ClipL2 | Custom
