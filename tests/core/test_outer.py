"""Factored gradients against the gradients themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_health.core.outer import example_gradients

EXAMPLES, WIDTH, HIDDEN = 6, 5, 7


def params_of():
    rng = np.random.default_rng(0)
    shapes = {"w": (WIDTH, HIDDEN), "b": (HIDDEN,), "v": (HIDDEN, 1), "s": (WIDTH,)}
    return {
        name: jnp.asarray(rng.normal(size=shape), jnp.float32)
        for name, shape in shapes.items()
    }


def examples_of(shape=(WIDTH,)):
    rng = np.random.default_rng(1)
    return {
        "x": jnp.asarray(rng.normal(size=(EXAMPLES, *shape)), jnp.float32),
        "y": jnp.asarray(rng.normal(size=EXAMPLES), jnp.float32),
    }


def dense(params, example):
    hidden = jax.nn.relu(example["x"][None] @ params["w"] + params["b"])
    error = (hidden @ params["v"])[0, 0] - example["y"]
    return error**2 + jnp.sum(params["s"] * example["x"]), {"error": error}


def decayed(params, example):
    value, extra = dense(params, example)
    return value + 0.1 * jnp.sum(params["w"] ** 2), extra


def used_twice(params, example):
    value, extra = dense(params, example)
    return value + jnp.sum((2 * example["x"][None]) @ params["w"]), extra


def over_time(params, example):
    hidden = jnp.tanh(example["x"] @ params["w"] + params["b"])
    error = jnp.mean(hidden @ params["v"]) - example["y"]
    return error**2, {"error": error}


def transposed(params, example):
    hidden = jnp.tanh(jnp.einsum("if,xi->xf", params["w"], example["x"][None]))
    error = jnp.einsum("fo,xf->", params["v"], hidden) - example["y"]
    return error**2, {"error": error}


def normalised(params, example):
    hidden = example["x"][None] @ params["w"]
    hidden = (hidden - hidden.mean()) / jnp.sqrt(hidden.var() + 1e-3) * params["b"]
    error = (jnp.tanh(hidden) @ params["v"])[0, 0] - example["y"]
    return error**2, {"error": error}


SMALL = HIDDEN + WIDTH
W = WIDTH * HIDDEN


@pytest.mark.parametrize(
    ("loss", "shape", "held"),
    [
        (dense, (WIDTH,), SMALL),
        (decayed, (WIDTH,), SMALL + W),
        (used_twice, (WIDTH,), SMALL + W),
        (over_time, (3, WIDTH), SMALL + W + HIDDEN),
        (transposed, (WIDTH,), SMALL + HIDDEN),
        (normalised, (WIDTH,), SMALL),
    ],
)
def test_norms_and_sums_are_those_of_the_gradients(loss, shape, held):
    params, examples = params_of(), examples_of(shape)
    weights = jnp.asarray([0.3, 0.0, 1.0, 2.0, 0.0, 0.5])

    @jax.jit
    def run(params, examples):
        found = example_gradients(loss, params, examples)
        assert found.held == held
        return found.values, found.squared_norms, found.weighted_sum(weights)

    values, squares, total = run(params, examples)
    rows = jax.vmap(jax.grad(lambda p, e: loss(p, e)[0]), (None, 0))(params, examples)
    flat = np.concatenate(
        [np.asarray(x).reshape(EXAMPLES, -1) for x in rows.values()], axis=1
    )
    np.testing.assert_allclose(squares, (flat**2).sum(axis=1), rtol=1e-5)
    for name, leaf in rows.items():
        expected = np.tensordot(weights, leaf, 1)
        np.testing.assert_allclose(total[name], expected, rtol=1e-5, atol=1e-5)
    expected = [
        loss(params, jax.tree.map(lambda x, i=i: x[i], examples))[0]
        for i in range(EXAMPLES)
    ]
    np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_an_example_without_weight_counts_nothing_even_if_it_is_not_finite():
    params, examples = params_of(), examples_of()
    broken = {**examples, "x": examples["x"].at[2].set(jnp.inf)}
    weights = jnp.ones(EXAMPLES).at[2].set(0.0)
    clean = example_gradients(dense, params, examples).weighted_sum(weights)
    total = example_gradients(dense, params, broken).weighted_sum(weights)
    for name in params:
        np.testing.assert_allclose(total[name], clean[name], rtol=1e-6)
