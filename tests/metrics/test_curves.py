import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from fedjax_health.metrics import host
from fedjax_health.metrics.curves import precision_recall_curve, roc_curve

ROWS = st.lists(
    st.tuples(st.sampled_from([-1.0, 0.0, 0.25, 1.0, 7.0]), st.integers(0, 1)),
    min_size=2,
    max_size=30,
).filter(lambda rows: len({label for _, label in rows}) == 2)


def many(rows=20_000):
    rng = np.random.default_rng(0)
    label = rng.random(rows) < 0.1
    return rng.normal(size=rows) + 1.5 * label, label


def steps_area(curve):
    return float(np.sum(np.diff(curve.recall) * curve.precision[1:]))


@given(rows=ROWS)
@settings(deadline=None, max_examples=150)
def test_few_points_lose_nothing(rows):
    score, label = (np.array(column) for column in zip(*rows, strict=True))
    roc = roc_curve(score, label)
    area = np.trapezoid(roc.recall, roc.false_alarm_rate)
    np.testing.assert_allclose(area, host.auroc(score, label))
    steps = precision_recall_curve(score, label)
    np.testing.assert_allclose(steps_area(steps), host.auprc(score, label))
    for curve in (roc, steps):
        assert (np.diff(curve[0]) >= 0).all()
        assert curve[0][[0, -1]].tolist() == [0, 1]


def test_every_point_lies_on_the_curve_of_all_points():
    score, label = many(300)
    far, recall, _ = sk.roc_curve(label, score, drop_intermediate=False)
    whole = set(zip(far, recall, strict=True))
    assert set(zip(*roc_curve(score, label), strict=True)) <= whole
    precision, recall, _ = sk.precision_recall_curve(label, score)
    whole = set(zip(recall.round(9), precision.round(9), strict=True))
    steps = precision_recall_curve(score, label)
    thinned = zip(steps.recall[1:].round(9), steps.precision[1:].round(9), strict=True)
    assert set(thinned) <= whole


@pytest.mark.parametrize("points", [2, 3, 50, 400])
def test_thinned_curves_keep_their_ends_and_their_order(points):
    score, label = many()
    for curve in (
        roc_curve(score, label, points=points),
        precision_recall_curve(score, label, points=points),
    ):
        assert 2 <= len(curve[0]) <= points
        assert curve[0][[0, -1]].tolist() == [0, 1]
        assert (np.diff(curve[0]) >= 0).all()
        assert len(curve[0]) == len(curve[1])
    roc = roc_curve(score, label, points=points)
    assert (np.diff(roc.recall) >= 0).all()
    assert roc.recall[[0, -1]].tolist() == [0, 1]


def test_thinned_curves_keep_their_areas():
    score, label = many()
    roc = roc_curve(score, label)
    np.testing.assert_allclose(
        np.trapezoid(roc.recall, roc.false_alarm_rate),
        host.auroc(score, label),
        atol=1e-3,
    )
    steps = precision_recall_curve(score, label)
    np.testing.assert_allclose(steps_area(steps), host.auprc(score, label), atol=0.01)


def test_perfect_and_constant_scores():
    label = np.array([0, 0, 1, 1])
    roc = roc_curve([0.1, 0.2, 0.8, 0.9], label)
    assert roc.false_alarm_rate.tolist() == [0, 0, 1]
    assert roc.recall.tolist() == [0, 1, 1]
    roc = roc_curve(np.ones(4), label)
    assert roc.false_alarm_rate.tolist() == roc.recall.tolist() == [0, 1]
    steps = precision_recall_curve(np.ones(4), label)
    assert steps.precision.tolist() == [0.5, 0.5]


def test_input_without_an_answer_is_refused():
    for curve in (roc_curve, precision_recall_curve):
        with pytest.raises(ValueError, match="needs both classes"):
            curve([0.1, 0.2], [0, 0])
        with pytest.raises(ValueError, match="2 points or more, not 1"):
            curve([0.1, 0.2], [0, 1], points=1)
