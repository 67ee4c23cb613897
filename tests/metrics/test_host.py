import numpy as np
import pytest
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    roc_auc_score,
)

from fedjax_health.metrics import host


def test_brier_equals_scikit_learn():
    rng = np.random.default_rng(0)
    p, y = rng.random(500), rng.integers(0, 2, 500)
    np.testing.assert_allclose(host.brier(p, y), brier_score_loss(y, p))


@pytest.mark.parametrize(("rows", "bins"), [(500, 15), (15, 15), (7, 15), (100, 1)])
def test_calibration_error_equals_a_loop(rows, bins):
    rng = np.random.default_rng(rows)
    p = rng.permutation(np.linspace(0.01, 0.99, rows))
    y = rng.random(rows) < p**2
    order = sorted(range(rows), key=lambda i: p[i])
    used = min(rows, bins)
    error = 0.0
    for b in range(used):
        inside = order[b * rows // used : (b + 1) * rows // used]
        gap = sum(p[i] - y[i] for i in inside) / len(inside)
        error += abs(gap) * len(inside) / rows
    np.testing.assert_allclose(host.calibration_error(p, y, bins=bins), error)


def test_calibration_error_does_not_depend_on_the_order_of_ties():
    rng = np.random.default_rng(1)
    p = rng.choice([0.1, 0.3, 0.9], 200)
    y = rng.random(200) < 0.4
    values = set()
    for _ in range(5):
        order = rng.permutation(200)
        values.add(round(host.calibration_error(p[order], y[order]), 12))
    assert len(values) == 1
    want = sum(abs(v - y[p == v].mean()) * (p == v).mean() for v in (0.1, 0.3, 0.9))
    # Bins that hold two of the three values can only cancel a part of the error.
    assert 0 < values.pop() <= want + 1e-12


def test_calibrated_and_overconfident_forecasts():
    rng = np.random.default_rng(2)
    p = rng.random(100_000)
    y = rng.random(100_000) < p
    assert host.calibration_error(p, y) < 0.01
    np.testing.assert_allclose(
        host.calibration_error(np.ones(100), np.arange(100) < 40), 0.6
    )


def test_client_spread_excludes_and_counts_single_class_clients():
    rng = np.random.default_rng(3)
    client = rng.permutation(np.repeat([4, 7, 9, 12], 50))
    label = rng.integers(0, 2, 200)
    label[client == 9] = 0
    label[client == 12] = 1
    score = rng.normal(size=200) + label
    spread = host.client_spread(score, label, client)
    values = [roc_auc_score(label[client == c], score[client == c]) for c in (4, 7)]
    assert spread["worst_decile_client_auroc"] == spread["worst_client_auroc"]
    np.testing.assert_allclose(spread["std_client_auroc"], np.std(values))
    assert spread["excluded_clients"] == 2
    assert spread["ranked_clients"] == 2
    np.testing.assert_allclose(spread["mean_client_auroc"], np.mean(values))
    np.testing.assert_allclose(spread["worst_client_auroc"], min(values))
    alone = host.client_spread(
        score[client == 9], label[client == 9], client[client == 9]
    )
    assert alone == {"ranked_clients": 0.0, "excluded_clients": 1.0}


def test_client_rankings_equal_scikit_learn_one_by_one():
    rng = np.random.default_rng(5)
    client = rng.integers(0, 6, 400)
    client[client == 4] = 5
    label = rng.integers(0, 2, 400)
    label[client == 2] = 1
    score = rng.normal(size=400).round(1) + label
    got = host.client_rankings(score, label, client, num_clients=7)
    assert got.ranked.tolist() == [True, True, False, True, False, True, False]
    assert got.rows.tolist() == [(client == c).sum() for c in range(7)]
    assert got.positives.tolist() == [label[client == c].sum() for c in range(7)]
    for c in range(7):
        here = client == c
        want = [0.0, 0.0]
        if got.ranked[c]:
            want = [
                roc_auc_score(label[here], score[here]),
                average_precision_score(label[here], score[here]),
            ]
        np.testing.assert_allclose([got.auroc[c], got.auprc[c]], want, atol=1e-12)
    for bad in (6, -1):
        wrong = np.where(np.arange(400) == 3, bad, client % 6)
        with pytest.raises(ValueError, match=r"clients must lie in \[0, 6\)"):
            host.client_rankings(score, label, wrong, num_clients=6)


def test_spread():
    values = np.random.default_rng(0).permutation(np.arange(25) / 25)
    got = host.spread(values)
    assert got.worst == 0
    np.testing.assert_allclose(
        [got.mean, got.worst_decile, got.std], [0.48, 0.02, np.std(values)]
    )
    assert host.spread([0.7]) == (0.7, 0.7, 0.7, 0.0)
    assert host.spread([]) is None


def test_calibration_bins_of_ties_share_their_positives():
    p = np.array([0.2, 0.2, 0.2, 0.2, 0.6, 0.6])
    y = np.array([1, 0, 0, 0, 1, 1])
    got = host.calibration_bins(p, y, bins=3)
    np.testing.assert_allclose(got.predicted, [0.2, 0.2, 0.6])
    np.testing.assert_allclose(got.observed, [0.25, 0.25, 1.0])
    assert got.rows.tolist() == [2, 2, 2]
    uneven = host.calibration_bins(p, y, bins=4)
    assert sorted(uneven.rows.tolist()) == [1, 1, 2, 2]
    np.testing.assert_allclose(np.sum(uneven.rows * uneven.observed), 3)


@pytest.mark.parametrize(
    ("score", "label", "message"),
    [
        (
            [0.1, np.nan],
            [0, 1],
            "1 scores of the test rows are NaN, the first in row 1",
        ),
        ([0.1, 0.2], [0, 2], "must be 0 or 1"),
        ([0.1, 0.2], [0, np.nan], "must be 0 or 1"),
        ([0.1, 0.2], [1, 1], "are 1: this metric needs both classes"),
        ([0.1, 0.2], [0, 0], "are 0: this metric needs both classes"),
        ([0.1, 0.2], [0, 1, 1], "two vectors of one length"),
        ([], [], "no scores"),
    ],
)
def test_input_without_an_answer_is_refused(score, label, message):
    with pytest.raises(ValueError, match=message):
        host.checked(score, label, name="test")


@pytest.mark.parametrize("metric", [host.brier, host.calibration_error])
def test_logits_are_refused_as_probabilities(metric):
    with pytest.raises(ValueError, match="apply a sigmoid"):
        metric([-3.0, 2.0], [0, 1])


def test_shapes_and_bins_are_checked():
    with pytest.raises(ValueError, match="clients"):
        host.client_spread([0.1, 0.2], [0, 1], [1])
    with pytest.raises(ValueError, match="bins"):
        host.calibration_error([0.1, 0.2], [0, 1], bins=0)
