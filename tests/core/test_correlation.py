"""Distance correlation against its definition by loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_health.core.correlation import distance_correlation

found = jax.jit(distance_correlation)
slopes = jax.jit(jax.grad(distance_correlation, argnums=(0, 1)))


def by_loops(x, y):
    n = len(x)
    centred = []
    for rows in (x, y):
        rows = np.asarray(rows, float).reshape(n, -1)
        d = np.zeros((n, n))
        for i in range(n):
            for j in range(n):
                d[i, j] = np.sqrt(np.sum((rows[i] - rows[j]) ** 2))
        c = np.zeros((n, n))
        for i in range(n):
            for j in range(n):
                c[i, j] = d[i, j] - d[i].mean() - d[:, j].mean() + d.mean()
        centred.append(c)
    a, b = centred
    return np.mean(a * b) / np.sqrt(np.mean(a * a) * np.mean(b * b))


def pair(n=20, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3, 2)) + 5
    y = np.stack([x[:, 0, 0] ** 2, rng.normal(size=n)], axis=1)
    return x.astype(np.float32), y.astype(np.float32)


@pytest.mark.parametrize("scale", [1.0, 1e-15, 1e15])
def test_it_is_its_definition(scale):
    x, y = pair()
    y *= np.float32(scale)
    assert float(found(x, y)) == pytest.approx(by_loops(x, y / scale), rel=1e-4)


def test_counts_leave_examples_out_whatever_they_hold():
    x, y = pair()
    counts = np.ones(20)
    counts[[2, 7, 19]] = 0
    kept = counts > 0
    x[~kept], y[~kept] = np.nan, 1e30
    oracle = by_loops(x[kept], y[kept])
    assert float(found(x, y, counts)) == pytest.approx(oracle, rel=1e-4)
    for part in slopes(x, y, counts):
        assert np.all(np.isfinite(part))
        assert not np.any(np.asarray(part)[~kept])


def test_ends_of_its_range():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 2)).astype(np.float32)
    turn = np.array([[0.6, -0.8], [0.8, 0.6]], np.float32)
    assert float(found(x, 3 * x @ turn + 7)) == pytest.approx(1, abs=1e-4)
    alone = float(found(x, rng.normal(size=(400, 2)).astype(np.float32)))
    assert 0 < alone < 0.03
    for constant in (np.zeros((400, 2)), np.full((400, 2), 0.1)):
        assert float(found(x, constant.astype(np.float32))) == 0
    assert float(found(x, x, np.zeros(400))) == 0
    assert float(found(x[:1], x[:1])) == 0


def test_gradient_is_that_of_differences_and_finite_at_identical_rows():
    x, y = pair(12)
    slope = np.asarray(slopes(x, y)[0])
    rng = np.random.default_rng(3)
    for _ in range(3):
        way = rng.normal(size=x.shape)
        up, down = by_loops(x + 1e-5 * way, y), by_loops(x - 1e-5 * way, y)
        assert np.sum(slope * way) == pytest.approx((up - down) / 2e-5, rel=2e-3)
    x[3] = x[4]
    y[5] = y[6]
    for part in slopes(x, y):
        assert np.all(np.isfinite(part))
    for part in slopes(np.ones_like(x), np.ones_like(y)):
        np.testing.assert_array_equal(part, 0)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="in common"):
        distance_correlation(jnp.ones((3, 2)), jnp.ones((4, 2)))
