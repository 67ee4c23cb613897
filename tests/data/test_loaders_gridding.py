"""The grid of irregular observations against a slow loop over them."""

import numpy as np
import pytest

from fedjax_health.data.loaders.gridding import (
    clear_implausible,
    grid_observations,
    implausible,
)
from fedjax_health.data.schema import DataError


def slow_grid(entity, variable, seconds, value, shape, width, aggregate):
    entities, length, variables = shape
    grid = np.full(shape, np.nan, np.float32)
    for e in range(entities):
        for step in range(length):
            for v in range(variables):
                held = []
                for n in range(len(value)):
                    if (entity[n], variable[n]) != (e, v) or np.isnan(value[n]):
                        continue
                    low, high = step * width, (step + 1) * width
                    at_end = step == length - 1 and seconds[n] == high
                    if low <= seconds[n] < high or at_end:
                        held.append((seconds[n], n, value[n]))
                if held and aggregate == "last":
                    grid[e, step, v] = max(held)[2]
                elif held:
                    grid[e, step, v] = np.mean([one[2] for one in held])
    return grid


@pytest.mark.parametrize("aggregate", ["last", "mean"])
@pytest.mark.parametrize("seed", range(4))
def test_grid_equals_a_loop(aggregate, seed):
    rng = np.random.default_rng(seed)
    count = 120
    entity = rng.integers(0, 3, count)
    variable = rng.integers(0, 2, count)
    # Unsorted, with ties, before the origin and beyond the end.
    seconds = rng.integers(-3, 25, count).astype(float) * 5
    value = rng.normal(size=count)
    value[rng.random(count) < 0.1] = np.nan
    got = grid_observations(
        entity,
        variable,
        seconds,
        value,
        num_entities=3,
        num_variables=2,
        length=10,
        bin_seconds=10.0,
        aggregate=aggregate,
    )
    wanted = slow_grid(entity, variable, seconds, value, (3, 10, 2), 10.0, aggregate)
    assert got.dtype == np.float32
    assert np.isnan(wanted).any()
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


def one(seconds, value, **settings):
    settings = {"length": 2, "bin_seconds": 10.0, **settings}
    return grid_observations(
        np.zeros(len(value), int),
        np.zeros(len(value), int),
        np.asarray(seconds, float),
        np.asarray(value, float),
        num_entities=1,
        num_variables=1,
        **settings,
    )[0, :, 0].tolist()


def test_of_one_time_the_later_in_the_arrays_wins():
    assert one([5, 5, 15, 12], [1, 2, 3, 4]) == [2, 3]
    assert one([5, 5], [2, 1])[0] == 1


def test_a_missing_value_does_not_hide_an_earlier_one():
    assert one([1, 5], [7, np.nan])[0] == 7


def test_the_end_belongs_to_the_last_bin():
    assert one([10, 20], [1, 2]) == pytest.approx([np.nan, 2], nan_ok=True)
    assert one([20.5, np.nan], [1, 2]) == pytest.approx([np.nan] * 2, nan_ok=True)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"length": 0}, "length is 0"),
        ({"bin_seconds": 0.0}, "width of a bin"),
        ({"aggregate": "median"}, "'median'"),
    ],
)
def test_settings_out_of_range(settings, text):
    with pytest.raises(DataError, match=text):
        one([1], [1], **settings)


def test_values_outside_their_range_are_cleared():
    values = np.array([[7.4, 1.0], [73.0, np.nan], [6.9, 1e6]])
    cleared = clear_implausible(values, ("pH", "free"), {"pH": (6.3, 8)})
    np.testing.assert_array_equal(cleared, [[7.4, 1.0], [np.nan, np.nan], [6.9, 1e6]])
    bad = implausible(
        np.array([0, 0, 1]), np.array([73.0, 8, 73]), ("pH", "x"), {"pH": (6.3, 8)}
    )
    assert bad.tolist() == [True, False, False]
