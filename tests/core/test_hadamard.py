"""The Walsh-Hadamard transform against the matrix, and the random rotation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_health.core.hadamard import (
    hadamard,
    pad,
    padded_size,
    random_signs,
    rotate,
    rotate_back,
)
from fedjax_health.core.rng import root_key


def matrix(n):
    h = np.ones((1, 1))
    while len(h) < n:
        h = np.block([[h, h], [h, -h]])
    return h / np.sqrt(n)


@pytest.mark.parametrize("m", range(9))
def test_the_transform_is_the_orthonormal_matrix(m):
    x = np.random.default_rng(m).normal(size=2**m).astype(np.float32)
    got = jax.jit(hadamard)(jnp.asarray(x))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, matrix(2**m) @ x, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(hadamard(got), x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(3,), (2, 2), (), (0,)])
def test_other_sizes_are_refused(shape):
    with pytest.raises(ValueError, match="use pad"):
        hadamard(jnp.zeros(shape))


@pytest.mark.parametrize(
    ("n", "padded"), [(0, 1), (1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (1025, 2048)]
)
def test_padding_reaches_the_next_power_of_two(n, padded):
    assert padded_size(n) == padded
    x = pad(jnp.arange(1, n + 1, dtype=jnp.float32))
    np.testing.assert_array_equal(x, [*range(1, n + 1), *[0] * (padded - n)])


def test_signs_are_fair_and_belong_to_their_key():
    signs = np.asarray(random_signs(root_key(0), 100_001))
    assert signs.shape == (100_001,)
    assert set(signs) == {-1.0, 1.0}
    assert abs(signs.mean()) < 5 / np.sqrt(100_001)
    # Neighbours and words apart are uncorrelated.
    for lag in (1, 31, 32):
        assert abs((signs[lag:] * signs[:-lag]).mean()) < 5 / np.sqrt(100_001)
    np.testing.assert_array_equal(signs, random_signs(root_key(0), 100_001))
    assert np.any(signs != np.asarray(random_signs(root_key(1), 100_001)))


@pytest.mark.parametrize("n", [1, 5, 64, 1000])
def test_a_rotation_keeps_norms_and_is_undone(n):
    x = jnp.asarray(np.random.default_rng(n).normal(size=n), jnp.float32)
    rotated = rotate(x, root_key(3))
    assert rotated.shape == (padded_size(n),)
    np.testing.assert_allclose(jnp.linalg.norm(rotated), jnp.linalg.norm(x), rtol=1e-5)
    back = rotate_back(rotated, root_key(3), n)
    np.testing.assert_allclose(back, x, rtol=1e-4, atol=1e-5)


def test_a_rotation_spreads_a_single_spike():
    x = jnp.zeros(1000).at[7].set(3.0)
    rotated = np.asarray(rotate(x, root_key(5)))
    np.testing.assert_allclose(np.abs(rotated), 3 / np.sqrt(1024), rtol=1e-5)
