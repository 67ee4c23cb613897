"""The bytes of a message: a coder, on the host, that writes and reads them.

What is called a 90 % saving often counts values and leaves the positions out. Here a
message is written to bytes and read back to the bit, and ``counting`` says inside a
jitted round how many bytes this coder would have written.

A message is ``header, count, positions, scales, values``:

- header, one byte: how positions are told (3 bits) and the Rice parameter (5 bits);
- count, four bytes, of the values that are sent, for Golomb-Rice and indices alone;
- positions: all coordinates; all, and none is zero; a bitmap of one bit a coordinate;
  Golomb-Rice codes of the runs of zeros (Rice and Plaunt, 1971; the parameter by Kiely,
  2004, "Selecting the Golomb Parameter in Rice Coding"); or int32 indices. Whatever
  takes the fewest bytes;
- scales: float32, one a segment, for messages of integers times a scale;
- values: float32, or integers of as many bits as their levels need, packed.

Numbers are little-endian, bits fill a byte from the lowest, and every part begins at a
byte. The receiver knows the scheme: sizes and levels are settled before a run.
"""

import functools
import math
from typing import Any, NamedTuple

import numpy as np

DENSE, FULL, BITMAP, RICE, INDICES = range(5)
"""How positions are told, in the order in which ties are settled."""

MAX_RICE = 30

# Added to the size of a form that a message does not allow.
_NEVER = 2**30


class Scheme(NamedTuple):
    """What sender and receiver know of a message before it is sent.

    Attributes:
      size: coordinates, zeros included.
      levels: values are ``level * scale`` with integers of at most this size, or
        float32 where it is 0.
      segments: coordinates that share a scale, one run after the other; their sum is
        ``size``. Empty for float32.
    """

    size: int
    levels: int = 0
    segments: tuple[int, ...] = ()

    @property
    def dense_bits(self) -> int:
        """Bits of a value that may be zero."""
        return math.ceil(math.log2(2 * self.levels + 1)) if self.levels else 32

    @property
    def sparse_bits(self) -> int:
        """Bits of a value that is not zero."""
        return math.ceil(math.log2(2 * self.levels)) if self.levels else 32


@functools.cache
def rice_limits(size: int) -> tuple[int, ...]:
    """Returns for each Rice parameter from 1 on the most values it is used for.

    Kiely's rule, ``max(0, 1 + floor(log2(log(phi - 1) / log(1 - k / size))))``, solved
    for the count k, so that host and device choose alike whatever their logarithms.

    Args:
      size: coordinates of a message.
    """
    log_golden = math.log((math.sqrt(5) - 1) / 2)
    return tuple(
        math.floor(size * -math.expm1(log_golden / 2 ** (j - 1)))
        for j in range(1, MAX_RICE + 1)
    )


def packed_bytes(count: Any, bits: int) -> Any:
    """Returns the bytes of ``count`` packed values; int or int32 array."""
    return count * (bits // 8) + (count * (bits % 8) + 7) // 8


def form_bytes(scheme: Scheme, count: Any, rice_bits: Any) -> list[Any]:
    """Returns the bytes of each form in the order of their tags.

    Args:
      scheme: of the message.
      count: coordinates that are not zero; int or int32 array.
      rice_bits: bits of its Golomb-Rice codes.
    """
    dense = packed_bytes(scheme.size, scheme.dense_bits)
    full = packed_bytes(scheme.size, scheme.sparse_bits)
    values = packed_bytes(count, scheme.sparse_bits)
    fixed = 1 + 4 * len(scheme.segments)
    return [
        fixed + dense + 0 * count,
        fixed + full + (count != scheme.size) * _NEVER,
        fixed + (scheme.size + 7) // 8 + values,
        fixed + 4 + (rice_bits + 7) // 8 + values,
        fixed + 4 + 4 * count + values,
    ]


def pack(values: np.ndarray, bits: int) -> bytes:
    """Returns non-negative integers below ``2**bits``, packed."""
    shifts = np.arange(bits, dtype=np.uint32)
    found = (np.asarray(values, np.uint32)[:, None] >> shifts) & 1
    return np.packbits(found.astype(np.uint8), axis=None, bitorder="little").tobytes()


def unpack(data: bytes, bits: int, count: int) -> np.ndarray:
    """Undoes ``pack``; uint32 ``[count]``."""
    found = np.unpackbits(
        np.frombuffer(data, np.uint8), count=count * bits, bitorder="little"
    )
    shifts = np.arange(bits, dtype=np.uint32)
    rows = found.reshape(count, bits).astype(np.uint32) << shifts
    return rows.sum(axis=1, dtype=np.uint32)


def _runs(places: np.ndarray) -> np.ndarray:
    """Returns the zeros before each place since the one before it."""
    return np.diff(places, prepend=-1) - 1


def _rice_parameter(size: int, count: int) -> int:
    return sum(count <= limit for limit in rice_limits(size))


def _rice(runs: np.ndarray, parameter: int) -> np.ndarray:
    """Returns the bits of the runs: quotient in unary, a one, then the remainder."""
    quotients = runs >> parameter
    ends = np.cumsum(quotients + 1 + parameter)
    bits = np.zeros(int(ends[-1]) if len(ends) else 0, np.uint8)
    stops = ends - parameter - 1
    bits[stops] = 1
    for j in range(parameter):
        bits[stops + 1 + j] = (runs >> j) & 1
    return bits


def _read_rice(data: bytes, count: int, parameter: int) -> tuple[np.ndarray, int]:
    """Returns the places and the bytes that were read."""
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little").tobytes()
    runs, at = np.zeros(count, np.int64), 0
    for i in range(count):
        stop = bits.index(1, at)
        low = sum(bits[stop + 1 + j] << j for j in range(parameter))
        runs[i] = ((stop - at) << parameter) + low
        at = stop + 1 + parameter
    return np.cumsum(runs + 1) - 1, (at + 7) // 8


def encode(
    values: np.ndarray, scheme: Scheme, scales: np.ndarray | None = None
) -> bytes:
    """Writes one client's message.

    Args:
      values: float32 ``[size]``, the message as the server will use it.
      scheme: of the message.
      scales: float32, one a segment; None for a scheme without levels.

    Raises:
      ValueError: if the values are not integers times their scale within the levels.
    """
    values = np.asarray(values, np.float32)
    if values.shape != (scheme.size,):
        raise ValueError(
            f"encode: the scheme has {scheme.size} coordinates, the values the shape "
            f"{values.shape}"
        )
    scales = np.zeros(0, np.float32) if scales is None else np.asarray(scales)
    present = values.view(np.uint32) != 0
    places = np.flatnonzero(present)
    parameter = _rice_parameter(scheme.size, len(places))
    rice = _rice(_runs(places), parameter)
    sizes = form_bytes(scheme, len(places), len(rice))
    form = int(np.argmin(sizes))
    parts = [bytes([form | (parameter if form == RICE else 0) << 3])]
    if form in (RICE, INDICES):
        parts.append(np.uint32(len(places)).astype("<u4").tobytes())
    if form == BITMAP:
        parts.append(np.packbits(present, bitorder="little").tobytes())
    elif form == RICE:
        parts.append(np.packbits(rice, bitorder="little").tobytes())
    elif form == INDICES:
        parts.append(places.astype("<i4").tobytes())
    if scheme.levels:
        parts.append(np.asarray(scales, "<f4").tobytes())
        levels = _levels(values, scheme, scales)
        if form == DENSE:
            packed = pack(levels + scheme.levels, scheme.dense_bits)
        else:
            sent = levels[places]
            # Zero is not sent, so its place among the symbols is not taken.
            packed = pack(sent + scheme.levels - (sent > 0), scheme.sparse_bits)
        parts.append(packed)
    else:
        parts.append(values[present if form != DENSE else slice(None)].tobytes())
    return b"".join(parts)


def _levels(values: np.ndarray, scheme: Scheme, scales: np.ndarray) -> np.ndarray:
    if len(scales) != len(scheme.segments):
        raise ValueError(
            f"encode: {len(scheme.segments)} segments need as many scales, not "
            f"{len(scales)}"
        )
    spread = np.repeat(np.asarray(scales, np.float32), scheme.segments)
    divisor = np.where(spread == 0, np.float32(1), spread)
    levels = np.rint(values.astype(np.float64) / divisor).astype(np.int64)
    again = np.where(levels == 0, np.float32(0), levels.astype(np.float32) * spread)
    same = again.astype(np.float32).view(np.uint32) == values.view(np.uint32)
    if not np.all(same) or np.any(np.abs(levels) > scheme.levels):
        raise ValueError(
            f"encode: values are no integers up to {scheme.levels} times their scale"
        )
    return levels


def decode(data: bytes, scheme: Scheme) -> np.ndarray:
    """Reads a message that ``encode`` wrote; float32 ``[size]``, the same bits.

    Args:
      data: the message.
      scheme: of the message.
    """
    form, parameter, at = data[0] & 7, data[0] >> 3, 1
    count = scheme.size
    if form in (RICE, INDICES):
        count, at = int(np.frombuffer(data, "<u4", 1, at)[0]), at + 4
    places = np.arange(scheme.size)
    if form == BITMAP:
        length = (scheme.size + 7) // 8
        bitmap = np.frombuffer(data, np.uint8, length, at)
        places = np.flatnonzero(
            np.unpackbits(bitmap, count=scheme.size, bitorder="little")
        )
        count, at = len(places), at + length
    elif form == RICE:
        places, length = _read_rice(data[at:], count, parameter)
        at += length
    elif form == INDICES:
        places, at = np.frombuffer(data, "<i4", count, at), at + 4 * count
    values = np.zeros(scheme.size, np.float32)
    if not scheme.levels:
        values[places] = np.frombuffer(data, "<f4", count, at)
        return values
    scales = np.frombuffer(data, "<f4", len(scheme.segments), at)
    spread = np.repeat(scales, scheme.segments)
    bits = scheme.dense_bits if form == DENSE else scheme.sparse_bits
    levels = unpack(data[at + 4 * len(scales) :], bits, count).astype(np.int64)
    levels -= scheme.levels
    if form != DENSE:
        levels += levels >= 0
    made = levels.astype(np.float32) * spread[places]
    values[places] = np.where(levels == 0, np.float32(0), made)
    return values


def encode_codes(
    codes: np.ndarray, bits: int, scale: np.float32, seed: np.ndarray
) -> bytes:
    """Writes a rotated message: its scale, the rotation's seed and packed codes.

    Args:
      codes: integers below ``2**bits``, one for each rotated coordinate.
      bits: of a code.
      scale: what the codes' values are multiplied by.
      seed: uint32 ``[2]``, the data of the rotation's key.
    """
    head = np.asarray(scale, "<f4").tobytes() + np.asarray(seed, "<u4").tobytes()
    return head + pack(codes, bits)


def decode_codes(
    data: bytes, bits: int, count: int
) -> tuple[np.ndarray, np.float32, np.ndarray]:
    """Undoes ``encode_codes``; returns codes, scale and seed."""
    scale = np.frombuffer(data, "<f4", 1)[0]
    return unpack(data[12:], bits, count), scale, np.frombuffer(data, "<u4", 2, 4)


def expected_index_bits(size: int, count: int) -> float:
    """Returns the expected bits of a position when ``count`` of them are random.

    The least of a bitmap, Golomb-Rice and int32 indices, per value that is sent.
    """
    if count >= size:
        return 0.0
    # Runs of zeros are geometric; a quotient counts how often 2**b of them fit.
    zeros = 1 - count / size
    fit = zeros ** (2 ** _rice_parameter(size, count))
    rice = _rice_parameter(size, count) + 1 + fit / (1 - fit)
    return min(size / count, rice, 32.0)
