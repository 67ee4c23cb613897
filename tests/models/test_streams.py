import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_health.losses.supervised import masked_bce
from fedjax_health.models.detectors import gru_detector


def inputs(examples=4, steps=6, features=5, seed=0):
    values = np.random.default_rng(seed).normal(size=(examples, steps, features))
    return jnp.asarray(values, jnp.float32)


def test_equal_settings_give_the_same_functions():
    assert gru_detector(5) is gru_detector(5, hidden=48, dropout=0, norm=False)
    assert gru_detector(5).apply is gru_detector(np.int64(5)).apply
    assert gru_detector(5).apply is not gru_detector(5, hidden=47).apply
    assert gru_detector(5).apply is not gru_detector(5, norm=True).apply


def test_logits_equal_the_formula():
    model = gru_detector(5, hidden=3)
    params = model.init(jax.random.key(0))
    # Biases start at zero; moved, so that each one matters.
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    x = np.asarray(inputs(), np.float64)
    layer = {
        k: np.asarray(v, np.float64) for k, v in params["encoder"]["recurrent"].items()
    }
    h = np.zeros((4, 3))
    want = np.zeros((4, 6))
    for t in range(6):
        a = x[:, t] @ layer["wi"] + layer["bi"]
        b = h @ layer["wh"] + layer["bh"]
        r, z = (1 / (1 + np.exp(-(a + b)[:, i : i + 3])) for i in (0, 3))
        n = np.tanh(a[:, 6:] + r * b[:, 6:])
        h = (1 - z) * n + z * h
        want[:, t] = (h @ params["head"]["kernel"] + params["head"]["bias"])[:, 0]
    np.testing.assert_allclose(model.apply(params, {"x": inputs()}), want, atol=1e-5)


@pytest.mark.parametrize("norm", [False, True])
def test_initial_parameters(norm):
    params = gru_detector(5, hidden=8, norm=norm).init(jax.random.key(0))
    layer = params["encoder"]["recurrent"]
    assert layer["wi"].shape == (8 if norm else 5, 24)
    assert not np.any(params["head"]["bias"])
    assert not np.any(layer["bi"])
    assert not np.any(layer["bh"])
    for gate in np.split(np.asarray(layer["wh"]), 3, axis=1):
        np.testing.assert_allclose(gate @ gate.T, np.eye(8), atol=1e-5)
    gates = np.split(np.asarray(layer["wh"]), 3, axis=1)
    assert np.abs(gates[0] - gates[1]).max() > 0.1
    limit = np.sqrt(6 / (layer["wi"].shape[0] + 8))
    assert 0.8 * limit < np.abs(layer["wi"]).max() <= limit
    assert ("projection_norm" in params["encoder"]) == norm


@pytest.mark.parametrize("norm", [False, True])
def test_causal(norm):
    model = gru_detector(5, hidden=8, norm=norm)
    params = model.init(jax.random.key(0))
    before = model.apply(params, {"x": inputs()})
    after = model.apply(params, {"x": inputs().at[:, 3:].add(1.0)})
    assert before.shape == (4, 6)
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert float(jnp.abs(before[:, 3:] - after[:, 3:]).min()) > 0


def test_dropout_acts_with_a_key_only():
    model = gru_detector(5, hidden=8, dropout=0.5)
    params = model.init(jax.random.key(0))
    batch = {"x": inputs()}
    still = model.apply(params, batch)
    np.testing.assert_array_equal(
        still, gru_detector(5, hidden=8).apply(params, batch, key=jax.random.key(1))
    )
    dropped = model.apply(params, batch, key=jax.random.key(1))
    assert not np.allclose(still, dropped)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"features": 0}, "features=0"),
        ({"features": 5, "hidden": 0}, "hidden=0"),
        ({"features": 5, "dropout": 1.0}, "dropout=1.0"),
        ({"features": 5, "dropout": float("nan")}, "dropout=nan"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        gru_detector(**settings)


def test_inputs_of_another_width_are_refused():
    model = gru_detector(5)
    params = model.init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"time, 5\], not \(4, 6, 4\)"):
        model.apply(params, {"x": inputs(features=4)})


def test_learns_what_only_memory_can_tell():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(256, 12, 2)).astype(np.float32)
    label = np.zeros((256, 12), np.float32)
    label[:, 2:] = x[:, :-2, 0] > 0
    batch = {"x": jnp.asarray(x), "label": jnp.asarray(label)}
    model = gru_detector(2, hidden=16)
    loss_fn = masked_bce(model, burn_in=2)
    optimizer = optax.adam(0.02)

    def step(carry, key):
        params, state = carry
        grads, _ = jax.grad(loss_fn, has_aux=True)(params, batch, key)
        updates, state = optimizer.update(grads, state)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def train(params):
        keys = jax.random.split(jax.random.key(0), 150)
        return jax.lax.scan(step, (params, optimizer.init(params)), keys)[0][0]

    params = model.init(jax.random.key(0))
    before = loss_fn(params, batch, jax.random.key(0))[1]["accuracy"]
    after = loss_fn(train(params), batch, jax.random.key(0))[1]["accuracy"]
    assert float(before) < 0.65
    assert float(after) > 0.9
