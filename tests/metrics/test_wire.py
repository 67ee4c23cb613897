"""Attacks on the wire where the answer is known, and at their ends."""

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fedjax_health.metrics.wire import (
    MOST_RECORDS,
    decoder_inversion,
    input_correlation,
    label_leak,
    label_leak_intervals,
)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def error_of(*arguments, **named):
    return decoder_inversion(*arguments, **named).error


@pytest.fixture
def labels():
    return (np.random.default_rng(1).random(400) < 0.3).astype(np.float32)


def test_norm_is_that_of_scikit_learn_whichever_class_is_longer(labels):
    noise = normal(400, 3, 2)
    for factor in (2.0, 0.5):
        sent = noise * np.where(labels > 0, factor, 1)[:, None, None]
        norms = np.sqrt((sent**2).sum((1, 2)))
        area = roc_auc_score(labels, norms)
        found = label_leak(sent, labels)
        assert found.norm == pytest.approx(max(area, 1 - area))
        assert found.norm > 0.8


def test_direction_is_found_where_norms_say_nothing(labels):
    # p - y of a logistic loss at p = 1/2, along one weight vector.
    sent = (0.5 - labels)[:, None] * normal(5) * 1e-9
    assert label_leak(sent, labels) == (0.5, 1.0)


def test_direction_is_that_of_the_bayes_rule_for_shifted_noise(labels):
    sent = normal(400, 2)
    sent[:, 0] += 2 * labels
    found = label_leak(sent, labels).direction
    assert found == pytest.approx(roc_auc_score(labels, sent[:, 0]), abs=0.06)
    assert label_leak(sent, labels, seed=5) == label_leak(sent, labels, seed=5)
    assert label_leak(sent, labels, seed=5).direction != found


def test_cotangents_that_know_nothing_of_labels(labels):
    found = [label_leak(normal(400, 50, seed=s), labels, seed=s) for s in range(10)]
    norm, direction = np.mean(found, axis=0)
    assert 0.5 <= norm < 0.56
    # Scored where it was estimated, it would be near 1.
    assert direction == pytest.approx(0.5, abs=0.05)
    assert label_leak(np.full((400, 9), 0.1), labels) == (0.5, 0.5)
    assert label_leak(np.zeros((400, 0)), labels) == (0.5, 0.5)


def test_labels_too_few_are_not_ranked():
    sent = normal(6, 2)
    for labels in (np.zeros(6), np.ones(6)):
        assert all(math.isnan(figure) for figure in label_leak(sent, labels))
    norm, direction = label_leak(sent, np.array([1, 0, 0, 0, 0, 0]))
    assert 0.5 <= norm <= 1
    assert math.isnan(direction)
    assert all(math.isnan(f) for f in label_leak(np.zeros((0, 2)), np.zeros(0)))


def test_decoder_undoes_a_linear_map_and_a_bent_one():
    x = normal(400, 2, 2) * [1.0, 100.0] + 7
    mixed = x.reshape(400, 4) @ (normal(4, 6, seed=3) / [[1], [100], [1], [100]])
    assert error_of(x, mixed, steps=5) < 1e-4
    # An even function of what arrives: ridge finds nothing of it, the perceptron does.
    angle = np.random.default_rng(4).uniform(-1, 1, (400, 1))
    bent = np.abs(angle), angle + normal(400, 1, seed=5) * 1e-3
    assert error_of(*bent, hidden=16) < 0.1


def test_decoder_error_is_the_share_of_what_is_hidden():
    x = normal(4000, 2)
    # One column arrives, the other does not.
    assert error_of(x, x[:, :1], steps=5) == pytest.approx(0.5, abs=0.03)
    # Noise of the same variance: half of the variance stays unexplained.
    sent = x + normal(4000, 2, seed=8)
    assert error_of(x, sent, steps=5) == pytest.approx(0.5, abs=0.04)


def test_decoder_learns_nothing_from_nothing():
    x = normal(400, 3)
    assert error_of(x, normal(400, 5, seed=9)) == pytest.approx(1, abs=0.1)
    assert error_of(x, np.full((400, 5), 0.1)) == pytest.approx(1, abs=0.02)
    # More columns than records, and the records held out are not learned.
    wide = error_of(x[:40], normal(40, 200, seed=9))
    assert 0.7 < wide < 1.6


def test_decoder_leaves_out_columns_that_do_not_vary():
    x = normal(100, 3)
    more = np.concatenate([x, np.full((100, 2), 1e6), np.zeros((100, 1))], axis=1)
    plain = error_of(x, x, steps=5)
    assert error_of(more, x, steps=5) == pytest.approx(plain)
    assert error_of(x, more, steps=5) < 1e-4
    assert error_of(x, np.zeros((100, 0)), steps=5) == pytest.approx(1, abs=0.1)
    assert error_of(np.full((100, 2), 0.1), x) == 1
    assert math.isnan(error_of(x[:5], x[:5]))
    assert math.isnan(error_of(x[:100], x[:100], share=0.01))
    noisy = x + normal(100, 3, seed=2)
    draws = [error_of(x, noisy, seed=s, steps=5) for s in (0, 1, 0)]
    assert draws[0] == draws[2] != draws[1]


def test_correlation_is_its_definition():
    x, y = normal(30, 2, 2), normal(30, 1, seed=2)
    y[:, 0] += x[:, 0, 0]
    centred = []
    for rows in (x.reshape(30, -1), y):
        d = np.sqrt(((rows[:, None] - rows[None]) ** 2).sum(-1))
        centred.append(d - d.mean(0) - d.mean(1)[:, None] + d.mean())
    a, b = centred
    oracle = np.sqrt(np.mean(a * b) / np.sqrt(np.mean(a * a) * np.mean(b * b)))
    assert input_correlation(x, y) == pytest.approx(oracle, rel=1e-4)
    assert input_correlation(x + 1e6, y) == pytest.approx(oracle, rel=1e-4)


def test_correlation_at_its_ends():
    x = normal(MOST_RECORDS + 200, 2)
    assert input_correlation(x, 3 * x + 1) == pytest.approx(1, abs=1e-3)
    assert input_correlation(x, normal(len(x), 2, seed=6)) < 0.15
    assert input_correlation(x, np.full((len(x), 2), 0.1)) == 0
    y = x + normal(len(x), 2, seed=7)
    draws = [input_correlation(x, y, seed=s) for s in (0, 1, 0)]
    assert draws[0] == draws[2] != draws[1]
    assert math.isnan(input_correlation(x[:1], x[:1]))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda x: label_leak(x, np.zeros(3)), "labels"),
        (lambda x: label_leak(x * np.nan, np.zeros(10)), "cotangents must be finite"),
        (lambda x: decoder_inversion(x, x[:9]), "same records"),
        (lambda x: decoder_inversion(x, x * np.inf), "smashed must be finite"),
        (lambda x: decoder_inversion(x, x, share=1.0), "share=1"),
        (lambda x: decoder_inversion(x, x, steps=0), "steps=0"),
        (lambda x: decoder_inversion(x, x, hidden=0), "hidden=0"),
        (lambda x: input_correlation(x, x[:9]), "same records"),
        (lambda x: input_correlation(np.array(1.0), x), "one number"),
    ],
)
def test_what_does_not_fit_is_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call(np.ones((10, 2)))


def test_a_decoder_learns_from_the_known_records_alone():
    """The known half says nothing of the map that the other half went through."""
    x = normal(400, 2)
    known = np.arange(400) < 200
    sent = np.where(known[:, None], normal(400, 2, seed=3), x)
    assert error_of(x, sent, known=known, steps=5) > 0.9
    assert error_of(x, np.where(known[:, None], x, sent), known=known, steps=5) < 1e-3
    with pytest.raises(ValueError, match="known"):
        decoder_inversion(x, sent, known=known[:5])


def test_intervals_hold_the_figures_and_shrink_with_the_groups(labels):
    x = normal(400, 2)
    found = decoder_inversion(x, x + normal(400, 2, seed=8), steps=5)
    low, high = found.interval
    assert low < found.error < high
    groups = np.arange(400)
    # Of four copies of a row the interval is that of the row, if they stay together.
    once = label_leak_intervals(normal(400, 3), labels, groups)
    four = label_leak_intervals(
        np.repeat(normal(400, 3), 4, axis=0),
        np.repeat(labels, 4),
        np.repeat(groups, 4),
    )
    np.testing.assert_allclose(once[0], four[0], atol=1e-9)
    alone = label_leak_intervals(
        np.repeat(normal(400, 3), 4, axis=0), np.repeat(labels, 4), np.arange(1600)
    )
    assert np.ptp(alone[0]) < 0.8 * np.ptp(four[0])
    low, high = label_leak_intervals(normal(9, 2), np.zeros(9), np.arange(9))[0]
    assert math.isnan(low)
    assert math.isnan(high)
