"""Numbers and lists as text."""

import math
from collections.abc import Sequence
from typing import Any

DASH = "\N{EN DASH}"

COUNTS = frozenset({"missed_episodes", "episodes", "ranked_clients"})

RATES = frozenset({"achieved_far"})

STEPS = frozenset({"mean_delay", "median_delay"})


def number(value: Any, digits: int = 3) -> str:
    """Writes a number for a table; a dash where there is none.

    Args:
      value: a number, None, or text.
      digits: decimals of a fraction.
    """
    match value:
        case None:
            return DASH
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float() if math.isnan(value):
            return DASH
        case float():
            tiny = value != 0 and abs(value) < 0.5 * 10**-digits
            return (
                f"{value:.2g}" if tiny or abs(value) >= 1e7 else f"{value:,.{digits}f}"
            )
    return str(value)


def metric(name: str, value: float | None) -> str:
    """Writes a metric in the unit that it is read in.

    Args:
      name: such as "achieved_far".
      value: the metric, or None.
    """
    if value is None or math.isnan(value):
        return DASH
    if name in COUNTS:
        return f"{value:,.0f}"
    if name in RATES:
        return percentage(value)
    return f"{value:,.1f}" if name in STEPS else number(float(value))


def percentage(value: float) -> str:
    """Writes a share as a percentage with two digits that count.

    Args:
      value: a share.
    """
    percent = 100 * value
    if percent == 0 or abs(percent) >= 10:
        return f"{percent:.1f} %" if percent % 1 else f"{percent:.0f} %"
    return f"{percent:.2g} %"


def byte_unit(largest: float) -> tuple[float, str]:
    """Returns the unit in which bytes are read best: how many bytes it is, its name.

    Args:
      largest: the largest number of bytes that is to be written.
    """
    scale, name = 1.0, "B"
    # What would be rounded to 1,000 of a unit is 1 of the next.
    for larger in ("kB", "MB", "GB", "TB"):
        if abs(largest) < 999.5 * scale:
            break
        scale, name = 1000 * scale, larger
    return scale, name


def size(num_bytes: Any) -> str:
    """Writes bytes, such as "1.2 MB"; a dash where there is no number.

    Args:
      num_bytes: how many.
    """
    if not isinstance(num_bytes, int | float) or not math.isfinite(num_bytes):
        return DASH
    scale, name = byte_unit(num_bytes)
    scaled = num_bytes / scale
    return f"{scaled:,.{0 if scale == 1 or scaled >= 99.95 else 1}f} {name}"


def listing(names: Sequence[str], *, most: int = 12) -> str:
    """Writes names as part of a sentence.

    Args:
      names: what to list.
      most: how many are named.
    """
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most:,} more"
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"
