"""What is known about a client's message before anything runs.

Every stage has a static half, ``check(message) -> message``. Folding it over a plan
is a type check: it refuses wrong compositions and yields the bytes on the wire.
"""

import dataclasses
import math
from typing import Literal


class CompositionError(ValueError):
    """Stages that must not follow one another; the text says what to do instead."""


class CompositionWarning(UserWarning):
    """Stages that may follow one another, but not to the end they were chosen for."""


@dataclasses.dataclass(frozen=True)
class Message:
    """The static description of what one client sends.

    Attributes:
      num_params: numbers in a dense message.
      bound: the name of the state leaf that carries the L2 bound of the message, or
        None while no bound is known.
      density: the share of coordinates that is sent, in (0, 1].
      bits: bits per sent value.
      index_bits: bits per sent value for its position; 0 when the receiver knows it.
      overhead_bytes: bytes a message that do not scale with density (seeds, scales).
      unit: what one message belongs to: a client or a group of clients.
      noised: whether noise has been added already.
      modulus_bits: bits of the modulus of a sum of integers that hides the messages,
        or None where the server sees each message.
      min_messages: the fewest messages whose sum is released.
      groups: sums of integers that are released in a round.
      hosted: numbers of a dense message that are the server's own half of a split model
        and cross no wire.
      side_multiplier: noise multiplier of what is released beside the message (the bits
        of adaptive clipping); None where nothing is.
      moving: whether a number of the message stands for another parameter in every
        round, so that what is kept from round to round does not fit.
    """

    num_params: int
    bound: str | None = None
    density: float = 1.0
    bits: int = 32
    index_bits: float = 0.0
    overhead_bytes: int = 0
    unit: Literal["client", "group"] = "client"
    noised: bool = False
    modulus_bits: int | None = None
    min_messages: int = 1
    groups: int = 1
    hosted: int = 0
    side_multiplier: float | None = None
    moving: bool = False

    def uplink_bytes(self) -> int:
        """Returns the bytes that one client sends in one round."""
        # A density of k / n must give k values, whatever float rounding makes of it.
        sent = math.ceil((self.num_params - self.hosted) * self.density * (1 - 1e-12))
        return math.ceil(sent * (self.bits + self.index_bits) / 8) + self.overhead_bytes
