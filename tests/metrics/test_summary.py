import numpy as np
import pytest
from sklearn import metrics as sk

from fedjax_health.metrics.delay import detection_delay
from fedjax_health.metrics.summary import Scored, evaluate_scores


def split(seed, rows=600):
    rng = np.random.default_rng(seed)
    label = np.repeat(rng.random(rows // 20) < 0.3, 20).astype(int)
    score = 1 / (1 + np.exp(-(rng.normal(size=rows) + 2 * label - 1)))
    return Scored(score, label, np.repeat([0, 1], rows // 2))


def test_figures_come_from_validation_thresholds_and_test_rows():
    validation, test = split(0), split(1)
    result = evaluate_scores(validation, test, window=10, false_alarm_rate=0.05)
    grid = np.unique(validation.score)
    scores = [sk.f1_score(validation.label, validation.score >= t) for t in grid]
    best = grid[int(np.argmax(scores))]
    assert result["threshold"] == best
    alarm = test.score >= best
    want = {
        "accuracy": sk.accuracy_score(test.label, alarm),
        "f1": sk.f1_score(test.label, alarm),
        "mcc": sk.matthews_corrcoef(test.label, alarm),
        "precision": sk.precision_score(test.label, alarm),
        "recall": sk.recall_score(test.label, alarm),
        "auroc": sk.roc_auc_score(test.label, test.score),
        "auprc": sk.average_precision_score(test.label, test.score),
        "brier": sk.brier_score_loss(test.label, test.score),
        "prevalence": np.mean(test.label),
    }
    for name, value in want.items():
        np.testing.assert_allclose(result[name], value, err_msg=name)
    normal = validation.score[validation.label == 0]
    assert np.mean(normal >= result["delay_threshold"]) <= 0.05
    delay = detection_delay(*test, threshold=result["delay_threshold"], window=10)
    assert delay.items() <= result.items()
    assert {"mean_delay", "median_delay", "missed_episodes", "achieved_far"} < set(
        delay
    )
    assert all(type(value) is float for value in result.values())


def test_thresholds_do_not_depend_on_the_test_labels():
    validation, test = split(0), split(1)
    flipped = test._replace(label=1 - np.asarray(test.label))
    one = evaluate_scores(validation, test, window=10)
    two = evaluate_scores(validation, flipped, window=10)
    assert one["threshold"] == two["threshold"]
    assert one["delay_threshold"] == two["delay_threshold"]
    np.testing.assert_allclose(one["auroc"], 1 - two["auroc"])


def test_records_have_no_delay_and_clients_add_their_spread():
    validation, test = split(0), split(1)
    client = np.arange(600) % 3
    result = evaluate_scores(
        validation._replace(segment=None),
        test._replace(segment=None),
        window=10,
        client=client,
    )
    assert "mean_delay" not in result
    assert "delay_threshold" not in result
    assert result["ranked_clients"] == 3
    assert result["worst_client_auroc"] <= result["mean_client_auroc"]


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("validation", {"label": np.zeros(600)}, "labels of the validation rows are 0"),
        ("test", {"label": np.ones(600)}, "labels of the test rows are 1"),
        ("test", {"score": np.full(600, np.nan)}, "scores of the test rows are NaN"),
        ("test", {"score": np.linspace(-3, 3, 600)}, "apply a sigmoid"),
        ("test", {"segment": np.zeros(3)}, "one length"),
    ],
)
def test_input_without_an_answer_is_refused(part, change, message):
    splits = {"validation": split(0), "test": split(1)}
    splits[part] = splits[part]._replace(**change)
    with pytest.raises(ValueError, match=message):
        evaluate_scores(splits["validation"], splits["test"], window=10)
