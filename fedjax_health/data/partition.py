"""Which client holds which rows.

A partition comes after the split: each part is dealt to the clients by itself, so
that client k has rows to train on, to validate and to test. Streams stay streams:
except for ``contiguous``, whole units of consecutive rows change hands, and units that
were neighbours in a stream and meet again at one client are joined. An entity with a
label of its own is a unit and never cut.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np

from fedjax_health.data.schema import (
    DataError,
    Dataset,
    segment_ids,
    segment_starts,
    take_rows,
)
from fedjax_health.data.splits import Parts, take_runs

# Rows of a unit unless told: five windows of the usual 20 steps.
DEFAULT_UNIT = 100


def natural(parts: Parts, *, held_out: bool = False) -> Parts:
    """Keeps the clients of the data.

    Args:
      parts: the split data.
      held_out: whether there may be clients without training rows, as a split leaves
        them that holds whole clients out. They come last among the clients, so that
        those that train are numbered from 0.

    Raises:
      DataError: if a client has no training rows that must have some.
    """
    held = np.bincount(parts.train.client, minlength=parts.train.num_clients)
    if held_out:
        order = np.argsort(held == 0, kind="stable")
        return Parts(*(_reorder_clients(part, order) for part in parts))
    if (held == 0).any():
        name = parts.train.client_names[int(np.argmin(held))]
        raise DataError(
            f"client {name!r} has no training rows ({int((held == 0).sum())} such "
            "clients); remove its rows, lower the embargo or merge clients"
        )
    return parts


def num_training_clients(parts: Parts) -> int:
    """Returns how many clients have training rows: the population of a federation."""
    return len(np.unique(parts.train.client))


def contiguous(parts: Parts, *, num_clients: int) -> Parts:
    """Cuts each part into equal blocks of consecutive rows; client k gets block k.

    Where the label belongs to the entity, blocks are of consecutive entities.

    Args:
      parts: the split data.
      num_clients: clients to make.

    Raises:
      DataError: if there are more clients than training rows or entities.
    """
    # An entity with a label of its own is never cut.
    whole = parts.train.target == "entity"
    if whole:
        _check_clients(num_clients, len(segment_starts(parts.train)), "entities")
    else:
        _check_clients(num_clients, parts.train.num_rows, "rows")

    def assign(dataset: Dataset) -> Dataset:
        place = segment_ids(dataset) if whole else np.arange(dataset.num_rows)
        client = place * num_clients // (place.max(initial=0) + 1)
        return _deal(dataset, client, num_clients)

    return Parts(*map(assign, parts))


def iid(
    parts: Parts, *, num_clients: int, seed: int = 0, unit: int = DEFAULT_UNIT
) -> Parts:
    """Deals units at random, to each client as many as to any other, give or take one.

    Args:
      parts: the split data.
      num_clients: clients to make.
      seed: of the draw.
      unit: rows of a unit, best a multiple of the window; 1 for a static table.

    Raises:
      DataError: if there are more clients than training units.
    """
    generators = _generators(seed)

    def choose(dataset: Dataset, starts: np.ndarray, part: int) -> np.ndarray:
        del dataset
        dealt = np.arange(len(starts)) % num_clients
        return generators[part].permutation(dealt)

    return _by_units(parts, num_clients, unit, choose)


def dirichlet_labels(
    parts: Parts,
    *,
    num_clients: int,
    alpha: float,
    seed: int = 0,
    unit: int = DEFAULT_UNIT,
    by: Literal["label", "attack"] = "label",
) -> Parts:
    """Deals the units of each class in shares drawn from a Dirichlet distribution.

    The class of a unit is whether it has a positive row, or its most frequent attack
    type. The shares are drawn once, so a client's mixture is that of its validation
    and test parts too. A client whose shares come to no training unit gets one from
    the client that holds most. Source: Hsu, Qi, Brown, "Measuring the Effects of
    Non-Identical Data Distribution for Federated Visual Classification", 2019.

    Args:
      parts: the split data.
      num_clients: clients to make.
      alpha: concentration; small values give clients of one class, large ones iid.
      seed: of the draw.
      unit: rows of a unit, best a multiple of the window; 1 for a static table.
      by: what a class is.

    Raises:
      DataError: if ``alpha`` is not positive and finite, or there are more clients
        than training units.
    """
    if not (alpha > 0 and np.isfinite(alpha)):
        raise DataError(f"alpha is {alpha}; give a positive number")
    if by not in ("label", "attack"):
        raise DataError(f'by is {by!r}; give "label" or "attack"')
    _check_clients(num_clients, parts.train.num_rows, "rows")
    num_classes = 2 if by == "label" else len(parts.train.attack_names)
    generators = _generators(seed)
    shares = generators[-1].dirichlet(np.full(num_clients, alpha), size=num_classes)
    # Every gamma variate behind a row can underflow to zero for a tiny alpha.
    shares = np.where(np.isfinite(shares), shares, 1 / num_clients)

    def choose(dataset: Dataset, starts: np.ndarray, part: int) -> np.ndarray:
        kind = _class_of_units(dataset, starts, by)
        client = np.zeros(len(starts), np.int64)
        for value in np.unique(kind):
            units = generators[part].permutation(np.flatnonzero(kind == value))
            client[units] = _in_shares(len(units), shares[value])
        return client

    return _by_units(parts, num_clients, unit, choose)


def quantity_skew(
    parts: Parts,
    *,
    num_clients: int,
    exponent: float = 1.0,
    seed: int = 0,
    unit: int = DEFAULT_UNIT,
) -> Parts:
    """Deals units at random, to client k a number proportional to (k + 1)^-exponent.

    A client whose share comes to no training unit gets one from the client that
    holds most.

    Args:
      parts: the split data.
      num_clients: clients to make.
      exponent: of the power law; 0 for equal sizes.
      seed: of the draw.
      unit: rows of a unit, best a multiple of the window; 1 for a static table.

    Raises:
      DataError: if the exponent is negative or not finite, or there are more clients
        than training units.
    """
    if not (exponent >= 0 and np.isfinite(exponent)):
        raise DataError(f"exponent is {exponent}; give 0 or a positive number")
    _check_clients(num_clients, parts.train.num_rows, "rows")
    generators = _generators(seed)
    sizes = np.arange(1, num_clients + 1, dtype=np.float64) ** -exponent
    shares = sizes / sizes.sum()

    def choose(dataset: Dataset, starts: np.ndarray, part: int) -> np.ndarray:
        del dataset
        return generators[part].permutation(_in_shares(len(starts), shares))

    return _by_units(parts, num_clients, unit, choose)


def _generators(seed: int) -> list[np.random.Generator]:
    """Returns one for each part and one for what the parts share."""
    return [
        np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(4)
    ]


def _check_clients(num_clients: int, available: int, what: str) -> None:
    if num_clients < 1:
        raise DataError(f"num_clients is {num_clients}; give 1 or more")
    if num_clients > available:
        raise DataError(
            f"client {client_name(available, num_clients)!r} has no training rows: "
            f"{num_clients} clients share {available} training {what}; use fewer "
            "clients" + (" or a smaller unit" if what == "units" else "")
        )


def client_name(client: int, num_clients: int) -> str:
    """Returns the name of a made client, such as "client_007"."""
    return f"client_{client:0{len(str(num_clients - 1))}d}"


def _in_shares(count: int, shares: np.ndarray) -> np.ndarray:
    """Returns [count] client numbers, increasing, in these shares up to rounding."""
    borders = np.rint(np.cumsum(shares)[:-1] * count)
    return np.searchsorted(borders, np.arange(count), side="right")


def _unit_starts(dataset: Dataset, unit: int) -> np.ndarray:
    """Returns the first row of every unit; the last of a stream may be shorter.

    Where the label belongs to the entity, the units are the entities.
    """
    starts = segment_starts(dataset)
    if dataset.target == "entity":
        return starts
    lengths = np.diff(np.append(starts, dataset.num_rows))
    offset = np.arange(dataset.num_rows) - np.repeat(starts, lengths)
    return np.flatnonzero(offset % unit == 0)


def _class_of_units(dataset: Dataset, starts: np.ndarray, by: str) -> np.ndarray:
    """Returns int64 [units]."""
    if by == "label":
        return (np.maximum.reduceat(dataset.label, starts) > 0).astype(np.int64)
    num_attacks = len(dataset.attack_names)
    lengths = np.diff(np.append(starts, dataset.num_rows))
    row_unit = np.repeat(np.arange(len(starts)), lengths)
    rows = np.bincount(
        row_unit * num_attacks + dataset.attack, minlength=len(starts) * num_attacks
    ).reshape(len(starts), num_attacks)
    attacks = rows[:, 1:]
    if num_attacks == 1:
        return np.zeros(len(starts), np.int64)
    return np.where(attacks.any(axis=1), 1 + attacks.argmax(axis=1), 0)


def _by_units(
    parts: Parts,
    num_clients: int,
    unit: int,
    choose: Callable[[Dataset, np.ndarray, int], np.ndarray],
) -> Parts:
    """Deals the units of each part as ``choose(dataset, starts, part)`` says."""
    if unit < 1:
        raise DataError(f"unit is {unit}; give 1 or more rows")
    dealt = []
    for number, dataset in enumerate(parts):
        starts = _unit_starts(dataset, unit)
        if number == 0:
            _check_clients(num_clients, len(starts), "units")
        if len(starts) == 0:
            client = np.zeros(0, np.int64)
        else:
            client = choose(dataset, starts, number)
        if number == 0:
            client = _fill_empty(client, num_clients)
        lengths = np.diff(np.append(starts, dataset.num_rows))
        dealt.append(_deal(dataset, np.repeat(client, lengths), num_clients))
    return Parts(*dealt)


def _fill_empty(client: np.ndarray, num_clients: int) -> np.ndarray:
    """Gives a unit to every client without one, always from the largest client."""
    held = np.bincount(client, minlength=num_clients)
    empty = np.flatnonzero(held == 0)
    if len(empty) == 0:
        return client
    # Taking from the largest again and again levels it to a height h: client c gives
    # what it holds above h. The height is the largest at which enough is given.
    low, high = 1, int(held.max())
    while low < high:
        middle = (low + high + 1) // 2
        if np.maximum(held - middle, 0).sum() >= len(empty):
            low = middle
        else:
            high = middle - 1
    order = np.argsort(client, kind="stable")
    within = np.arange(len(client)) - (np.cumsum(held) - held)[client[order]]
    surplus = order[within >= low]
    result = client.copy()
    # Those of the tallest go first.
    tall = np.argsort(-within[within >= low], kind="stable")
    result[surplus[tall[: len(empty)]]] = empty
    return result


def _reorder_clients(dataset: Dataset, order: np.ndarray) -> Dataset:
    """Returns the dataset whose client i is the old client ``order[i]``."""
    place = np.argsort(order)
    client = place[dataset.client]
    rows = np.argsort(client, kind="stable")
    return take_rows(dataset, rows)._replace(
        client=client[rows].astype(np.int32),
        client_names=tuple(dataset.client_names[index] for index in order),
    )


def _deal(dataset: Dataset, client: np.ndarray, num_clients: int) -> Dataset:
    """Returns the rows sorted by their new client, streams renumbered."""
    rows = np.argsort(client, kind="stable")
    starts = segment_starts(dataset)
    lengths = np.diff(np.append(starts, dataset.num_rows))
    segment = np.repeat(np.arange(len(starts)), lengths)
    client = client[rows].astype(np.int32)
    # A run may not mix streams, nor clients: the product of both numbers them apart.
    group = segment[rows] * num_clients + client
    return take_runs(dataset, rows, group)._replace(
        client=client,
        client_names=tuple(
            client_name(index, num_clients) for index in range(num_clients)
        ),
    )
