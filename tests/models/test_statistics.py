"""Statistics of a stay against a loop over its observations."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_health.core.types import ModalityColumns
from fedjax_health.models.statistics import statistics_detector, stay_statistics

SERIES = ModalityColumns("series", (0, 2), (2, 4), (4, 6))
FLOW = ModalityColumns("flow", (6, 7))
STATIC = ModalityColumns("static", (7, 9), (9, 11))
LAYOUT = (SERIES, FLOW, STATIC)


def make(examples=5, time=6, seed=0):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(examples, time, 2)).astype(np.float32) * 3
    observed = (rng.random(values.shape) < 0.5).astype(np.float32)
    observed[0, :, 1] = 0
    observed[1, :, 0] = np.eye(time)[2]
    valid = np.ones((examples, time), np.float32)
    valid[2, :3] = 0
    return values, observed, valid


def np_statistics(values, observed, valid):
    """One variable of one example after the other, in float64."""
    examples, time, width = values.shape
    masked = observed is not None
    out = np.zeros((examples, 10 if masked else 7, width))
    for e in range(examples):
        for v in range(width):
            steps = [
                t
                for t in range(time)
                if valid[e, t] and (not masked or observed[e, t, v])
            ]
            if not steps:
                continue
            x = [float(values[e, t, v]) for t in steps]
            at = [2 * t / (time - 1) - 1 for t in steps]
            mean, middle = sum(x) / len(x), sum(at) / len(at)
            std = math.sqrt(sum((a - mean) ** 2 for a in x) / len(x))
            spread = sum((a - middle) ** 2 for a in at)
            slope = (
                sum((a - middle) * (b - mean) for a, b in zip(at, x, strict=True))
                / spread
                if spread > 0
                else 0.0
            )
            late = [a for a, t in zip(x, steps, strict=True) if t >= time // 2]
            late_mean = sum(late) / len(late) if late else x[-1]
            squares = [min(abs(a), 3) ** 2 for a in (x[-1], mean)]
            numbers = [x[-1], mean, std, slope, late_mean, *squares]
            if masked:
                whole = math.log(1 + time)
                numbers += [
                    math.log(1 + len(x)) / whole,
                    1.0,
                    math.log(1 + time - 1 - steps[-1]) / whole,
                ]
            out[e, :, v] = numbers
    return out.reshape(examples, -1)


@pytest.mark.parametrize("masked", [True, False])
def test_statistics_equal_a_loop(masked):
    values, observed, valid = make()
    flags = observed if masked else None
    found = jax.jit(stay_statistics)(values, flags, valid)
    np.testing.assert_allclose(
        found, np_statistics(values, flags, valid), atol=2e-5, rtol=2e-5
    )


def test_what_was_not_observed_changes_nothing():
    values, observed, valid = make()
    hidden = np.where((observed > 0) & (valid[..., None] > 0), values, 1e6)
    np.testing.assert_array_equal(
        stay_statistics(values, observed, valid),
        stay_statistics(hidden.astype(np.float32), observed, valid),
    )


def batch(seed=0):
    values, observed, valid = make(seed=seed)
    rng = np.random.default_rng(9)
    rest = rng.normal(size=(*values.shape[:2], 7)).astype(np.float32)
    x = np.concatenate([values, observed, rest], axis=-1)
    x[..., 9:11] = 1
    return {"x": jnp.asarray(x), "valid": jnp.asarray(valid)}


def test_gradients_are_finite_where_nothing_varies():
    model = statistics_detector(LAYOUT, records=("static",), hidden=(4,))
    params = model.init(jax.random.key(0))
    still = {**batch(), "x": jnp.ones_like(batch()["x"])}

    def loss(params, x):
        return jnp.sum(model.apply(params, {**still, "x": x}) ** 2)

    for gradient in jax.tree.leaves(jax.grad(loss, (0, 1))(params, still["x"])):
        assert np.isfinite(gradient).all()


def test_of_a_record_the_last_row_alone_is_read():
    model = statistics_detector(LAYOUT, records=("static", "flow", "series"))
    params = jax.tree.map(lambda x: x + 0.1, model.init(jax.random.key(0)))
    changed = {**batch(), "x": batch()["x"].at[:, :-1].set(7.0)}
    np.testing.assert_array_equal(
        model.apply(params, batch()), model.apply(params, changed)
    )


def test_without_hidden_layers_it_is_linear_in_the_statistics():
    model = statistics_detector(LAYOUT[:1], hidden=())
    params = model.init(jax.random.key(0))
    assert set(params) == {"skip"}
    weights = np.random.default_rng(1).normal(size=(20, 1)).astype(np.float32)
    params = {"skip": {"kernel": weights, "bias": np.array([0.5], np.float32)}}
    values, observed, valid = make()
    x = np.concatenate([values, observed, np.zeros_like(values)], axis=-1)
    found = model.apply(params, {"x": jnp.asarray(x), "valid": jnp.asarray(valid)})
    expected = np_statistics(values, observed, valid) @ weights[:, 0] + 0.5
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_records_have_values_squares_and_flags():
    layout = (ModalityColumns("static", (0, 2), (2, 4)),)
    model = statistics_detector(layout, hidden=(), streams=False)
    weights = np.arange(1, 7, dtype=np.float32)[:, None]
    params = {"skip": {"kernel": weights, "bias": np.zeros(1, np.float32)}}
    x = jnp.array([[2.0, 9.0, 1, 0], [-5.0, 1.0, 1, 1]])
    # value 2 and square 4 of the first, nothing of the second, flags 1 and 0
    found = model.apply(params, {"x": x})
    assert found.tolist() == [2 + 3 * 4 + 5, -5 + 2 + 3 * 9 + 4 + 5 + 6]


def test_a_key_drops_and_no_key_does_not():
    model = statistics_detector(LAYOUT, hidden=(8,))
    params = jax.tree.map(lambda x: x + 0.1, model.init(jax.random.key(0)))
    plain = model.apply(params, batch())
    np.testing.assert_array_equal(plain, model.apply(params, batch()))
    dropped = [model.apply(params, batch(), key=jax.random.key(k)) for k in (1, 2)]
    assert not np.allclose(dropped[0], dropped[1])


def test_equal_settings_are_one_model_and_wrong_ones_are_refused():
    assert statistics_detector(LAYOUT, hidden=[8]) is statistics_detector(
        LAYOUT, hidden=(8,)
    )
    for wrong in ({"records": ("x",)}, {"hidden": (0,)}, {"dropout": 1.0}):
        with pytest.raises(ValueError, match="statistics_detector"):
            statistics_detector(LAYOUT, **wrong)
    model = statistics_detector(LAYOUT)
    params = model.init(jax.random.key(0))
    with pytest.raises(ValueError, match="shape"):
        model.apply(params, {"x": jnp.zeros((2, 3, 4))})
