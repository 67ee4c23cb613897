"""The coder: what it writes is read back to the bit, and counted to the byte."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_health.transforms import coding
from fedjax_health.transforms.coding import Scheme, decode, encode
from fedjax_health.transforms.counting import byte_report, count_bytes, measure_bytes
from tests.transforms import oracles

counted = jax.jit(count_bytes, static_argnums=1)


def same_bits(a, b):
    np.testing.assert_array_equal(
        np.asarray(a, np.float32).view(np.uint32),
        np.asarray(b, np.float32).view(np.uint32),
    )


def sparse(size, share, seed):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=size).astype(np.float32)
    return np.where(rng.random(size) < share, values, np.float32(0))


SHARES = [0.0, 0.0005, 0.01, 0.05, 0.1, 0.2, 0.5, 0.9, 0.99, 1.0]


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("size", [1, 7, 32, 33, 1000, 4099])
def test_float_messages_come_back_and_are_counted(size, share):
    for seed in range(3):
        values = sparse(size, share, seed)
        scheme = Scheme(size)
        data = encode(values, scheme)
        same_bits(decode(data, scheme), values)
        assert len(data) == int(counted(jnp.asarray(values), scheme))
        # Never more than all values after a byte.
        assert len(data) <= 1 + 4 * size


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("levels", [1, 2, 3, 7, 16, 127, 1000])
def test_integer_messages_come_back_and_are_counted(levels, share):
    rng = np.random.default_rng(levels)
    segments = (100, 1, 399, 513)
    size = sum(segments)
    scheme = Scheme(size, levels, segments)
    scales = rng.gamma(1.0, size=4).astype(np.float32)
    scales[1] = 0
    wide = np.repeat(scales, segments)
    whole = rng.integers(-levels, levels + 1, size)
    whole[rng.random(size) >= share] = 0
    values = np.where(whole == 0, 0, whole.astype(np.float32) * wide)
    values = np.where(wide == 0, 0, values).astype(np.float32)
    data = encode(values, scheme, scales)
    same_bits(decode(data, scheme), values)
    assert len(data) == int(counted(jnp.asarray(values), scheme))


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 200),
    st.lists(st.integers(0, 199), max_size=40),
    st.integers(0, 2**32 - 1),
)
def test_any_positions_and_any_bit_patterns_come_back(size, places, word):
    values = np.zeros(size, np.uint32)
    values[[p for p in places if p < size]] = word
    values = values.view(np.float32)
    scheme = Scheme(size)
    data = encode(values, scheme)
    same_bits(decode(data, scheme), values)
    present = values.view(np.uint32) != 0
    sizes = coding.form_bytes(
        scheme,
        int(present.sum()),
        oracles.rice_bits(
            np.flatnonzero(present), coding._rice_parameter(size, int(present.sum()))
        ),
    )
    assert len(data) == min(sizes)


def test_negative_zero_and_nan_are_values():
    values = np.array([0.0, -0.0, np.nan, np.inf, 1e-45], np.float32)
    scheme = Scheme(5)
    same_bits(decode(encode(values, scheme), scheme), values)


def test_every_form_is_used_where_it_is_shortest():
    forms = {}
    for share in (0.0, 0.001, 0.1, 0.4, 0.999, 1.0):
        data = encode(sparse(20_000, share, 1), Scheme(20_000))
        forms[share] = data[0] & 7
    assert forms[0.001] == forms[0.1] == coding.RICE
    assert forms[0.4] == coding.BITMAP
    assert forms[1.0] == coding.DENSE
    # Of integers a full message saves the symbol for zero.
    ones = np.ones(800, np.float32)
    data = encode(ones, Scheme(800, 1, (800,)), np.ones(1, np.float32))
    assert data[0] & 7 == coding.FULL
    assert len(data) == 1 + 4 + 100
    # Runs too long for the parameter: positions as they are.
    assert len(encode(np.zeros(10**6, np.float32), Scheme(10**6))) == 5
    clumped = np.zeros(4_000_000, np.float32)
    clumped[-200:] = 1
    data = encode(clumped, Scheme(clumped.size))
    assert len(data) == int(counted(jnp.asarray(clumped), Scheme(clumped.size)))


def test_ninety_percent_sparse_takes_the_bytes_that_theory_says():
    size = 100_000
    values = sparse(size, 0.1, 2)
    count = np.count_nonzero(values)
    share = len(encode(values, Scheme(size))) / (4 * size)
    assert 0.110 < share < 0.120
    expected = coding.expected_index_bits(size, count)
    bits = (len(encode(values, Scheme(size))) - 5 - 4 * count) * 8 / count
    assert abs(bits - expected) < 0.05
    # Entropy is the floor of any coder of random positions.
    p = count / size
    entropy = (-p * np.log2(p) - (1 - p) * np.log2(1 - p)) / p
    assert entropy < bits < entropy * 1.05


@pytest.mark.parametrize("share", [0.003, 0.03, 0.1, 0.3])
def test_the_rice_parameter_is_nearly_the_best(share):
    size = 50_000
    places = np.flatnonzero(sparse(size, share, 3))
    runs = np.diff(places, prepend=-1) - 1
    costs = [int(np.sum((runs >> b) + 1 + b)) for b in range(20)]
    chosen = costs[coding._rice_parameter(size, len(places))]
    assert chosen <= 1.01 * min(costs)


def test_values_that_are_no_levels_are_refused():
    scheme = Scheme(2, 1, (2,))
    with pytest.raises(ValueError, match="no integers"):
        encode(np.array([1.0, 0.3]), scheme, np.ones(1, np.float32))
    with pytest.raises(ValueError, match="no integers"):
        encode(np.array([1.0, 2.0]), scheme, np.ones(1, np.float32))
    with pytest.raises(ValueError, match="as many scales"):
        encode(np.ones(2, np.float32), scheme, np.ones(3, np.float32))
    with pytest.raises(ValueError, match="coordinates"):
        encode(np.ones(3, np.float32), scheme)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 7])
def test_codes_come_back(bits):
    codes = np.random.default_rng(bits).integers(0, 2**bits, 64)
    seed = np.array([7, 2**32 - 1], np.uint32)
    data = coding.encode_codes(codes, bits, np.float32(0.3), seed)
    assert len(data) == 12 + 8 * bits
    got, scale, words = coding.decode_codes(data, bits, 64)
    np.testing.assert_array_equal(got, codes)
    np.testing.assert_array_equal(words, seed)
    assert scale == np.float32(0.3)


def test_sums_of_bytes_are_exact_where_float32_is_not():
    """1,000 messages of 400,005 bytes: a float32 sum has lost the fives."""
    one = byte_report(jnp.int32(400_005))
    total = jax.tree.map(lambda x: x * 1000, one)
    assert int(total["kib"]) * 1024 + int(total["bytes"]) == 400_005_000
    lossy = np.float32(0)
    for _ in range(1000):
        lossy += np.float32(400_005)
    assert lossy != 400_005_000
    said = measure_bytes(total, (), jnp.float32(1000))["uplink_bytes"]
    assert float(said) == np.float32(400_005_000)
