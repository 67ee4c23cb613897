"""Bytes on the wire, with exact integers as the oracle."""

import dataclasses
import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedjax_health.core.message import CompositionError, Message


def test_a_dense_message_takes_four_bytes_a_number():
    assert Message(num_params=1000).uplink_bytes() == 4000
    assert Message(num_params=0).uplink_bytes() == 0


def test_every_part_of_the_cost_is_counted():
    message = Message(
        num_params=1000, density=0.01, bits=8, index_bits=10, overhead_bytes=6
    )
    assert message.uplink_bytes() == math.ceil(10 * 18 / 8) + 6
    assert Message(num_params=9, bits=1).uplink_bytes() == 2
    assert Message(num_params=3, density=0.5, bits=8).uplink_bytes() == 2


@given(
    sizes=st.integers(1, 10**9).flatmap(
        lambda n: st.tuples(st.just(n), st.integers(1, n))
    ),
    bits=st.sampled_from([1, 2, 4, 8, 16, 32]),
)
def test_k_of_n_values_are_k_values(sizes, bits):
    n, k = sizes
    message = Message(num_params=n, density=k / n, bits=bits)
    assert message.uplink_bytes() == math.ceil(Fraction(k * bits, 8))


def test_a_density_that_rounds_up_sends_no_value_more():
    assert 25 * (7 / 25) > 7
    assert Message(num_params=25, density=7 / 25, bits=8).uplink_bytes() == 7


def test_messages_are_values():
    message = Message(num_params=4)
    assert message == Message(num_params=4)
    assert hash(message) == hash(Message(num_params=4))
    assert dataclasses.replace(message, bits=8) != message
    with pytest.raises(dataclasses.FrozenInstanceError):
        message.bits = 8


def test_a_composition_error_is_a_value_error():
    assert issubclass(CompositionError, ValueError)
