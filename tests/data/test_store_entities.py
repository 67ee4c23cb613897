"""Stays as examples, and gaps filled with what was last observed."""

import numpy as np
import pytest

from fedjax_health.core.types import ModalityColumns
from fedjax_health.data.schema import (
    DataError,
    Dataset,
    check_dataset,
    examples_of,
    last_rows,
    patients_of,
    select_modalities,
)
from fedjax_health.data.store import (
    assemble,
    from_dataset,
    input_layout,
    input_names,
    input_width,
)

LENGTHS = (3, 1, 6, 4)


def stays(*, target="entity"):
    """Four stays of two clients; half of the labs and the whole of stay 1 missing."""
    rng = np.random.default_rng(3)
    rows = sum(LENGTHS)
    labs = rng.normal(size=(rows, 2)).astype(np.float32)
    labs[rng.random((rows, 2)) < 0.5] = np.nan
    labs[3] = np.nan
    entity = np.repeat([0, 1, 0, 5], LENGTHS)
    return Dataset(
        features={
            "vitals": rng.normal(size=(rows, 1)).astype(np.float32),
            "labs": labs,
        },
        feature_names={"vitals": ("pulse",), "labs": ("sodium", "lactate")},
        label=np.repeat([0, 1, 1, 0], LENGTHS).astype(np.float32),
        attack=np.repeat([0, 1, 1, 0], LENGTHS).astype(np.int32),
        attack_names=("normal", "death"),
        client=np.repeat([0, 0, 1, 1], LENGTHS).astype(np.int32),
        client_names=("north", "south"),
        entity=entity.astype(np.int64),
        time=np.concatenate([np.arange(n, dtype=float) for n in LENGTHS]),
        masked=frozenset({"labs"}),
        carried=frozenset({"labs"}),
        target=target,
    )


def np_carried(dataset):
    """Row by row: the last value of the same stay, and log(1 + rows) since."""
    values = dataset.features["labs"]
    filled, elapsed = np.zeros_like(values), np.zeros_like(values)
    for column in range(values.shape[1]):
        row = 0
        for length in LENGTHS:
            last, since = 0.0, 0
            for step in range(length):
                value = values[row, column]
                since = since + 1 if step else 0
                if not np.isnan(value):
                    last, since = value, 0
                filled[row, column] = last
                elapsed[row, column] = np.log(1 + since)
                row += 1
    return filled, elapsed


def test_gaps_hold_the_last_observed_value_and_the_time_since():
    dataset = stays()
    x = assemble(dataset)
    filled, elapsed = np_carried(dataset)
    np.testing.assert_array_equal(x[:, :1], dataset.features["vitals"])
    np.testing.assert_array_equal(x[:, 1:3], filled)
    np.testing.assert_array_equal(x[:, 3:5], ~np.isnan(dataset.features["labs"]))
    np.testing.assert_allclose(x[:, 5:7], elapsed, rtol=1e-6)


def test_the_layout_says_where_each_column_lies():
    layout = input_layout(stays())
    assert layout == (
        ModalityColumns("vitals", (0, 1)),
        ModalityColumns("labs", (1, 3), (3, 5), (5, 7)),
    )
    assert input_width(layout) == 7
    assert input_names(stays())[-2:] == ("labs.sodium elapsed", "labs.lactate elapsed")
    alone = input_layout(select_modalities(stays(), ("labs",)))
    assert alone == (ModalityColumns("labs", (0, 2), (2, 4), (4, 6)),)


@pytest.mark.parametrize("window", [4, 6, 9])
@pytest.mark.parametrize("pad", [False, True])
def test_each_stay_is_one_example_that_ends_with_its_last_row(window, pad):
    dataset = stays()
    store = from_dataset(dataset, window=window, stride=2, pad=pad)
    assert store.offsets.tolist() == [0, 2, 4]
    x, first = assemble(dataset), 0
    for example, length in enumerate(LENGTHS):
        start = store.starts[example]
        rows = slice(start, start + window)
        kept = min(length, window)
        valid = store.rows["valid"][rows]
        assert valid.tolist() == [0] * (window - kept) + [1] * kept
        np.testing.assert_array_equal(
            store.rows["x"][rows][window - kept :],
            x[first + length - kept : first + length],
        )
        first += length


def test_a_stay_without_a_window_is_its_last_row():
    store = from_dataset(stays())
    assert store.window == 1
    np.testing.assert_array_equal(
        store.rows["x"][store.starts], assemble(stays())[last_rows(stays())]
    )


def test_rows_of_streams_are_cut_as_before():
    store = from_dataset(stays(target="row"), window=3, stride=1)
    assert store.offsets.tolist() == [0, 2, 8]


def test_extra_arrays_are_packed_beside_the_input():
    dataset = stays()
    weight = np.arange(1, dataset.num_rows + 1, dtype=np.float32)
    store = from_dataset(dataset, window=4, extra={"class_weight": weight})
    last = store.starts + 3
    np.testing.assert_array_equal(
        store.rows["class_weight"][last], weight[last_rows(dataset)]
    )
    assert store.rows["class_weight"][store.starts[1]] == 0


def test_examples_and_patients():
    dataset = stays()
    assert examples_of(dataset).label.tolist() == [0, 1, 1, 0]
    assert examples_of(stays(target="row")).num_rows == sum(LENGTHS)
    assert patients_of(dataset)[last_rows(dataset)].tolist() == [0, 1, 2, 3]
    named = dataset._replace(patient=np.repeat([7, 7, 9, 8], LENGTHS).astype(np.int64))
    assert patients_of(named)[last_rows(named)].tolist() == [0, 0, 2, 1]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"target": "stay"}, "target is 'stay'"),
        ({"label": np.eye(1, 14, 0, dtype=np.float32)[0]}, "label changes inside"),
        ({"carried": frozenset({"vitals"})}, "carried names 'vitals'"),
        ({"patient": np.zeros(14, np.int32)}, "patient is int32"),
        ({"categories": {"labs": {"ph": ("a",)}}}, "categories names column 'ph'"),
        ({"categories": {"vitals": {"pulse": ("a",)}}}, "no index into its 1 cat"),
    ],
)
def test_what_contradicts_itself_is_refused(changes, text):
    dataset = stays()._replace(**changes)
    if "label" in changes:
        dataset = dataset._replace(attack=dataset.label.astype(np.int32))
    with pytest.raises(DataError, match=text):
        check_dataset(dataset)
    check_dataset(stays())
