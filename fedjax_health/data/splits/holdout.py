"""A share of one client's rows is taken out of a part: the server's own data."""

from typing import NamedTuple

import numpy as np

from fedjax_health.data.schema import (
    DataError,
    Dataset,
    patients_of,
    segment_starts,
    take_rows,
)
from fedjax_health.data.splits.parts import take_runs


class HeldOut(NamedTuple):
    """A part in two.

    Attributes:
      kept: the part without the rows that are held out; all clients are named.
      held: these rows, of one client; all clients are named.
    """

    kept: Dataset
    held: Dataset


def hold_out(
    part: Dataset, client: int, *, share: float, window: int | None, seed: int = 0
) -> HeldOut:
    """Takes a share of a client's rows out of a part.

    - Streams (rows with labels of their own and windows over them): of each stream of
      the client one piece of consecutive rows, so that no window of the one part
      shares a row with a window of the other. Pieces add up to the share, and where a
      piece lies is chosen so that the share of its positive rows does, the first such
      place. Where the share of even the longest stream is shorter than a window, whole
      streams are drawn.
    - Stays, records and the streams just named: whole patients where the data names
      any, otherwise whole stays, rows or streams. They are drawn at random from those
      with a positive row and from those without, the share of each; at least one of
      each is held out, and one kept, where there are two.

    Args:
      part: the rows.
      client: whose rows.
      share: of the client's rows, patients, stays or streams, in (0, 1).
      window: time steps of an example, or None for single records.
      seed: of the draw.

    Raises:
      DataError: if the share comes to nothing, to less than a window, or to all.
    """
    own = np.flatnonzero(part.client == client)
    taken = np.zeros(part.num_rows, bool)
    # What is carried forward makes streams even of rows that are examples alone.
    streams = part.target == "row" and (window is not None or bool(part.carried))
    starts = segment_starts(part)
    segment = np.repeat(
        np.arange(len(starts)), np.diff(np.append(starts, part.num_rows))
    )
    lengths = np.bincount(segment[own]) if len(own) else np.zeros(1, np.int64)
    least = window or 1
    pieces = streams and share * lengths.max() >= least
    if pieces:
        taken[own] = _pieces(segment[own], part.label[own], share, least)
        unit, count = "rows", len(own)
    else:
        names, unit = _units(part, segment, streams)
        taken[own] = _whole_units(names[own], part.label[own], share, seed)
        count = len(np.unique(names[own]))
    if not taken.any() or taken[own].all():
        what = "none" if not taken.any() else "all"
        raise DataError(
            f"share {share:g} of the {unit} of client {part.client_names[client]!r} "
            f"({count:,}) comes to {what} of them"
            + (f" (a piece must hold a window of {least} rows)" if streams else "")
        )
    if not pieces:
        return HeldOut(take_rows(part, ~taken), take_rows(part, taken))
    return HeldOut(
        *(take_runs(part, rows, segment[rows]) for rows in map(_rows, (~taken, taken)))
    )


def _rows(mask: np.ndarray) -> np.ndarray:
    return np.flatnonzero(mask)


def _units(part: Dataset, segment: np.ndarray, streams: bool) -> tuple[np.ndarray, str]:
    """Returns what is dealt whole, int64 ``[rows]``, and its name."""
    if part.patient is not None:
        return patients_of(part), "patients"
    if streams:
        return segment, "streams"
    if part.target == "entity":
        return segment, "stays"
    return np.arange(part.num_rows), "records"


def _pieces(
    segment: np.ndarray, label: np.ndarray, share: float, least: int
) -> np.ndarray:
    """Returns bool ``[rows]``: one piece of each segment that is due enough rows.

    A piece shorter than a window would be of no use to the one part and cut windows of
    the other: what is due is carried to the next segment.
    """
    taken = np.zeros(len(segment), bool)
    starts = np.flatnonzero(np.diff(segment, prepend=segment[0] - 1))
    ends = np.append(starts[1:], len(segment))
    # What is due to the held-out part and has not been given to it yet.
    rows = positives = 0.0
    for start, end in zip(starts, ends, strict=True):
        own = label[start:end] > 0
        rows += share * len(own)
        positives += share * own.sum()
        # Rounded, or the sum of a share that divides 1 would miss a row now and then.
        length = min(int(np.floor(np.round(rows, 9))), len(own))
        if length < least:
            continue
        rows -= length
        counted = np.concatenate([[0], np.cumsum(own)])
        held = counted[length:] - counted[:-length]
        place = int(np.argmin(np.abs(held - positives)))
        positives -= held[place]
        taken[start + place : start + place + length] = True
    return taken


def _whole_units(
    unit: np.ndarray, label: np.ndarray, share: float, seed: int
) -> np.ndarray:
    """Returns bool ``[rows]``: the rows of the units that are drawn."""
    _, place = np.unique(unit, return_inverse=True)
    total = place.max(initial=-1) + 1
    positive = np.zeros(total, bool)
    np.logical_or.at(positive, place, label > 0)
    drawn = np.zeros(total, bool)
    if round(share * total) < 1:
        return drawn[place]
    generator = np.random.default_rng(seed)
    for kind in (True, False):
        members = generator.permutation(np.flatnonzero(positive == kind))
        wanted = round(share * len(members))
        if len(members) > 1:
            wanted = min(max(wanted, 1), len(members) - 1)
        drawn[members[:wanted]] = True
    return drawn[place]
