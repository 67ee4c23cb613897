import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fedjax_health.models.functional import build_model


class TwoLayers(nnx.Module):
    def __init__(self, *, rngs):
        self.layers = nnx.List(
            [nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 1, rngs=rngs)]
        )
        self.dropout = nnx.Dropout(0.5)

    def __call__(self, batch, *, key=None):
        values = self.layers[0](batch["x"])
        values = self.dropout(values, deterministic=key is None, rngs=key)
        return self.layers[1](values)[..., 0]


class Normalised(nnx.Module):
    def __init__(self, *, rngs):
        self.batch_norm = nnx.BatchNorm(3, rngs=rngs)

    def __call__(self, batch, *, key=None):
        return self.batch_norm(batch["x"])[..., 0]


class StatefulDropout(nnx.Module):
    def __init__(self, *, rngs):
        self.linear = nnx.Linear(3, 1, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, batch, *, key=None):
        return self.linear(self.dropout(batch["x"]))[..., 0]


def build():
    return build_model(lambda rngs: TwoLayers(rngs=rngs))


def batch():
    return {"x": jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)}


def test_apply_computes_with_the_parameters_it_is_given():
    model = build()
    params = model.init(jax.random.key(1))
    assert set(params["layers"]) == {"0", "1"}
    first, second = params["layers"]["0"], params["layers"]["1"]
    hidden = np.asarray(batch()["x"]) @ first["kernel"] + first["bias"]
    want = (hidden @ second["kernel"] + second["bias"])[:, 0]
    np.testing.assert_allclose(model.apply(params, batch()), want, rtol=1e-5)
    doubled = jax.tree.map(lambda leaf: 2 * leaf, params)
    np.testing.assert_allclose(model.apply(doubled, batch()), 4 * want, rtol=1e-5)


def test_parameters_are_plain_arrays_that_depend_on_the_key_alone():
    model = build()
    params = model.init(jax.random.key(1))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))
    again = jax.jit(build().init)(jax.random.key(1))
    other = model.init(jax.random.key(2))
    kernel = params["layers"]["0"]["kernel"]
    np.testing.assert_array_equal(kernel, again["layers"]["0"]["kernel"])
    assert float(jnp.abs(kernel - other["layers"]["0"]["kernel"]).max()) > 0.01
    stacked = jax.vmap(model.init)(jax.random.split(jax.random.key(0), 3))
    assert stacked["layers"]["0"]["kernel"].shape == (3, 3, 4)


def test_dropout_needs_a_key_and_follows_it():
    model = build()
    params = model.init(jax.random.key(1))
    still = model.apply(params, batch())
    np.testing.assert_array_equal(still, model.apply(params, batch()))
    one = model.apply(params, batch(), key=jax.random.key(3))
    same = jax.jit(model.apply)(params, batch(), key=jax.random.key(3))
    two = model.apply(params, batch(), key=jax.random.key(4))
    np.testing.assert_allclose(one, same, rtol=1e-5)
    assert not np.allclose(one, two)
    assert not np.allclose(one, still)


def test_works_under_jit_grad_and_vmap_over_clients():
    model = build()
    stacked = jax.vmap(model.init)(jax.random.split(jax.random.key(0), 3))

    def loss(params):
        return jnp.sum(model.apply(params, batch()) ** 2)

    mapped = jax.jit(jax.vmap(jax.grad(loss)))(stacked)
    for client in range(3):
        single = jax.grad(loss)(jax.tree.map(lambda leaf, c=client: leaf[c], stacked))
        for got, want in zip(
            jax.tree.leaves(mapped), jax.tree.leaves(single), strict=True
        ):
            np.testing.assert_allclose(got[client], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (Normalised, "batch_norm.mean, batch_norm.var"),
        (StatefulDropout, "dropout.rngs"),
    ],
)
def test_mutable_state_is_refused_by_name(module, names):
    with pytest.raises(ValueError, match=names):
        build_model(lambda rngs: module(rngs=rngs))
