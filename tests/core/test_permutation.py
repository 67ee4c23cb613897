"""The swap-or-not network is a bijection, uniform enough, and fresh in every epoch."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_health.core.permutation import ROUNDS, permutation_words, permute
from fedjax_health.core.rng import root_key

_permute = jax.jit(permute)


@jax.jit
@jax.vmap
def _words(seed):
    return permutation_words(jax.random.fold_in(root_key(7), seed))


def words_of(seed=0):
    return permutation_words(root_key(seed))


def np_scramble(x):
    x ^= x >> 16
    x = x * 0x85EBCA6B % 2**32
    x ^= x >> 13
    x = x * 0xC2B2AE35 % 2**32
    return x ^ (x >> 16)


def np_permute(words, epoch, position, n):
    """The network of the paper with Python integers, one position."""
    mixed = [
        [np_scramble((int(w) + epoch * 0x9E3779B9) % 2**32) for w in row]
        for row in np.asarray(words)
    ]
    x = position
    for pivot, salt in zip(*mixed, strict=True):
        partner = (pivot % n - x) % n
        chooser = (max(x, partner) + salt) % 2**32
        chooser = (chooser ^ (chooser >> 15)) * 0x2C1B3C6D % 2**32
        chooser = (chooser ^ (chooser >> 12)) * 0x297A2D39 % 2**32
        x = partner if chooser >= 2**31 else x
    return x


@pytest.mark.parametrize("epoch", [0, 3])
def test_it_is_a_bijection_of_every_small_range(epoch):
    sizes = jnp.arange(1, 301)
    positions = jnp.arange(300)
    all_sizes = jax.jit(
        jax.vmap(lambda n: permute(words_of(), jnp.int32(epoch), positions, n))
    )
    moved = np.asarray(all_sizes(sizes))
    for n in range(1, 301):
        np.testing.assert_array_equal(np.sort(moved[n - 1, :n]), np.arange(n))


@pytest.mark.parametrize("n", [65_536, 1_000_003])
def test_it_is_a_bijection_of_large_ranges(n):
    moved = np.asarray(_permute(words_of(), jnp.int32(1), jnp.arange(n), jnp.int32(n)))
    assert np.all(np.bincount(moved, minlength=n) == 1)
    assert np.mean(moved == np.arange(n)) < 1e-3


@pytest.mark.parametrize("n", [2**31 - 1, 2**31 - 2, 2**30 + 1])
def test_the_largest_ranges_do_not_overflow(n):
    positions = np.unique(np.linspace(0, n - 1, 5000).astype(np.int64))
    moved = _permute(
        words_of(), jnp.int32(2), jnp.asarray(positions, jnp.int32), jnp.int32(n)
    )
    moved = np.asarray(moved)
    assert moved.dtype == np.int32
    assert moved.min() >= 0
    assert moved.max() < n
    assert len(np.unique(moved)) == len(positions)
    for i in (0, 17, len(positions) - 1):
        assert moved[i] == np_permute(words_of(), 2, int(positions[i]), n)


def test_it_equals_the_network_in_plain_integers():
    for seed, epoch, n in [(0, 0, 1), (1, 0, 2), (2, 9, 13), (3, 1, 1000), (4, 7, 31)]:
        words = words_of(seed)
        moved = _permute(words, jnp.int32(epoch), jnp.arange(n), jnp.int32(n))
        oracle = [np_permute(words, epoch, i, n) for i in range(n)]
        np.testing.assert_array_equal(moved, oracle)


def chi_square(counts):
    expected = counts.sum() / counts.size
    return np.sum((counts - expected) ** 2) / expected


@pytest.mark.parametrize("n", [2, 3, 5, 16, 100])
def test_each_position_goes_everywhere_equally_often(n):
    draws = 20_000
    moved = jax.jit(
        jax.vmap(lambda w: permute(w, jnp.int32(0), jnp.arange(n), jnp.int32(n)))
    )(_words(jnp.arange(draws)))
    moved = np.asarray(moved)
    limit = (n - 1) + 5 * np.sqrt(2 * (n - 1))
    for position in (0, n // 2, n - 1):
        assert chi_square(np.bincount(moved[:, position], minlength=n)) < limit


@pytest.mark.parametrize("n", [3, 4])
def test_all_permutations_of_few_positions_are_as_likely(n):
    draws = 24_000
    moved = jax.jit(
        jax.vmap(lambda w: permute(w, jnp.int32(5), jnp.arange(n), jnp.int32(n)))
    )(_words(jnp.arange(draws)))
    codes = np.asarray(moved) @ (n ** np.arange(n))
    kinds = [np.dot(p, n ** np.arange(n)) for p in itertools.permutations(range(n))]
    counts = np.array([np.sum(codes == kind) for kind in kinds])
    assert counts.sum() == draws
    assert chi_square(counts) < (len(kinds) - 1) + 5 * np.sqrt(2 * (len(kinds) - 1))


def test_epochs_and_clients_have_orders_of_their_own():
    n = 200
    orders = [
        tuple(
            np.asarray(
                _permute(words_of(seed), jnp.int32(e), jnp.arange(n), jnp.int32(n))
            )
        )
        for seed in range(4)
        for e in range(6)
    ]
    assert len(set(orders)) == len(orders)
    same = [np.mean(np.equal(a, b)) for a, b in itertools.combinations(orders, 2)]
    assert max(same) < 0.06
    assert np.mean(same) == pytest.approx(1 / n, rel=0.3)


def test_consecutive_epochs_are_uncorrelated():
    n, epochs = 50, 2000
    orders = np.asarray(
        jax.jit(
            jax.vmap(lambda e: permute(words_of(), e, jnp.arange(n), jnp.int32(n)))
        )(jnp.arange(epochs))
    ).astype(float)
    ranks = (orders - orders.mean(1, keepdims=True)) / orders.std(1, keepdims=True)
    successive = np.mean(ranks[1:] * ranks[:-1], axis=1)
    assert abs(successive.mean()) < 5 / np.sqrt(n * epochs)


def test_vmap_equals_a_loop():
    sizes = np.array([1, 2, 7, 40, 40], np.int32)
    words = _words(jnp.arange(5))
    epochs = jnp.arange(5)
    positions = jnp.arange(40)
    mapped = jax.jit(jax.vmap(permute, in_axes=(0, 0, None, 0)))(
        words, epochs, positions, jnp.asarray(sizes)
    )
    for i, n in enumerate(sizes):
        alone = _permute(words[i], epochs[i], positions, jnp.int32(n))
        np.testing.assert_array_equal(mapped[i], alone)


def test_positions_beyond_the_last_stay_inside_the_range():
    n = 11
    positions = jnp.arange(64, dtype=jnp.int32)
    moved = np.asarray(_permute(words_of(), jnp.int32(0), positions, jnp.int32(n)))
    assert np.all((moved >= 0) & (moved < n))
    assert np.all(moved[n:] == moved[n - 1])


def test_words_are_fixed_by_the_key():
    words = words_of(3)
    assert words.shape == (2, ROUNDS)
    assert words.dtype == jnp.uint32
    np.testing.assert_array_equal(words, words_of(3))
    assert not np.array_equal(words, words_of(4))
