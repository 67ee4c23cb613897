"""Dense layers against NumPy, one layer after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fedjax_health.models.perceptron import Perceptron

KEY = jax.random.key(0)


def make(width, hidden, dropout=0.0, norm=False, *, seed=None):
    module = Perceptron(width, hidden, dropout, norm, rngs=nnx.Rngs(KEY))
    if seed is not None:
        rng = np.random.default_rng(seed)
        state = jax.tree.map(
            lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype),
            nnx.state(module),
        )
        nnx.update(module, state)
    return module


def x(*shape, seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("shape", [(7, 4), (5, 3, 4)])
def test_equals_the_formula(norm, shape):
    module, values = make(4, (6, 5), norm=norm, seed=2), x(*shape)
    want = np.asarray(values, np.float64)
    for layer in range(2):
        dense = getattr(module, f"dense_{layer}")
        want = want @ np.asarray(dense.kernel[...]) + np.asarray(dense.bias[...])
        if norm:
            scaled = getattr(module, f"norm_{layer}")
            want = want - want.mean(axis=-1, keepdims=True)
            want /= np.sqrt(want.var(axis=-1, keepdims=True) + 1e-6)
            want = want * np.asarray(scaled.scale[...]) + np.asarray(scaled.bias[...])
        want = np.maximum(want, 0)
    np.testing.assert_allclose(module(values), want, rtol=1e-4, atol=1e-4)


def test_no_layer_hands_on_what_it_reads():
    values = x(3, 4)
    np.testing.assert_array_equal(make(4, ())(values), values)


def test_weights_start_as_he_says_and_biases_at_zero():
    module = make(300, (400,))
    spread = float(jnp.std(module.dense_0.kernel[...]))
    np.testing.assert_allclose(spread, np.sqrt(2 / 300), rtol=0.03)
    assert not np.any(module.dense_0.bias[...])


def test_dropout_needs_a_key_and_each_layer_draws_its_own():
    module = make(3, (2000, 2000), dropout=0.25)
    # Rows of equal units, so that what is dropped is what is 0.
    ones = nnx.state(make(3, (2000, 2000)))
    ones = jax.tree.map(jnp.ones_like, ones)
    nnx.update(module, ones)
    values = jnp.ones((1, 3))
    still = module(values)
    assert (still == still[0, 0]).all()
    one, again = (module(values, key=KEY) for _ in range(2))
    np.testing.assert_array_equal(one, again)
    dropped = np.asarray(one[0] == 0)
    np.testing.assert_allclose(dropped.mean(), 0.25, atol=0.04)
    # What is kept is scaled up, in both layers: about the answer without dropout.
    kept = float(one[0][~dropped].mean()) * 0.75
    np.testing.assert_allclose(kept, still[0, 0], rtol=0.05)
    other = module(values, key=jax.random.key(1))
    assert (np.asarray(other[0] == 0) != dropped).any()
    first = make(3, (2000,), dropout=0.25)
    nnx.update(first, jax.tree.map(jnp.ones_like, nnx.state(first)))
    of_first = np.asarray(first(values, key=KEY)[0] == 0)
    assert (of_first != dropped).any()
