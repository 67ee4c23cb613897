"""The detector of records against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_health.core.types import ModalityColumns
from fedjax_health.models import wide_deep

LAYOUT = (ModalityColumns("flow", (0, 2)), ModalityColumns("labs", (2, 4), (4, 6)))


def batch(examples=7):
    x = np.random.default_rng(0).normal(size=(examples, 6)).astype(np.float32) * 2
    x[:, 4:] = x[:, 4:] > 0
    return {"x": jnp.asarray(x)}


def np_inputs(x):
    """Value by value: values, squares and flags, modality by modality."""
    rows = []
    for row in np.asarray(x, np.float64):
        flow, labs, seen = row[:2], row[2:4], row[4:]
        squares = [min(max((v * v - 1) / 2**0.5, -3), 3) for v in (*flow, *labs)]
        rows.append([*flow, *squares[:2], *(labs * seen), *(squares[2:] * seen), *seen])
    return np.array(rows)


def test_logits_equal_numpy():
    model = wide_deep(LAYOUT, hidden=(3,))
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32),
        model.init(jax.random.key(0)),
    )
    x = np_inputs(batch()["x"])
    p = jax.tree.map(lambda v: np.asarray(v, np.float64), params)
    hidden = np.maximum(
        x @ p["deep"]["dense_0"]["kernel"] + p["deep"]["dense_0"]["bias"], 0
    )
    expected = x @ p["wide"]["kernel"] + p["wide"]["bias"]
    expected += hidden @ p["head"]["kernel"] + p["head"]["bias"]
    found = jax.jit(model.apply)(params, batch())
    np.testing.assert_allclose(found, expected[:, 0], rtol=1e-4, atol=1e-4)


def test_without_hidden_layers_it_is_linear():
    model = wide_deep(LAYOUT, hidden=())
    params = model.init(jax.random.key(0))
    assert set(params) == {"wide"}
    assert np.all(np.asarray(model.apply(params, batch())) == 0)


def test_what_was_not_observed_changes_nothing():
    model = wide_deep(LAYOUT, hidden=(4,))
    params = jax.tree.map(lambda p: p + 0.1, model.init(jax.random.key(0)))
    x = batch()["x"]
    other = x.at[:, 2:4].add(jnp.where(x[:, 4:] > 0, 0.0, 50.0))
    np.testing.assert_array_equal(
        model.apply(params, {"x": x}), model.apply(params, {"x": other})
    )


def test_a_key_drops_and_no_key_does_not():
    model = wide_deep(LAYOUT, hidden=(8,))
    params = jax.tree.map(lambda p: p + 0.1, model.init(jax.random.key(0)))
    plain = model.apply(params, batch())
    np.testing.assert_array_equal(plain, model.apply(params, batch()))
    dropped = [model.apply(params, batch(), key=jax.random.key(k)) for k in (1, 2)]
    assert not np.allclose(dropped[0], dropped[1])


def test_equal_settings_are_one_model_and_wrong_ones_are_refused():
    assert wide_deep(LAYOUT, hidden=[8]) is wide_deep(LAYOUT, hidden=(8,))
    for wrong in ({"hidden": (0,)}, {"dropout": 1.0}, {"input_dropout": -0.1}):
        with pytest.raises(ValueError, match="wide_deep"):
            wide_deep(LAYOUT, **wrong)
    model = wide_deep(LAYOUT)
    params = model.init(jax.random.key(0))
    with pytest.raises(ValueError, match="shape"):
        model.apply(params, {"x": jnp.zeros((2, 3, 6))})
