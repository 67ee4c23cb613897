"""Integer noise against its law: moments, tails, every point of its support."""

import functools

import jax
import numpy as np
import pytest
from scipy import special, stats

from fedjax_health.core import noise
from fedjax_health.core.rng import root_key

MILLION = 1_000_000
LAWS = {"discrete_gaussian": noise.discrete_gaussian, "skellam": noise.skellam}
SIGMAS = (0.5, 3.0, 54.9, 55.1, 1e3, 2e5, 1e7)


@functools.lru_cache(maxsize=2)
def sample(law, sigma, seed=0, size=MILLION):
    draw = jax.jit(noise.draw, static_argnums=1)
    return np.asarray(draw(root_key(seed), size, LAWS[law](sigma)))


def mass(law, sigma, reach=12):
    """The law's own probabilities, in float64, slowly."""
    x = np.arange(-int(reach * sigma) - 2, int(reach * sigma) + 3)
    if law == "skellam":
        return x, special.ive(np.abs(x), sigma**2)
    p = np.exp(-0.5 * (x / sigma) ** 2)
    return x, p / p.sum()


def nine_votes(values, sigma):
    """Whether nine parts of a sample agree with mean 0, width sigma and fair tails."""
    votes = []
    for part in np.array_split(np.asarray(values, np.float64) / sigma, 9):
        n = len(part)
        votes.append(
            abs(part.mean()) < 4 / np.sqrt(n)
            and abs(part.var() - 1) < 4 * np.sqrt(2 / n)
            and abs(np.mean(np.abs(part) > 2) - 0.0455) < 4 * np.sqrt(0.0455 / n)
        )
    return sum(votes) >= 5


@pytest.mark.parametrize(
    "sigma", [3.0, 1e7, *(pytest.param(s, marks=pytest.mark.slow) for s in (55.1, 1e3))]
)
@pytest.mark.parametrize("law", LAWS)
def test_the_votes_accept_the_law_and_refuse_what_is_near_it(law, sigma):
    values = sample(law, sigma)
    if sigma < 10:  # the tail beyond 2 sigma is one of a lattice here
        values = values + np.random.default_rng(0).uniform(-0.5, 0.5, MILLION)
        sigma = np.sqrt(sigma**2 + 1 / 12)
    assert nine_votes(values, sigma)
    assert not nine_votes(values + 0.0375 * sigma, sigma)
    assert not nine_votes(values * 1.0625, sigma)
    assert not nine_votes(values / 1.0625, sigma)


@pytest.mark.parametrize("sigma", [0.5, 3.0, 54.9, 55.1])
@pytest.mark.parametrize("law", LAWS)
def test_every_integer_has_its_probability(law, sigma):
    values = sample(law, sigma)
    x, p = mass(law, sigma)
    counts = np.bincount(values - x[0], minlength=len(x))
    assert len(counts) == len(x)
    enough = p * MILLION >= 20
    rest = np.array([counts[~enough].sum()]), np.array([p[~enough].sum()])
    seen = np.concatenate([counts[enough], rest[0]])
    expected = np.concatenate([p[enough], rest[1]]) * MILLION
    chi2 = np.sum((seen - expected) ** 2 / np.maximum(expected, 1e-9))
    if rest[1][0] * MILLION < 1:
        chi2 = np.sum((seen - expected)[:-1] ** 2 / expected[:-1])
    assert stats.chi2.sf(chi2, len(seen) - 1) > 1e-4


@pytest.mark.parametrize("sigma", [2e5, 1e7])
@pytest.mark.parametrize("law", LAWS)
def test_wide_laws_are_normal(law, sigma):
    values = sample(law, sigma)[:200_000] / sigma
    assert stats.kstest(values, "norm").pvalue > 1e-4
    assert abs(stats.kurtosis(values)) < 6 * np.sqrt(24 / len(values))


@pytest.mark.parametrize("sigma", [54.9, 1e4])
def test_the_table_holds_the_law_to_the_far_tail(sigma):
    """Block by block, without sampling: alias table times what is kept."""
    for law, build in LAWS.items():
        table = build(sigma)
        width = 1 << int(table.log2_width)
        units = table.high.astype(np.float64) * 2.0**32 + table.low
        kept = units / 2.0**54
        of_block = kept.copy()
        np.add.at(of_block, table.alias, 1 - kept)
        of_block /= noise.BLOCKS
        start = (np.arange(noise.BLOCKS) - noise.BLOCKS // 2) * width
        peak = np.where(start < 0, start + width - 1, start).astype(np.float64)
        if law == "skellam":
            expected = special.ive(np.abs(peak), sigma**2)
        else:
            expected = np.exp(-0.5 * (peak / sigma) ** 2)
        expected /= expected.sum()
        near = np.abs(peak) <= 7 * sigma
        np.testing.assert_allclose(of_block[near], expected[near], rtol=1e-3)
        bulk = np.abs(peak) <= 4 * sigma
        np.testing.assert_allclose(of_block[bulk], expected[bulk], rtol=1e-9)
        assert np.all(of_block[np.abs(peak) <= 8 * sigma] > 0)


@pytest.mark.slow
def test_tails_beyond_five_and_a_half_sigma_are_reached():
    # float32 normals end at 5.42.
    values = np.concatenate([sample("discrete_gaussian", 1e6, s) for s in range(12)])
    assert np.abs(values).max() > 4.9e6
    table = noise.discrete_gaussian(1e6)
    # The block of 6.5 sigma can be drawn.
    block = noise.BLOCKS // 2 + int(6.5e6) // (1 << int(table.log2_width))
    own = (table.high[block] > 0) | (table.low[block] > 0)
    assert own or np.any((table.alias == block) & (table.high < 1 << 22))


def test_a_drawn_sample_has_no_holes_in_the_middle():
    values = sample("discrete_gaussian", 1e3)
    seen = np.unique(values[np.abs(values) <= 1500])
    assert len(seen) == 3001


def test_draws_repeat_by_key_and_agree_under_vmap():
    table = noise.skellam(40.0)
    keys = jax.random.split(root_key(1), 3)
    draw = jax.jit(lambda k: noise.draw(k, 11, table))
    rows = jax.jit(jax.vmap(draw))(keys)
    for key, row in zip(keys, rows, strict=True):
        np.testing.assert_array_equal(row, draw(key))
    assert len(np.unique(np.asarray(rows), axis=0)) == 3


def test_laws_of_all_widths_share_one_program():
    traces = []

    @jax.jit
    def draw(table):
        traces.append(1)
        return noise.draw(root_key(0), 8, table)

    for sigma in SIGMAS:
        for build in LAWS.values():
            draw(build(sigma))
    assert len(traces) == 1


@pytest.mark.parametrize("sigma", [0.0, 0.1, -1.0, float("nan"), 1e9])
def test_a_width_out_of_range_is_refused(sigma):
    for build in LAWS.values():
        with pytest.raises(ValueError, match="sigma="):
            build(sigma)
