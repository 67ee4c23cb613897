"""Splits against slow loops over rows: order, embargo, whole episodes, no gaps."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_health.data.schema import DataError, Dataset, segment_starts
from fedjax_health.data.splits import (
    Part,
    Parts,
    chronological,
    episode_blocks,
    split_dataset,
)


def stream(lengths, *, seed=0, clients=1, num_attacks=2, episode=7, rate=0.15):
    """Entities of these lengths, dealt to the clients in turn; rows are numbered."""
    generator = np.random.default_rng(seed)
    client = np.concatenate(
        [np.full(size, index % clients) for index, size in enumerate(lengths)]
    )
    entity = np.concatenate(
        [np.full(size, index // clients) for index, size in enumerate(lengths)]
    )
    time = np.concatenate([np.sort(generator.random(size)) for size in lengths])
    order = np.lexsort((time, entity, client))
    client, entity, time = client[order], entity[order], time[order]
    num_rows = len(time)
    attack = np.zeros(num_rows, np.int32)
    starts = np.flatnonzero(generator.random(num_rows) < rate / episode)
    for start in starts:
        attack[start : start + episode] = generator.integers(1, num_attacks + 1)
    return Dataset(
        features={"x": np.arange(num_rows, dtype=np.float32)[:, None]},
        feature_names={"x": ("row",)},
        label=(attack > 0).astype(np.float32),
        attack=attack,
        attack_names=("normal", *(f"attack {i}" for i in range(1, num_attacks + 1))),
        client=client.astype(np.int32),
        client_names=tuple(f"c{index}" for index in range(clients)),
        entity=entity.astype(np.int64),
        time=time,
        oracle=np.arange(num_rows, dtype=np.float32),
    )


def same_stream(data, i, j):
    return data.client[i] == data.client[j] and data.entity[i] == data.entity[j]


def embargo_by_hand(data, raw, embargo):
    """Drops a row if a stronger part stands within the embargo; one pair at a time."""
    strength = {Part.VALIDATION: 2, Part.TEST: 1, Part.TRAIN: 0}
    result = raw.copy()
    for i in range(len(raw)):
        for j in range(max(0, i - embargo), min(len(raw), i + embargo + 1)):
            if same_stream(data, i, j) and strength[raw[j]] > strength[raw[i]]:
                result[i] = Part.EMBARGO
    return result


def check_gaps(data, part, embargo):
    """Rows of two parts of one stream have at least ``embargo`` rows between them."""
    kept = np.flatnonzero(part != Part.EMBARGO)
    for i, j in pairwise(kept):
        if part[i] != part[j] and same_stream(data, i, j):
            assert j - i - 1 >= embargo


@pytest.mark.parametrize("scope", ["client", "global", "entity"])
@pytest.mark.parametrize("embargo", [0, 3])
def test_chronological_equals_the_loop(scope, embargo):
    data = stream([50, 31, 44, 80, 27], clients=2, seed=3)
    part = chronological(
        data, train=0.5, validation=0.2, test=0.3, embargo=embargo, scope=scope
    )
    groups: dict[tuple, list[int]] = {}
    for row in range(data.num_rows):
        key = {
            "client": (data.client[row],),
            "global": (),
            "entity": (data.client[row], data.entity[row]),
        }[scope]
        groups.setdefault(key, []).append(row)
    raw = np.empty(data.num_rows, np.int8)
    for rows in groups.values():
        rows = sorted(rows, key=lambda row: (data.time[row], row))
        first = int(np.rint(0.5 * len(rows)))
        second = int(np.rint(0.7 * len(rows)))
        raw[rows[:first]] = Part.TRAIN
        raw[rows[first:second]] = Part.VALIDATION
        raw[rows[second:]] = Part.TEST
    np.testing.assert_array_equal(part, embargo_by_hand(data, raw, embargo))
    check_gaps(data, part, embargo)


def test_embargo_is_exact_on_one_stream():
    data = stream([1000])
    part = chronological(data, train=0.6, validation=0.1, test=0.3, embargo=20)
    expected = np.repeat(
        [Part.TRAIN, Part.EMBARGO, Part.VALIDATION, Part.EMBARGO, Part.TEST],
        [580, 20, 100, 20, 280],
    )
    np.testing.assert_array_equal(part, expected)


def test_rows_of_equal_time_keep_their_order():
    data = stream([100])._replace(time=np.zeros(100))
    part = chronological(data, train=0.6, validation=0.1, test=0.3)
    assert (np.diff(part) >= 0).all()


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(30, 160), min_size=2, max_size=6),
    clients=st.integers(1, 2),
    block=st.integers(5, 40),
    embargo=st.integers(0, 6),
    seed=st.integers(0, 1000),
)
def test_episode_blocks(lengths, clients, block, embargo, seed):
    data = stream([300, *lengths], clients=clients, seed=seed, rate=0.3)
    if block <= 2 * embargo:
        with pytest.raises(DataError, match="twice the embargo"):
            episode_blocks(data, block=block, embargo=embargo, seed=seed)
        return
    raw = episode_blocks(data, block=block, embargo=0, seed=seed)
    for row in range(1, data.num_rows):
        if same_stream(data, row - 1, row) and raw[row] != raw[row - 1]:
            assert not (data.label[row] and data.label[row - 1]), "an episode is cut"
    expected = embargo_by_hand(data, raw, embargo)
    training = data.label[expected == Part.TRAIN]
    if len(set(expected) - {Part.EMBARGO}) < 3 or len(set(training)) < 2:
        with pytest.raises(DataError, match=r"leaves no rows|training rows are"):
            episode_blocks(data, block=block, embargo=embargo, seed=seed)
        return
    part = episode_blocks(data, block=block, embargo=embargo, seed=seed)
    np.testing.assert_array_equal(part, expected)
    check_gaps(data, part, embargo)


def test_blocks_have_their_length_and_are_dealt_in_shares():
    data = stream([4000, 4000, 4000], clients=3, rate=0)
    data.label[::400] = 1
    data.attack[::400] = 1
    part = episode_blocks(data, block=40, seed=5)
    assert (part.reshape(-1, 40) == part.reshape(-1, 40)[:, :1]).all()
    share = np.bincount(part, minlength=3) / data.num_rows
    np.testing.assert_allclose(share, [0.6, 0.1, 0.3], atol=0.005)
    for client in range(3):
        own = np.bincount(part[data.client == client], minlength=3) / 4000
        np.testing.assert_allclose(own, [0.6, 0.1, 0.3], atol=0.03)
    positive = np.bincount(part[data.label > 0], minlength=3) / 30
    np.testing.assert_allclose(positive, [0.6, 0.1, 0.3], atol=0.07)


def test_every_part_gets_positives_if_three_blocks_have_them():
    for seed in range(20):
        data = stream([1000], rate=0)
        for attack, row in enumerate([100, 400, 700]):
            data.label[row : row + 9] = 1
            data.attack[row : row + 9] = 1 + attack % 2
        parts = split_dataset(data, episode_blocks(data, block=50, seed=seed))
        assert [int(part.label.sum()) for part in parts] == [9, 9, 9]


def test_blocks_depend_on_the_seed_only():
    data = stream([2000], seed=1)
    first = episode_blocks(data, block=30, seed=1)
    np.testing.assert_array_equal(first, episode_blocks(data, block=30, seed=1))
    assert (first != episode_blocks(data, block=30, seed=2)).any()


def test_an_episode_longer_than_blocks_stays_whole():
    data = stream([600], rate=0)
    data.label[95:330] = 1
    data.attack[95:330] = 1
    data.label[500:505] = 1
    data.attack[500:505] = 1
    part = episode_blocks(data, block=20, seed=0)
    assert len(set(part[95:330])) == 1


@pytest.mark.parametrize("seed", range(5))
def test_split_numbers_the_runs(seed):
    data = stream([60, 45, 70], clients=2, seed=seed)
    data.label[::3] = 1
    generator = np.random.default_rng(seed)
    part = np.repeat(generator.integers(-1, 3, 35), 5).astype(np.int8)
    parts = split_dataset(data, part)
    rows = [dataset.features["x"][:, 0].astype(int) for dataset in parts]
    for value, own in enumerate(rows):
        np.testing.assert_array_equal(own, np.flatnonzero(part == value))
    for dataset, own in zip(parts, rows, strict=True):
        np.testing.assert_array_equal(dataset.label, data.label[own])
        np.testing.assert_array_equal(dataset.oracle, data.oracle[own])
        np.testing.assert_array_equal(dataset.time, data.time[own])
        assert dataset.client_names == data.client_names
        runs = 0
        for i, j in zip(range(len(own)), range(1, len(own)), strict=False):
            together = own[j] == own[i] + 1 and same_stream(data, own[i], own[j])
            assert same_stream(dataset, i, j) == together
            runs += not together
        assert len(segment_starts(dataset)) == runs + 1
        assert (np.diff(dataset.client) >= 0).all()


def test_no_window_reaches_over_a_gap():
    data = stream([300, 200], seed=2)
    parts = split_dataset(data, episode_blocks(data, block=40, embargo=10, seed=2))
    for dataset in parts:
        starts = [*segment_starts(dataset), dataset.num_rows]
        for first, end in pairwise(starts):
            rows = dataset.features["x"][first:end, 0]
            assert (np.diff(rows) == 1).all()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"train": 0.6, "validation": 0.1, "test": 0.2}, "sum to 0.9"),
        ({"train": 0.9, "validation": -0.1, "test": 0.2}, "between 0 and 1"),
        ({"train": 0.7, "validation": 0.0, "test": 0.3}, "between 0 and 1"),
        ({"train": np.nan, "validation": 0.1, "test": 0.3}, "between 0 and 1"),
        ({"embargo": -1}, "embargo is -1"),
        ({"scope": "patient"}, "scope is 'patient'"),
        ({"train": 0.7, "validation": 0.2, "test": 0.1, "embargo": 20}, "for test"),
        ({"train": 0.3, "validation": 0.1, "test": 0.6, "embargo": 40}, "for train"),
        ({"train": 0.699, "validation": 0.001, "test": 0.3}, "rows for validation"),
    ],
)
def test_chronological_refuses(arguments, expected):
    shares = {"train": 0.6, "validation": 0.1, "test": 0.3}
    with pytest.raises(DataError) as caught:
        chronological(stream([100]), **{**shares, **arguments})
    assert expected in str(caught.value)


def test_single_class_training_is_refused():
    data = stream([200], rate=0)
    data.label[150:] = 1
    with pytest.raises(DataError, match="all 120 training rows are negative"):
        chronological(data, train=0.6, validation=0.1, test=0.3)
    with pytest.raises(DataError, match="training rows are positive"):
        split_dataset(data, np.repeat([1, 2, 0], [70, 80, 50]))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"block": 0}, "block is 0"),
        ({"block": 10, "embargo": 5}, "twice the embargo"),
        ({"block": 10, "fractions": (0.5, 0.5)}, "three numbers"),
        ({"block": 10, "fractions": (0.5, 0.4, 0.3)}, "sum to 1.2"),
        ({"block": 1000}, "no rows for validation"),
    ],
)
def test_episode_blocks_refuses(arguments, expected):
    with pytest.raises(DataError) as caught:
        episode_blocks(stream([500], seed=1), **arguments)
    assert expected in str(caught.value)


def test_split_refuses_arrays_that_do_not_fit():
    data = stream([100])
    with pytest.raises(DataError, match="shape"):
        split_dataset(data, np.zeros(99, np.int8))
    with pytest.raises(DataError, match="no Part"):
        split_dataset(data, np.full(100, 3))
    with pytest.raises(DataError, match="no rows for validation"):
        split_dataset(data, np.repeat([0, 2], 50))


def test_parts_are_a_record():
    data = stream([200], seed=4)
    part = chronological(data, train=0.6, validation=0.1, test=0.3)
    parts = split_dataset(data, part)
    assert isinstance(parts, Parts)
    assert [dataset.num_rows for dataset in parts] == [120, 20, 60]
