"""Whole patients, records or hospitals dealt to the parts.

For data whose rows do not follow each other in one stream: stays, records, hospitals.
What belongs to one person never stands in two parts.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from fedjax_health.data.schema import DataError, Dataset, patients_of
from fedjax_health.data.splits.parts import Part, check_fractions, check_parts

Unit = Literal["patient", "row"]


def stratified(
    dataset: Dataset,
    *,
    train: float,
    validation: float,
    test: float,
    seed: int = 0,
    unit: Unit = "patient",
) -> np.ndarray:
    """Deals patients to the parts at random, alike in every label and client.

    Of any client's patients with a positive row, and of those without, the parts hold
    their shares up to two. A client none of whose patients fell to training gives one
    of them to it.

    Args:
      dataset: the rows.
      train: share of the patients for training, in (0, 1).
      validation: share for validation.
      test: share for testing; the three sum to 1.
      seed: of the draw.
      unit: "patient" deals all rows of a patient together, where the data names none
        all rows of an entity; "row" deals each row by itself and is for tables of
        records that do not depend on each other.

    Returns:
      int8 ``[rows]`` of ``Part``.

    Raises:
      DataError: if the shares are no such numbers, rows belong together that are to
        be dealt one by one, or a part ends up without rows or the training part with
        one class.
    """
    shares = check_fractions((train, validation, test))
    group = _units(dataset, unit)
    part = _deal(dataset, group, shares, seed=seed)[group]
    _check(dataset, part, group, unit)
    return part


def by_client(
    dataset: Dataset,
    *,
    train: float,
    validation: float,
    test: float,
    validation_clients: Sequence[str] = (),
    test_clients: Sequence[str] = (),
    seed: int = 0,
) -> np.ndarray:
    """Deals whole clients to the parts: hospitals that a detector never trained on.

    Clients that are named go where they are named. The others are dealt in a random
    order, each to the part that lacks most of its share of the rows and of the
    positive rows; where one part's clients are named, the others' shares are those of
    the rest. Rows of a patient who was at clients of several parts stay in the test
    part, or else in validation, and are left out of the others.

    Args:
      dataset: the rows.
      train: share of the rows for training, in (0, 1).
      validation: share for validation.
      test: share for testing; the three sum to 1.
      validation_clients: names of the clients of the validation part.
      test_clients: names of those of the test part.
      seed: of the draw.

    Returns:
      int8 ``[rows]`` of ``Part``.

    Raises:
      DataError: if the shares are no such numbers, for a name that the data does not
        have or that occurs twice, or if a part ends up without rows or the training
        part with one class.
    """
    shares = np.array(check_fractions((train, validation, test)))
    part_of = np.full(dataset.num_clients, -1, np.int8)
    for wanted, names in (
        (Part.VALIDATION, validation_clients),
        (Part.TEST, test_clients),
    ):
        for name in names:
            client = _client(dataset, name)
            if part_of[client] >= 0:
                raise DataError(f"client {name!r} is named twice; keep one")
            part_of[client] = wanted
        if names:
            shares[wanted] = 0
    rows = np.bincount(dataset.client, minlength=dataset.num_clients)
    positive = np.bincount(
        dataset.client, weights=dataset.label, minlength=dataset.num_clients
    )
    free = np.flatnonzero((part_of < 0) & (rows > 0))
    free = np.random.default_rng(seed).permutation(free)
    wanted = np.flatnonzero(shares)
    if len(free) < len(wanted):
        raise DataError(
            f"{len(free)} clients are left for {len(wanted)} parts; name fewer, or use "
            "another split"
        )
    _deal_clients(part_of, free, wanted, shares, rows, positive)
    part = _keep_patients_whole(dataset, part_of[dataset.client])
    check_parts(dataset, part)
    return part


def leave_one_out(
    dataset: Dataset,
    *,
    client: str,
    validation: float,
    seed: int = 0,
    unit: Unit = "patient",
) -> np.ndarray:
    """Holds one client out for testing; the others' patients train and validate.

    Rows of a patient who was at the held-out client and at others are left out of the
    others.

    Args:
      dataset: the rows.
      client: name of the client that is the test part.
      validation: share of the other clients' patients for validation, in (0, 1).
      seed: of the draw.
      unit: as in ``stratified``.

    Returns:
      int8 ``[rows]`` of ``Part``.

    Raises:
      DataError: if the share is no such number, for an unknown client, or as in
        ``stratified``.
    """
    if not 0 < validation < 1:
        raise DataError(f"validation is {validation}; give a share between 0 and 1")
    held_out = _client(dataset, client)
    if (dataset.client == held_out).all():
        raise DataError(f"every row is of client {client!r}: none is left to train on")
    group = _units(dataset, unit)
    part = _deal(dataset, group, (1 - validation, validation, 0.0), seed=seed)[group]
    # Dealt as if no client were held out, and the rows that remain keep their parts:
    # the same patients validate whichever client is left out.
    part[dataset.client == held_out] = Part.TEST
    part = _keep_patients_whole(dataset, part)
    _check(dataset, part, group[dataset.client != held_out], unit)
    return part


def _units(dataset: Dataset, unit: Unit) -> np.ndarray:
    """Returns int64 [rows], what is dealt together, numbered from 0."""
    if unit == "patient":
        return patients_of(dataset)
    if unit != "row":
        raise DataError(f'unit is {unit!r}; give "patient" or "row"')
    if dataset.target == "entity" or dataset.patient is not None:
        whose = "entity" if dataset.target == "entity" else "patient"
        raise DataError(
            f'unit is "row", but rows of one {whose} belong together; give "patient"'
        )
    return np.arange(dataset.num_rows)


def _deal(
    dataset: Dataset,
    group: np.ndarray,
    shares: tuple[float, float, float],
    *,
    seed: int,
) -> np.ndarray:
    """Returns int8 [units] of Part."""
    generator = np.random.default_rng(seed)
    _, first, unit = np.unique(group, return_index=True, return_inverse=True)
    num_units = len(first)
    positive = np.zeros(num_units, bool)
    np.logical_or.at(positive, unit, dataset.label > 0)
    client = dataset.client[first]
    # Units of one label and client stand together, so that a pattern which is even
    # along the whole line is even in each such stretch.
    shuffled = generator.permutation(dataset.num_clients)
    order = np.lexsort((generator.random(num_units), shuffled[client], positive))
    validates = _every(num_units, shares[1], generator)
    rest = np.flatnonzero(~validates)
    tests = rest[_every(len(rest), shares[2] / (1 - shares[1]), generator)]
    dealt = np.full(num_units, Part.TRAIN, np.int8)
    dealt[validates] = Part.VALIDATION
    dealt[tests] = Part.TEST
    part = np.empty(num_units, np.int8)
    part[order] = dealt
    # Every client trains.
    trains = np.zeros(dataset.num_clients, bool)
    trains[client[part == Part.TRAIN]] = True
    lacking = order[~trains[client[order]]]
    _, one = np.unique(client[lacking], return_index=True)
    part[lacking[one]] = Part.TRAIN
    return part


def _every(count: int, share: float, generator: np.random.Generator) -> np.ndarray:
    """Returns bool [count]: a share of them, evenly spaced from a random start."""
    # Rounded, or the sum of a share that divides 1 would miss a step now and then.
    steps = np.arange(count + 1) * share + generator.random()
    return np.diff(np.floor(np.round(steps, 9))) > 0


def _deal_clients(
    part_of: np.ndarray,
    free: np.ndarray,
    wanted: np.ndarray,
    shares: np.ndarray,
    rows: np.ndarray,
    positive: np.ndarray,
) -> None:
    """Deals the free clients, in place."""
    share = shares[wanted] / shares[wanted].sum()
    size = np.stack([rows, positive], axis=1)[free].astype(np.float64)
    size /= np.maximum(size.sum(axis=0), 1)
    lack = np.zeros((len(wanted), 2))
    for place, (client, own) in enumerate(zip(free, size, strict=True)):
        lack += share[:, None] * own
        empty = [i for i, one in enumerate(wanted) if not np.any(part_of == one)]
        # The last clients go to parts that have none yet.
        must = empty if len(free) - place <= len(empty) else range(len(wanted))
        chosen = max(must, key=lambda index: lack[index].sum())
        lack[chosen] -= own
        part_of[client] = wanted[chosen]


def _keep_patients_whole(dataset: Dataset, part: np.ndarray) -> np.ndarray:
    """Leaves the rows out that a patient has in a part before its last one."""
    if dataset.patient is None:
        return part
    _, person = np.unique(dataset.patient, return_inverse=True)
    last = np.full(person.max(initial=-1) + 1, Part.TRAIN, np.int8)
    np.maximum.at(last, person, part)
    return np.where(part == last[person], part, Part.EMBARGO).astype(np.int8)


def _client(dataset: Dataset, name: str) -> int:
    if name not in dataset.client_names:
        shown = ", ".join(dataset.client_names[:12])
        more = len(dataset.client_names) - 12
        raise DataError(
            f"the data has no client {name!r}; it has {shown}"
            + (f" and {more} more" if more > 0 else "")
        )
    return dataset.client_names.index(name)


def _check(dataset: Dataset, part: np.ndarray, group: np.ndarray, unit: Unit) -> None:
    """Refuses what ``check_parts`` does; says more where patients are too few."""
    if unit == "patient" and not np.any(part == Part.VALIDATION):
        raise DataError(
            f"{len(np.unique(group)):,} patients are too few to be dealt whole; split "
            'by time or blocks, or set unit to "row" for records that do not depend on '
            "each other"
        )
    check_parts(dataset, part)
