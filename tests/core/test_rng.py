"""Keys depend on root, purpose, round, client and step, and on nothing else."""

import itertools

import jax
import numpy as np
import pytest

from fedjax_health.core.rng import (
    Stream,
    _inverse_normal,
    key_for,
    normal,
    root_key,
    words,
)


def data(key):
    return tuple(np.asarray(jax.random.key_data(key)).ravel().tolist())


def test_stream_numbers_never_change():
    """A saved run draws the same numbers after an update only if these stay."""
    assert {stream.name: int(stream) for stream in Stream} == {
        "INIT": 0,
        "DATA": 1,
        "SAMPLE": 2,
        "DROPOUT": 3,
        "TRAIN": 4,
        "TRANSFORM": 5,
        "ATTACK": 6,
        "AGGREGATE": 7,
        "MASK": 8,
        "MECHANISM": 9,
        "EXAMPLE": 10,
        "ORDER": 11,
    }


def test_the_root_key_is_a_typed_threefry_key():
    key = root_key(0)
    assert jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key)
    assert str(jax.random.key_impl(key)) == "threefry2x32"


def test_seeds_over_the_whole_range_have_keys_of_their_own():
    seeds = [0, 1, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1]
    assert len({data(root_key(seed)) for seed in seeds}) == len(seeds)


@pytest.mark.parametrize("seed", [-1, 2**32, 2**40])
def test_seeds_out_of_range_are_refused(seed):
    with pytest.raises(ValueError, match=rf"\[0, 2\*\*32\), not {seed}"):
        root_key(seed)


def test_every_argument_changes_the_key():
    root = root_key(1)
    arguments = list(itertools.product(list(Stream), [0, 1, 7], [0, 1, 2**31 - 1]))
    keys = {data(key_for(root, *a)) for a in arguments}
    steps = {data(key_for(root, Stream.TRAIN, 0, 0, step)) for step in range(5)}
    bare = {data(key_for(root, stream)) for stream in Stream}
    rounds = {data(key_for(root, stream, 3)) for stream in Stream}
    everything = keys | steps | bare | rounds
    assert len(everything) == len(arguments) + 5 + 2 * len(Stream)
    assert data(key_for(root_key(2), Stream.TRAIN, 0)) not in everything


def test_keys_are_folded_in_order():
    root = root_key(5)
    expected = root
    for number in (int(Stream.DATA), 3, 11, 2):
        expected = jax.random.fold_in(expected, number)
    assert data(key_for(root, Stream.DATA, 3, 11, 2)) == data(expected)


def test_traced_numbers_give_the_same_keys():
    root = root_key(9)

    @jax.jit
    @jax.vmap
    def traced(client):
        return jax.random.key_data(
            key_for(root, Stream.DROPOUT, client * 0 + 4, client)
        )

    clients = np.array([0, 5, 1_000_000], np.int32)
    for client, row in zip(clients, traced(clients), strict=True):
        assert tuple(np.asarray(row).tolist()) == data(
            key_for(root, Stream.DROPOUT, 4, int(client))
        )


def test_normal_numbers_follow_their_law():
    from scipy import stats

    drawn = np.asarray(normal(root_key(3), 200_001))
    assert drawn.shape == (200_001,)
    assert drawn.dtype == np.float32
    assert stats.kstest(drawn, "norm").pvalue > 0.01
    assert stats.kstest(drawn + 0.0375, "norm").pvalue < 1e-6
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.01
    assert not np.array_equal(drawn[:10], np.asarray(normal(root_key(4), 10)))


def test_words_are_those_of_threefry():
    from jax.extend.random import threefry_2x32

    counters = np.arange(50, dtype=np.uint32)
    key = root_key(3)
    blocks = np.concatenate([counters, np.full(50, 7, np.uint32)])
    expected = threefry_2x32(jax.random.key_data(key), jax.numpy.asarray(blocks))[:50]
    np.testing.assert_array_equal(words(key, counters, 7), expected)


def test_every_word_stands_for_the_normal_number_at_its_share():
    from scipy.special import ndtri

    ends, middle = np.arange(2000), np.random.default_rng(0).integers(0, 2**32, 50_000)
    word = np.concatenate([ends, middle, 2**32 - 1 - ends]).astype(np.uint32)
    expected = ndtri((word.astype(np.float64) + 0.5) / 2**32)
    np.testing.assert_allclose(_inverse_normal(word), expected, rtol=1e-6)


def test_numbers_do_not_depend_on_how_many_are_drawn():
    key = root_key(1)
    many = np.asarray(normal(key, 5000, 2))
    np.testing.assert_array_equal(many[:1500], normal(key, 1500, 2))
    assert not np.array_equal(many[:10], normal(key, 10, 3))
