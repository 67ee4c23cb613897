"""The encoding beside exact arithmetic, its headroom beside the largest sums."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_health.core.message import CompositionError
from fedjax_health.core.rng import root_key
from fedjax_health.secagg import fixed_point
from fedjax_health.secagg.fixed_point import FixedPoint, levels, modulus_bits


def numbers(max_weight=1.0, value_range=jnp.inf):
    return FixedPoint(jnp.float32(max_weight), jnp.float32(value_range))


def encoded(x, *, bits=20, weight=1.0, bound=None, **state):
    bound = None if bound is None else jnp.float32(bound)
    return fixed_point(bits).encode(
        jnp.asarray(x, jnp.float32),
        jnp.float32(weight),
        numbers(**state),
        root_key(0),
        bound,
    )


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([2, 5, 20, 24]),
    st.lists(st.floats(-2, 2, width=32), min_size=5, max_size=5),
    st.sampled_from([0.25, 1.0, 1.5]),
)
def test_values_are_the_nearest_integers(bits, values, reach):
    made, saturated = encoded(values, bits=bits, value_range=reach)
    step = reach / levels(bits)
    exact = np.asarray(values, np.float64) / step
    kept = np.clip(exact, -levels(bits), levels(bits))
    # A product in float32 is off by less than its last bit.
    assert np.all(
        np.abs(np.asarray(made) - kept) <= 0.5 + 2.0**-22 * np.abs(kept) + 0.1
    )
    assert np.abs(np.asarray(made)).max() <= levels(bits)
    share = np.mean(np.abs(exact) > levels(bits) + 1)
    assert share <= saturated <= np.mean(np.abs(exact) > levels(bits) - 1) + 1e-6


def test_by_hand():
    made, saturated = encoded([0.5, -1.2, 3.0, 0.0], bits=4, value_range=2.0)
    np.testing.assert_array_equal(made, [2, -4, 7, 0])
    assert saturated == 0.25
    assert made.dtype == jnp.int32


def test_the_smaller_of_bound_and_range_counts():
    for bound, reach in ((2.0, np.inf), (2.0, 5.0), (9.0, 2.0)):
        made, _ = encoded([2.0, 1.1], bits=5, bound=bound, value_range=reach)
        np.testing.assert_array_equal(made, [15, 8])


def test_weights_are_taken_relative_to_the_largest():
    made, saturated = encoded([1.0], weight=3.0, max_weight=4.0, value_range=1.0)
    assert made[0] == round(0.75 * levels(20))
    assert saturated == 0
    made, saturated = encoded([1.0], weight=9.0, max_weight=4.0, value_range=1.0)
    assert made[0] == levels(20)
    assert saturated == 1


def test_what_nobody_sent_is_zero():
    made, saturated = encoded([np.nan, np.inf, 1.0], weight=0.0, value_range=1.0)
    np.testing.assert_array_equal(made, 0)
    assert saturated == 0


def test_what_is_no_number_is_zero_and_counts_as_cut():
    made, saturated = encoded([np.nan, np.inf, -np.inf, 0.0], value_range=1.0)
    np.testing.assert_array_equal(made, [0, levels(20), -levels(20), 0])
    assert saturated == 0.75


def test_a_bound_of_zero_lets_zeros_through():
    made, saturated = encoded([0.0], bound=0.0)
    assert made[0] == 0
    assert saturated == 0
    back = fixed_point(20).decode(made, numbers(), jnp.float32(0), jnp.zeros(1))
    np.testing.assert_array_equal(back, 0)


def test_decoding_a_sum_is_off_by_half_a_step_a_message():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (50, 30)).astype(np.float32)
    weights = rng.uniform(0, 8, 50).astype(np.float32)
    codec, state = fixed_point(16), numbers(max_weight=8.0, value_range=1.0)
    made, _ = jax.vmap(lambda row, w: codec.encode(row, w, state, root_key(0), None))(
        x, weights
    )
    back = codec.decode(jnp.sum(made, 0), state, None, jnp.zeros(30))
    exact = (weights[:, None].astype(np.float64) * x).sum(0)
    assert np.abs(back - exact).max() <= 0.5 * 50 * 8.0 / levels(16)
    assert np.abs(back - exact).max() > 0


@pytest.mark.parametrize("n", [1, 2, 3, 100, 10_000])
@pytest.mark.parametrize("bits", [2, 8, 16, 20, 24])
def test_the_modulus_is_the_smallest_with_headroom(n, bits):
    largest = n * levels(bits)
    smallest = next(m for m in range(1, 64) if largest < 2 ** (m - 1))
    if smallest > 32:
        with pytest.raises(CompositionError, match="use at most bits="):
            modulus_bits(n, bits)
    else:
        assert modulus_bits(n, bits) == smallest


def test_the_largest_bits_that_fit_are_named():
    assert modulus_bits(100, 25) == 32
    with pytest.raises(CompositionError, match="use at most bits=25"):
        modulus_bits(100, 26)
    assert modulus_bits(10_000, 18) == 32
    with pytest.raises(CompositionError, match="use at most bits=18"):
        modulus_bits(10_000, 20)
    with pytest.raises(CompositionError, match="smaller cohort"):
        modulus_bits(2**31, 20)


@pytest.mark.parametrize("bits", [1, 25, 32, 20.0, True])
def test_other_bits_are_refused(bits):
    with pytest.raises(ValueError, match="bits"):
        fixed_point(bits)


def test_any_state_with_its_fields_will_do():
    class Own(NamedTuple):
        value_range: jax.Array
        max_weight: jax.Array

    state = Own(jnp.float32(1), jnp.float32(1))
    made, _ = fixed_point(8).encode(
        jnp.ones(1), jnp.float32(1), state, root_key(0), None
    )
    assert made[0] == 127
