"""Streams cut by time, or into blocks of time.

Rows that stand close in a stream resemble each other, so rows drawn at random leak.
Between two parts of one stream ``embargo`` rows are left out; with an embargo as long
as the window, no test window resembles a training window for that reason alone.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from fedjax_health.data.schema import (
    DataError,
    Dataset,
    segment_ids,
    segment_starts,
)
from fedjax_health.data.splits.parts import Part, check_fractions, check_parts

# Where two parts meet, the rows of the later one in this order go: validation is
# usually the smallest part and keeps all its rows, training the largest.
_KEPT_FIRST = (Part.VALIDATION, Part.TEST, Part.TRAIN)


def chronological(
    dataset: Dataset,
    *,
    train: float,
    validation: float,
    test: float,
    embargo: int = 0,
    scope: Literal["client", "global", "entity"] = "client",
) -> np.ndarray:
    """Splits by time: training first, then validation, then test.

    Args:
      dataset: the rows.
      train: share of the rows for training, in (0, 1).
      validation: share for validation.
      test: share for testing; the three sum to 1.
      embargo: rows of each entity that are left out where its part changes. They are
        taken from the end of training and from the start of the test.
      scope: whose rows are put in one order of time and cut there: those of each
        client, of the whole table, or of each entity. Rows of equal time keep their
        order in the table.

    Returns:
      int8 ``[rows]`` of ``Part``.

    Raises:
      DataError: if the shares or the embargo are no such numbers, or a part ends up
        without rows or the training part with one class.
    """
    fractions = check_fractions((train, validation, test))
    _check_embargo(embargo)
    segment = segment_ids(dataset)
    if scope == "entity":
        group = segment
    elif scope == "client":
        group = dataset.client
    elif scope == "global":
        group = np.zeros(dataset.num_rows, np.int64)
    else:
        raise DataError(f'scope is {scope!r}; give "client", "global" or "entity"')
    order = np.lexsort((dataset.time, group))
    sizes = np.bincount(group, minlength=1)
    starts = np.cumsum(sizes) - sizes
    rank = np.empty(dataset.num_rows, np.int64)
    rank[order] = np.arange(dataset.num_rows) - np.repeat(starts, sizes)
    first_validation = np.rint(fractions[0] * sizes).astype(np.int64)[group]
    first_test = np.rint((fractions[0] + fractions[1]) * sizes).astype(np.int64)[group]
    part = np.full(dataset.num_rows, Part.TRAIN, np.int8)
    part[rank >= first_validation] = Part.VALIDATION
    part[rank >= first_test] = Part.TEST
    part = _apply_embargo(part, segment, embargo)
    check_parts(dataset, part)
    return part


def episode_blocks(
    dataset: Dataset,
    *,
    block: int,
    fractions: Sequence[float] = (0.6, 0.1, 0.3),
    embargo: int = 0,
    seed: int = 0,
) -> np.ndarray:
    """Deals whole blocks of consecutive rows to the parts.

    A block of an entity grows until it does not end inside an attack episode (a run
    of positive rows), so no episode reaches into two parts. Blocks are dealt in a
    random order such that the shares hold as closely as the blocks allow over the
    table, over each attack type and inside each client; each part receives positive
    blocks if there are three. The embargo may still take rows off an episode that
    stands at the edge of a training or test block.

    Args:
      dataset: the rows.
      block: rows of a block; more than twice the embargo.
      fractions: shares of training, validation and test; they sum to 1.
      embargo: rows left out between blocks of different parts, taken from training,
        or from the test where it meets validation.
      seed: of the order in which blocks are dealt.

    Returns:
      int8 ``[rows]`` of ``Part``.

    Raises:
      DataError: if an argument is no such number, or a part ends up without rows or
        the training part with one class.
    """
    fractions = check_fractions(fractions)
    _check_embargo(embargo)
    if block < 1 or block <= 2 * embargo:
        raise DataError(
            f"block is {block} and embargo {embargo}; a block must be longer than "
            "twice the embargo"
        )
    segment = segment_ids(dataset)
    starts = _block_starts(dataset, segment, block)
    lengths = np.diff(np.append(starts, dataset.num_rows))
    part = np.repeat(
        _deal_blocks(dataset, starts, lengths, fractions, seed=seed), lengths
    )
    part = _apply_embargo(part, segment, embargo)
    check_parts(dataset, part)
    return part


def _check_embargo(embargo: int) -> None:
    if embargo < 0:
        raise DataError(f"embargo is {embargo}; give 0 or more rows")


def _apply_embargo(part: np.ndarray, segment: np.ndarray, embargo: int) -> np.ndarray:
    """Drops rows within ``embargo`` rows of another part of their segment."""
    if embargo == 0:
        return part
    result = part.copy()
    for position, weaker in enumerate(_KEPT_FIRST):
        stronger = np.isin(part, [int(kept) for kept in _KEPT_FIRST[:position]])
        near = _within(stronger, segment, embargo)
        result[(part == weaker) & near] = Part.EMBARGO
    return result


def _within(mask: np.ndarray, segment: np.ndarray, distance: int) -> np.ndarray:
    """Whether a row of the mask stands at most ``distance`` rows off in the segment."""
    last = len(mask) - 1
    row = np.arange(len(mask))
    # Where no marked row lies on that side, the clipped index meets a row that is not
    # marked, or one that lies on the other side and is judged by its own distance.
    before = np.maximum.accumulate(np.where(mask, row, -1))
    after = np.minimum.accumulate(np.where(mask, row, last + 1)[::-1])[::-1]
    near = np.zeros(len(mask), bool)
    for nearest in (before, after):
        inside = np.clip(nearest, 0, last)
        near |= (
            mask[inside]
            & (segment[inside] == segment)
            & (np.abs(row - inside) <= distance)
        )
    return near


def _block_starts(dataset: Dataset, segment: np.ndarray, block: int) -> np.ndarray:
    """Returns the first row of every block, int64."""
    num_rows = dataset.num_rows
    starts = segment_starts(dataset)
    lengths = np.diff(np.append(starts, num_rows))
    offset = np.arange(num_rows) - starts[segment]
    # A rest shorter than half a block stays with the block before it.
    left = lengths[segment] - offset
    nominal = np.flatnonzero((offset % block == 0) & (2 * left >= block))
    positive = dataset.label > 0
    inside = np.zeros(num_rows, bool)
    inside[1:] = positive[1:] & positive[:-1] & (segment[1:] == segment[:-1])
    # The first row at or after each cut that is not inside an episode; the end of
    # the segment is the start of the next one.
    free = np.append(np.flatnonzero(~inside), num_rows)
    moved = free[np.searchsorted(free, nominal)]
    return np.union1d(starts, moved[moved < num_rows]).astype(np.int64)


def _deal_blocks(
    dataset: Dataset,
    starts: np.ndarray,
    lengths: np.ndarray,
    fractions: tuple[float, float, float],
    *,
    seed: int,
) -> np.ndarray:
    """Returns int8 [blocks] of Part."""
    num_blocks = len(starts)
    kind = _rarest_attack(dataset, starts, lengths)
    kinds, stratum, counts = np.unique(kind, return_inverse=True, return_counts=True)
    client = dataset.client[starts]
    shuffled = np.random.default_rng(seed).permutation(num_blocks)
    # Rare attacks are dealt first, blocks without attack last: they even out the rest.
    priority = np.where(kinds == 0, num_blocks + 1, counts)[stratum]
    order = shuffled[np.argsort(priority[shuffled], kind="stable")]
    share = np.asarray(fractions)
    # A part's credit: rows due to it less rows dealt to it.
    of_client = np.zeros((dataset.num_clients, 3))
    of_stratum = np.zeros((len(kinds), 3))
    part = np.zeros(num_blocks, np.int8)
    for block in order:
        due = share * lengths[block]
        client_credit = of_client[client[block]]
        stratum_credit = of_stratum[stratum[block]]
        client_credit += due
        stratum_credit += due
        chosen = int(np.argmax(client_credit + stratum_credit))
        client_credit[chosen] -= lengths[block]
        stratum_credit[chosen] -= lengths[block]
        part[block] = chosen
    _supply(part, np.flatnonzero(kind > 0), shuffled)
    _supply(part, np.arange(num_blocks), shuffled, avoid=kind > 0)
    return part


def _rarest_attack(
    dataset: Dataset, starts: np.ndarray, lengths: np.ndarray
) -> np.ndarray:
    """Returns [blocks]: 0 without positives, else 1 + its attack of the fewest rows."""
    block = np.repeat(np.arange(len(starts)), lengths)
    positive = dataset.label > 0
    attack = dataset.attack[positive]
    rows = np.bincount(attack, minlength=len(dataset.attack_names))
    rank = np.argsort(np.argsort(-rows, kind="stable"))
    best = np.full(len(starts), -1)
    np.maximum.at(best, block[positive], rank[attack])
    return best + 1


def _supply(
    part: np.ndarray,
    blocks: np.ndarray,
    shuffled: np.ndarray,
    *,
    avoid: np.ndarray | None = None,
) -> None:
    """Moves blocks, in place, so that every part has one if there are enough."""
    candidates = shuffled[np.isin(shuffled, blocks)]
    for wanted in (Part.TRAIN, Part.TEST, Part.VALIDATION):
        held = np.bincount(part[candidates], minlength=3)
        if held[wanted] == 0 and held.max(initial=0) > 1:
            donors = candidates[part[candidates] == np.argmax(held)]
            if avoid is not None:
                donors = donors[np.argsort(avoid[donors], kind="stable")]
            part[donors[0]] = wanted
