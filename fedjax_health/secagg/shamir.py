"""Shamir's secret sharing over the field of ``2**521 - 1`` elements.

Shamir, "How to share a secret", Communications of the ACM 22(11), 1979. Any
``threshold`` of the shares give the secret, fewer say nothing about it. The holders
are numbered 1, 2, ... and share i is the value of the owner's polynomial at i.
"""

import functools
from collections.abc import Sequence

PRIME = 2**521 - 1
SHARE_BYTES = 66
"""Bytes of an element of the field."""

_BITS = 521


def coefficients(stream: bytes, count: int) -> list[int]:
    """Returns field elements made of random bytes, ``SHARE_BYTES`` each.

    The 521 low bits are uniform; the one value beyond the field has chance 2**-521.
    """
    return [
        (int.from_bytes(stream[i : i + SHARE_BYTES], "little") & PRIME) % PRIME
        for i in range(0, count * SHARE_BYTES, SHARE_BYTES)
    ]


def share(
    secrets: Sequence[int], threshold: int, num_holders: int, *, stream: bytes
) -> list[tuple[int, ...]]:
    """Shares several secrets with the same holders.

    Args:
      secrets: field elements.
      threshold: shares that give a secret back.
      num_holders: how many shares are made.
      stream: ``len(secrets) * (threshold - 1) * SHARE_BYTES`` random bytes.

    Returns:
      For holder 1, 2, ... its share of each secret.

    Raises:
      ValueError: for a threshold outside ``[1, num_holders]`` or a secret outside the
        field.
    """
    if not 1 <= threshold <= num_holders:
        raise ValueError(
            f"threshold={threshold} of {num_holders} shares: choose 1 to {num_holders}"
        )
    if any(not 0 <= secret < PRIME for secret in secrets):
        raise ValueError("a secret must lie in [0, 2**521 - 1)")
    count = len(secrets)
    drawn = coefficients(stream, count * (threshold - 1))
    # Horner's rule for all secrets at once, one lane of a long integer each: without
    # reduction on the way a lane grows by the bits of the point in every step.
    lane = _BITS + 1 + threshold * num_holders.bit_length()
    lane += -lane % 8
    rows = [list(secrets)]
    rows += [drawn[i : i + count] for i in range(0, len(drawn), count)]
    packed = [sum(c << (lane * j) for j, c in enumerate(row)) for row in rows]
    mask = (1 << lane) - 1
    shares = []
    for point in range(1, num_holders + 1):
        value = 0
        for row in reversed(packed):
            value = value * point + row
        shares.append(
            tuple(((value >> (lane * j)) & mask) % PRIME for j in range(count))
        )
    return shares


@functools.lru_cache(maxsize=4096)
def weights_at_zero(points: tuple[int, ...]) -> tuple[int, ...]:
    """Returns Lagrange's weights: the secret is the weighted sum of shares at points.

    Raises:
      ValueError: if a point is 0 or occurs twice.
    """
    if len(set(points)) < len(points) or 0 in points:
        raise ValueError("the holders of shares must be distinct and not 0")
    whole = 1
    for point in points:
        whole = whole * point % PRIME
    # The weight at x is prod(others) / prod(other - x) = whole / (x prod(other - x)).
    denominators = []
    for x in points:
        product = x
        for other in points:
            if other != x:
                product *= other - x
        denominators.append(product % PRIME)
    return tuple(whole * inverse % PRIME for inverse in _inverses(denominators))


def _inverses(values: list[int]) -> list[int]:
    """Returns the inverse of each value, for the price of one inversion."""
    before = [1]
    for value in values:
        before.append(before[-1] * value % PRIME)
    inverse = pow(before[-1], -1, PRIME)
    found = []
    for i in range(len(values) - 1, -1, -1):
        found.append(inverse * before[i] % PRIME)
        inverse = inverse * values[i] % PRIME
    return found[::-1]


def reconstruct(points: Sequence[int], shares: Sequence[int]) -> int:
    """Returns the secret of which these are ``threshold`` shares.

    Args:
      points: the holders' numbers.
      shares: their shares, in the same order.
    """
    weights = weights_at_zero(tuple(points))
    return sum(w * s for w, s in zip(weights, shares, strict=True)) % PRIME
