"""Partitions: no row lost or doubled, whole units, the shares that were asked for."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_health.data import partition
from fedjax_health.data.schema import (
    DataError,
    Dataset,
    check_dataset,
    segment_starts,
    take_rows,
)
from fedjax_health.data.splits import Parts


def made(lengths, *, clients=1, seed=0, rate=0.2, first_row=0):
    """A part with streams of these lengths; the feature is the row's number."""
    generator = np.random.default_rng(seed)
    num_rows = sum(lengths)
    client = np.sort(generator.integers(0, clients, len(lengths)))
    attack = np.zeros(num_rows, np.int32)
    for start in np.flatnonzero(generator.random(num_rows) < rate / 6):
        attack[start : start + 6] = generator.integers(1, 4)
    return Dataset(
        features={"x": first_row + np.arange(num_rows, dtype=np.float32)[:, None]},
        feature_names={"x": ("row",)},
        label=(attack > 0).astype(np.float32),
        attack=attack,
        attack_names=("normal", "a", "b", "c"),
        client=np.repeat(client, lengths).astype(np.int32),
        client_names=tuple(f"ward {index}" for index in range(clients)),
        entity=np.repeat(np.arange(len(lengths)), lengths).astype(np.int64),
        time=np.arange(num_rows, dtype=np.float64),
    )


def made_parts(seed=0, lengths=((200, 130, 47), (60, 9), (120, 33)), clients=2):
    return Parts(
        *(
            made(sizes, seed=seed + index, clients=clients, first_row=1000 * index)
            for index, sizes in enumerate(lengths)
        )
    )


def rows_of(dataset):
    return dataset.features["x"][:, 0].astype(int)


def check_partition(before, after, *, num_clients, unit):
    """Compares with the rows before, one unit and one pair of rows at a time."""
    names = after.train.client_names
    assert len(names) == len(set(names)) == num_clients
    assert np.bincount(after.train.client, minlength=num_clients).min() > 0
    for old, new in zip(before, after, strict=True):
        assert new.client_names == names
        offset = rows_of(old)[0] if old.num_rows else 0
        rows = rows_of(new) - offset
        assert sorted(rows) == list(range(old.num_rows))
        assert (np.diff(new.client) >= 0).all()
        for field in ("label", "attack", "time"):
            np.testing.assert_array_equal(
                getattr(new, field), getattr(old, field)[rows]
            )
        holder = dict(zip(rows.tolist(), new.client.tolist(), strict=True))
        if unit is not None:
            starts = [*segment_starts(old).tolist(), old.num_rows]
            for first, end in pairwise(starts):
                for begin in range(first, end, unit):
                    whole = range(begin, min(begin + unit, end))
                    assert len({holder[row] for row in whole}) == 1
        runs = 0
        for i in range(1, new.num_rows):
            joined = (
                new.client[i] == new.client[i - 1]
                and new.entity[i] == new.entity[i - 1]
            )
            neighbours = (
                rows[i] == rows[i - 1] + 1
                and holder[rows[i]] == holder[rows[i - 1]]
                and old.entity[rows[i]] == old.entity[rows[i - 1]]
                and old.client[rows[i]] == old.client[rows[i - 1]]
            )
            assert joined == neighbours
            runs += not joined
        if new.num_rows:
            assert len(set(new.entity.tolist())) == runs + 1


ways = {
    "iid": lambda parts, n, seed, unit: partition.iid(
        parts, num_clients=n, seed=seed, unit=unit
    ),
    "label": lambda parts, n, seed, unit: partition.dirichlet_labels(
        parts, num_clients=n, alpha=0.3, seed=seed, unit=unit
    ),
    "attack": lambda parts, n, seed, unit: partition.dirichlet_labels(
        parts, num_clients=n, alpha=0.1, seed=seed, unit=unit, by="attack"
    ),
    "quantity": lambda parts, n, seed, unit: partition.quantity_skew(
        parts, num_clients=n, exponent=1.5, seed=seed, unit=unit
    ),
}


@pytest.mark.parametrize("way", list(ways))
@settings(max_examples=25, deadline=None)
@given(
    num_clients=st.integers(1, 12),
    seed=st.integers(0, 1000),
    unit=st.integers(1, 25),
)
def test_rows_are_dealt_in_units(way, num_clients, seed, unit):
    before = made_parts(seed)
    after = ways[way](before, num_clients, seed, unit)
    check_partition(before, after, num_clients=num_clients, unit=unit)
    again = ways[way](before, num_clients, seed, unit)
    np.testing.assert_array_equal(rows_of(after.train), rows_of(again.train))


@pytest.mark.parametrize("num_clients", [1, 3, 10, 41])
def test_contiguous(num_clients):
    before = made_parts(7)
    after = partition.contiguous(before, num_clients=num_clients)
    check_partition(before, after, num_clients=num_clients, unit=None)
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(rows_of(new), rows_of(old))
        sizes = np.bincount(new.client, minlength=num_clients)
        assert sizes.max() - sizes.min() <= 1


def test_natural():
    before = made_parts(2)
    assert partition.natural(before) is before
    names = (*before.train.client_names, "ICU 3")
    empty = Parts(*(part._replace(client_names=names) for part in before))
    with pytest.raises(DataError, match=r"'ICU 3' has no training rows \(1 such"):
        partition.natural(empty)


def test_clients_that_are_held_out_come_last():
    before = made_parts(lengths=([20] * 12, [20] * 12, [20] * 12), clients=4)
    train = before.train
    before = before._replace(
        train=take_rows(train, (train.client != 0) & (train.client != 2))
    )
    after = partition.natural(before, held_out=True)
    assert partition.num_training_clients(after) == 2
    for old, new in zip(before, after, strict=True):
        assert new.client_names == ("ward 1", "ward 3", "ward 0", "ward 2")
        assert (np.diff(new.client) >= 0).all()
        owner = {
            row: old.client_names[client]
            for row, client in zip(rows_of(old), old.client, strict=True)
        }
        assert sorted(rows_of(new)) == sorted(rows_of(old))
        for row, client in zip(rows_of(new), new.client, strict=True):
            assert new.client_names[client] == owner[row]
        check_dataset(new)


@pytest.mark.parametrize("kind", ["contiguous", "iid", "dirichlet", "skew"])
def test_entities_with_a_label_of_their_own_are_never_cut(kind):
    parts = made_parts(lengths=([30, 5, 120] * 6, [7, 3, 20], [150, 4, 4]))
    parts = Parts(
        *(
            p._replace(
                target="entity",
                entity_names=tuple("abcdefghijklmnopqr"[: p.entity[-1] + 1]),
            )
            for p in parts
        )
    )
    after = {
        "contiguous": lambda: partition.contiguous(parts, num_clients=3),
        "iid": lambda: partition.iid(parts, num_clients=3, unit=10),
        "dirichlet": lambda: partition.dirichlet_labels(
            parts, num_clients=3, alpha=1.0, unit=10
        ),
        "skew": lambda: partition.quantity_skew(parts, num_clients=3, unit=10),
    }[kind]()
    for old, new in zip(parts, after, strict=True):
        name = dict(zip(rows_of(old), old.entity, strict=True))
        for entity in np.unique(new.entity):
            rows = rows_of(new)[new.entity == entity]
            was = {name[row] for row in rows}
            assert len(was) == 1
            assert len(rows) == (old.entity == was.pop()).sum()
            first = int(np.flatnonzero(new.entity == entity)[0])
            assert (
                new.entity_names[entity] == old.entity_names[name[rows_of(new)[first]]]
            )
    with pytest.raises(DataError, match=r"18 training (entities|units)"):
        {
            "contiguous": lambda: partition.contiguous(parts, num_clients=19),
            "iid": lambda: partition.iid(parts, num_clients=19),
            "dirichlet": lambda: partition.dirichlet_labels(
                parts, num_clients=19, alpha=1.0
            ),
            "skew": lambda: partition.quantity_skew(parts, num_clients=19),
        }[kind]()


@pytest.mark.parametrize("way", ["iid", "attack", "quantity"])
def test_seeds_differ(way):
    before = made_parts(1)
    first, second = (ways[way](before, 4, seed, 5) for seed in (1, 2))
    assert (rows_of(first.train) != rows_of(second.train)).any()


def test_iid_is_even():
    before = made_parts(3, lengths=((1000,), (100,), (300,)))
    after = partition.iid(before, num_clients=7, unit=10)
    for part, units in zip(after, (100, 10, 30), strict=True):
        held = np.bincount(part.client, minlength=7) // 10
        assert held.sum() == units
        assert held.max() - held.min() <= 1


def test_quantity_follows_the_power_law():
    before = made_parts(3, lengths=((20_000,), (100,), (300,)))
    after = partition.quantity_skew(before, num_clients=5, exponent=2.0, unit=10)
    shares = 1 / np.arange(1, 6) ** 2
    expected = 2000 * shares / shares.sum()
    held = np.bincount(after.train.client) / 10
    assert np.abs(held - expected).max() <= 1
    even = partition.quantity_skew(before, num_clients=5, exponent=0, unit=10)
    assert np.bincount(even.train.client).tolist() == [4000] * 5


def shares_of_classes(part, num_clients, attacks):
    """[classes, clients]: where the rows of each class went."""
    table = np.zeros((attacks, num_clients))
    np.add.at(table, (part.attack, part.client), 1)
    return table / table.sum(axis=1, keepdims=True)


def test_dirichlet_concentration_and_common_shares():
    before = made_parts(5, lengths=((40_000,), (20_000,), (20_000,)))
    spread = {}
    for alpha in (0.1, 1000.0):
        after = partition.dirichlet_labels(
            before, num_clients=5, alpha=alpha, seed=9, unit=1, by="attack"
        )
        train, validation, test = (shares_of_classes(part, 5, 4) for part in after)
        # Shares are drawn once: all parts have those of training.
        np.testing.assert_allclose(train, validation, atol=0.01)
        np.testing.assert_allclose(train, test, atol=0.01)
        spread[alpha] = train.max(axis=1).mean()
    assert spread[0.1] > 0.6
    assert spread[1000.0] < 0.25


def test_dirichlet_shares_are_those_of_the_distribution():
    before = made_parts(5, lengths=((4000,), (50,), (50,)))
    alpha, num_clients = 0.5, 4
    drawn = []
    for seed in range(200):
        after = partition.dirichlet_labels(
            before, num_clients=num_clients, alpha=alpha, seed=seed, unit=1
        )
        negative = after.train.client[after.train.label == 0]
        drawn.append(np.bincount(negative, minlength=num_clients) / len(negative))
    shares = np.asarray(drawn)
    # Mean 1/k and variance (1/k)(1 - 1/k) / (k alpha + 1) of a Dirichlet share.
    np.testing.assert_allclose(shares.mean(axis=0), 0.25, atol=0.06)
    variance = 0.25 * 0.75 / (num_clients * alpha + 1)
    np.testing.assert_allclose(shares.var(), variance, rtol=0.2)


def test_tiny_alpha_still_fills_every_client():
    before = made_parts(6)
    after = partition.dirichlet_labels(
        before, num_clients=20, alpha=1e-4, seed=0, unit=5, by="attack"
    )
    check_partition(before, after, num_clients=20, unit=5)


@settings(max_examples=80, deadline=None)
@given(
    client=st.lists(st.integers(0, 7), min_size=8, max_size=60),
)
def test_empty_clients_take_from_the_largest(client):
    filled = partition._fill_empty(np.asarray(client), 8)
    held = Counter(client)
    for _ in range(8 - len(held)):
        held[held.most_common(1)[0][0]] -= 1
        empty = next(index for index in range(8) if held[index] == 0)
        held[empty] = 1
    assert sorted(Counter(filled.tolist()).values()) == sorted(held.values())
    kept = np.asarray(client) == filled
    assert (~kept).sum() == 8 - len(set(client))


def test_class_of_a_unit():
    data = made([12], rate=0)
    data.attack[:] = [0, 1, 0, 0, 2, 2, 1, 0, 0, 0, 0, 0]
    data.label[:] = data.attack > 0
    starts = np.array([0, 4, 8])
    assert partition._class_of_units(data, starts, "attack").tolist() == [1, 2, 0]
    assert partition._class_of_units(data, starts, "label").tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda p: partition.iid(p, num_clients=0), "num_clients is 0"),
        (lambda p: partition.iid(p, num_clients=5, unit=0), "unit is 0"),
        (
            lambda p: partition.iid(p, num_clients=50, unit=100),
            "client 'client_05' has no training rows: 50 clients share 5 training "
            "units; use fewer clients or a smaller unit",
        ),
        (
            lambda p: partition.contiguous(p, num_clients=378),
            "client 'client_377' has no training rows",
        ),
        (
            lambda p: partition.dirichlet_labels(p, num_clients=2, alpha=0.0),
            "alpha is 0.0",
        ),
        (
            lambda p: partition.dirichlet_labels(p, num_clients=2, alpha=float("nan")),
            "alpha is nan",
        ),
        (
            lambda p: partition.dirichlet_labels(
                p, num_clients=2, alpha=1.0, by="site"
            ),
            "by is 'site'",
        ),
        (
            lambda p: partition.quantity_skew(p, num_clients=2, exponent=-1.0),
            "exponent is -1.0",
        ),
        (
            lambda p: partition.quantity_skew(p, num_clients=200, unit=50),
            "clients share 8 training units",
        ),
    ],
)
def test_refused(call, expected):
    with pytest.raises(DataError) as caught:
        call(made_parts(0))
    assert expected in str(caught.value)
