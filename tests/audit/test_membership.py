"""Attacks on membership where it is obvious, and where there is none."""

import numpy as np
import pytest
from scipy import stats

from fedjax_health.audit import membership
from fedjax_health.audit.rates import rates


def toy(effect, *, models=16, examples=600, seed=0):
    """Logits that rise with membership on top of how hard an example is."""
    rng = np.random.default_rng(seed)
    member = rng.random((models, examples)) < 0.5
    hard = 5 * rng.normal(size=examples)
    logit = hard + effect * member + 0.3 * rng.normal(size=(models, examples))
    return logit, member


def test_the_likelihood_ratio_finds_members_that_losses_hide():
    logit, member = toy(2.0)
    score, usable = membership.online_scores(logit, member, 0)
    found = rates(score[usable], member[0][usable])
    assert found.auroc > 0.99
    assert found.tpr > 0.95
    # Losses differ far more between examples than by membership.
    by_loss = membership.loss_scores(np.logaddexp(0, -logit[0]), member[0])
    assert rates(by_loss, member[0]).auroc < 0.7


def test_without_a_difference_nothing_is_found():
    logit, member = toy(0.0)
    score, usable = membership.online_scores(logit, member, 3)
    assert abs(rates(score[usable], member[3][usable]).auroc - 0.5) < 0.06


def test_the_offline_form_finds_members_of_another_model():
    logit, member = toy(2.0)
    rng = np.random.default_rng(1)
    inside = rng.random(600) < 0.5
    hard = np.mean(np.where(member, logit - 2.0, logit), axis=0)
    answer = hard + 2.0 * inside + 0.3 * rng.normal(size=600)
    score, usable = membership.offline_scores(answer, logit, member)
    assert rates(score[usable], inside[usable]).auroc > 0.99


def test_the_score_is_the_ratio_of_two_normal_densities():
    logit, member = toy(1.0, models=8, examples=5)
    score, usable = membership.online_scores(logit, member, 2)
    others = [i for i in range(8) if i != 2]

    def spread(chosen):
        parts = [logit[others, e][chosen[others, e]] for e in range(5)]
        squares = sum(np.sum((p - p.mean()) ** 2) for p in parts if len(p))
        return np.sqrt(squares / sum(max(len(p) - 1, 0) for p in parts))

    for example in np.flatnonzero(usable):
        ins = logit[others, example][member[others, example]]
        outs = logit[others, example][~member[others, example]]
        value = logit[2, example]
        ratio = stats.norm.logpdf(value, ins.mean(), spread(member))
        ratio -= stats.norm.logpdf(value, outs.mean(), spread(~member))
        assert score[example] == pytest.approx(ratio)
    assert usable.any()


def test_an_example_that_every_model_saw_does_not_count():
    logit, member = toy(1.0)
    member[:, 0] = True
    assert not membership.online_scores(logit, member, 0)[1][0]
    assert not membership.offline_scores(logit[0], logit, member)[1][0]


def test_equal_models_give_equal_scores():
    member = toy(0.0)[1]
    score, _ = membership.online_scores(np.zeros(member.shape), member, 0)
    assert np.all(score == score[0])
