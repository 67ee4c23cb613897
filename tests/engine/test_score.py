"""Scores of stores, row by row against the model alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_health.core.types import Detection, Model
from fedjax_health.data.schema import Dataset
from fedjax_health.data.store import from_arrays, from_dataset, open_store, write_store
from fedjax_health.engine.score import (
    CHUNK,
    attributions,
    build_reader,
    build_scorer,
    reading,
)
from fedjax_health.models import gru_detector

WINDOW = 4


def _apply_rows(params, batch, *, key=None):
    del key
    return jnp.sum(jnp.tanh(batch["x"] * params["w"]), axis=-1) + params["b"]


def _apply_streams(params, batch, *, key=None):
    """A leaky sum over the valid steps: later logits depend on earlier steps."""
    del key
    inputs = jnp.sum(batch["x"] * params["w"], axis=-1) * batch["valid"]
    decay = 0.5 ** jnp.arange(WINDOW)
    lags = jnp.arange(WINDOW)[:, None] - jnp.arange(WINDOW)
    kernel = jnp.where(lags >= 0, decay[jnp.maximum(lags, 0)], 0.0)
    return jnp.sum(inputs[:, None, :] * kernel, axis=-1) + params["b"]


ROWS_MODEL = Model(lambda key: make_params(), _apply_rows)
STREAM_MODEL = Model(lambda key: make_params(), _apply_streams)
LENGTHS = (1, 9, 2, 300, 40)


def make_params(shift=0.0):
    return {"w": jnp.array([0.6, -0.4, 0.2]), "b": jnp.float32(0.1 + shift)}


def row_store(rows=1000, seed=0):
    x = np.random.default_rng(seed).normal(size=(rows, 3)).astype(np.float32)
    return from_arrays({"x": x}, np.array([0, rows]))


def stream_dataset():
    rows = sum(LENGTHS)
    x = np.random.default_rng(1).normal(size=(rows, 3)).astype(np.float32)
    return Dataset(
        features={"flow": x},
        feature_names={"flow": ("a", "b", "c")},
        label=np.zeros(rows, np.float32),
        attack=np.zeros(rows, np.int32),
        attack_names=("normal",),
        client=np.repeat([0, 0, 1, 1, 2], LENGTHS).astype(np.int32),
        client_names=("u", "v", "w"),
        entity=np.repeat(np.arange(5), LENGTHS).astype(np.int64),
        time=np.arange(rows, dtype=float),
    )


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def np_rows(store, shift=0.0):
    params = jax.device_get(make_params(shift))
    x = np.asarray(store.rows["x"], np.float64)
    return sigmoid(np.tanh(x * params["w"]).sum(1) + params["b"])


def np_streams(dataset):
    """The leaky sum of at most the last WINDOW rows of a row's own stream."""
    params = jax.device_get(make_params())
    inputs = dataset.features["flow"].astype(np.float64) @ params["w"]
    scores, first = [], 0
    for length in LENGTHS:
        for row in range(first, first + length):
            start = max(first, row - WINDOW + 1)
            terms = [inputs[i] * 0.5 ** (row - i) for i in range(start, row + 1)]
            scores.append(sum(terms) + params["b"])
        first += length
    return sigmoid(scores)


@pytest.mark.parametrize("rows", [1, CHUNK - 1, CHUNK, CHUNK + 1, 1000])
def test_a_score_is_the_models_probability_of_its_row(rows):
    store = row_store(rows)
    scores = build_scorer(ROWS_MODEL, store)(make_params())
    assert scores.shape == (rows,)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, np_rows(store), rtol=1e-5)


def test_padded_windows_score_every_row_from_the_start_of_its_stream():
    dataset = stream_dataset()
    store = from_dataset(dataset, window=WINDOW, pad=True)
    scores = build_scorer(STREAM_MODEL, store)(make_params())
    np.testing.assert_allclose(scores, np_streams(dataset), rtol=1e-5)


def test_any_number_of_devices_gives_the_same_bits(meshes):
    dataset = stream_dataset()
    cases = [
        (ROWS_MODEL, row_store()),
        (STREAM_MODEL, from_dataset(dataset, window=WINDOW, pad=True)),
    ]
    for model, store in cases:
        alone = build_scorer(model, store)(make_params())
        for mesh in meshes.values():
            spread = build_scorer(model, store, mesh)(make_params())
            assert spread.tobytes() == alone.tobytes()


@pytest.mark.parametrize("devices", [1, 4])
def test_a_range_scores_as_the_whole_does(devices, meshes):
    score = build_scorer(ROWS_MODEL, row_store(), meshes[devices])
    whole = score(make_params())
    for first, count in [(0, 10), (990, 10), (990, None), (3, 600), (999, 1)]:
        part = score(make_params(), first, count)
        end = 1000 if count is None else first + count
        assert part.tobytes() == whole[first:end].tobytes()


@pytest.mark.parametrize("devices", [1, 4])
def test_nothing_has_no_scores(devices, meshes):
    score = build_scorer(ROWS_MODEL, row_store(), meshes[devices])
    for first, count in [(5, 0), (1000, None), (1000, 0)]:
        assert score(make_params(), first, count).shape == (0,)
    empty = build_scorer(ROWS_MODEL, row_store(0), meshes[devices])
    scores = empty(make_params())
    assert scores.shape == (0,)
    assert scores.dtype == np.float32


@pytest.mark.parametrize(
    ("first", "count"), [(-1, 2), (0, 1001), (999, 2), (1001, None), (4, -1)]
)
def test_a_range_outside_the_store_is_refused(first, count):
    score = build_scorer(ROWS_MODEL, row_store())
    with pytest.raises(ValueError, match="outside the store, which has 1,000"):
        score(make_params(), first, count)


def test_other_parameters_do_not_compile_again():
    traces = []

    def apply(params, batch, *, key=None):
        traces.append(1)
        return _apply_rows(params, batch, key=key)

    model = Model(lambda key: make_params(), apply)
    score = build_scorer(model, row_store())
    score(make_params())
    first = len(traces)
    for shift in (0.5, -2.0):
        np.testing.assert_allclose(
            score(make_params(shift)), np_rows(row_store(), shift), rtol=1e-5
        )
    # Another store of like shape shares the program too.
    build_scorer(model, row_store(seed=9))(make_params())
    assert len(traces) == first


def test_a_written_store_scores_alike(tmp_path):
    store = from_dataset(stream_dataset(), window=WINDOW, pad=True)
    write_store(store, tmp_path / "store")
    opened = open_store(tmp_path / "store")
    a = build_scorer(STREAM_MODEL, store)(make_params())
    b = build_scorer(STREAM_MODEL, opened)(make_params())
    assert a.tobytes() == b.tobytes()


# What each column adds to the logit


def _apply_linear(params, batch, *, key=None):
    del key
    return batch["x"] @ params["w"] + params["b"]


def _apply_linear_windows(params, batch, *, key=None):
    """The logit of a step is the decayed sum of those up to it; another comes first."""
    del key
    each = batch["x"] @ params["w"]
    decay = 0.5 ** jnp.arange(each.shape[1])
    lags = jnp.arange(each.shape[1])[:, None] - jnp.arange(each.shape[1])
    kernel = jnp.where(lags >= 0, decay[jnp.maximum(lags, 0)], 0.0)
    logits = jnp.sum(each[:, None, :] * kernel, axis=-1) + params["b"]
    return Detection(logits, {}, {}, shares=jnp.zeros((*logits.shape, 2)))


def test_a_linear_detector_is_what_its_columns_add_up_to():
    store, params = row_store(rows=50), jax.device_get(make_params())
    model = Model(lambda key: make_params(), _apply_linear)
    found = build_reader(model, store, read=attributions)(params, np.arange(50))
    np.testing.assert_allclose(found, store.rows["x"] * params["w"], rtol=1e-6)
    logit = store.rows["x"] @ params["w"] + params["b"]
    np.testing.assert_allclose(found.sum(axis=1) + params["b"], logit, rtol=1e-5)


def test_attributions_are_summed_over_the_window():
    data, params = stream_dataset(), jax.device_get(make_params())
    store = from_dataset(data, window=WINDOW, pad=True)
    model = Model(lambda key: make_params(), _apply_linear_windows)
    some = np.arange(5, 80)
    found = build_reader(model, store, read=attributions)(params, some)
    assert found.shape == (len(some), 3)
    rows = store.starts[some][:, None] + np.arange(WINDOW)
    decay = 0.5 ** np.arange(WINDOW)[::-1]
    windows = store.rows["x"][rows].astype(np.float64)
    want = np.einsum("t,etf->ef", decay, windows) * params["w"]
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)
    logit = build_reader(model, store, read=reading)(params, some)
    bits = np.log(logit.probability / (1 - logit.probability))
    np.testing.assert_allclose(found.sum(axis=1) + params["b"], bits, rtol=1e-3)


def test_attributions_are_the_slope_times_the_input():
    """Of a GRU, against one column of one step moved at a time."""
    model = gru_detector(3, hidden=4)
    rng = np.random.default_rng(2)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.5, leaf.shape), leaf.dtype),
        jax.eval_shape(model.init, jax.random.key(0)),
    )
    x = rng.normal(size=(4, WINDOW, 3)).astype(np.float32)
    valid = np.ones((4, WINDOW), np.float32)
    valid[0, :2] = 0
    apply = jax.jit(lambda x: model.apply(params, {"x": x, "valid": valid})[:, -1])
    want = np.zeros((4, 3))
    for step in range(WINDOW):
        for column in range(3):
            move = np.zeros_like(x)
            move[:, step, column] = 0.02
            slope = (apply(x + move) - apply(x - move)) / 0.04
            want[:, column] += np.asarray(slope) * x[:, step, column]
    batch = {"x": jnp.asarray(x), "valid": jnp.asarray(valid)}
    found = attributions(model.apply, params, batch)
    np.testing.assert_allclose(found, want, atol=2e-3)
    assert np.abs(want).max() > 0.1
