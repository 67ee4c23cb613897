"""What every configuration record shares: its base, its number types and ``Custom``."""

from typing import Annotated, Any, ClassVar

import msgspec


class ConfigError(ValueError):
    """A configuration that cannot be used; the text names the field and the way out."""


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of every record: immutable, and no field beside those that are declared.

    A record that is ``assumed`` is what a table without a kind stands for in a slot
    that is empty by default.
    """

    assumed: ClassVar[bool] = False


# Counts reach the devices as int32.
LARGEST = 2**31 - 1

Count = Annotated[int, msgspec.Meta(ge=0, le=LARGEST)]
Seed = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=LARGEST)]
NonNegative = Annotated[float, msgspec.Meta(ge=0)]
AboveZero = Annotated[float, msgspec.Meta(gt=0)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
OpenShare = Annotated[float, msgspec.Meta(gt=0, lt=1)]
BelowOne = Annotated[float, msgspec.Meta(ge=0, lt=1)]


class Custom(Record, frozen=True, tag_field="kind", tag="custom"):
    """A function of your own in any slot.

    Attributes:
      target: ``package.module:function``, importable where the run happens.
      args: keyword arguments of that function.
    """

    target: str = ""
    args: dict[str, Any] = {}
