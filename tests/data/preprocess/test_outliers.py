"""Fences against np.nanpercentile, one client and one column at a time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_health.data.preprocess import apply_fences, fit_fences
from fedjax_health.data.preprocess.outliers import LEAST_VALUES
from fedjax_health.data.schema import DataError
from tests.data.preprocess.made import made


def plain(sizes=(60, 40, 25), **options):
    return made(sizes, **options)._replace(categories={})


def fences_by_hand(values, client, num_clients, width):
    lower = np.full((num_clients, values.shape[1]), -np.inf)
    upper = np.full((num_clients, values.shape[1]), np.inf)
    for column in range(values.shape[1]):
        known = []
        for index in range(num_clients):
            own = values[client == index, column].astype(np.float64)
            own = own[~np.isnan(own)]
            if len(own) < LEAST_VALUES:
                continue
            known.append(index)
            first, third = np.percentile(own, [25, 75])
            if third > first:
                lower[index, column] = first - width * (third - first)
                upper[index, column] = third + width * (third - first)
        fenced = [i for i in known if np.isfinite(lower[i, column])]
        for index in set(range(num_clients)) - set(known):
            if fenced:
                lower[index, column] = lower[fenced, column].mean()
                upper[index, column] = upper[fenced, column].mean()
    return lower, upper


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=5),
    seed=st.integers(0, 99),
    width=st.sampled_from([0.5, 3.0]),
    missing=st.sampled_from([0.0, 0.4]),
)
def test_fit_and_apply_equal_the_loop(sizes, seed, width, missing):
    data = plain((10, *sizes), seed=seed, missing=missing)
    data.features["flow"][data.client == 0, 2] = 5.0
    clipped = apply_fences(fit_fences(data, width=width), data)
    for name, values in data.features.items():
        lower, upper = fences_by_hand(values, data.client, data.num_clients, width)
        expected = np.clip(values, lower[data.client], upper[data.client])
        np.testing.assert_allclose(clipped.features[name], expected, rtol=1e-6)
        np.testing.assert_array_equal(
            np.isnan(clipped.features[name]), np.isnan(values)
        )


def test_outliers_can_be_missing():
    data = plain(missing=0)
    data.features["notes"][3, 0] = 1e6
    data.features["flow"][3, 0] = 1e6
    fences = fit_fences(data, action="missing", modalities=("notes",))
    filtered = apply_fences(fences, data)
    assert np.isnan(filtered.features["notes"][3, 0])
    assert filtered.features["flow"][3, 0] == 1e6
    with pytest.raises(DataError, match="'flow', which was declared complete"):
        fit_fences(data, action="missing")


def test_outliers_do_not_move_their_fence():
    data = plain(missing=0)
    calm = fit_fences(data)
    data.features["flow"][:5] = 1e9
    wild = fit_fences(data)
    assert wild.upper["flow"][0].max() < 3 * calm.upper["flow"][0].max() + 10
    assert apply_fences(wild, data).features["flow"].max() < 1e3


def test_columns_that_are_left_and_rare_values_have_no_fence():
    data = plain(missing=0)
    data.features["flow"][:, 1] = 0
    data.features["flow"][::10, 1] = 100
    data.features["flow"][0, 0] = 1e6
    kept = apply_fences(fit_fences(data, leave={"flow": ("a",)}), data)
    np.testing.assert_array_equal(
        kept.features["flow"][:, :2], data.features["flow"][:, :2]
    )


def test_unseen_clients_have_the_average_fences():
    data = plain(missing=0)
    fences = fit_fences(data)
    new = data._replace(client_names=("ward 1", "ward 9", "ward 0"))
    new.features["flow"][:] = 1e6
    clipped = apply_fences(fences, new).features["flow"]
    upper = fences.upper["flow"]
    for client, expected in enumerate((upper[1], upper.mean(axis=0), upper[0])):
        own = clipped[data.client == client]
        np.testing.assert_allclose(own, np.broadcast_to(expected, own.shape), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"action": "drop"}, "action is 'drop'"),
        ({"width": 0}, "width is 0"),
        ({"width": float("inf")}, "width is inf"),
        ({"modalities": ("iot",)}, "modality 'iot'; the data has notes, flow"),
    ],
)
def test_refusals(options, expected):
    with pytest.raises(DataError, match=expected):
        fit_fences(plain(), **options)
