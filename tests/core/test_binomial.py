"""The size of a Poisson batch against the binomial law."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from fedjax_health.core.binomial import binomial_law, draw_count


@pytest.mark.parametrize(
    ("n", "mean"), [(21, 20), (100, 20), (1000, 1), (3, 2), (10**6, 512)]
)
def test_both_tails_are_those_of_the_law(n, mean):
    law = binomial_law(jnp.int32(n), mean)
    counts = int(law.least) + np.arange(len(law.below))
    exact = stats.binom(n, mean / n)
    below, above = exact.cdf(counts), exact.sf(counts)
    matter = below > 1e-9
    np.testing.assert_allclose(law.below[matter], below[matter], rtol=2e-5, atol=2e-12)
    matter = above > 1e-9
    np.testing.assert_allclose(law.above[matter], above[matter], rtol=2e-5, atol=2e-12)
    assert exact.cdf(counts[0] - 1) < 1e-11
    assert above[-1] < 1e-11


def test_counts_are_drawn_by_inversion():
    law = binomial_law(jnp.int32(60), 8)
    rng = np.random.default_rng(0)
    words = rng.integers(0, 2**32, 20_000, dtype=np.uint32)
    got = jax.vmap(draw_count, (None, 0))(law, jnp.asarray(words))
    expected = stats.binom(60, 8 / 60).ppf((words.astype(float) + 0.5) / 2**32)
    # A word that falls on a border may go to either side.
    assert np.mean(got != expected) < 1e-3
    ends = jnp.asarray([0, 2**32 - 1], jnp.uint32)
    low, high = jax.vmap(draw_count, (None, 0))(law, ends)
    assert low == 0
    assert high >= stats.binom(60, 8 / 60).isf(1e-9)
