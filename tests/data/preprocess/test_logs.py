"""Columns on a log scale, value by value."""

import math

import numpy as np
import pytest

from fedjax_health.data.preprocess import apply_preprocessing, fit_preprocessing
from fedjax_health.data.preprocess.logs import apply_logs, match_columns
from fedjax_health.data.schema import DataError, Dataset


def make():
    rows = 6
    values = np.array([[0.0, -3], [1, 2], [9, 5], [99, -8], [3, 1], [7, 0]], np.float32)
    labs = np.array([[1], [np.nan], [50], [2], [3], [4]], np.float32)
    return Dataset(
        features={"flow": values, "labs": labs},
        feature_names={"flow": ("bytes", "trend"), "labs": ("lactate",)},
        label=np.array([0, 1, 0, 1, 0, 1], np.float32),
        attack=np.array([0, 1, 0, 1, 0, 1], np.int32),
        attack_names=("normal", "attack"),
        client=np.zeros(rows, np.int32),
        client_names=("a",),
        entity=np.zeros(rows, np.int64),
        time=np.arange(rows, dtype=float),
        masked=frozenset({"labs"}),
    )


def test_named_columns_are_logged_with_their_sign():
    dataset = make()
    found = apply_logs({"flow": ("trend",), "labs": ("lactate",)}, dataset)
    for row in range(dataset.num_rows):
        bytes_, trend = dataset.features["flow"][row]
        expected = math.copysign(math.log(1 + abs(trend)), trend)
        assert found.features["flow"][row, 0] == bytes_
        assert found.features["flow"][row, 1] == pytest.approx(expected)
    assert np.isnan(found.features["labs"][1, 0])
    # The rows that came in stay as they were.
    assert dataset.features["flow"][0, 1] == -3


def test_patterns_name_columns_with_or_without_their_modality():
    assert match_columns(make(), ["by*", "labs.*"]) == {
        "flow": ("bytes",),
        "labs": ("lactate",),
    }
    assert match_columns(make(), []) == {}


def test_a_pattern_without_a_column_is_refused():
    with pytest.raises(DataError, match="did you mean 'bytes'"):
        match_columns(make(), ["byte"])
    named = make()._replace(categories={"labs": {"lactate": ("x",)}})
    with pytest.raises(DataError, match="no numeric column"):
        match_columns(named, ["lactate"])


def test_the_scale_is_fitted_to_the_logged_values():
    preprocessing = fit_preprocessing(make(), log=["bytes"])
    column = apply_preprocessing(preprocessing, make()).features["flow"][:, 0]
    logged = np.log1p(make().features["flow"][:, 0])
    np.testing.assert_allclose(
        column, (logged - logged.mean()) / logged.std(), rtol=1e-5
    )
