import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, roc_auc_score

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


def test_client_auroc_excludes_and_counts_single_class_clients():
    rng = np.random.default_rng(3)
    client = rng.permutation(np.repeat([4, 7, 9, 12], 50))
    label = rng.integers(0, 2, 200)
    label[client == 9] = 0
    label[client == 12] = 1
    score = rng.normal(size=200) + label
    spread = host.client_auroc(score, label, client)
    values = [roc_auc_score(label[client == c], score[client == c]) for c in (4, 7)]
    assert spread["excluded_clients"] == 2
    assert spread["ranked_clients"] == 2
    np.testing.assert_allclose(spread["mean_client_auroc"], np.mean(values))
    np.testing.assert_allclose(spread["worst_client_auroc"], min(values))
    alone = host.client_auroc(
        score[client == 9], label[client == 9], client[client == 9]
    )
    assert alone == {"ranked_clients": 0.0, "excluded_clients": 1.0}


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
        host.client_auroc([0.1, 0.2], [0, 1], [1])
    with pytest.raises(ValueError, match="bins"):
        host.calibration_error([0.1, 0.2], [0, 1], bins=0)
