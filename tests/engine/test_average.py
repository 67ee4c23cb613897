"""The running average of the global model against plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_health.engine.average import AverageState, averaged_params, averaging


def np_average(models, decay):
    average = models[0]
    for t, model in enumerate(models[1:], 2):
        keep = min(decay, (t - 1) / t)
        average = keep * average + (1 - keep) * model
    return average


@pytest.mark.parametrize("decay", [0.3, 0.9, 0.999])
def test_the_average_is_the_mean_of_the_first_rounds_then_exponential(decay):
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(3, 2)), jnp.float32), "own": None}
    optimizer = averaging(optax.sgd)(learning_rate=0.5, average_decay=decay)
    state = optimizer.init(params)
    models = []
    for _ in range(12):
        gradient = {"w": jnp.asarray(rng.normal(size=(3, 2)), jnp.float32), "own": None}
        change, state = jax.jit(optimizer.update)(gradient, state, params)
        np.testing.assert_allclose(change["w"], -0.5 * gradient["w"], rtol=1e-6)
        params = optax.apply_updates(params, change)
        models.append(np.asarray(params["w"], np.float64))
    found = averaged_params(params, state)
    np.testing.assert_allclose(found["w"], np_average(models, decay), atol=1e-5)


def test_without_an_average_the_model_itself_is_scored():
    params = {"w": jnp.ones(2)}
    assert averaged_params(params, optax.sgd(1.0).init(params)) is params


def test_one_constructor_makes_one_constructor():
    assert averaging(optax.adam) is averaging(optax.adam)
    state = averaging(optax.adam)(learning_rate=0.1, average_decay=0.5).init(
        {"w": jnp.ones(2)}
    )
    assert isinstance(state, AverageState)
