"""Epsilon of a wire against direct calls of dp-accounting."""

import math

import dp_accounting as dp
import pytest
from dp_accounting import pld, rdp

from fedjax_health.privacy.accounting import PrivacyError, epsilon_of
from fedjax_health.privacy.wire import wire_epsilon


def direct(multipliers, crossings, delta, accountant):
    relation = dp.NeighboringRelation.ADD_OR_REMOVE_ONE
    if accountant == "rdp":
        used = rdp.RdpAccountant(neighboring_relation=relation)
    else:
        used = pld.PLDAccountant(relation, 1e-4)
    for multiplier in multipliers:
        used.compose(dp.GaussianDpEvent(multiplier), crossings)
    return used.get_epsilon(delta)


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
@pytest.mark.parametrize(
    ("multipliers", "crossings"),
    [((3.0,), 1), ((8.0,), 60), ((20.0, 12.0), 100), ([5, 5], 4)],
)
def test_it_is_that_of_dp_accounting(multipliers, crossings, accountant):
    found = wire_epsilon(multipliers, crossings, 1e-5, accountant=accountant)
    want = direct(multipliers, crossings, 1e-5, accountant)
    assert found == pytest.approx(want, abs={"pld": 1e-3, "rdp": 1e-6}[accountant])


def test_it_is_the_gaussian_mechanism_s_closed_form():
    assert wire_epsilon((6.0, 6.0), 18, 1e-5) == pytest.approx(
        dp.get_epsilon_gaussian(1.0, 1e-5), abs=1e-3
    )


def test_it_grows_with_crossings_and_directions_and_falls_with_noise():
    one = wire_epsilon((4.0,), 10, 1e-5)
    assert wire_epsilon((4.0,), 11, 1e-5) > one
    assert wire_epsilon((4.0, 40.0), 10, 1e-5) > one
    assert wire_epsilon((4.1,), 10, 1e-5) < one
    # Replacing an example instead of zeroing it out costs twice the sensitivity.
    replaced = epsilon_of(
        dp.GaussianDpEvent(4.0 / math.sqrt(10)), 1e-5, relation="replace"
    )
    assert wire_epsilon((2.0,), 10, 1e-5) == pytest.approx(replaced, abs=2e-3)


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_ends(accountant):
    for none in ((), (0.0,), (1.0, 0.0)):
        assert wire_epsilon(none, 5, 1e-5, accountant=accountant) == math.inf
        assert wire_epsilon(none, 0, 1e-5, accountant=accountant) == 0
    # Little noise over a whole run: huge, but a number.
    weak = wire_epsilon((0.5,), 1000, 1e-5, accountant=accountant)
    assert 2000 < weak < math.inf


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (((-1.0,), 1, 1e-5), "multipliers"),
        (((math.nan,), 1, 1e-5), "multipliers"),
        (((math.inf,), 1, 1e-5), "multipliers"),
        (((1.0,), -1, 1e-5), "crossings"),
        (((1.0,), 1.5, 1e-5), "crossings"),
        (((1.0,), 1, 0.0), "delta"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments, match):
    with pytest.raises(PrivacyError, match=match):
        wire_epsilon(*arguments)
