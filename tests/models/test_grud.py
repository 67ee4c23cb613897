import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_health.core.types import ModalityColumns
from fedjax_health.models import grud_detector

LABS = ModalityColumns("labs", (0, 2), (2, 4), (4, 6))
VITALS = ModalityColumns("vitals", (6, 7), (7, 8), (8, 9))
STATIC = ModalityColumns("static", (9, 11))
LAYOUT = (LABS, VITALS, STATIC)
HIDDEN = 3


@functools.cache
def make(**changes):
    model = grud_detector(LAYOUT, hidden=HIDDEN, **changes)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda p: jnp.asarray(rng.normal(0.1, 0.5, p.shape), p.dtype),
        jax.eval_shape(model.init, jax.random.key(0)),
    )
    return jax.jit(model.apply), params


def inputs(*, examples=4, time=6, seed=1):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(examples, time, 11))
    for first, end in ((2, 4), (7, 8)):
        x[..., first:end] = rng.random((examples, time, end - first)) < 0.5
    for first, end in ((4, 6), (8, 9)):
        x[..., first:end] = np.log1p(rng.integers(0, 5, (examples, time, end - first)))
    return jnp.asarray(x, jnp.float32)


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def oracle(params, x, hidden_decay):
    """The paper's equations, one example and step at a time, in float64."""
    params = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
    own, head = params["encoder"]["decaying"], params["head"]
    layer = own["recurrent"]
    logits = np.zeros(x.shape[:2])
    for e, sequence in enumerate(np.asarray(x, np.float64)):
        h = np.zeros(HIDDEN)
        for t, row in enumerate(sequence):
            read, since = [], []
            for columns in LAYOUT:
                values = row[slice(*columns.values)]
                if columns.elapsed is None:
                    read.append(values)
                    continue
                m = row[slice(*columns.observed)]
                d = row[slice(*columns.elapsed)]
                rate = own[f"decay_{columns.name}"] * d + own[f"onset_{columns.name}"]
                gamma = np.exp(-np.maximum(rate, 0))
                read += [m * values + (1 - m) * gamma * values, m, d]
                since.append(d)
            if hidden_decay:
                state = own["state_decay"]
                rate = np.concatenate(since) @ state["kernel"] + state["bias"]
                h = np.exp(-np.maximum(rate, 0)) * h
            a = np.concatenate(read) @ layer["wi"] + layer["bi"]
            b = h @ layer["wh"] + layer["bh"]
            a_r, a_z, a_n = np.split(a, 3)
            b_r, b_z, b_n = np.split(b, 3)
            r, z = sigmoid(a_r + b_r), sigmoid(a_z + b_z)
            h = (1 - z) * np.tanh(a_n + r * b_n) + z * h
            logits[e, t] = (h @ head["kernel"] + head["bias"])[0]
    return logits


@pytest.mark.parametrize("hidden_decay", [False, True])
def test_logits_equal_the_formula(hidden_decay):
    apply, params = make(hidden_decay=hidden_decay)
    x = inputs()
    found = apply(params, {"x": x})
    np.testing.assert_allclose(found, oracle(params, x, hidden_decay), atol=1e-4)


@pytest.mark.parametrize("hidden_decay", [False, True])
def test_every_parameter_can_learn_from_the_start(hidden_decay):
    model = grud_detector(LAYOUT, hidden=HIDDEN, hidden_decay=hidden_decay)
    params = jax.jit(model.init)(jax.random.key(0))
    batch = {"x": inputs()}
    loss = lambda params: jnp.sum(model.apply(params, batch) ** 2)  # noqa: E731
    gradients = jax.jit(jax.grad(loss))(params)
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.any(gradient != 0), path
    # Nearly no decay at first.
    own = params["encoder"]["decaying"]
    assert float(np.exp(-own["onset_labs"]).min()) > 0.98
    assert not np.any(own["decay_labs"])


def test_an_observed_value_does_not_decay():
    apply, params = make(hidden_decay=False)
    x = inputs().at[..., 2:4].set(1).at[..., 7].set(1)
    strong = jax.tree_util.tree_map_with_path(
        lambda path, p: p + 9 if "onset" in jax.tree_util.keystr(path) else p, params
    )
    np.testing.assert_array_equal(apply(params, {"x": x}), apply(strong, {"x": x}))


def test_one_answer_for_a_window():
    apply, params = make(target="entity")
    row, _ = make()
    found = apply(params, {"x": inputs()})
    np.testing.assert_allclose(found, row(params, {"x": inputs()})[:, -1], atol=1e-5)


def test_a_layout_without_carried_values_is_refused():
    with pytest.raises(ValueError, match="'static' does not tell the time since"):
        grud_detector((STATIC,)).init(jax.random.key(0))
    with pytest.raises(ValueError, match="hidden=0"):
        grud_detector(LAYOUT, hidden=0)
