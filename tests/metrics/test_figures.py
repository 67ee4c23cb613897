import json

import numpy as np
import pytest
from sklearn import metrics as sk

from fedjax_health.metrics.delay import detection_delay
from fedjax_health.metrics.figures import bootstrap_units, figures, figures_at
from fedjax_health.metrics.intervals import blocks, bootstrap_intervals
from fedjax_health.metrics.summary import METRICS, Scored, evaluate_scores

KEYS = {
    "format",
    "rows",
    "positives",
    "prevalence",
    "threshold",
    "delay_threshold",
    "metrics",
    "details",
    "intervals",
    "interval_unit",
    "resamples",
    "resamples_left_out",
    "confusion",
    "curves",
    "clients",
    "client_spread",
    "attacks",
    "patterns",
    "control",
    "false_alarms",
    "oracle",
}


def split(seed, rows=1200):
    rng = np.random.default_rng(seed)
    label = np.repeat(rng.random(rows // 20) < 0.3, 20).astype(int)
    score = 1 / (1 + np.exp(-(rng.normal(size=rows) + 2 * label - 1)))
    return Scored(score.astype(np.float32), label, np.repeat(np.arange(4), rows // 4))


def plain(value):
    """Whether a value is made of what JSON knows, without NaN."""
    if isinstance(value, dict):
        return all(type(k) is str and plain(v) for k, v in value.items())
    if isinstance(value, list):
        return all(plain(v) for v in value)
    if type(value) is float:
        return np.isfinite(value)
    return value is None or type(value) in (int, str, bool)


def whole(**changes):
    validation, test = split(0), split(1)
    options = {
        "window": 5,
        "client": test.segment,
        "client_names": ["a", "b", "c", "d", "none"],
        "attack": test.label * (1 + np.arange(1200) // 20 % 2),
        "attack_names": ["normal", "flood", "replay"],
        "step_seconds": 60.0,
        "present": np.arange(2400).reshape(1200, 2) % 3 > 0,
        "modalities": ["flow", "vitals"],
        "resamples": 40,
        "oracle": 4.0 * test.label - 2,
    }
    return validation, test, figures(validation, test, **(options | changes))


def test_streams():
    validation, test, got = whole(false_alarm_rate=0.05)
    assert set(got) == KEYS
    assert plain(got)
    assert json.loads(json.dumps(got, allow_nan=False)) == got
    flat = evaluate_scores(validation, test, window=5, false_alarm_rate=0.05)
    assert got["metrics"] == {name: flat[name] for name in METRICS}
    assert list(got["metrics"]) == list(METRICS)
    assert got["details"] == {n: v for n, v in flat.items() if n not in METRICS}
    for name in ("threshold", "delay_threshold", "prevalence"):
        assert got[name] == flat[name]
    assert (got["rows"], got["positives"]) == (1200, test.label.sum())
    assert got["interval_unit"] == "blocks of 60 rows"
    drawn = bootstrap_intervals(
        test.score,
        test.label,
        blocks(test.segment, 60),
        threshold=got["threshold"],
        delay_threshold=got["delay_threshold"],
        segment=test.segment,
        window=5,
        resamples=40,
    )
    assert got["intervals"] == {n: list(ends) for n, ends in drawn.bounds.items()}
    assert set(got["intervals"]) == set(METRICS)
    table = sk.confusion_matrix(test.label, test.score >= got["threshold"])
    assert list(got["confusion"].values()) == table[[1, 0, 1, 0], [1, 1, 0, 0]].tolist()
    assert [row["client"] for row in got["clients"]] == ["a", "b", "c", "d", "none"]
    assert got["client_spread"]["auroc"]["ranked"] == 4
    by_pattern = {one["pattern"]: one["rows"] for one in got["patterns"]}
    assert by_pattern == {"flow + vitals": 400, "flow only": 400, "vitals only": 400}
    assert got["client_spread"]["auroc"]["excluded"] == 1
    assert [row["attack"] for row in got["attacks"]] == ["flood", "replay"]


def test_curves():
    _, test, got = whole()
    curves = got["curves"]
    area = np.trapezoid(curves["roc"]["recall"], curves["roc"]["false_alarm_rate"])
    np.testing.assert_allclose(area, got["metrics"]["auroc"], atol=1e-3)
    for curve in ("roc", "pr"):
        lengths = {len(values) for values in curves[curve].values()}
        assert len(lengths) == 1
        assert 2 < lengths.pop() <= 400
    bins = curves["calibration"]
    assert sum(bins["rows"]) == 1200
    gap = np.abs(np.subtract(bins["predicted"], bins["observed"]))
    np.testing.assert_allclose(
        np.average(gap, weights=bins["rows"]), got["metrics"]["ece"]
    )
    delay = curves["delay"]
    assert len({len(values) for values in delay.values()}) == 1
    assert {0.001, 0.01, 0.05} < set(delay["rate"])
    at = delay["rate"].index(0.01)
    for name in ("achieved_far", "mean_delay", "median_delay", "missed_episodes"):
        assert delay[name][at] == got["metrics"][name]
    per_day = got["false_alarms"]["per_entity_day"]
    assert delay["false_alarms_per_entity_day"][at] == per_day
    normal = test.label == 0
    alarms = np.sum(test.score[normal] >= got["delay_threshold"])
    np.testing.assert_allclose(per_day, alarms / normal.sum() * 1440)
    np.testing.assert_allclose(
        got["false_alarms"]["per_1000_rows"], 1000 * alarms / normal.sum()
    )
    assert whole(step_seconds=None)[2]["false_alarms"]["per_entity_day"] is None


def test_records():
    validation, test = split(0), split(1)
    got = figures(
        validation._replace(segment=None),
        test._replace(segment=None),
        window=1,
        step_seconds=60.0,
        resamples=20,
    )
    assert plain(got)
    assert got["interval_unit"] == "records"
    assert got["delay_threshold"] is None
    assert got["curves"]["delay"] is None
    assert list(got["metrics"]) == list(METRICS[:7])
    assert set(got["intervals"]) == set(METRICS[:7])
    assert got["control"]["random"]["mean_delay"] is None
    assert got["control"]["random"]["achieved_far"] is None
    false = (test.score >= got["threshold"]) & (test.label == 0)
    np.testing.assert_allclose(
        got["false_alarms"]["per_1000_rows"],
        1000 * false.sum() / (1 - test.label).sum(),
    )
    assert got["false_alarms"]["per_entity_day"] is None
    assert (got["clients"], got["attacks"], got["oracle"]) == ([], [], None)


def test_control_gives_as_many_alarms_and_knows_nothing():
    rng = np.random.default_rng(0)
    label = np.tile(np.repeat([0, 1], 24), 400)
    score = np.clip(0.5 + 0.3 * (label - 0.5) + 0.2 * rng.normal(size=19_200), 0, 1)
    test = Scored(score, label, np.repeat(np.arange(400), 48))
    at = np.quantile(score[label == 0], 0.95)
    got = figures_at(
        test, threshold=0.5, delay_threshold=float(at), window=20, resamples=0
    )
    control = got["control"]["random"]
    np.testing.assert_allclose(control["auroc"], 0.5, atol=0.02)
    np.testing.assert_allclose(control["auprc"], got["prevalence"], atol=0.02)
    np.testing.assert_allclose(control["achieved_far"], 0.05, atol=0.005)
    # 24-step episodes at 5 % a step: see the tests of the delay
    np.testing.assert_allclose(control["mean_delay"], 13.5, atol=1.0)
    share = np.mean(score >= 0.5)
    np.testing.assert_allclose(
        control["f1"], 2 * 0.5 * share / (0.5 + share), atol=0.02
    )
    assert got["metrics"]["mean_delay"] < control["mean_delay"]
    assert got["intervals"] == {}


def test_oracle_is_measured_at_even_odds_and_at_the_same_false_alarm_rate():
    rng = np.random.default_rng(2)
    test = split(1)
    log_odds = 30.0 * rng.normal(size=1200) + 60 * test.label - 30
    _, _, got = whole(oracle=log_odds)
    known = got["oracle"]
    assert list(known) == list(METRICS)
    np.testing.assert_allclose(known["f1"], sk.f1_score(test.label, log_odds >= 0))
    np.testing.assert_allclose(
        known["auroc"], sk.roc_auc_score(test.label, log_odds), rtol=1e-12
    )
    far = got["metrics"]["achieved_far"]
    assert far - 2 / (1 - test.label).sum() < known["achieved_far"] <= far
    normal = np.sort(log_odds[test.label == 0])[::-1]
    at = normal[round(far * len(normal)) - 1]
    want = detection_delay(log_odds, test.label, test.segment, threshold=at, window=5)
    assert known["mean_delay"] == want["mean_delay"]


@pytest.mark.parametrize("segment", [None, np.repeat([0, 1], 50)])
@pytest.mark.parametrize("value", [0, 1])
def test_one_class_has_no_ranks_and_everything_else(value, segment):
    score = np.random.default_rng(0).random(100)
    got = figures_at(
        Scored(score, np.full(100, value), segment),
        threshold=0.5,
        delay_threshold=0.9,
        window=2,
        client=np.arange(100) % 3,
        attack=np.full(100, value),
        attack_names=["normal", "flood"],
        step_seconds=30.0,
        resamples=20,
        oracle=score - 0.5,
    )
    assert set(got) == KEYS
    assert plain(got)
    assert got["metrics"]["auroc"] is got["metrics"]["auprc"] is None
    assert got["metrics"]["accuracy"] == np.mean((score >= 0.5) == value)
    assert got["curves"]["roc"] == {"false_alarm_rate": [], "recall": []}
    assert got["curves"]["pr"] == {"recall": [], "precision": []}
    assert len(got["curves"]["calibration"]["rows"]) == 15
    assert got["curves"]["delay"] is None
    assert got["resamples_left_out"] == 20
    assert {"accuracy", "ece", "brier"} <= set(got["intervals"])
    assert got["client_spread"]["auroc"]["excluded"] == 3
    far = got["false_alarms"]["per_1000_rows"]
    if value:
        assert far is None
        assert got["attacks"][0]["recall"] == got["metrics"]["accuracy"]
        assert got["metrics"].get("achieved_far") is None
    else:
        at = 0.5 if segment is None else 0.9
        np.testing.assert_allclose(far, 1000 * np.mean(score >= at))
        assert got["attacks"] == []


def test_given_thresholds_and_the_delay_curve_of_the_rows_themselves():
    validation, test, got = whole()
    at = figures_at(
        test,
        threshold=got["threshold"],
        delay_threshold=got["delay_threshold"],
        window=5,
        reference=validation,
        resamples=40,
    )
    for name in ("metrics", "intervals", "curves", "control", "confusion"):
        if name == "curves":
            at[name]["delay"].pop("false_alarms_per_entity_day")
            got[name]["delay"].pop("false_alarms_per_entity_day")
        assert at[name] == got[name]
    own = figures_at(test, threshold=0.5, delay_threshold=0.9, window=5, resamples=0)[
        "curves"
    ]["delay"]
    normal = (test.label == 0).sum()
    for rate, achieved in zip(own["rate"], own["achieved_far"], strict=True):
        assert rate - 1 / normal - 1e-9 < achieved <= rate + 1e-9


def test_units_of_the_bootstrap():
    label = np.repeat([0, 1], 60)
    segment = np.repeat([0, 1], 60)
    person = np.arange(120) // 3
    unit, name = bootstrap_units(label, segment=segment, patient=person)
    assert name == "patients"
    assert unit.tolist() == person.tolist()
    # 15 patients hold positives: too few for streams, the rule for records
    unit, name = bootstrap_units(label, segment=segment, patient=person // 4, block=20)
    assert name == "blocks of 20 rows"
    assert unit.tolist() == (np.arange(120) // 20).tolist()
    assert bootstrap_units(label, patient=person // 4)[1] == "patients"
    things = np.arange(120) % 60
    unit, name = bootstrap_units(label, entity=things)
    assert (name, len(set(unit.tolist()))) == ("entities", 60)
    assert bootstrap_units(label, entity=things, client=segment)[1] == "records"
    unit, name = bootstrap_units(label)
    assert (name, unit.tolist()) == ("records", list(range(120)))
    wide, name = bootstrap_units(label, segment=np.zeros(120), block=60)
    assert (name, wide.max()) == ("blocks of 60 rows", 1)
    assert whole(window=30)[2]["interval_unit"] == "blocks of 90 rows"


def test_input_without_an_answer_is_refused():
    validation, test = split(0), split(1)
    with pytest.raises(ValueError, match="labels of the validation rows are 0"):
        figures(validation._replace(label=np.zeros(1200)), test, window=5)
    for name in ("client", "attack", "patient", "oracle"):
        with pytest.raises(ValueError, match=name):
            figures(validation, test, window=5, resamples=0, **{name: [0, 1]})
    with pytest.raises(ValueError, match="entities"):
        figures(validation, test._replace(segment=None), window=5, entity=[0, 1])
    with pytest.raises(ValueError, match="apply a sigmoid"):
        figures(validation, test._replace(score=4 * test.score), window=5)
    with pytest.raises(ValueError, match="step_seconds must be above 0, not 0"):
        figures(validation, test, window=5, resamples=0, step_seconds=0)
