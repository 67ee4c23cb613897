"""Statistics of a stay against a loop over its observations."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_health.models.statistics import stay_statistics


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


def test_gradients_are_finite_where_nothing_varies():
    def loss(values, valid):
        flags = jnp.zeros_like(values).at[0].set(1)
        return jnp.sum(stay_statistics(values, flags, valid) ** 2)

    gradient = jax.grad(loss)(jnp.ones((3, 4, 2)), jnp.ones((3, 4)))
    assert np.isfinite(gradient).all()
