"""Sizes and shares of a handful of rows, counted by hand."""

import numpy as np
import pytest

from fedjax_health.data.preprocess import summary
from fedjax_health.data.schema import Dataset, take_rows


def test_summary():
    label = np.array([0, 1, 1, 0, 0, 0, 0, 1, 1], np.float32)
    data = Dataset(
        features={"flow": np.zeros((9, 1), np.float32)},
        feature_names={"flow": ("a",)},
        label=label,
        attack=label.astype(np.int32),
        attack_names=("normal", "attack"),
        client=np.repeat(np.arange(4), [4, 3, 0, 2]).astype(np.int32),
        client_names=("ward 0", "ward 1", "ward 2", "ward 3"),
        entity=np.zeros(9, np.int64),
        time=np.arange(9, dtype=np.float64),
    )
    report = summary(data)
    assert report.num_rows == 9
    assert report.num_clients == 4
    assert report.prevalence == pytest.approx(4 / 9)
    assert report.rows_per_client.tolist() == [4, 3, 0, 2]
    assert report.positives_per_client.tolist() == [2, 0, 0, 2]
    assert report.prevalence_per_client.tolist() == [0.5, 0, 0, 1]
    assert report.single_class_clients == ("ward 1", "ward 3")
    assert report.empty_clients == ("ward 2",)
    assert report.rows_per_attack == {"normal": 5, "attack": 4}
    empty = summary(take_rows(data, np.arange(0)))
    assert empty.prevalence == 0
    assert empty.single_class_clients == ()
