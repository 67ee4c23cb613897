"""Messages along a line, and the inner products of a search, against NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_health.attacks import line
from fedjax_health.attacks.line import Line
from tests.attacks import cases

# One seen row, all seen but one, and more unseen rows than vectors take their places.
SEEN = {
    "nobody": np.zeros(8, bool),
    "one": np.arange(8) == 3,
    "all but one": np.arange(8) != 2,
    "all": np.ones(8, bool),
    "half": np.array([True, False, False, True, True, False, False, True]),
}
LINES = {"alie": Line(True, -1.0), "ipm": Line(False)}
# Wider than a block of either kind, and not a multiple of it.
WIDE = 8192 + 2048 + 77

every_line = pytest.mark.parametrize("name", LINES)


def oracle(x, seen, name):
    x = x.astype(float)
    mean = x[seen].mean(axis=0) if seen.any() else np.zeros(x.shape[1])
    if name == "ipm":
        return mean, -mean
    few = seen.sum() < 2
    return mean, -(np.zeros(x.shape[1]) if few else x[seen].std(axis=0, ddof=1))


def poisoned(x, seen):
    """What is not seen may hold anything."""
    return np.where(seen[:, None], x, np.nan).astype(np.float32)


@every_line
@pytest.mark.parametrize("who", SEEN)
def test_a_message_is_the_mean_and_so_many_directions(name, who):
    x, seen = cases.messages(3), SEEN[who]
    mean, direction = oracle(x, seen, name)
    stacked = cases.tree(poisoned(x, seen))
    made = line.message_at(stacked, jnp.asarray(seen), LINES[name], jnp.float32(1.7))
    np.testing.assert_allclose(
        cases.vector(made), mean + 1.7 * direction, rtol=1e-5, atol=1e-5
    )
    pair = line.mean_and_direction(stacked, jnp.asarray(seen), LINES[name])
    for got, wanted in zip(pair, (mean, direction), strict=True):
        np.testing.assert_allclose(cases.vector(got), wanted, rtol=1e-5, atol=1e-5)


@every_line
@pytest.mark.parametrize("offset", [0.3, 1000.0])
def test_blocks_of_a_wide_leaf_far_from_the_origin(name, offset):
    seen = SEEN["half"]
    x = cases.messages(5, d=WIDE, offset=offset)
    mean, direction = oracle(x, seen, name)
    stacked = {"w": jnp.asarray(x), "none": jnp.zeros((8, 0))}
    made = line.message_at(stacked, jnp.asarray(seen), LINES[name], jnp.float32(0.4))
    np.testing.assert_allclose(
        made["w"], mean + 0.4 * direction, rtol=1e-5, atol=1e-6 * offset
    )
    assert made["none"].shape == (0,)
    found = line.products(stacked, jnp.asarray(seen), LINES[name])
    moved = np.where(seen[:, None], x - mean, 0)
    np.testing.assert_allclose(found[:8, :8], moved @ moved.T, rtol=3e-4, atol=0.5)


@every_line
@pytest.mark.parametrize("who", SEEN)
def test_inner_products_of_all_that_a_search_rests_on(name, who):
    x, seen = cases.messages(7), SEEN[who]
    more = cases.messages(8, n=2)
    mean, direction = oracle(x, seen, name)
    moved = np.where(seen[:, None], x - mean, 0)
    points = np.concatenate([moved, [direction, mean], more])
    found = line.products(
        cases.tree(poisoned(x, seen)),
        jnp.asarray(seen),
        LINES[name],
        *(cases.tree(row) for row in more),
    )
    np.testing.assert_allclose(found, points @ points.T, rtol=1e-4, atol=1e-4)
