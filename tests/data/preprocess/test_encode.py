"""Categories against a loop over cells that looks each name up."""

import numpy as np
import pytest

from fedjax_health.data.preprocess import unseen_categories
from fedjax_health.data.preprocess.encode import (
    MOST_CATEGORIES,
    encode,
    encoded_columns,
    fit_vocabulary,
)
from fedjax_health.data.schema import DataError
from tests.data.preprocess.made import COLOURS, made


def encoded_by_hand(values, names, labels, vocabulary):
    """[rows, columns]: one cell at a time."""
    rows = []
    for row in values:
        cells = []
        for value, name in zip(row, names, strict=True):
            if name not in vocabulary:
                cells.append(value)
                continue
            for category in vocabulary[name]:
                if np.isnan(value):
                    cells.append(np.nan)
                else:
                    cells.append(float(labels[name][int(value)] == category))
        rows.append(cells)
    return np.asarray(rows, np.float32)


def test_encoding_equals_the_loop():
    data = made()
    vocabulary = fit_vocabulary(data)
    # Sorted by name; what no training row holds is no category.
    assert vocabulary == {
        "notes": {"colour": ("blue", "green", "red"), "shape": ("10", "9", "round")}
    }
    encoded = encode(vocabulary, data)
    assert encoded.feature_names["notes"] == (
        "dose",
        "colour=blue",
        "colour=green",
        "colour=red",
        "shape=10",
        "shape=9",
        "shape=round",
    )
    expected = encoded_by_hand(
        data.features["notes"],
        data.feature_names["notes"],
        data.categories["notes"],
        vocabulary["notes"],
    )
    np.testing.assert_array_equal(encoded.features["notes"], expected)
    assert encoded.features["notes"].dtype == np.float32
    assert not encoded.categories
    assert encoded.features["flow"] is data.features["flow"]
    assert encoded_columns(vocabulary)["notes"] == encoded.feature_names["notes"][1:]


def test_categories_are_matched_by_name():
    data = made()
    vocabulary = fit_vocabulary(data)
    other = ("violet", *reversed(COLOURS))
    codes = data.features["notes"].copy()
    codes[:, 1] = len(other) - 1 - codes[:, 1]
    renumbered = data._replace(
        features={**data.features, "notes": codes},
        categories={"notes": {**data.categories["notes"], "colour": other}},
    )
    np.testing.assert_array_equal(
        encode(vocabulary, renumbered).features["notes"],
        encode(vocabulary, data).features["notes"],
    )
    assert unseen_categories(vocabulary, renumbered) == {}


def test_a_category_that_training_never_saw_is_none_of_the_known():
    data = made(missing=0)
    vocabulary = fit_vocabulary(data)
    data.features["notes"][:7, 1] = 3
    data.features["notes"][7, 1] = np.nan
    encoded = encode(vocabulary, data).features["notes"][:8, 1:4]
    assert not encoded[:7].any()
    assert np.isnan(encoded[7]).all()
    assert unseen_categories(vocabulary, data) == {"notes.colour": {"never": 7}}


def test_the_union_over_the_clients_is_known():
    data = made(missing=0)
    data.features["notes"][:, 1] = data.client
    assert fit_vocabulary(data)["notes"]["colour"] == ("blue", "green", "red")


def test_a_column_that_names_records_is_refused():
    data = made(sizes=(400, 20), missing=0)
    names = tuple(f"record {index}" for index in range(420))
    data.features["notes"][:, 1] = np.arange(420)
    data = data._replace(
        categories={"notes": {**data.categories["notes"], "colour": names}}
    )
    with pytest.raises(DataError, match=f"'colour'.*420 .*more than {MOST_CATEGORIES}"):
        fit_vocabulary(data)


def test_columns_that_would_be_one():
    data = made()
    data = data._replace(
        feature_names={**data.feature_names, "notes": ("colour=red", "colour", "shape")}
    )
    with pytest.raises(DataError, match="two columns named 'colour=red'"):
        fit_vocabulary(data)


def test_a_modality_without_any_value():
    data = made()
    data = data._replace(
        features={**data.features, "notes": np.full((125, 1), np.nan, np.float32)},
        feature_names={**data.feature_names, "notes": ("colour",)},
        categories={"notes": {"colour": COLOURS}},
    )
    with pytest.raises(DataError, match="'notes' has no value in training"):
        fit_vocabulary(data)
