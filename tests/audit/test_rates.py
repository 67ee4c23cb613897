"""Figures of an attack against slow counts."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from fedjax_health.audit.rates import balanced_accuracy, rates, resampled, tpr_at


@pytest.fixture
def scores():
    rng = np.random.default_rng(0)
    member = rng.random(700) < 0.4
    return np.round(rng.normal(size=700) + member, 1), member


def test_the_area_is_that_of_scikit_learn(scores):
    assert rates(*scores).auroc == pytest.approx(roc_auc_score(scores[1], scores[0]))


def test_members_found_are_those_of_the_roc_curve(scores):
    score, member = scores
    far, tpr, _ = roc_curve(member, score, drop_intermediate=False)
    assert tpr_at(score, member) == pytest.approx(tpr[far <= 0.01].max())


def test_ties_count_as_false_accusations():
    assert tpr_at(np.ones(20), np.arange(20) < 10) == 0


def test_balanced_accuracy_uses_the_attackers_threshold_or_the_median():
    score, member = np.arange(8.0), np.arange(8) >= 4
    assert balanced_accuracy(score, member) == 1
    assert balanced_accuracy(score, member, 6.0) == pytest.approx(0.75)


def test_intervals_hold_the_figures_and_guessing_is_guessing():
    rng = np.random.default_rng(2)
    groups = [(rng.normal(size=400), rng.random(400) < 0.5) for _ in range(4)]
    found = resampled(groups, 0, threshold=0.0)
    for value, (low, high) in zip(found.rates, found.intervals.values(), strict=True):
        assert low <= value <= high
    assert found.intervals["auroc"][0] < 0.5 < found.intervals["auroc"][1]
    assert found.members + found.others == 1600
