"""Cohorts: which clients take part in a round, and where their examples lie.

Cohorts are drawn on the host, in time that grows with the cohort and not with the
population, from the seed and the round alone.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fedjax_health.core.rng import Stream
from fedjax_health.core.types import ClientBatches, Cohort, Examples, Sampling
from fedjax_health.data.schema import DataError
from fedjax_health.data.store import ClientStore, to_examples

NO_LIMIT = np.int32(2**31 - 1)


def draw_clients(sampling: Sampling, seed: int, round: int) -> np.ndarray:
    """Draws the distinct clients of one round, int32, at most ``cohort_size``.

    Args:
      sampling: the scheme.
      seed: the run's seed.
      round: the round.
    """
    rng = np.random.default_rng([seed, int(Stream.SAMPLE), round])
    block, start = sampling.block, 0
    if sampling.scheme == "cyclic":
        start = (round % sampling.cycle) * block
    if sampling.scheme == "fixed":
        count = sampling.expected
    else:
        count = min(int(rng.binomial(block, sampling.rate)), sampling.cohort_size)
    chosen = rng.choice(block, size=count, replace=False, shuffle=True)
    return (start + chosen).astype(np.int32)


def build_cohort_fn(
    store: ClientStore,
    sampling: Sampling,
    seed: int,
    *,
    malicious: np.ndarray | None = None,
    resident: Examples | None = None,
    part_shares: np.ndarray | None = None,
    devices: bool = False,
) -> Callable[[int], Cohort]:
    """Returns ``round -> Cohort``, the same cohort for the same seed and round.

    Args:
      store: the training data. In memory, it is put onto the devices once.
      sampling: how clients are drawn.
      seed: the run's seed.
      malicious: bool ``[population]``, or None for honest clients alone.
      resident: the store on the devices (``to_examples``), where it is there already.
      part_shares: float ``[population, parts]``, see ``Cohort``; or None.
      devices: whether cohorts say which examples are whose device's, as plans with
        ``device_averaging`` need.

    Raises:
      DataError: if sampling and store disagree, or a client has no examples.
    """
    if sampling.population != store.num_clients:
        raise DataError(
            f"sampling draws from {sampling.population:,} clients, but the store has "
            f"{store.num_clients:,}"
        )
    sizes = np.diff(store.offsets)
    if np.any(sizes == 0):
        client = int(np.flatnonzero(sizes == 0)[0])
        name = store.client_names[client] if store.client_names else client
        raise DataError(
            f"client {name!r} has no training examples: drop it, or change partition, "
            "split or window"
        )
    if malicious is not None:
        malicious = np.asarray(malicious)
        if malicious.shape != (store.num_clients,) or malicious.dtype != np.bool_:
            raise DataError(
                f"malicious must be bool of shape ({store.num_clients},), one flag a "
                f"client, not {malicious.dtype} of shape {malicious.shape}"
            )
    if part_shares is not None and (
        part_shares.ndim != 2
        or len(part_shares) != store.num_clients
        or not np.all((part_shares >= 0) & (part_shares <= 1))
    ):
        raise DataError(
            f"part_shares must be [{store.num_clients}, parts], shares in [0, 1], not "
            f"of shape {part_shares.shape}"
        )
    if resident is None and not store.mapped:
        resident = to_examples(store)
    sizes_of = device_sizes(store) if devices else None
    capacity = mapped_capacity(store, sampling.cohort_size) if store.mapped else 0
    if capacity >= 2**31:
        raise DataError(
            f"a cohort may hold {capacity:,} examples, more than an int32 index "
            "reaches: draw fewer clients in a round"
        )

    def cohort_fn(round: int) -> Cohort:
        ids = draw_clients(sampling, seed, round)
        return cohort_of(
            store,
            ids,
            slots=sampling.cohort_size,
            malicious=malicious,
            resident=resident,
            capacity=capacity,
            part_shares=part_shares,
            devices=sizes_of,
        )

    return cohort_fn


class DeviceSizes(NamedTuple):
    """How many examples each device of each client has.

    Attributes:
      sizes: int32 ``[devices]`` of all clients, one after the other.
      offsets: int64 ``[clients + 1]``, where each client's devices begin.
    """

    sizes: np.ndarray
    offsets: np.ndarray

    @property
    def most(self) -> int:
        """Devices of the client that has the most."""
        return int(np.diff(self.offsets).max())

    def of(self, ids: np.ndarray, slots: int) -> np.ndarray:
        """Returns those of some clients, int32 ``[slots, most]``, 0 in empty places."""
        found = np.zeros((slots, self.most), np.int32)
        for slot, client in enumerate(ids):
            own = self.sizes[self.offsets[client] : self.offsets[client + 1]]
            found[slot, : len(own)] = own
        return found


def device_sizes(store: ClientStore) -> DeviceSizes:
    """Returns the examples of each device, those without any left out.

    Raises:
      DataError: if the store's examples belong to no devices.
    """
    if store.devices is None:
        raise DataError(
            "the examples belong to no devices: averaging in a client needs rows with "
            "labels of their own, and a role entity that names the device"
        )
    ends = np.unique(store.devices)
    offsets = np.searchsorted(ends, store.offsets).astype(np.int64)
    return DeviceSizes(np.diff(ends).astype(np.int32), offsets)


def cohort_of(
    store: ClientStore,
    ids: np.ndarray,
    *,
    slots: int | None = None,
    malicious: np.ndarray | None = None,
    resident: Examples | None = None,
    capacity: int = 0,
    part_shares: np.ndarray | None = None,
    devices: DeviceSizes | None = None,
) -> Cohort:
    """Returns the cohort of given clients.

    Args:
      store: the training data.
      ids: int ``[clients]``, distinct.
      slots: slots of the cohort; empty ones are masked. None for one per client.
      malicious: bool ``[population]`` or None.
      resident: the store on the devices (``to_examples``); None gathers the cohort's
        own examples on the host.
      capacity: examples to which gathered ones are padded, so that every round has
        the same shapes.
      part_shares: float ``[population, parts]``, see ``Cohort``; or None.
      devices: of all clients; None where theirs do not train by themselves.
    """
    ids = np.asarray(ids, np.int32)
    slots = len(ids) if slots is None else slots
    sizes = (store.offsets[ids + 1] - store.offsets[ids]).astype(np.int32)
    if resident is None:
        arrays, index = _gather_cohort(store, ids, sizes, capacity)
    else:
        arrays, index = resident, store.offsets[ids].astype(np.int32)

    def padded(values, fill, dtype: type) -> np.ndarray:
        held = np.full(slots, fill, dtype)
        held[: len(ids)] = values
        return held

    flags = False if malicious is None else malicious[ids]
    shares = None
    if part_shares is not None:
        shares = np.zeros((slots, part_shares.shape[1]), np.float32)
        shares[: len(ids)] = part_shares[ids]
    return Cohort(
        client_ids=padded(ids, store.num_clients, np.int32),
        mask=padded(True, False, bool),
        weights=padded(sizes, 0.0, np.float32),
        malicious=padded(flags, False, bool),
        batches=ClientBatches(
            num_examples=padded(sizes, 0, np.int32),
            num_steps=np.full(slots, NO_LIMIT),
            index=padded(index, 0, np.int32),
            arrays=arrays,
            devices=None if devices is None else devices.of(ids, slots),
        ),
        part_shares=shares,
    )


def mapped_capacity(store: ClientStore, cohort_size: int) -> int:
    """Returns the most examples that a cohort of a store can hold."""
    sizes = np.diff(store.offsets)
    if cohort_size >= len(sizes):
        return int(sizes.sum())
    return int(np.partition(sizes, -cohort_size)[-cohort_size:].sum())


def _gather_cohort(
    store: ClientStore, ids: np.ndarray, sizes: np.ndarray, capacity: int
) -> tuple[Examples, np.ndarray]:
    """Copies a cohort's examples out of the store; a windowed one is laid out flat."""
    total = int(sizes.sum())
    first = np.cumsum(sizes) - sizes
    example = np.repeat(store.offsets[ids] - first, sizes) + np.arange(total)
    if store.window is None:
        source = example
    else:
        assert store.starts is not None
        source = store.starts[example][:, None] + np.arange(store.window)
    rows = {}
    for name, values in store.rows.items():
        # Not np.take into place: of rows that are not contiguous it copies the store.
        taken = values[source]
        held = np.zeros((max(capacity, total), *taken.shape[1:]), values.dtype)
        held[:total] = taken
        rows[name] = held
    return Examples(rows), first.astype(np.int32)
