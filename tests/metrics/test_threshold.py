import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from fedjax_health.metrics import threshold as th

ROWS = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.9, 1.0]), st.integers(0, 1)),
    min_size=1,
    max_size=40,
)


def columns(rows):
    score, label = zip(*rows, strict=True)
    return np.array(score), np.array(label)


@pytest.mark.filterwarnings("ignore:A single label was found:UserWarning")
@given(rows=ROWS, threshold=st.sampled_from([-1.0, 0.1, 0.3, 0.5, 2.0]))
@settings(deadline=None)
def test_metrics_equal_scikit_learn(rows, threshold):
    score, label = columns(rows)
    counts = th.confusion(score, label, threshold=threshold)
    alarm = (score >= threshold).astype(int)
    assert sum(counts) == len(rows)
    pairs = [
        (th.accuracy(counts), sk.accuracy_score(label, alarm)),
        (th.precision(counts), sk.precision_score(label, alarm, zero_division=0)),
        (th.recall(counts), sk.recall_score(label, alarm, zero_division=0)),
        (th.f1(counts), sk.f1_score(label, alarm, zero_division=0)),
        (th.mcc(counts), sk.matthews_corrcoef(label, alarm)),
    ]
    for got, want in pairs:
        np.testing.assert_allclose(got, want, atol=1e-12)


def test_mcc_of_many_rows_is_exact():
    counts = th.Confusion(3_000_000, 1_000_000, 1_000_000, 5_000_000)
    np.testing.assert_allclose(th.mcc(counts), 7 / 12)


@given(rows=ROWS)
@settings(deadline=None)
def test_threshold_at_f1_is_the_highest_of_the_best(rows):
    score, label = columns(rows)
    if len(set(label)) < 2:
        with pytest.raises(ValueError, match="needs both classes"):
            th.threshold_at_f1(score, label)
        return
    best = max((th.f1(th.confusion(score, label, threshold=t)), t) for t in set(score))
    assert th.threshold_at_f1(score, label) == best[1]


@given(rows=ROWS, rate=st.sampled_from([0.0, 0.01, 0.05, 0.1, 0.29, 0.5, 0.99]))
@settings(deadline=None)
def test_threshold_at_far_is_the_lowest_that_keeps_the_rate(rows, rate):
    score, label = columns(rows)
    normal = score[label == 0]
    if not len(normal):
        with pytest.raises(ValueError, match="normal validation rows"):
            th.threshold_at_far(score, label, rate=rate)
        return
    threshold = th.threshold_at_far(score, label, rate=rate)
    assert np.mean(normal >= threshold) <= rate
    lower = np.nextafter(threshold, -np.inf)
    assert np.mean(normal >= lower) > rate


@pytest.mark.parametrize("rows", [100, 300, 700, 1000])
@pytest.mark.parametrize("percent", [1, 5, 7, 29])
def test_rates_that_are_whole_counts_are_used_up(rows, percent):
    score = np.random.default_rng(0).permutation(rows).astype(float)
    threshold = th.threshold_at_far(score, np.zeros(rows), rate=percent / 100)
    assert np.sum(score >= threshold) == rows * percent // 100


@pytest.mark.parametrize("rate", [-0.1, 1.0, 5.0, float("nan")])
def test_rate_out_of_range_is_refused(rate):
    with pytest.raises(ValueError, match=r"1 % is 0\.01"):
        th.threshold_at_far([0.1, 0.2], [0, 1], rate=rate)


def test_nan_threshold_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        th.confusion([0.1, 0.2], [0, 1], threshold=float("nan"))
