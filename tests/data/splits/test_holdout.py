"""A share of one client's rows that is held out: what is taken, and what is not cut."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_health.data.schema import DataError, check_dataset, segment_starts
from fedjax_health.data.splits import hold_out
from tests.build.test_prepared import stays
from tests.data.splits.test_streams import stream


def numbers(part):
    """The rows of ``stream`` that a part holds."""
    return part.features["x"][:, 0].astype(int).tolist()


def windows(part, length):
    """Every window of a part, as sets of row numbers."""
    rows, starts = numbers(part), segment_starts(part)
    ends = np.append(starts[1:], part.num_rows)
    return [
        set(rows[first : min(first + length, end)])
        for start, end in zip(starts, ends, strict=True)
        for first in range(start, max(end - length, start) + 1)
    ]


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    share=st.floats(0.05, 0.9),
    window=st.integers(2, 6),
    seed=st.integers(0, 99),
)
def test_nothing_is_lost_shared_or_taken_from_others(lengths, share, window, seed):
    data = stream(lengths, seed=seed, clients=2, rate=0.5)
    try:
        kept, held = hold_out(data, 0, share=share, window=window)
    except DataError:
        own = [size for index, size in enumerate(lengths) if index % 2 == 0]
        assert share * max(own) < window
        return
    assert sorted(numbers(kept) + numbers(held)) == list(range(data.num_rows))
    assert set(held.client) == {0}
    assert (kept.client == 1).sum() == (data.client == 1).sum()
    for part in (kept, held):
        check_dataset(part, one_class=True)
        for rows in windows(part, window):
            # A window is a stretch of one stream.
            assert max(rows) - min(rows) + 1 == len(rows)
            assert len({data.entity[row] for row in rows}) == 1
    held_windows = windows(held, window)
    assert not any(a & b for a in windows(kept, window) for b in held_windows)


def test_pieces_are_the_share_in_rows_and_in_positive_rows():
    data = stream([200, 300, 80, 500], seed=3)
    kept, held = hold_out(data, 0, share=0.15, window=10)
    assert held.num_rows == int(0.15 * data.num_rows)
    wanted = 0.15 * data.label.sum()
    assert abs(held.label.sum() - wanted) < 7
    assert 0 < held.label.sum() < held.num_rows
    assert 0 < kept.label.sum() < kept.num_rows
    # One piece of each stream.
    for entity in range(4):
        rows = [n for n in numbers(held) if data.entity[n] == entity]
        assert rows == list(range(rows[0], rows[0] + len(rows)))


def test_a_rare_attack_reaches_both_parts_if_a_piece_can_hold_some_of_it():
    data = stream([400], seed=0, rate=0)
    label = np.zeros(400, np.float32)
    label[100:130] = 1
    data = data._replace(label=label, attack=label.astype(np.int32))
    kept, held = hold_out(data, 0, share=0.1, window=20)
    assert (held.label.sum(), held.num_rows) == (3, 40)
    # The first such place: the piece ends three rows into the attack.
    assert numbers(held) == list(range(63, 103))
    assert kept.label.sum() == 27


def test_streams_shorter_than_a_piece_must_be_are_taken_whole():
    data = stream([30] * 20, seed=1, rate=0.3)
    _, held = hold_out(data, 0, share=0.25, window=20, seed=4)
    entities = {data.entity[n] for n in numbers(held)}
    assert numbers(held) == [n for n in range(600) if data.entity[n] in entities]
    assert 4 <= len(entities) <= 6
    again = hold_out(data, 0, share=0.25, window=20, seed=4).held
    assert numbers(again) == numbers(held)
    other = hold_out(data, 0, share=0.25, window=20, seed=5).held
    assert numbers(other) != numbers(held)


def test_stays_are_whole_patients_of_both_classes():
    data = stays()
    kept, held = hold_out(data, 2, share=0.2, window=4)
    assert not set(kept.patient) & set(held.patient)
    assert set(held.client) == {2}
    assert held.num_rows % 8 == 0
    own = data.label[data.client == 2]
    assert abs(held.num_rows - 0.2 * len(own)) <= 8
    assert 0 < held.label.sum() < held.num_rows
    assert kept.num_rows + held.num_rows == data.num_rows


def test_records_are_drawn_alike_from_both_classes():
    data = stream([100, 100], seed=2, rate=0.4)
    positives = data.label.sum()
    _, held = hold_out(data, 0, share=0.3, window=None)
    assert held.label.sum() == round(0.3 * positives)
    assert held.num_rows - held.label.sum() == round(0.3 * (200 - positives))
    # One of each class, though the share of the rare one comes to none.
    label = np.zeros(200, np.float32)
    label[[20, 90]] = 1
    rare = data._replace(label=label, attack=label.astype(np.int32))
    kept, held = hold_out(rare, 0, share=0.1, window=None)
    assert kept.label.sum() == held.label.sum() == 1


@pytest.mark.parametrize(
    ("lengths", "share", "window", "text"),
    [
        ([40], 0.05, 5, r"of the streams .* \(1\) comes to none .* a window of 5 rows"),
        ([40], 0.001, None, r"of the records .* \(40\) comes to none of them$"),
        ([1], 0.9, None, r"of the records of client 'c0' \(1\) comes to all"),
    ],
)
def test_a_share_of_nothing_or_of_all_is_refused(lengths, share, window, text):
    with pytest.raises(DataError, match=text):
        hold_out(stream(lengths, rate=0), 0, share=share, window=window)


def test_no_piece_is_shorter_than_a_window():
    kept, held = hold_out(stream([100, 10, 10]), 0, share=0.1, window=10)
    lengths = np.diff(np.append(segment_starts(held), held.num_rows))
    assert lengths.tolist() == [10]
    # The windows of the short streams stay whole.
    assert sorted(len(w) for w in windows(kept, 10))[0] == 10
