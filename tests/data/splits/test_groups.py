"""Splits of patients and hospitals against counts made one unit at a time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_health.data.schema import DataError, Dataset, check_dataset
from fedjax_health.data.splits import (
    Part,
    by_client,
    leave_one_out,
    split_dataset,
    stratified,
)

SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}


def stays(sizes, *, rows=3, rate=0.3, seed=0, patient=None, target="entity"):
    """Clients of so many stays, each stay of ``rows`` rows with one label."""
    generator = np.random.default_rng(seed)
    total = sum(sizes)
    label = np.repeat(generator.random(total) < rate, rows).astype(np.float32)
    label[0], label[-1] = 0, 1
    label[:rows], label[-rows:] = 0, 1
    client = np.repeat(np.repeat(np.arange(len(sizes)), sizes), rows)
    num_rows = len(label)
    return Dataset(
        features={"x": np.arange(num_rows, dtype=np.float32)[:, None]},
        feature_names={"x": ("row",)},
        label=label,
        attack=label.astype(np.int32),
        attack_names=("normal", "attack"),
        client=client.astype(np.int32),
        client_names=tuple(f"ward {index}" for index in range(len(sizes))),
        entity=np.repeat(np.arange(total), rows).astype(np.int64),
        time=np.tile(np.arange(rows, dtype=np.float64), total),
        target=target,
        patient=None if patient is None else np.repeat(patient, rows).astype(np.int64),
    )


def parts_of(data, part, values):
    """value -> the parts that its rows stand in, embargo left out."""
    found = {}
    for value, where in zip(values.tolist(), part.tolist(), strict=True):
        if where != Part.EMBARGO:
            found.setdefault(value, set()).add(where)
    return found


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 25), min_size=1, max_size=6),
    seed=st.integers(0, 99),
    shared=st.booleans(),
)
def test_no_patient_stands_in_two_parts(sizes, seed, shared):
    sizes = [40, 30, *sizes]
    total = sum(sizes)
    generator = np.random.default_rng(seed)
    patient = generator.integers(2 * total, size=total) if shared else None
    data = stays(sizes, seed=seed, patient=patient)
    check_dataset(data)
    by_patient = data.entity if patient is None else data.patient
    part = stratified(data, **SHARES, seed=seed)
    assert set(part.tolist()) == {Part.TRAIN, Part.VALIDATION, Part.TEST}
    found = parts_of(data, part, by_patient)
    assert all(len(where) == 1 for where in found.values())
    if patient is None:
        trained = set(data.client[part == Part.TRAIN].tolist())
        assert trained == set(range(len(sizes)))
    one = leave_one_out(data, client="ward 0", validation=0.2, seed=seed)
    found = parts_of(data, one, by_patient)
    assert all(len(where) == 1 for where in found.values())
    assert (one[data.client == 0] == Part.TEST).all()
    assert not (one[data.client != 0] == Part.TEST).any()


@pytest.mark.parametrize("seed", range(5))
def test_every_label_and_client_is_split_alike(seed):
    data = stays([200, 57, 30, 10], rows=2, seed=seed)
    part = stratified(data, train=0.7, validation=0.1, test=0.2, seed=seed)
    shares = {Part.TRAIN: 0.7, Part.VALIDATION: 0.1, Part.TEST: 0.2}
    for client in range(4):
        for label in (0, 1):
            own = (data.client == client) & (data.label == label)
            stays_here = own.sum() / 2
            for wanted, share in shares.items():
                held = (own & (part == wanted)).sum() / 2
                assert abs(held - share * stays_here) <= 2
    for label in (0, 1):
        own = data.label == label
        for wanted, share in shares.items():
            held = (own & (part == wanted)).sum() / 2
            assert abs(held - share * own.sum() / 2) <= 3


def test_the_seed_decides_and_draws_at_random():
    data = stays([300], rows=1)
    first = stratified(data, **SHARES, seed=3)
    np.testing.assert_array_equal(first, stratified(data, **SHARES, seed=3))
    assert (first != stratified(data, **SHARES, seed=4)).mean() > 0.2
    # Each stay is tested about as often as its share says, whichever its number.
    tested = np.mean(
        [stratified(data, **SHARES, seed=seed) == Part.TEST for seed in range(200)],
        axis=0,
    )
    assert abs(tested - 0.2).max() < 0.15
    assert abs(tested[:150].mean() - 0.2) < 0.02


def test_rows_are_dealt_one_by_one_where_they_are_records():
    data = stays([50, 40], rows=4, target="row")
    part = stratified(data, **SHARES, unit="row")
    found = parts_of(data, part, data.entity)
    assert max(len(where) for where in found.values()) == 3
    assert abs((part == Part.TRAIN).mean() - 0.6) < 0.02
    with pytest.raises(DataError, match="rows of one entity belong together"):
        stratified(data._replace(target="entity"), **SHARES, unit="row")
    with pytest.raises(DataError, match="rows of one patient belong together"):
        stratified(data._replace(patient=data.entity), **SHARES, unit="row")
    with pytest.raises(DataError, match="unit is 'week'"):
        stratified(data, **SHARES, unit="week")


def test_too_few_patients_to_deal():
    data = stays([40], rows=4, target="row")
    one = data._replace(entity=np.zeros_like(data.entity))
    with pytest.raises(DataError, match="1 patients are too few"):
        stratified(one, **SHARES)
    with pytest.raises(DataError, match="1 patients are too few"):
        leave_one_out(stays([40, 1]), client="ward 0", validation=0.2)
    with pytest.raises(DataError, match="every row is of client 'ward 0'"):
        leave_one_out(one, client="ward 0", validation=0.2)


def test_clients_of_one_patient_all_train():
    part = stratified(stays([1, 1, 1, 30]), **SHARES)
    assert part[:9].tolist() == [Part.TRAIN] * 9


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=3, max_size=12),
    seed=st.integers(0, 99),
)
def test_clients_are_dealt_whole(sizes, seed):
    data = stays(sizes, seed=seed)
    # Every client has both labels, so that any three parts are usable.
    data.label[:] = np.arange(data.num_rows) % 2
    part = by_client(data, **SHARES, seed=seed)
    found = parts_of(data, part, data.client)
    assert all(len(where) == 1 for where in found.values())
    assert set(part.tolist()) == {Part.TRAIN, Part.VALIDATION, Part.TEST}


def test_many_clients_hold_the_shares_of_rows_and_positives():
    generator = np.random.default_rng(0)
    data = stays(generator.integers(5, 60, 116), rows=1)
    part = by_client(data, **SHARES, seed=1)
    for wanted, share in zip(
        Part.__members__.values(), (0, 0.6, 0.2, 0.2), strict=True
    ):
        assert abs((part == wanted).mean() - share) < 0.03
        assert abs((part[data.label > 0] == wanted).mean() - share) < 0.04


def test_named_clients_go_where_they_are_named():
    data = stays([20] * 6)
    part = by_client(data, **SHARES, test_clients=("ward 3", "ward 1"))
    tested = {data.client_names[c] for c in data.client[part == Part.TEST]}
    assert tested == {"ward 3", "ward 1"}
    rest = [c for c in range(6) if c not in (1, 3)]
    validated = set(data.client[part == Part.VALIDATION].tolist())
    assert validated < set(rest)
    assert len(validated) == 1
    both = by_client(
        data, **SHARES, test_clients=("ward 3",), validation_clients=("ward 0",)
    )
    assert set(data.client[both == Part.TRAIN].tolist()) == {1, 2, 4, 5}


def test_patients_seen_at_two_hospitals_stay_in_the_test():
    patient = np.arange(60)
    patient[[0, 20, 40]] = 0  # at all three
    patient[[1, 21]] = 1  # at the first two
    data = stays([20, 20, 20], rows=2, patient=patient)
    data.label[:] = np.arange(data.num_rows) % 2
    part = by_client(
        data, **SHARES, validation_clients=("ward 1",), test_clients=("ward 2",)
    )
    assert part[:4].tolist() == [Part.EMBARGO] * 4
    assert part[40:42].tolist() == [Part.EMBARGO] * 2
    assert part[42:44].tolist() == [Part.VALIDATION] * 2
    assert (part == Part.EMBARGO).sum() == 6
    one = leave_one_out(data, client="ward 0", validation=0.2)
    assert (one[:40] == Part.TEST).all()
    assert one[40:44].tolist() == [Part.EMBARGO] * 4
    assert one[80:82].tolist() == [Part.EMBARGO] * 2


def test_bad_names_and_shares():
    data = stays([20] * 3)
    with pytest.raises(DataError, match="no client 'ward 9'; it has ward 0, ward 1"):
        by_client(data, **SHARES, test_clients=("ward 9",))
    with pytest.raises(DataError, match="'ward 1' is named twice"):
        by_client(
            data, **SHARES, test_clients=("ward 1",), validation_clients=("ward 1",)
        )
    with pytest.raises(DataError, match="2 clients are left for 3 parts"):
        by_client(stays([20, 20]), **SHARES)
    with pytest.raises(DataError, match="sum to"):
        by_client(data, train=0.6, validation=0.1, test=0.1)
    with pytest.raises(DataError, match="no client 'x'"):
        leave_one_out(data, client="x", validation=0.2)
    with pytest.raises(DataError, match=r"validation is 1\.5"):
        leave_one_out(data, client="ward 0", validation=1.5)
    many = stays([2] * 20)
    with pytest.raises(DataError, match="ward 11 and 8 more"):
        leave_one_out(many, client="x", validation=0.2)


def test_an_entity_with_one_label_is_never_cut():
    data = stays([20, 20])
    part = stratified(data, **SHARES)
    split_dataset(data, part)
    part[1] = 2 - part[0]
    with pytest.raises(DataError, match="cuts an entity of client 'ward 0'"):
        split_dataset(data, part)


def test_names_of_entities_follow_them():
    data = stays([20, 20])
    names = tuple(f"stay {index}" for index in range(40))
    data = data._replace(entity_names=names)
    for part in split_dataset(data, stratified(data, **SHARES)):
        for row in range(part.num_rows):
            original = int(part.features["x"][row, 0]) // 3
            assert part.entity_names[part.entity[row]] == f"stay {original}"
