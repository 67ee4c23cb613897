"""Epsilon against direct calls of dp-accounting, and the traps of accounting."""

import math

import dp_accounting as dp
import pytest
from dp_accounting import pld, rdp

from fedjax_health.core.message import CompositionError, Message
from fedjax_health.core.types import Mechanism, Sampling
from fedjax_health.privacy import (
    accounting,
    central_gaussian,
    events,
    ledger,
    local_gaussian,
)
from fedjax_health.privacy.accounting import PrivacyError, Target, epsilon_of

ADD, REPLACE = (
    dp.NeighboringRelation.ADD_OR_REMOVE_ONE,
    dp.NeighboringRelation.REPLACE_ONE,
)
MESSAGE = Message(num_params=1000, bound="clip_norm")
BOTH = {"pld": 1e-3, "rdp": 1e-6}


def poisson(population=10_000, expected=100, cap=None):
    return Sampling("poisson", population, expected, cap)


def direct(event, delta, accountant, relation=ADD):
    used = (
        rdp.RdpAccountant(neighboring_relation=relation)
        if accountant == "rdp"
        else pld.PLDAccountant(relation, 1e-3)
    )
    used.compose(event)
    return used.get_epsilon(delta)


EVENTS = {
    "gaussian": dp.SelfComposedDpEvent(dp.GaussianDpEvent(2.0), 10),
    "poisson": dp.SelfComposedDpEvent(
        dp.PoissonSampledDpEvent(0.05, dp.GaussianDpEvent(1.1)), 60
    ),
    "composed": dp.ComposedDpEvent(
        [
            dp.GaussianDpEvent(3.0),
            dp.SelfComposedDpEvent(
                dp.PoissonSampledDpEvent(0.1, dp.GaussianDpEvent(1.0)), 20
            ),
        ]
    ),
}


@pytest.mark.parametrize(("accountant", "tolerance"), BOTH.items())
@pytest.mark.parametrize("name", EVENTS)
def test_epsilon_is_that_of_dp_accounting(name, accountant, tolerance):
    found = epsilon_of(EVENTS[name], 1e-5, accountant=accountant)
    assert found == pytest.approx(direct(EVENTS[name], 1e-5, accountant), abs=tolerance)


def test_truncated_poisson_is_that_of_dp_accounting_and_a_wide_cap_is_free():
    one = dp.TruncatedSubsampledGaussianDpEvent(10_000, 0.01, 130, 1.0)
    event = dp.SelfComposedDpEvent(one, 50)
    assert epsilon_of(event, 1e-5) == pytest.approx(direct(event, 1e-5, "pld"), 1e-6)
    untruncated, wide, narrow = (
        epsilon_of(events.sampled_event(1.0, sampling, 50), 1e-5)
        for sampling in (
            poisson(cap=10_000),
            poisson(),
            poisson(cap=130),
        )
    )
    assert untruncated <= wide <= untruncated + 0.01
    assert narrow > 1.5 * wide


def test_rdp_pays_for_a_cap_in_delta_and_refuses_one_that_cuts_often():
    ideal = dp.SelfComposedDpEvent(
        dp.PoissonSampledDpEvent(0.01, dp.GaussianDpEvent(1.0)), 50
    )
    event = events.sampled_event(1.0, poisson(), 50)
    found = epsilon_of(event, 1e-5, accountant="rdp")
    exact = direct(ideal, 1e-5, "rdp")
    assert exact <= found < exact * 1.05
    with pytest.raises(PrivacyError, match="larger cap"):
        epsilon_of(
            events.sampled_event(1.0, poisson(cap=110), 50),
            1e-5,
            accountant="rdp",
        )


def test_replace_one_doubles_the_sensitivity_for_both_accountants():
    event = dp.GaussianDpEvent(2.0)
    tight = epsilon_of(event, 1e-5, relation="replace")
    assert tight == pytest.approx(4.377, abs=2e-3)
    renyi = epsilon_of(event, 1e-5, relation="replace", accountant="rdp")
    assert renyi == pytest.approx(direct(dp.GaussianDpEvent(1.0), 1e-5, "rdp"))
    # The event as it is would be accounted at half its cost.
    assert direct(event, 1e-5, "rdp", REPLACE) == pytest.approx(2.166, abs=1e-3)
    assert renyi > tight


def test_fixed_cohorts_have_a_loose_rdp_bound_alone():
    sampling = Sampling("fixed", 100, 10)
    event = events.sampled_event(1.0, sampling, 100)
    assert events.sampled_relation(sampling) == "replace"
    loose = epsilon_of(event, 1e-3, accountant="rdp", relation="replace")
    assert loose == pytest.approx(79.3, abs=0.1)
    with pytest.raises(PrivacyError, match="Poisson"):
        epsilon_of(event, 1e-3, relation="replace")
    assert accounting.usable_accountant(event, "pld") == "rdp"
    drawn = events.sampled_event(1.0, Sampling("poisson", 100, 10, 100), 100)
    assert epsilon_of(drawn, 1e-3, accountant="rdp") == pytest.approx(5.66, abs=0.01)
    assert epsilon_of(drawn, 1e-3) == pytest.approx(4.78, abs=0.01)


def test_full_participation_is_not_amplified():
    for sampling in (Sampling("fixed", 50, 50), Sampling("poisson", 50, 50)):
        event = events.sampled_event(2.0, sampling, 9)
        assert epsilon_of(event, 1e-5) == pytest.approx(
            dp.get_epsilon_gaussian(2.0 / 3, 1e-5), abs=1e-3
        )


def test_cyclic_rounds_count_by_block():
    # bands=10, T=100, z=1, cohort 1 %: the plain rate would claim .38.
    sampling = Sampling("cyclic", 10_000, 100, 1000, 10)
    true = epsilon_of(events.sampled_event(1.0, sampling, 100), 1e-5)
    ideal = dp.SelfComposedDpEvent(
        dp.PoissonSampledDpEvent(0.1, dp.GaussianDpEvent(1.0)), 10
    )
    assert true == pytest.approx(direct(ideal, 1e-5, "pld"), abs=1e-3)
    wrong = dp.SelfComposedDpEvent(
        dp.PoissonSampledDpEvent(0.01, dp.GaussianDpEvent(1.0)), 10
    )
    assert true > 5 * epsilon_of(wrong, 1e-5)


def test_a_tree_costs_its_depth():
    for steps, depth in ((1, 1), (2, 2), (3, 2), (4, 3), (7, 3), (8, 4)):
        event = dp.SelfComposedDpEvent(
            dp.SingleEpochTreeAggregationDpEvent(4.0, steps), 3
        )
        special = rdp.RdpAccountant(
            neighboring_relation=dp.NeighboringRelation.REPLACE_SPECIAL
        )
        special.compose(event)
        assert epsilon_of(event, 1e-5, accountant="rdp") == pytest.approx(
            special.get_epsilon(1e-5), abs=1e-6
        )
        assert epsilon_of(event, 1e-5) == pytest.approx(
            dp.get_epsilon_gaussian(4 / math.sqrt(3 * depth), 1e-5), abs=1e-3
        )


@pytest.mark.parametrize("epsilon", [0.5, 3.0, 10.0, 20.0])
def test_local_calibration_is_exact_where_the_classical_formula_is_not(epsilon):
    mechanism = local_gaussian(epsilon, 1e-5)
    z = mechanism.event.multiplier(poisson())
    assert dp.get_epsilon_gaussian(z / 2, 1e-5) == pytest.approx(epsilon, abs=1e-6)
    told = ledger.epsilon_after(mechanism, MESSAGE, poisson(), 1)
    assert told == pytest.approx(epsilon, abs=1e-3)
    classical = math.sqrt(2 * math.log(1.25 / 1e-5)) / epsilon
    reached = dp.get_epsilon_gaussian(classical, 1e-5)
    assert (reached > epsilon) == (epsilon >= 10)


def test_local_noise_is_not_amplified_by_sampling():
    mechanism = local_gaussian(noise_multiplier=6.0)
    few, many = (
        ledger.epsilon_after(mechanism, MESSAGE, sampling, 5)
        for sampling in (poisson(expected=10), poisson(expected=9_000))
    )
    assert few == many
    assert few == pytest.approx(
        dp.get_epsilon_gaussian(3 / math.sqrt(5), 1e-5), abs=1e-3
    )


@pytest.mark.parametrize("accountant", BOTH)
@pytest.mark.parametrize("target", [0.5, 8.0])
def test_calibration_reaches_its_target_from_below(target, accountant):
    def event(z):
        return events.sampled_event(z, poisson(1000, 100, 1000), 20)

    z = accounting.calibrate(target, 1e-5, event, accountant=accountant)
    assert target * 0.999 < epsilon_of(event(z), 1e-5, accountant=accountant) <= target


def test_a_target_that_no_noise_reaches_is_refused():
    with pytest.raises(PrivacyError, match="no noise reaches"):
        accounting.calibrate(1e-4, 1e-9, dp.GaussianDpEvent, accountant="rdp")
    for target in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(PrivacyError, match="target_epsilon"):
            accounting.calibrate(target, 1e-5, dp.GaussianDpEvent)


@pytest.mark.slow
def test_a_target_beyond_what_rdp_knows_of_a_cap_is_refused():
    def event(z):
        return events.sampled_event(z, poisson(1000, 100), 40)

    with pytest.raises(PrivacyError, match="larger cap"):
        accounting.calibrate(8.0, 1e-5, event, accountant="rdp")


def test_a_target_stands_for_its_noise():
    mechanism = central_gaussian(Target(3.0, 1e-5, 50))
    sampling = poisson(1000, 50)
    assert 2.99 < ledger.epsilon_after(mechanism, MESSAGE, sampling, 50) <= 3.0
    assert ledger.epsilon_after(mechanism, MESSAGE, sampling, 10) < 3.0


def test_adaptive_bits_are_paid_for():
    z, side = 1.0, 4.0
    own = accounting.split_noise(z, side)
    assert own**-2 + side**-2 == pytest.approx(z**-2)
    both = dp.ComposedDpEvent([dp.GaussianDpEvent(own), dp.GaussianDpEvent(side)])
    alone = dp.GaussianDpEvent(z)
    assert epsilon_of(both, 1e-5) == pytest.approx(epsilon_of(alone, 1e-5), abs=2e-3)
    message = Message(num_params=10, bound="c", side_multiplier=1.0)
    with pytest.raises(CompositionError, match="bit_noise"):
        central_gaussian(1.0).bind(message, poisson())


def test_epsilon_is_cumulative_and_cheap_to_ask_again():
    mechanism, sampling = central_gaussian(1.0), poisson(1000, 50)
    curve = ledger.curve(mechanism, MESSAGE, sampling, 40)
    assert curve[0][0] == 1
    assert curve[-1][0] == 40
    values = [epsilon for _, epsilon in curve]
    assert values == sorted(values)
    assert values[-1] == ledger.epsilon_after(mechanism, MESSAGE, sampling, 40)
    assert ledger.epsilon_after(mechanism, MESSAGE, sampling, 0) == 0


def test_the_account_says_what_it_is():
    told = ledger.describe(
        central_gaussian(1.0, noise="float"), MESSAGE, Sampling("fixed", 100, 10), 3
    )
    assert told["unit"] == "client"
    assert told["accountant"] == "rdp"
    assert "replace one" in told["relation"]
    assert "simulation-grade" in told["noise"]
    assert "loose" in told["sampler"]
    assert any("seed" in line for line in told["not_covered"])
    assert not told["warnings"]
    few = ledger.describe(central_gaussian(1.0), MESSAGE, Sampling("fixed", 10, 10), 1)
    assert few["noise"].endswith("release grade")
    big = accounting.Settings(delta=0.2)
    told = ledger.describe(
        central_gaussian(1.0), MESSAGE, Sampling("fixed", 10, 10), 1, big
    )
    assert "1/n" in told["warnings"][0]


def test_a_mechanism_of_ones_own_is_accounted_by_its_event():
    own = Mechanism(
        central_gaussian(1.0).bind,
        lambda message, sampling, rounds: dp.SelfComposedDpEvent(
            dp.LaplaceDpEvent(5.0), rounds
        ),
    )
    found = ledger.epsilon_after(own, MESSAGE, poisson(), 4)
    event = dp.SelfComposedDpEvent(dp.LaplaceDpEvent(5.0), 4)
    assert found == pytest.approx(direct(event, 1e-5, "pld"))


def test_no_noise_is_no_guarantee():
    assert epsilon_of(dp.NonPrivateDpEvent(), 1e-5) == math.inf
    with pytest.raises(PrivacyError, match="no noise"):
        epsilon_of(dp.GaussianDpEvent(0.0), 1e-5)
    for delta in (0.0, 1.0, -1.0):
        with pytest.raises(PrivacyError, match="delta"):
            epsilon_of(dp.GaussianDpEvent(1.0), delta)


def test_weak_noise_is_answered_and_never_below_the_truth():
    found = epsilon_of(dp.SelfComposedDpEvent(dp.GaussianDpEvent(0.05), 100), 1e-5)
    true = dp.get_epsilon_gaussian(0.005, 1e-5)
    assert true <= found < 1.01 * true


def test_examples_are_counted_over_all_steps_and_the_worst_client_is_named():
    event = events.example_level_event(1.0, 10, 200, 5, 4)
    ideal = dp.SelfComposedDpEvent(
        dp.PoissonSampledDpEvent(0.05, dp.GaussianDpEvent(1.0)), 20
    )
    assert event == ideal
    sizes, steps = [500, 40, 90, 0, 300], [20, 2, 4, 0, 30]
    worst = accounting.worst_client(1.0, 10, sizes, steps, 4)
    each = [
        epsilon_of(events.example_level_event(1.0, 10, n, s, 4), 1e-5) if n else 0
        for n, s in zip(sizes, steps, strict=True)
    ]
    assert worst.index == each.index(max(each))
    assert worst.epsilon == max(each)
    whole = events.example_level_event(1.0, 10, 5, 1, 1)
    assert epsilon_of(whole, 1e-5) == pytest.approx(
        dp.get_epsilon_gaussian(1.0, 1e-5), abs=1e-3
    )
    with pytest.raises(PrivacyError, match="no client"):
        accounting.worst_client(1.0, 10, [0], [0], 4)


def test_an_observed_participation_is_accounted_without_amplification():
    assert epsilon_of(events.repeated_event(2.0, 4), 1e-5) == pytest.approx(
        dp.get_epsilon_gaussian(1.0, 1e-5), abs=1e-3
    )
