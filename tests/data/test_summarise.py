"""Stays as records, against a loop over their observations."""

import math

import numpy as np
import pytest

from fedjax_health.data.schema import DataError, Dataset, check_dataset
from fedjax_health.data.summarise import STATISTICS, summarise

LENGTHS = (5, 1, 4, 7)


def stays():
    rng = np.random.default_rng(2)
    rows = sum(LENGTHS)
    labs = rng.normal(size=(rows, 3)).astype(np.float32) * 10
    labs[rng.random(labs.shape) < 0.5] = np.nan
    labs[:5, 0] = np.nan
    labs[5, 1:] = (3, np.nan)
    static = np.repeat(rng.normal(size=(4, 1)), LENGTHS, axis=0).astype(np.float32)
    static[6:10] = np.nan
    label = np.repeat([0, 1, 1, 0], LENGTHS)
    return Dataset(
        features={"labs": labs, "static": static},
        feature_names={"labs": ("a", "b", "c"), "static": ("age",)},
        label=label.astype(np.float32),
        attack=label.astype(np.int32),
        attack_names=("normal", "death"),
        client=np.repeat([0, 0, 1, 1], LENGTHS).astype(np.int32),
        client_names=("north", "south"),
        entity=np.repeat([4, 7, 1, 2], LENGTHS).astype(np.int64),
        time=np.concatenate([np.arange(n, dtype=float) for n in LENGTHS]),
        masked=frozenset({"labs", "static"}),
        carried=frozenset({"labs"}),
        target="entity",
        patient=np.repeat([9, 9, 8, 7], LENGTHS).astype(np.int64),
    )


def np_statistic(name, rows):
    """One statistic of one variable of one stay; ``rows`` may hold NaN."""
    at = [t for t, x in enumerate(rows) if not math.isnan(x)]
    x = [float(rows[t]) for t in at]
    if name == "count":
        return math.log(1 + len(x))
    if not x:
        return math.nan
    mean = sum(x) / len(x)
    if name == "slope":
        middle = sum(at) / len(at)
        spread = sum((t - middle) ** 2 for t in at)
        if spread == 0:
            return math.nan
        return (
            sum((t - middle) * (v - mean) for t, v in zip(at, x, strict=True)) / spread
        )
    if name == "late":
        late = [v for t, v in zip(at, x, strict=True) if t >= len(rows) // 2]
        return sum(late) / len(late) if late else math.nan
    return {
        "last": x[-1],
        "first": x[0],
        "mean": mean,
        "min": min(x),
        "max": max(x),
        "std": math.sqrt(sum((v - mean) ** 2 for v in x) / len(x)),
        "since": math.log(1 + len(rows) - 1 - at[-1]),
    }[name]


def test_statistics_equal_a_loop():
    dataset = stays()
    found = summarise(dataset, statistics=STATISTICS)
    values, names = found.features["labs"], found.feature_names["labs"]
    assert names[:4] == ("a last", "b last", "c last", "a first")
    assert values.dtype == np.float32
    first = 0
    for stay, length in enumerate(LENGTHS):
        for column, name in enumerate(names):
            variable, statistic = name.split()
            rows = dataset.features["labs"][
                first : first + length, "abc".index(variable)
            ]
            np.testing.assert_allclose(
                values[stay, column],
                np_statistic(statistic, rows),
                rtol=1e-5,
                atol=1e-5,
                err_msg=f"{name} of stay {stay}",
            )
        first += length


def test_records_keep_everything_else():
    found = summarise(stays(), statistics=("mean",))
    check_dataset(found)
    assert found.num_rows == 4
    assert found.target == "row"
    assert found.carried == frozenset()
    assert found.label.tolist() == [0, 1, 1, 0]
    assert found.client.tolist() == [0, 0, 1, 1]
    assert found.patient is not None
    assert found.patient.tolist() == [9, 9, 8, 7]
    assert found.feature_names["static"] == ("age",)
    age = found.features["static"][:, 0]
    assert np.isnan(age).tolist() == [False, False, True, False]


def test_chosen_modalities_alone_are_summarised():
    found = summarise(stays(), statistics=("max", "min"), modalities=("static",))
    assert found.feature_names["static"] == ("age max", "age min")
    assert found.feature_names["labs"] == ("a", "b", "c")


@pytest.mark.parametrize(
    ("change", "arguments", "text"),
    [
        ({"target": "row"}, {}, "leave summarise out"),
        ({}, {"statistics": ("median",)}, "unknown statistic 'median'"),
        ({}, {"modalities": ("flow",)}, "modality 'flow'"),
        ({"categories": {"labs": {"a": ("x",)}}}, {}, "holds categories"),
    ],
)
def test_what_cannot_be_summarised_is_refused(change, arguments, text):
    with pytest.raises(DataError, match=text):
        summarise(stays()._replace(**change), **{"statistics": ("mean",), **arguments})
