"""Checks that the aggregators of secure sums have in common."""

import dataclasses
import math
import warnings
from typing import Any

from fedjax_health.core.message import (
    CompositionError,
    CompositionWarning,
    Message,
)
from fedjax_health.secagg.fixed_point import WORD_BITS, check_bits, modulus_bits
from fedjax_health.secagg.gathering import FIDELITIES


def check_settings(
    name: str, *, bits: int, value_range: float | None, max_weight: float, fidelity: str
) -> None:
    """Refuses settings that no cohort can use.

    Raises:
      ValueError: naming the setting and its value.
    """
    check_bits(bits)
    if value_range is not None:
        _above_zero(name, "value_range", value_range)
    _above_zero(name, "max_weight", max_weight)
    if fidelity not in FIDELITIES:
        raise ValueError(
            f"{name}: no fidelity {fidelity!r}: choose {', '.join(FIDELITIES)}"
        )


def check_whole(name: str, what: str, value: Any, *, least: int, why: str) -> None:
    """Refuses what is no integer of at least ``least``.

    Raises:
      ValueError: with the reason.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(
            f"{name}: {what} must be an integer of {least} or more, not {value!r}: "
            f"{why}"
        )


def check_share(name: str, what: str, value: float) -> None:
    """Refuses what is no share below 1.

    Raises:
      ValueError: naming the value.
    """
    if not 0 <= value < 1:
        raise ValueError(f"{name}: {what} must lie in [0, 1), not {value!r}")


def _above_zero(name: str, what: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(
            f"{name}: {what} must be a finite number above 0, not {value!r}"
        )


def hidden(
    name: str,
    message: Message,
    cohort_size: int,
    *,
    bits: int,
    value_range: float | None,
    threshold: int,
) -> Message:
    """Returns what a message becomes as integers under a mask.

    Raises:
      CompositionError: for a message that is quantised already, one whose range is not
        known, a modulus that would wrap, or a threshold above the cohort.
    """
    if message.modulus_bits is not None:
        raise CompositionError(f"{name}: the messages are hidden in sums already")
    if message.bits < WORD_BITS:
        raise CompositionError(
            f"{name} encodes messages itself, and these are quantised to "
            f"{message.bits} bits already: leave out that transform and give {name} "
            "the bits"
        )
    if message.bound is None and value_range is None:
        raise CompositionError(
            f"{name} must know how large a coordinate can be: clip the messages "
            "(clip_l2) or give value_range"
        )
    if threshold > cohort_size:
        raise CompositionError(
            f"{name}: a sum of {threshold} messages or more is asked for, and a cohort "
            f"has {cohort_size}: lower the threshold or draw more clients"
        )
    if message.index_bits > 0:
        warnings.warn(
            f"{name} hides which coordinates a client sends by sending all of them: "
            "sparsity chosen by each client saves no byte here; random_k with a shared "
            "seed does",
            CompositionWarning,
            stacklevel=3,
        )
        message = dataclasses.replace(message, index_bits=0.0, density=1.0)
    wire = modulus_bits(cohort_size, bits)
    return dataclasses.replace(
        message, bits=wire, modulus_bits=wire, min_messages=threshold
    )
