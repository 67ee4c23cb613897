"""The bound of Steinke et al. against slow sums, and what must hold of it."""

import itertools
import math

import numpy as np
import pytest

from fedjax_health.audit.bound import (
    epsilon_bound,
    p_value,
    refuted_epsilon,
    split,
)


def slow_p_value(epsilon, delta, *, correct, guesses, canaries):
    """The sums of the paper's appendix D, one term after the other."""
    chance = math.exp(epsilon) / (1 + math.exp(epsilon))

    def mass(k):
        return math.comb(guesses, k) * chance**k * (1 - chance) ** (guesses - k)

    tail = sum(mass(k) for k in range(correct, guesses + 1))
    slope = max(
        (
            sum(mass(correct - j) for j in range(1, i + 1)) / i
            for i in range(1, correct + 1)
        ),
        default=0.0,
    )
    return min(1.0, tail + 2 * canaries * delta * slope)


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("delta", [0.0, 1e-5, 1e-2])
@pytest.mark.parametrize(
    ("correct", "guesses", "canaries"),
    [(0, 5, 9), (5, 9, 20), (20, 20, 20), (31, 40, 60)],
)
def test_the_p_value_is_that_of_the_slow_sums(
    epsilon, delta, correct, guesses, canaries
):
    counts = {"correct": correct, "guesses": guesses, "canaries": canaries}
    assert p_value(epsilon, delta, **counts) == pytest.approx(
        slow_p_value(epsilon, delta, **counts), rel=1e-9
    )


def test_a_larger_epsilon_is_harder_to_refute():
    values = [
        p_value(e, 1e-5, correct=70, guesses=80, canaries=100)
        for e in np.linspace(0, 6, 25)
    ]
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(values))


def test_all_guesses_right_refute_what_pure_dp_says_by_hand():
    # (e / (1 + e)) ** m = alpha.
    chance = 0.05 ** (1 / 100)
    assert refuted_epsilon(
        0.0, correct=100, guesses=100, canaries=100, alpha=0.05
    ) == pytest.approx(math.log(chance / (1 - chance)), abs=1e-6)


def test_more_right_guesses_and_more_canaries_refute_more():
    def at(correct, guesses):
        return refuted_epsilon(
            1e-5, correct=correct, guesses=guesses, canaries=guesses, alpha=0.05
        )

    assert at(50, 100) == 0
    assert 0 < at(65, 100) < at(80, 100) < at(100, 100) < at(1000, 1000)


def test_a_large_delta_leaves_less_to_refute():
    counts = {"correct": 95, "guesses": 100, "canaries": 100, "alpha": 0.05}
    assert refuted_epsilon(1e-2, **counts) < refuted_epsilon(1e-5, **counts)


def test_randomised_response_is_hardly_ever_refuted_and_told_from_nothing():
    rng = np.random.default_rng(3)
    true, wrong, found = 1.0, 0, []
    for _ in range(60):
        is_in = rng.random(400) < 0.5
        honest = rng.random(400) < math.exp(true) / (1 + math.exp(true))
        scores = np.where(is_in == honest, 1.0, 0.0)
        bound = epsilon_bound(scores, is_in, 0.0).epsilon
        wrong += bound > true
        found.append(bound)
    assert wrong <= 4
    assert np.mean(found) > 0.5


def test_scores_without_meaning_refute_nothing():
    rng = np.random.default_rng(0)
    bounds = [
        epsilon_bound(rng.normal(size=100), rng.random(100) < 0.5, 1e-5).epsilon
        for _ in range(40)
    ]
    assert sum(bound > 0 for bound in bounds) <= 4


def test_a_bound_does_not_ask_for_as_many_in_as_out():
    is_in = np.arange(100) < 37
    found = epsilon_bound(np.where(is_in, 5.0, 0.0), is_in, 1e-5)
    assert (found.correct, found.guesses) == (100, 100)
    assert found.epsilon == found.most > 3


def test_the_split_is_that_of_the_least_squares():
    rng = np.random.default_rng(5)
    scores = np.concatenate([rng.normal(size=12), rng.normal(4, 1, size=7)])

    def within(cut):
        parts = (scores[scores <= cut], scores[scores > cut])
        return sum(np.sum((part - part.mean()) ** 2) for part in parts if len(part))

    tried = [within(cut) for cut in np.sort(scores)[:-1]]
    assert within(split(scores)) == pytest.approx(min(tried))


def test_numbers_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="rise"):
        p_value(1.0, 0.0, correct=5, guesses=4, canaries=10)
    with pytest.raises(ValueError, match="out of range"):
        p_value(-1.0, 0.0, correct=1, guesses=4, canaries=10)
    with pytest.raises(ValueError, match="not a number"):
        epsilon_bound(np.array([0.0, np.nan]), np.array([True, False]), 0.0)
    with pytest.raises(ValueError, match="one score and one coin"):
        epsilon_bound(np.zeros(3), np.zeros(2, bool), 0.0)
