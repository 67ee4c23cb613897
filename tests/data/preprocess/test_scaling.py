"""Scaling against np.nanmean and np.nanstd, one client and one column at a time."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_health.data.preprocess import apply_scaler, check_features, fit_scaler
from fedjax_health.data.schema import DataError, Dataset, DataWarning, take_rows


def made(sizes, *, seed=0, missing=0.1):
    generator = np.random.default_rng(seed)
    num_rows = sum(sizes)
    client = np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)
    shift = generator.normal(size=(len(sizes), 3)) * 1e4
    vitals = generator.normal(size=(num_rows, 3)) * [1, 50, 1e-3] + shift[client]
    flow = generator.exponential(size=(num_rows, 2))
    vitals[generator.random(vitals.shape) < missing] = np.nan
    flow[generator.random(flow.shape) < missing] = np.nan
    label = (generator.random(num_rows) < 0.3).astype(np.float32)
    return Dataset(
        features={"vitals": vitals.astype(np.float32), "flow": flow.astype(np.float32)},
        feature_names={"vitals": ("a", "b", "c"), "flow": ("d", "e")},
        label=label,
        attack=label.astype(np.int32),
        attack_names=("normal", "attack"),
        client=client,
        client_names=tuple(f"ward {index}" for index in range(len(sizes))),
        entity=np.zeros(num_rows, np.int64),
        time=np.arange(num_rows, dtype=np.float64),
    )


def statistics_by_hand(values, client, num_clients):
    """[clients, features] means and deviations with the documented exceptions."""
    num_features = values.shape[1]
    mean = np.zeros((num_clients, num_features))
    std = np.ones((num_clients, num_features))
    for column in range(num_features):
        known, varied = [], []
        for index in range(num_clients):
            own = values[client == index, column].astype(np.float64)
            own = own[~np.isnan(own)]
            if len(own) < 2:
                continue
            known.append(index)
            mean[index, column] = np.mean(own)
            if own.min() < own.max():
                varied.append(index)
                std[index, column] = np.std(own)
        if not varied:
            std[:, column] = np.inf
        if np.isnan(values[:, column]).all():
            mean[:, column] = np.nan
        for index in set(range(num_clients)) - set(known):
            if known:
                mean[index, column] = np.mean(mean[known, column])
            if varied:
                std[index, column] = np.mean(std[varied, column])
    return mean, std


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=6),
    seed=st.integers(0, 999),
    missing=st.sampled_from([0.0, 0.3, 0.95]),
)
def test_fit_equals_the_loop(sizes, seed, missing):
    if sum(sizes) == 0:
        sizes = [*sizes, 3]
    data = made(sizes, seed=seed, missing=missing)
    data.features["flow"][data.client == 0, 0] = 0.1
    scaler = fit_scaler(data)
    for name, values in data.features.items():
        mean, std = statistics_by_hand(values, data.client, data.num_clients)
        np.testing.assert_allclose(scaler.mean[name], mean, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(scaler.std[name], std, rtol=1e-9)
        assert scaler.mean[name].dtype == np.float64


def test_plain_columns_are_nanmean_and_nanstd():
    data = made([400, 90])
    scaler = fit_scaler(data)
    for name, values in data.features.items():
        for client in range(2):
            own = values[data.client == client].astype(np.float64)
            np.testing.assert_allclose(
                scaler.mean[name][client], np.nanmean(own, axis=0), rtol=1e-12
            )
            np.testing.assert_allclose(
                scaler.std[name][client], np.nanstd(own, axis=0), rtol=1e-9
            )


@pytest.mark.parametrize("seed", range(4))
def test_pooled_is_that_of_all_rows_and_of_the_sums(seed):
    data = made([40, 0, 7, 1], seed=seed)
    scaler = fit_scaler(data, scope="pooled")
    assert scaler.client_names == ()
    for name, values in data.features.items():
        exact = values.astype(np.longdouble)
        mean, std = np.nanmean(exact, axis=0), np.nanstd(exact, axis=0)
        np.testing.assert_allclose(scaler.mean[name][0], mean, rtol=1e-12)
        np.testing.assert_allclose(scaler.std[name][0], std, rtol=1e-9)
        count = total = squares = 0
        for client in range(data.num_clients):
            own = exact[data.client == client]
            count = count + (~np.isnan(own)).sum(axis=0)
            total = total + np.nansum(own, axis=0)
            squares = squares + np.nansum(own**2, axis=0)
        np.testing.assert_allclose(scaler.mean[name][0], total / count, rtol=1e-12)
        variance = squares / count - (total / count) ** 2
        np.testing.assert_allclose(scaler.std[name][0] ** 2, variance, rtol=1e-6)


@pytest.mark.parametrize("scope", ["client", "pooled"])
def test_apply_equals_the_formula(scope):
    data = made([500, 80])
    data.features["vitals"][3, 0] = 3e38
    scaler = fit_scaler(take_rows(data, np.arange(10, 580)), scope=scope)
    scaled = apply_scaler(scaler, data, clip=2.5)
    for name, values in data.features.items():
        row = np.zeros_like(data.client) if scope == "pooled" else data.client
        expected = (values - scaler.mean[name][row]) / scaler.std[name][row]
        expected = np.minimum(np.maximum(expected, -2.5), 2.5)
        assert scaled.features[name].dtype == np.float32
        np.testing.assert_allclose(scaled.features[name], expected, rtol=1e-6)
        np.testing.assert_array_equal(np.isnan(scaled.features[name]), np.isnan(values))
    assert scaled.features["vitals"][3, 0] == 2.5
    assert data.features["vitals"][3, 0] == np.float32(3e38)


def test_scaled_training_part_is_standard():
    data = made([3000, 2000])
    scaled = apply_scaler(fit_scaler(data), data, clip=50)
    for values in scaled.features.values():
        for client in range(2):
            own = values[data.client == client].astype(np.float64)
            np.testing.assert_allclose(np.nanmean(own, axis=0), 0, atol=1e-4)
            np.testing.assert_allclose(np.nanstd(own, axis=0), 1, atol=1e-4)


def test_long_tables_are_scaled_in_chunks():
    data = made([70_000, 70_000])
    scaled = apply_scaler(fit_scaler(data), data)
    tail = take_rows(data, np.arange(139_990, 140_000))
    again = apply_scaler(fit_scaler(data), tail)
    for name in data.features:
        np.testing.assert_array_equal(scaled.features[name][-10:], again.features[name])


def test_constant_columns_become_zero():
    data = made([100, 100], missing=0)
    # Not a sum of powers of two: its mean in floating point misses it by rounding.
    data.features["flow"][:, 0] = 0.1
    scaler = fit_scaler(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not apply_scaler(scaler, data).features["flow"][:, 0].any()


def test_a_column_that_is_constant_at_one_client_has_deviation_one_there():
    data = made([100, 100], missing=0)
    data.features["flow"][:100, 0] = 0.1
    scaler = fit_scaler(data)
    assert scaler.std["flow"][0, 0] == 1
    assert np.isfinite(scaler.std["flow"]).all()
    data.features["flow"][0, 0] = 2.1
    assert apply_scaler(scaler, data).features["flow"][0, 0] == pytest.approx(2)


@pytest.mark.parametrize("scope", ["client", "pooled"])
def test_columns_that_never_varied_are_not_used_later(scope):
    data = made([100, 60], missing=0)
    data.features["flow"][:, 0] = 0.1
    data.features["vitals"][:, 1] = np.nan
    scaler = fit_scaler(data, scope=scope)
    new = made([5, 5, 5], seed=1, missing=0)
    new.features["flow"][:, 0] = [500.0] * 14 + [np.nan]
    new.features["vitals"][:, 1] = 500
    with pytest.warns(DataWarning) as caught:
        scaled = apply_scaler(scaler, new)
    said = sorted(str(one.message) for one in caught)
    assert len(said) == 2
    assert "modality 'flow': columns that varied at no client" in said[0]
    assert said[0].endswith("not used: 'd'")
    assert "modality 'vitals'" in said[1]
    assert said[1].endswith("not used: 'b'")
    assert scaled.features["flow"][:14, 0].tolist() == [0] * 14
    assert np.isnan(scaled.features["flow"][14, 0])
    assert np.isnan(scaled.features["vitals"][:, 1]).all()
    assert np.isfinite(scaled.features["vitals"][:, [0, 2]]).all()
    assert scaled.features["flow"][:, 1].all()


def test_one_value_at_each_client_gives_no_scale():
    data = made([1, 1, 1], missing=0)
    with pytest.warns(DataWarning, match="varied at no client"):
        scaled = apply_scaler(fit_scaler(data), data)
    assert not any(values.any() for values in scaled.features.values())


def test_unseen_clients_take_the_average():
    data = made([100, 60, 40], missing=0)
    scaler = fit_scaler(data)
    new = data._replace(client_names=("ward 2", "ward 9", "ward 0"))
    scaled = apply_scaler(scaler, new, clip=1e9)
    for name, values in data.features.items():
        mean = np.vstack([scaler.mean[name], scaler.mean[name].mean(axis=0)])
        std = np.vstack([scaler.std[name], scaler.std[name].mean(axis=0)])
        row = np.array([2, 3, 0])[data.client]
        np.testing.assert_allclose(
            scaled.features[name], (values - mean[row]) / std[row], rtol=2e-5
        )


def test_columns_must_match():
    data = made([30])
    scaler = fit_scaler(data)
    check_features(scaler, data)

    def refused(**names):
        other = data._replace(feature_names=names)
        with pytest.raises(DataError) as caught:
            apply_scaler(scaler, other)
        return str(caught.value)

    assert "no modality 'flow'" in refused(vitals=("a", "b", "c"))
    message = refused(vitals=("a", "b", "x"), flow=("d", "e"))
    assert "missing columns ['c'], unknown columns ['x']" in message
    message = refused(vitals=("a", "c", "b"), flow=("d", "e"))
    assert "column 2 is 'c', the scaler expects 'b'" in message
    message = refused(vitals=("a", "b", "c"), flow=("d", "e"), notes=("n",))
    assert "knows no modality 'notes'" in message


@pytest.mark.parametrize("clip", [0, -1, float("nan")])
def test_clip_must_be_positive(clip):
    data = made([10])
    with pytest.raises(DataError, match="clip is"):
        apply_scaler(fit_scaler(data), data, clip=clip)


def test_fit_refuses():
    data = made([10])
    with pytest.raises(DataError, match="scope is 'all'"):
        fit_scaler(data, scope="all")
    with pytest.raises(DataError, match="no training rows"):
        fit_scaler(take_rows(data, np.arange(0)))
