"""Order statistics of a selection network against a sort."""

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_health.core.ranks import ordered_rows


@pytest.mark.parametrize("n", [1, 2, 5, 8, 13])
def test_ranks_are_those_of_a_sort(n):
    # Few different values, so that there are ties, and both infinities.
    x = np.random.default_rng(n).integers(-2, 3, size=(n, 40)).astype(np.float32)
    x[x == 2], x[x == -2] = np.inf, -np.inf
    ordered = np.sort(x, axis=0)
    for ranks in (range(n), (0,), ((n - 1) // 2, n // 2)):
        found = ordered_rows([jnp.asarray(row) for row in x], ranks)
        np.testing.assert_array_equal(found, ordered[list(ranks)])
