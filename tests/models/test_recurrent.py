import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fedjax_health.models.recurrent import gru

FEATURES, HIDDEN = 5, 7
NAMES = ("wi", "bi", "wh", "bh")


def make_params(seed, lead=(), features=FEATURES, hidden=HIDDEN):
    rng = np.random.default_rng(seed)
    shapes = {
        "wi": (features, 3 * hidden),
        "bi": (3 * hidden,),
        "wh": (hidden, 3 * hidden),
        "bh": (3 * hidden,),
    }
    return {
        name: jnp.asarray(rng.normal(0, 0.5, lead + shape), jnp.float32)
        for name, shape in shapes.items()
    }


def make_inputs(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def oracle(params, inputs, h0=None, decay=None):
    """The PyTorch formula, one example and one step at a time, in float64."""
    wi, bi, wh, bh = (np.asarray(params[name], np.float64) for name in NAMES)
    inputs = np.asarray(inputs, np.float64)
    hidden = wh.shape[0]
    states = np.zeros((*inputs.shape[:2], hidden))

    def sigmoid(a):
        return 1 / (1 + np.exp(-a))

    for i, sequence in enumerate(inputs):
        h = np.zeros(hidden) if h0 is None else np.asarray(h0[i], np.float64)
        for t, x in enumerate(sequence):
            if decay is not None:
                h = h * np.asarray(decay[i, t], np.float64)
            a_r, a_z, a_n = np.split(x @ wi + bi, 3)
            b_r, b_z, b_n = np.split(h @ wh + bh, 3)
            r, z = sigmoid(a_r + b_r), sigmoid(a_z + b_z)
            n = np.tanh(a_n + r * b_n)
            h = (1 - z) * n + z * h
            states[i, t] = h
    return states


def plain(params, inputs, h0=None, decay=None):
    """The same through lax.scan, for automatic differentiation."""
    hidden = params["wh"].shape[0]
    h0 = jnp.zeros((inputs.shape[0], hidden)) if h0 is None else h0
    decay = jnp.ones((*inputs.shape[:2], hidden)) if decay is None else decay

    def step(h, now):
        x, factor = now
        h = h * factor
        a_r, a_z, a_n = jnp.split(x @ params["wi"] + params["bi"], 3, axis=-1)
        b_r, b_z, b_n = jnp.split(h @ params["wh"] + params["bh"], 3, axis=-1)
        r, z = jax.nn.sigmoid(a_r + b_r), jax.nn.sigmoid(a_z + b_z)
        n = jnp.tanh(a_n + r * b_n)
        h = (1 - z) * n + z * h
        return h, h

    now = jnp.swapaxes(inputs, 0, 1), jnp.swapaxes(decay, 0, 1)
    return jnp.swapaxes(lax.scan(step, h0, now)[1], 0, 1)


def assert_close(actual, expected, tolerance=1e-5):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for got, want in zip(
        jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
    ):
        assert got.shape == want.shape
        scale = max(1.0, float(np.abs(want).max()))
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * scale)


def weighted(layer, inputs, weights):
    """A loss in which each coordinate of each state has its own weight."""

    def loss(params, inputs, h0):
        return jnp.sum(weights * jnp.sin(layer(params, inputs, h0)))

    return loss


@pytest.mark.parametrize("with_h0", [False, True])
@pytest.mark.parametrize(("examples", "steps"), [(1, 1), (3, 2), (4, 9)])
def test_states_equal_the_formula(examples, steps, with_h0):
    params = make_params(0)
    inputs = make_inputs(1, examples, steps, FEATURES)
    h0 = make_inputs(2, examples, HIDDEN) if with_h0 else None
    want = oracle(params, inputs, h0)
    for run in (gru, jax.jit(gru)):
        assert_close(run(params, inputs, h0=h0), want.astype(np.float32))
    swapped = gru(params, inputs, h0=h0, time_major=True)
    assert_close(swapped, np.swapaxes(want, 0, 1).astype(np.float32))


def test_states_under_differentiation_equal_those_without():
    params = make_params(0)
    inputs = make_inputs(1, 4, 9, FEATURES)
    states, _ = jax.vjp(gru, params, inputs)
    assert_close(states, oracle(params, inputs).astype(np.float32))


@pytest.mark.parametrize(("examples", "steps"), [(1, 1), (3, 2), (4, 9)])
@pytest.mark.parametrize("last_only", [False, True])
def test_gradients_equal_automatic_ones(examples, steps, last_only):
    params = make_params(3)
    inputs = make_inputs(4, examples, steps, FEATURES)
    h0 = make_inputs(5, examples, HIDDEN)
    weights = make_inputs(6, examples, steps, HIDDEN)
    if last_only:
        weights = weights.at[:, :-1].set(0)
    ours = weighted(lambda p, x, h: gru(p, x, h0=h), inputs, weights)
    theirs = weighted(plain, inputs, weights)
    want = jax.grad(theirs, argnums=(0, 1, 2))(params, inputs, h0)
    assert all(float(np.abs(leaf).max()) > 1e-3 for leaf in jax.tree.leaves(want[0]))
    for wrap in (lambda f: f, jax.jit):
        got = wrap(jax.grad(ours, argnums=(0, 1, 2)))(params, inputs, h0)
        assert_close(got, want)


@pytest.mark.parametrize(("examples", "steps"), [(1, 1), (4, 9)])
def test_a_decaying_state_equals_the_formula_and_its_gradient(examples, steps):
    params = make_params(3)
    inputs = make_inputs(4, examples, steps, FEATURES)
    h0 = make_inputs(5, examples, HIDDEN)
    decay = jax.nn.sigmoid(make_inputs(6, examples, steps, HIDDEN))
    states = gru(params, inputs, h0=h0, decay=decay)
    assert_close(states, oracle(params, inputs, h0, decay).astype(np.float32))
    weights = make_inputs(7, examples, steps, HIDDEN)

    def gradient(layer):
        def loss(params, inputs, h0, decay):
            return jnp.sum(weights * jnp.sin(layer(params, inputs, h0, decay)))

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(params, inputs, h0, decay)

    ours = gradient(lambda p, x, h, d: gru(p, x, h0=h, decay=d))
    assert float(np.abs(ours[3]).max()) > 1e-3
    assert_close(ours, gradient(plain))


def test_a_decay_of_one_changes_nothing():
    params, inputs = make_params(3), make_inputs(4, 3, 5, FEATURES)
    decay = jnp.ones((3, 5, HIDDEN))
    assert_close(gru(params, inputs, decay=decay), gru(params, inputs), 1e-6)


def test_gradient_equals_finite_differences():
    params = make_params(3)
    inputs = make_inputs(4, 2, 5, FEATURES)
    weights = np.asarray(make_inputs(6, 2, 5, HIDDEN), np.float64)
    got = jax.grad(lambda p: jnp.sum(weights * gru(p, inputs)))(params)
    rng = np.random.default_rng(7)
    for name in NAMES:
        direction = rng.normal(size=params[name].shape)
        step = 1e-5
        values = [
            np.sum(
                weights
                * oracle(
                    {**params, name: np.asarray(params[name], np.float64) + s},
                    inputs,
                )
            )
            for s in (step * direction, -step * direction)
        ]
        slope = (values[0] - values[1]) / (2 * step)
        np.testing.assert_allclose(
            np.sum(direction * np.asarray(got[name])), slope, rtol=1e-4
        )


@pytest.mark.parametrize("shared", [False, True])
def test_vmap_over_clients(shared):
    clients = 3
    params = make_params(8) if shared else make_params(8, (clients,))
    inputs = make_inputs(9, clients, 4, 6, FEATURES)
    weights = make_inputs(10, 4, 6, HIDDEN)

    def gradient(layer):
        def loss(params, inputs):
            return jnp.sum(weights * layer(params, inputs))

        return jax.jit(
            jax.vmap(
                jax.value_and_grad(loss, argnums=(0, 1)),
                in_axes=(None if shared else 0, 0),
            )
        )

    assert_close(gradient(gru)(params, inputs), gradient(plain)(params, inputs))


def test_descent_in_a_while_loop_equals_plain():
    params = make_params(11)
    inputs = make_inputs(12, 6, 4, 8, FEATURES)
    target = make_inputs(13, 6, 4, 8, HIDDEN)

    def descend(layer):
        def loss(params, i):
            return jnp.mean((layer(params, inputs[i]) - target[i]) ** 2)

        def body(carry):
            i, params = carry
            grads = jax.grad(loss)(params, i)
            return i + 1, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)

        @jax.jit
        def run(params, steps):
            return lax.while_loop(lambda c: c[0] < steps, body, (0, params))[1]

        return run(params, 6)

    assert_close(descend(gru), descend(plain))


def test_repeated_gradient_equals_automatic_one():
    params = make_params(14)
    inputs = make_inputs(15, 2, 4, FEATURES)

    def curvature(layer):
        def slope(params, inputs):
            grads = jax.grad(lambda x: jnp.sum(layer(params, x) ** 2))(inputs)
            return jnp.sum(grads**2)

        return jax.grad(slope)(params, inputs)

    assert_close(curvature(gru), curvature(plain), 1e-4)


def test_examples_do_not_see_one_another_nor_the_future():
    params = make_params(16)
    inputs = make_inputs(17, 3, 6, FEATURES)
    changed = inputs.at[1, 3:].add(1.0)
    before, after = gru(params, inputs), gru(params, changed)
    np.testing.assert_array_equal(before[0], after[0])
    np.testing.assert_array_equal(before[1, :3], after[1, :3])
    assert float(jnp.abs(before[1, 3:] - after[1, 3:]).min()) > 0


def test_saturated_gates_stay_finite():
    params = jax.tree.map(lambda leaf: 1e3 * leaf, make_params(18))
    inputs = make_inputs(19, 2, 5, FEATURES)
    states, pull = jax.vjp(gru, params, inputs)
    assert np.isfinite(states).all()
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(pull(states)))


def test_half_precision_keeps_its_type():
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), make_params(20))
    inputs = make_inputs(21, 2, 5, FEATURES).astype(jnp.bfloat16)
    states, pull = jax.vjp(gru, params, inputs)
    grads, _ = pull(states)
    assert states.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype(jnp.bfloat16)}
    want = oracle(params, np.asarray(inputs, np.float32))
    np.testing.assert_allclose(np.asarray(states, np.float32), want, atol=0.05)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_gradient_lowers_for_accelerators(platform):
    params = make_params(22)
    inputs = make_inputs(23, 2, 5, FEATURES)
    gradient = jax.jit(jax.grad(lambda p, x: jnp.sum(gru(p, x))))
    exported = jax.export.export(gradient, platforms=[platform])(params, inputs)
    assert exported.platforms == (platform,)


def test_a_decay_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="decay has shape"):
        gru(make_params(24), jnp.zeros((2, 3, FEATURES)), decay=jnp.zeros((2, 3, 1)))


@pytest.mark.parametrize(
    ("change", "inputs", "h0", "message"),
    [
        ({}, (2, 5), None, "examples, time, features"),
        ({}, (2, 0, FEATURES), None, "one step or more"),
        ({}, (2, 3, FEATURES + 1), None, "wi has shape"),
        ({"bh": (3,)}, (2, 3, FEATURES), None, "bh has shape"),
        ({}, (2, 3, FEATURES), (3, HIDDEN), "h0 has shape"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(change, inputs, h0, message):
    params = make_params(24)
    params |= {name: jnp.zeros(shape) for name, shape in change.items()}
    start = None if h0 is None else jnp.zeros(h0)
    with pytest.raises(ValueError, match=message):
        gru(params, jnp.zeros(inputs), h0=start)
