"""Changes of unit are said, and nothing else is."""

import warnings

import numpy as np
import pandas as pd
import pytest

from fedjax_health.data.loaders.tabular import ColumnRoles, dataset_from_frame
from fedjax_health.data.schema import DataWarning


def table(seed=0, rows=400, clients=3):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "site": np.repeat([f"s{c}" for c in range(clients)], rows),
            "t": np.tile(np.arange(rows), clients),
            "glucose": rng.lognormal(4.8, 0.3, rows * clients),
            "temp": rng.normal(37, 0.5, rows * clients),
            "bytes": rng.lognormal(5, 2, rows * clients),
            "y": rng.integers(0, 2, rows * clients),
        }
    )


def load(frame, **fields):
    roles = ColumnRoles(label="y", client="site", time="t", **fields)
    return dataset_from_frame(frame, roles)


def said(frame, **fields) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load(frame, **fields)
    return [str(one.message) for one in caught if one.category is DataWarning]


@pytest.mark.parametrize("seed", range(5))
def test_one_unit_is_not_said(seed):
    frame = table(seed)
    # A sicker hospital, and patients that worsen, are no change of unit.
    frame.loc[frame.site == "s1", "glucose"] *= 1.5
    frame["glucose"] *= 1 + frame.t / 800
    frame.loc[(frame.site == "s2") & (frame.t > 200), "bytes"] *= 3
    assert said(frame) == []


@pytest.mark.parametrize(
    ("column", "change"),
    [("glucose", lambda v: v / 18.0), ("temp", lambda v: v * 1.8 + 32)],
)
def test_another_unit_at_one_client(column, change):
    frame = table()
    there = frame.site == "s1"
    frame.loc[there, column] = change(frame.loc[there, column])
    (message,) = said(frame)
    assert f"{column!r} of modality 'features'" in message
    assert "at client 's1'" in message
    assert "\n" not in message


@pytest.mark.parametrize("when", [60, 133, 200, 290, 350])
@pytest.mark.parametrize(
    ("column", "change"),
    [("glucose", lambda v: v / 18.0), ("temp", lambda v: v * 1.8 + 32)],
)
def test_another_unit_from_some_time_on(when, column, change):
    frame = table()
    there = (frame.site == "s2") & (frame.t >= when)
    frame.loc[there, column] = change(frame.loc[there, column])
    # The order of the file does not matter, nor do gaps.
    frame = frame.sample(frac=1, random_state=1)
    frame.loc[frame.index % 3 == 0, column] = np.nan
    messages = said(frame, allow_missing=True)
    assert len(messages) == 1
    assert f"{column!r}" in messages[0]
    assert "half way in time at client 's2'" in messages[0]


def test_several_columns_are_one_line():
    frame = table()
    there = frame.site == "s1"
    frame.loc[there, ["temp", "glucose"]] *= 9
    (message,) = said(frame)
    assert "1 more such places" in message


def test_few_values_categories_and_signs_are_left_alone():
    frame = table(rows=15)
    frame.loc[frame.site == "s1", "temp"] *= 9
    assert said(frame) == []
    frame = table()
    frame["temp"] *= np.where(frame.site == "s1", -9, -1)
    assert said(frame) == []
    frame = table()
    frame["kind"] = np.where(frame.site == "s1", "b", "a")
    assert said(frame, categorical=("kind",)) == []


def test_the_data_is_not_changed():
    frame = table()
    frame.loc[frame.site == "s1", "temp"] *= 9
    with pytest.warns(DataWarning):
        data = load(frame)
    column = data.feature_names["features"].index("temp")
    np.testing.assert_array_equal(
        data.features["features"][:, column], frame.temp.to_numpy(np.float32)
    )
